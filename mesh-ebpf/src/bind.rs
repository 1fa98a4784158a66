//! `cgroup/bind4` and `bind6`, on the cgroup of the node's pods: the agent's sockets keep no port
//! from an application.
//!
//! The agent has sockets at ports of the pod, open or in `TIME_WAIT`: those that it has accepted in
//! the application's place, and those that it dials from. They all have `SO_REUSEADDR`, and none of
//! them listens at the port. So an application can bind it, too, if its own socket has that option.
//! The kernel lets a program set it from 6.1 on. Before, the application must do so.

use crate::{
    ctx::{AF_INET, AF_INET6, OPTION_BYTES, SOL_SOCKET, SockAddr},
    maps,
};
use aya_ebpf::{
    helpers::{bpf_get_netns_cookie, generated::bpf_setsockopt},
    macros::cgroup_sock_addr,
    programs::SockAddrContext,
};

const ALLOW: i32 = 1;

const SO_REUSEADDR: i32 = 2;

#[cgroup_sock_addr(bind4)]
pub(crate) fn nm_bind4(context: SockAddrContext) -> i32 {
    bind::<AF_INET>(&context)
}

#[cgroup_sock_addr(bind6)]
pub(crate) fn nm_bind6(context: SockAddrContext) -> i32 {
    bind::<AF_INET6>(&context)
}

#[inline(always)]
fn bind<const FAMILY: u32>(context: &SockAddrContext) -> i32 {
    let addr = SockAddr(context.sock_addr);
    let port = addr.endpoint::<FAMILY>().port;
    // Without a port, the kernel finds one that is free. It would choose another way with the
    // option.
    if port == 0 || !addr.is_tcp() {
        return ALLOW;
    }
    // SAFETY: the context is the running program's own.
    let netns = unsafe { bpf_get_netns_cookie(context.sock_addr.cast()) };
    if maps::has_agents_sockets(netns, port) {
        let mut one = 1_i32;
        // If the kernel refuses, the application may find the port in use.
        // SAFETY: the value outlives the call, and its size is given.
        unsafe {
            bpf_setsockopt(
                context.sock_addr.cast(),
                SOL_SOCKET,
                SO_REUSEADDR,
                (&raw mut one).cast(),
                OPTION_BYTES,
            )
        };
    }
    ALLOW
}
