//! `cgroup/getpeername4` and `getpeername6`: the application sees the destination that it dialled,
//! or the client that dialled it. `accept()` and `SO_PEERNAME` go through the same hook.
//! Kernel 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use mesh_common::{maps::Named, ports};

use crate::{
    ctx::{self, AF_INET, AF_INET6, SockAddr},
    maps,
    sockets::{self, Ports},
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
    if !ports::may_be_redirected(peer.port) {
        return None;
    }
    let own = ctx::bound_source::<FAMILY>(addr.sk());
    // A redirected connection goes from the pod's own address to the same address.
    sockets::shown(context, &peer.addr, Ports { own: own.port, remote: peer.port })
}
