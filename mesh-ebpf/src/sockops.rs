//! `sockops`, on the cgroup of the node's pods: hands the original destination of a redirected socket to the agent once
//! its source port is known, and the real client's address to the application's accepted socket. Kernel 5.15.

use aya_ebpf::{
    bindings::{
        BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB,
        BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    },
    helpers::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    macros::sock_ops,
    programs::SockOpsContext,
};
use mesh_common::{
    maps::{FlowKey, Named},
    ports,
};

use crate::{ctx::SockOps, maps};

/// Sockops programs answer through `reply`; the return value only has to be 1.
const DONE: u32 = 1;

#[sock_ops]
pub(crate) fn nm_sockops(context: SockOpsContext) -> u32 {
    let ops = SockOps(context.ops);
    match ops.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => dialling(ops),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ops),
        BPF_SOCK_OPS_STATE_CB if ops.second_arg() == BPF_TCP_CLOSE => closed(ops),
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

/// The SYN is about to leave and both ports are known. A redirected socket leaves word for the agent; no accept can come
/// before it.
#[inline(always)]
fn dialling(ops: SockOps) {
    if !ports::is_magic(ops.remote().port) {
        return;
    }
    let Some(shown) = maps::stored(ops.sk(), core::ptr::null_mut(), 0) else {
        return;
    };
    let flow = key(ops);
    if flow.local != flow.remote {
        return;
    }
    // SAFETY: storage of a live socket, checked for null.
    let named = unsafe { *shown };
    let _: Result<(), i32> = maps::PENDING.insert(&flow, &named, 0); // a failure is a miss, and a miss is a reset
    // SAFETY: the context is the running program's own. Asks for `closed`, so that an unclaimed entry does not stay.
    unsafe {
        bpf_sock_ops_cb_flags_set(
            ops.0,
            (ops.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG).cast_signed(),
        )
    };
}

/// An application has a new connection. If it is the agent's leg, its socket learns who the client really is, before
/// `accept()` can return it (the kernel still holds the socket's lock).
#[inline(always)]
fn accepted(ops: SockOps) {
    let mut flow = key(ops);
    if flow.local != flow.remote {
        return;
    }
    // The agent wrote the entry as its own end sees the connection.
    core::mem::swap(&mut flow.local_port, &mut flow.remote_port);
    // SAFETY: the value is copied at once.
    let Some(mut client) = unsafe { maps::LEGS.get(&flow) }.copied() else {
        return;
    };
    let _: Option<*mut Named> =
        maps::stored(ops.sk(), &raw mut client, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    let _: Result<(), i32> = maps::LEGS.remove(&flow);
}

/// A redirected socket is gone; whatever the agent has not fetched, it will not need.
#[inline(always)]
fn closed(ops: SockOps) {
    if ports::is_magic(ops.remote().port) {
        let _: Result<(), i32> = maps::PENDING.remove(&key(ops));
    }
}
