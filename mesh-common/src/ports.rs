//! The ports that mean something to Nodemesh inside a pod's network namespace.
//!
//! All of them lie in [`RESERVED_FIRST`]`..=65535`. An enrolled namespace has that range in
//! `ip_local_reserved_ports`, so that the kernel never hands one to an application by itself. The
//! default ephemeral range ends at 60999.

use crate::addr::Addr;

/// First port of the range that enrolled namespaces reserve.
pub const RESERVED_FIRST: u16 = 60_988;

/// Port of the outbound listener, on [`LISTENER_V4`] or `::1`. Reached only through `sk_lookup`.
pub const OUTBOUND_LISTENER: u16 = 60_988;
/// Port of the inbound listener, on [`LISTENER_V4`] or `::1`. Reached only through `sk_lookup`.
pub const INBOUND_LISTENER: u16 = 60_989;

/// Port of the socket that takes the packets of dials that wait, on [`LISTENER_V4`] or `::1`.
/// Reached only through `sk_lookup`. It is one of the magic ports, which mean something else at the
/// pod's own address only.
pub const ASKING_LISTENER: u16 = MAGIC_FIRST;

/// First of the destination ports that redirected connections are rewritten to.
pub const MAGIC_FIRST: u16 = 60_990;
/// How many there are. Two sockets of one pod may share a source port when they dial different
/// destinations. Different magic ports keep their 4-tuples apart after both destinations have been
/// rewritten to the pod's own address.
pub const MAGIC_COUNT: u16 = 8;

/// Destination port that leads to a pod's agent whatever the source. A peer's agent asks there
/// which source address and port are seen, before it relies on [`MESH_FIRST`]'s meaning. Where the
/// path changes them, it sends its connections there.
pub const AGENTS: u16 = 60_998;

/// First source port of agents' dials to peers: "TLS follows". Above the default ephemeral range.
pub const MESH_FIRST: u16 = 61_000;
/// How many source ports an agent has per source pod, destination and port: 4,536.
pub const MESH_COUNT: u16 = u16::MAX - MESH_FIRST + 1;

/// First destination port, at the pod's own address, of redirected dials from a bound source port.
/// Such dials share the source port, so their destination ports must differ, and [`MAGIC_COUNT`] is
/// too few.
pub const BOUND_FIRST: u16 = u16::MAX - BOUND_COUNT + 1;
/// How many there are.
pub const BOUND_COUNT: u16 = 1_024;

/// How many of the ports from [`MESH_FIRST`] on are source ports of the agent's legs to an
/// application. They are below [`BOUND_FIRST`]: a leg from the port to which a dial of the pod
/// goes, to the port from which it comes, would be that dial's other end to TCP (simultaneous
/// open).
pub const LEG_COUNT: u16 = BOUND_FIRST - MESH_FIRST;

/// 127.7.0.1, where the IPv4 listeners are bound: an address no application has a reason to use.
pub const LISTENER_V4: Addr = Addr::from_v4_word(u32::from_ne_bytes([127, 7, 0, 1]));

/// Whether a destination port is one that redirected connections carry.
#[inline(always)]
pub const fn is_magic(port: u16) -> bool {
    port >= MAGIC_FIRST && port < MAGIC_FIRST + MAGIC_COUNT
}

/// Whether a redirected connection may have this destination port at the pod's own address. An
/// application may listen on one from [`BOUND_FIRST`] on, so only `PENDING` tells whose packet it
/// is.
#[inline(always)]
pub const fn may_be_redirected(port: u16) -> bool {
    is_magic(port) || port >= BOUND_FIRST
}

/// Whether a source port says that an agent is dialling.
#[inline(always)]
pub const fn is_mesh_source(port: u16) -> bool {
    port >= MESH_FIRST
}

/// The magic port for a destination. Any spread will do, as long as it depends on all of address
/// and port.
#[inline(always)]
pub const fn magic_for(addr: &Addr, port: u16) -> u16 {
    let mut mixed = addr.0[0] ^ addr.0[1] ^ addr.0[2] ^ addr.0[3];
    mixed ^= mixed >> 16;
    mixed ^= port as u32;
    mixed ^= mixed >> 8;
    MAGIC_FIRST + (mixed & (MAGIC_COUNT as u32 - 1)) as u16
}

/// Whether a local address and port are one of the agent's listeners as they are bound.
#[inline(always)]
pub const fn is_listener(addr: &Addr, port: u16) -> bool {
    if port != OUTBOUND_LISTENER && port != INBOUND_LISTENER && port != ASKING_LISTENER {
        return false;
    }
    let a = &addr.0;
    let v4 = &LISTENER_V4.0;
    let v6 = &Addr::LOCALHOST_V6.0;
    (a[0] == v4[0] && a[1] == v4[1] && a[2] == v4[2] && a[3] == v4[3])
        || (a[0] == v6[0] && a[1] == v6[1] && a[2] == v6[2] && a[3] == v6[3])
}

const _: () = assert!(MAGIC_COUNT.is_power_of_two());
const _: () = assert!(MAGIC_FIRST + MAGIC_COUNT <= AGENTS);
const _: () = assert!(AGENTS < MESH_FIRST);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magic_ports_stay_in_their_range_and_differ_between_destinations() {
        let mut seen = std::collections::BTreeSet::new();
        for host in 0..64_u8 {
            let addr = Addr::from_v4_word(u32::from_ne_bytes([10, 244, 1, host]));
            let magic = magic_for(&addr, 8080);
            assert!(is_magic(magic));
            seen.insert(magic);
        }
        assert_eq!(seen.len(), usize::from(MAGIC_COUNT));
    }
}
