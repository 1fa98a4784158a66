//! The guards, which keep a pod from talking before the agent has classified or enrolled it. A
//! held pod has `connect4`, `connect6` and two `cgroup_skb` programs on its own cgroup. It loses
//! them when it is enrolled, and no other pod is slowed by them. Where the node refuses
//! unclassified pods, another `cgroup_skb/ingress` is on the cgroup of all pods. Kernel 5.7.
//!
//! The dials of a held pod wait until it is enrolled, once the agent knows its addresses, and are
//! refused before. The guards refuse only TCP, which is what the mesh carries, and only new
//! connections. A pod may talk to itself, resolve names over UDP, and keep the connections that it
//! has. Over IPv6, packets with headers before that of TCP are dropped, too.

use aya_ebpf::{
    helpers::{
        bpf_get_current_ancestor_cgroup_id, bpf_get_netns_cookie,
        generated::bpf_skb_ancestor_cgroup_id,
    },
    macros::{cgroup_skb, cgroup_sock_addr},
    programs::{SkBuffContext, SockAddrContext},
};
use mesh_common::{
    addr::{Addr, AddrPort},
    errno,
    maps::{NODE_OWN_NETNS, NODE_REFUSE_UNCLASSIFIED, limits},
    verdict::Verdict,
};

use crate::{
    connect,
    ctx::{self, AF_INET, AF_INET6, SockAddr, TCP},
    maps,
};

const ALLOW: i32 = 1;
/// A connect is refused. A packet is dropped, and its sender sends it again.
const DENY: i32 = 0;

#[cgroup_sock_addr(connect4)]
pub(crate) fn nm_held_connect4(context: SockAddrContext) -> i32 {
    held_connect::<AF_INET>(&context)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn nm_held_connect6(context: SockAddrContext) -> i32 {
    held_connect::<AF_INET6>(&context)
}

#[inline(always)]
fn held_connect<const FAMILY: u32>(context: &SockAddrContext) -> i32 {
    let addr = SockAddr(context.sock_addr);
    let to = addr.endpoint::<FAMILY>();
    let sk = addr.sk();
    if !addr.is_tcp() || sk.is_null() || to.addr.is_loopback_or_unspecified() {
        return ALLOW;
    }
    // SAFETY: the context is the running program's own.
    let netns = unsafe { bpf_get_netns_cookie(context.sock_addr.cast()) };
    // The program on the pods' cgroup runs next, and has the dial wait.
    if maps::HELD.get_ptr(&netns).is_some() && maps::note_held_dial(context) {
        return ALLOW;
    }
    maps::count(Verdict::RefusedHeld, netns);
    maps::report(Verdict::RefusedHeld, netns, ctx::bound_source::<FAMILY>(sk), to);
    connect::set_errno(errno::ECONNREFUSED);
    DENY
}

/// Drops the first packets of dials that wait for the pod to be enrolled. Their sender sends them
/// again. None passes that goes to another address: it was not redirected.
#[cgroup_skb(egress)]
pub(crate) fn nm_held_egress(context: SkBuffContext) -> i32 {
    // SAFETY: the context is the running program's own, and the verifier allows the field here.
    let sk = unsafe { (&raw const (*context.skb.skb).__bindgen_anon_2.sk).read_volatile() };
    match first_packet(&context) {
        FirstPacket::Other => ALLOW,
        FirstPacket::Connection { .. } | FirstPacket::Unknown => DENY,
        FirstPacket::ToItself { client } => match maps::held_dial_waits(sk) {
            None => ALLOW,
            Some(true) => DENY,
            Some(false) => {
                // It has waited in vain: nothing listens where it goes.
                if let Some(named) = maps::shown(sk) {
                    maps::count(Verdict::RefusedHeld, 0);
                    maps::report(Verdict::RefusedHeld, 0, client, named.endpoint);
                }
                ALLOW
            }
        },
    }
}

#[cgroup_skb(ingress)]
pub(crate) fn nm_held_ingress(context: SkBuffContext) -> i32 {
    match first_packet(&context) {
        FirstPacket::Other | FirstPacket::ToItself { .. } => ALLOW,
        // A failing liveness probe has the pod killed. The kubelet sends to an enrolled pod what it
        // sends to a held one.
        FirstPacket::Connection { client, server } if maps::is_kubelets(client, server) => {
            maps::count(Verdict::InboundKubelet, 0);
            ALLOW
        }
        packet => drop_packet(&packet, Verdict::RefusedHeldInbound),
    }
}

#[cgroup_skb(ingress)]
pub(crate) fn nm_unclassified_ingress(context: SkBuffContext) -> i32 {
    let packet = first_packet(&context);
    if matches!(packet, FirstPacket::Other | FirstPacket::ToItself { .. })
        || is_classified(&context)
    {
        return ALLOW;
    }
    drop_packet(&packet, Verdict::RefusedUnclassifiedInbound)
}

/// Whether this node refuses the cgroup of the current process, because the agent has not
/// classified it. The node's own network namespace is never refused.
#[inline(always)]
pub(crate) fn is_refused_as_unclassified(netns: u64) -> bool {
    if maps::node(NODE_REFUSE_UNCLASSIFIED) == 0 || netns == maps::node(NODE_OWN_NETNS) {
        return false;
    }
    for level in 1..=limits::CGROUP_LEVELS {
        // SAFETY: no preconditions.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(level.cast_signed()) };
        if cgroup == 0 {
            return true; // the process has no cgroup at this level
        }
        if maps::CLASSIFIED.get_ptr(&cgroup).is_some() {
            return false;
        }
    }
    true
}

/// Whether the socket that a packet is for belongs to a pod that the agent has classified.
#[inline(always)]
fn is_classified(context: &SkBuffContext) -> bool {
    for level in 1..=limits::CGROUP_LEVELS {
        // SAFETY: the context is the running program's own.
        let cgroup = unsafe { bpf_skb_ancestor_cgroup_id(context.skb.skb, level.cast_signed()) };
        if cgroup == 0 {
            return false;
        }
        if maps::CLASSIFIED.get_ptr(&cgroup).is_some() {
            return true;
        }
    }
    false
}

/// What a packet is to the guards.
enum FirstPacket {
    /// It begins a connection of the pod with itself.
    ToItself { client: AddrPort },
    /// It begins a connection between two addresses.
    Connection { client: AddrPort, server: AddrPort },
    /// Unknown: it is cut, or has headers that an ordinary stack does not send with TCP.
    Unknown,
    /// Not for the guards: not TCP, or not the beginning of a connection.
    Other,
}

const SYN: u8 = 2;
const ACK: u8 = 16;

/// Whether a header of IPv6 may stand before that of TCP (RFC 8200 §4.1, 4302, 6275, 5533): hop by
/// hop, routing, fragment, authentication, destination, mobility, shim.
fn is_extension(next: u8) -> bool {
    matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 140)
}

