//! Looks for sockets in the pod's namespace: those between its own address and itself, where all
//! redirected connections are.

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, BPF_TCP_LISTEN, BPF_TCP_TIME_WAIT, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated::{
        bpf_get_prandom_u32, bpf_sk_lookup_tcp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::SockAddrContext,
};
use mesh_common::{
    addr::Addr,
    maps::Named,
    ports::{BOUND_COUNT, BOUND_FIRST},
};

use crate::maps;

/// How many ports are looked at to find one that is free. If half of them are taken, all attempts
/// fail once in 65,000 times. Each costs the verifier 1,000 instructions.
const ATTEMPTS: u32 = 16;

/// The states of a socket at the dialling end that leave the port free, a bit each; bit 0: there is
/// no socket. A connection takes the place of an old one in `TIME_WAIT`.
const FREE_TO_DIAL: u32 = 1 | 1 << BPF_TCP_LISTEN | 1 << BPF_TCP_TIME_WAIT;
/// The same at the other end, where nothing may listen.
const FREE_TO_ACCEPT: u32 = 1 | 1 << BPF_TCP_TIME_WAIT;

/// Two ports of one address.
#[derive(Clone, Copy)]
pub(crate) struct Ports {
    pub(crate) own: u16,
    pub(crate) remote: u16,
}

/// A destination port for a dial from a bound source port: one at which neither another connection
/// from there ends, nor anything listens, and not its own. The kernel's own tables say which.
/// `None`: none was found.
#[inline(always)]
pub(crate) fn free_port(context: &SockAddrContext, addr: &Addr, own: u16) -> Option<u16> {
    for _ in 0..ATTEMPTS {
        // SAFETY: no preconditions.
        let drawn = unsafe { bpf_get_prandom_u32() } % u32::from(BOUND_COUNT);
        let remote = BOUND_FIRST + drawn as u16;
        // At its own port it would be connected with itself (simultaneous open). So it gets the
        // next one then, without a branch.
        let is_own = u32::from(remote ^ own).wrapping_sub(1) >> 31;
        let remote = remote ^ is_own as u16;
        let dialled = socket_state(context, addr, Ports { own, remote });
        let accepted = socket_state(context, addr, Ports { own: remote, remote: own });
        // Bits, since every branch in this loop costs the verifier much.
        let is_free = (FREE_TO_DIAL >> (dialled & 31)) & (FREE_TO_ACCEPT >> (accepted & 31)) & 1;
        if is_free != 0 {
            return Some(remote);
        }
    }
    None
}

/// The state of the socket that takes packets to these ports; 0 if there is none.
#[inline(always)]
fn socket_state(context: &SockAddrContext, addr: &Addr, ports: Ports) -> u32 {
    let (mut tuple, size) = tuple(addr, ports);
    // SAFETY: as in `shown`.
    let sk = unsafe {
        bpf_skc_lookup_tcp(
            context.sock_addr.cast(),
            &raw mut tuple,
            size,
            i64::from(BPF_F_CURRENT_NETNS).cast_unsigned(),
            0,
        )
    };
    if sk.is_null() {
        return 0;
    }
    // SAFETY: a reference that the look-up gave us; it is released, and not used any more.
    unsafe {
        let state = (&raw const (*sk).state).read_volatile();
        bpf_sk_release(sk.cast());
        state
    }
}

/// The peer to show for the socket that is connected from one port of an address to another.
#[inline(always)]
pub(crate) fn shown(context: &SockAddrContext, addr: &Addr, ports: Ports) -> Option<Named> {
    let (mut tuple, size) = tuple(addr, ports);
    // SAFETY: the tuple outlives the call, and its first `size` bytes are written.
    let sk = unsafe {
        bpf_sk_lookup_tcp(
            context.sock_addr.cast(),
            &raw mut tuple,
            size,
            i64::from(BPF_F_CURRENT_NETNS).cast_unsigned(),
            0,
        )
    };
    if sk.is_null() {
        return None;
    }
    let shown = maps::shown(sk);
    // SAFETY: a reference that the look-up gave us, and that is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    shown
}

/// What the kernel looks a socket up by, and how long it is: the packet's view of it.
#[inline(always)]
fn tuple(addr: &Addr, ports: Ports) -> (bpf_sock_tuple, u32) {
    // SAFETY: integers only.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (sport, dport) = (ports.remote.to_be(), ports.own.to_be());
    let word = addr.v4_word();
    let size = if addr.is_v4() {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 { saddr: word, daddr: word, sport, dport };
        size_of::<Tuple4>()
    } else {
        let words = addr.0;
        tuple.__bindgen_anon_1.ipv6 = Tuple6 { saddr: words, daddr: words, sport, dport };
        size_of::<Tuple6>()
    };
    (tuple, size as u32)
}
