//! `sockops`, on the cgroup of the node's pods. It hands the original destination of a redirected
//! socket to the agent, once the source port is known. It hands the real client's address to the
//! application's accepted socket. Kernel 5.15.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    },
    helpers::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set, generated::bpf_getsockopt},
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    addr::Addr,
    maps::{DialOptions, FlowKey},
    ports,
    verdict::Verdict,
};

use crate::{
    ctx::{OPTION_BYTES, SOL_SOCKET, SockOps},
    legs, maps,
};

/// Sockops programs answer through `reply`; the return value only has to be 1.
const DONE: u32 = 1;

#[sock_ops]
pub(crate) fn nm_sockops(context: SockOpsContext) -> u32 {
    let ops = SockOps(context.ops);
    match ops.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dialling(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ops),
        BPF_SOCK_OPS_STATE_CB => changed(ops),
        _ => {}
    }
    DONE
}

#[inline(always)]
fn key(ops: SockOps) -> FlowKey {
    let (local, remote) = (ops.local(), ops.remote());
    FlowKey {
        // SAFETY: the context is the running program's own.
        netns: unsafe { bpf_get_netns_cookie(ops.0.cast()) },
        local: local.addr,
        remote: remote.addr,
        local_port: local.port,
        remote_port: remote.port,
        zero: 0,
    }
}

/// The SYN is about to leave, and both ports are known. For a redirected socket, the original
/// destination is noted for the agent. The agent cannot accept the connection before that.
#[inline(always)]
fn dialling(ops: SockOps) {
    if !ports::may_be_redirected(ops.remote().port) {
        return;
    }
    let Some(named) = maps::shown(ops.sk()) else {
        return;
    };
    let flow = key(ops);
    if flow.local != flow.remote {
        return;
    }
    // If it is not noted, the agent does not find it, and resets the connection.
    if !maps::note_dial(&flow, named, options(ops, &named.endpoint.addr)) {
        maps::count(Verdict::RefusedPendingShare, flow.netns);
        maps::report(Verdict::RefusedPendingShare, flow.netns, ops.local(), named.endpoint);
    }
    // This asks for calls of `changed`, so that an entry that the agent has not fetched does not
    // stay.
    // SAFETY: the context is the running program's own.
    unsafe {
        bpf_sock_ops_cb_flags_set(
            ops.0,
            (ops.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG).cast_signed(),
        )
    };
}

const SOL_IP: i32 = 0;
const IP_TOS: i32 = 1;
const SOL_IPV6: i32 = 41;
const IPV6_TCLASS: i32 = 67;
const SO_KEEPALIVE: i32 = 9;
const SOL_TCP: i32 = 6;
const TCP_KEEPIDLE: i32 = 4;
const TCP_KEEPINTVL: i32 = 5;
const TCP_KEEPCNT: i32 = 6;
const TCP_USER_TIMEOUT: i32 = 18;

/// What the application has set until now on its socket, which dials `to`.
#[inline(always)]
fn options(ops: SockOps, to: &Addr) -> DialOptions {
    let tos = match (ops.is_v4(), to.is_v4()) {
        (true, _) => option(ops, SOL_IP, IP_TOS),
        (false, false) => option(ops, SOL_IPV6, IPV6_TCLASS),
        (false, true) => 0, // the kernel does not tell it
    };
    let keepalive_s = if option(ops, SOL_SOCKET, SO_KEEPALIVE) == 0 {
        0
    } else {
        let probes =
            option(ops, SOL_TCP, TCP_KEEPINTVL).wrapping_mul(option(ops, SOL_TCP, TCP_KEEPCNT));
        option(ops, SOL_TCP, TCP_KEEPIDLE).wrapping_add(probes)
    };
    DialOptions { tos, keepalive_s, user_timeout_ms: option(ops, SOL_TCP, TCP_USER_TIMEOUT) }
}

/// A socket option that is a number; 0 if the kernel does not tell it (the helper then writes 0).
#[inline(always)]
fn option(ops: SockOps, level: i32, name: i32) -> u32 {
    let mut value = 0_u32;
    // SAFETY: the context is the running program's own, and the value's size is given.
    unsafe { bpf_getsockopt(ops.0.cast(), level, name, (&raw mut value).cast(), OPTION_BYTES) };
    value
}

/// An application has a new connection. If it is the agent's leg, its socket gets the real client,
/// before `accept()` can return it: the kernel still holds the socket's lock.
#[inline(always)]
fn accepted(ops: SockOps) {
    let mut flow = key(ops);
    if flow.local != flow.remote && !ports::is_mesh_source(flow.remote_port) {
        return;
    }
    // The agent wrote the entry as its own end sees the connection.
    core::mem::swap(&mut flow.local, &mut flow.remote);
    core::mem::swap(&mut flow.local_port, &mut flow.remote_port);
    let Some(named) = legs::accepted(&flow) else {
        return;
    };
    maps::show(ops.sk(), named);
}

/// A redirected socket is in another state. Once it is closed, the agent will not fetch its entry
/// any more.
#[inline(always)]
fn changed(ops: SockOps) {
    if ops.second_arg() == BPF_TCP_CLOSE && ports::may_be_redirected(ops.remote().port) {
        maps::forget_dial(&key(ops));
    }
}