/// Reads a packet's headers, from the network layer on (RFC 791, 8200, 9293).
#[inline(always)]
fn first_packet(context: &SkBuffContext) -> FirstPacket {
    let Ok(first) = context.load::<u8>(0) else { return FirstPacket::Unknown };
    let (source, destination, tcp) = if first >> 4 == 4 {
        let Ok(ip) = context.load::<[u8; 20]>(0) else { return FirstPacket::Unknown };
        if u32::from(ip[9]) != TCP {
            return FirstPacket::Other;
        }
        let source = Addr::from_v4_word(u32::from_ne_bytes([ip[12], ip[13], ip[14], ip[15]]));
        let destination = Addr::from_v4_word(u32::from_ne_bytes([ip[16], ip[17], ip[18], ip[19]]));
        (source, destination, usize::from(first & 0xf) * 4)
    } else {
        let Ok(ip) = context.load::<Ipv6>(0) else { return FirstPacket::Unknown };
        match ip.next {
            next if u32::from(next) == TCP => {}
            next if is_extension(next) => return FirstPacket::Unknown,
            _ => return FirstPacket::Other,
        }
        (Addr(ip.source), Addr(ip.destination), size_of::<Ipv6>())
    };
    let Ok(tcp) = context.load::<[u8; 14]>(tcp) else { return FirstPacket::Unknown };
    if tcp[13] & (SYN | ACK) != SYN {
        return FirstPacket::Other;
    }
    let client = AddrPort::new(source, u16::from_be_bytes([tcp[0], tcp[1]]));
    if source == destination || source.is_loopback_or_unspecified() {
        return FirstPacket::ToItself { client };
    }
    FirstPacket::Connection {
        client,
        server: AddrPort::new(destination, u16::from_be_bytes([tcp[2], tcp[3]])),
    }
}

/// The fixed header of IPv6. The words of addresses are kept as they lie in memory, as in [`Addr`].
#[repr(C)]
struct Ipv6 {
    _flow: u32,
    _length: u16,
    next: u8,
    _hops: u8,
    source: [u32; 4],
    destination: [u32; 4],
}

#[inline(always)]
fn drop_packet(packet: &FirstPacket, verdict: Verdict) -> i32 {
    maps::count(verdict, 0);
    if let FirstPacket::Connection { client, server } = packet {
        maps::report(verdict, 0, *client, *server);
    }
    DENY
}
