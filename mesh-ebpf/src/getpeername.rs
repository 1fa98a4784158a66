//! `cgroup/getpeername4` and `getpeername6`: the application sees the destination that it dialled,
//! or the client that dialled it. `accept()` and `SO_PEERNAME` go through the same hook.
//! Kernel 5.8.

use aya_ebpf::{
    bindings::{
        BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Tuple6,
    },
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};
use mesh_common::{addr::AddrPort, maps::Named, ports};

use crate::{
    ctx::{self, AF_INET, AF_INET6, SockAddr},
    maps,
};

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub(crate) fn nm_peername4(context: SockAddrContext) -> i32 {
    getpeername::<AF_INET>(&context)
}

#[cgroup_sock_addr(getpeername6)]
pub(crate) fn nm_peername6(context: SockAddrContext) -> i32 {
    getpeername::<AF_INET6>(&context)
}

#[inline(always)]
fn getpeername<const FAMILY: u32>(context: &SockAddrContext) -> i32 {
    let addr = SockAddr(context.sock_addr);
    if addr.sk().is_null() {
        return ALLOW;
    }
    let shown =
        if addr.is_mptcp() { of_subflow::<FAMILY>(context) } else { maps::shown(addr.sk()) };
    // An IPv4 socket can show an IPv4 peer only. An IPv6 socket shows an IPv4 peer as IPv4-mapped,
    // which is how the address is stored.
    if let Some(Named { endpoint: peer, .. }) = shown
        && (FAMILY == AF_INET6 || peer.addr.is_v4())
    {
        addr.set_endpoint::<FAMILY>(&peer.addr, peer.port);
    }
    ALLOW
}

/// The peer to show for an MPTCP socket. Such a socket does not connect itself: the kernel connects
/// another one for it, the subflow, and connect4 or connect6 saw that one. The subflow has the same
/// addresses and ports, and is found by them. (6.18; `mptcp_connect` calls `pre_connect` of the
/// subflow.)
#[inline(always)]
fn of_subflow<const FAMILY: u32>(context: &SockAddrContext) -> Option<Named> {
    let addr = SockAddr(context.sock_addr);
    let peer = addr.endpoint::<FAMILY>();
    if !ports::is_magic(peer.port) {
        return None; // not redirected
    }
    let own = ctx::bound_source::<FAMILY>(addr.sk());
    // A redirected connection goes from the pod's own address to the same address.
    let sk = lookup(context, &peer, own.port);
    if sk.is_null() {
        return None;
    }
    let shown = maps::shown(sk);
    // SAFETY: a reference that the lookup gave us, and that is not used any more.
    unsafe { bpf_sk_release(sk.cast()) };
    shown
}

/// The socket of this namespace that is connected to `remote` from the same address and `own_port`.
/// The caller must release it.
#[inline(always)]
fn lookup(context: &SockAddrContext, remote: &AddrPort, own_port: u16) -> *mut bpf_sock {
    // SAFETY: integers only.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let (sport, dport) = (remote.port.to_be(), own_port.to_be());
    let word = remote.addr.v4_word();
    let size = if remote.addr.is_v4() {
        tuple.__bindgen_anon_1.ipv4 = Tuple4 { saddr: word, daddr: word, sport, dport };
        size_of::<Tuple4>()
    } else {
        let words = remote.addr.0;
        tuple.__bindgen_anon_1.ipv6 = Tuple6 { saddr: words, daddr: words, sport, dport };
        size_of::<Tuple6>()
    };
    // SAFETY: the tuple outlives the call, and its first `size` bytes are written.
    unsafe {
        bpf_sk_lookup_tcp(
            context.sock_addr.cast(),
            &raw mut tuple,
            size as u32,
            i64::from(BPF_F_CURRENT_NETNS).cast_unsigned(),
            0,
        )
    }
}
