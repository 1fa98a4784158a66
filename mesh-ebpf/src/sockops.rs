//! `sockops`, on the cgroup of the node's pods. It hands the original destination of a redirected
//! socket to the agent, once the source port is known. It hands the real client's address to the
//! application's accepted socket. Kernel 5.15.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    },
    helpers::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{maps::FlowKey, ports, verdict::Verdict};

use crate::{ctx::SockOps, maps};

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
    if !ports::is_magic(ops.remote().port) {
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
    if !maps::note_dial(&flow, named) {
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

/// An application has a new connection. If it is the agent's leg, its socket gets the real client,
/// before `accept()` can return it: the kernel still holds the socket's lock.
#[inline(always)]
fn accepted(ops: SockOps) {
    let mut flow = key(ops);
    if flow.local != flow.remote {
        return;
    }
    // The agent wrote the entry as its own end sees the connection.
    core::mem::swap(&mut flow.local_port, &mut flow.remote_port);
    // SAFETY: the value is copied at once.
    let Some(named) = unsafe { maps::LEGS.get(&flow) }.copied() else {
        return;
    };
    maps::show(ops.sk(), named);
    let _: Result<(), i32> = maps::LEGS.remove(&flow);
}

/// A redirected socket is in another state. Once it is closed, the agent will not fetch its entry
/// any more.
#[inline(always)]
fn changed(ops: SockOps) {
    if ops.second_arg() == BPF_TCP_CLOSE && ports::is_magic(ops.remote().port) {
        maps::forget_dial(&key(ops));
    }
}
