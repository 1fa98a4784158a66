//! `cgroup/getpeername4` and `getpeername6`: the application is told whom it dialled, or who dialled it. Also answers
//! `accept()` and `SO_PEERNAME`, which ask the same way. Kernel 5.8.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};

use crate::{
    ctx::{AF_INET, AF_INET6, SockAddr},
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
    // SAFETY: the socket was checked for null.
    let shown = unsafe { maps::SHOWN_PEER.get_ptr_mut(context) };
    if shown.is_null() {
        return ALLOW;
    }
    // SAFETY: just checked; the storage lives as long as the socket.
    let peer = unsafe { (*shown).endpoint };
    // An IPv4 socket can only be told of an IPv4 peer; an IPv6 socket sees an IPv4 peer mapped, which is how it is kept.
    if FAMILY == AF_INET6 || peer.addr.is_v4() {
        addr.set_endpoint::<FAMILY>(&peer.addr, peer.port);
    }
    ALLOW
}
