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
    maps::{FlowKey, Shown},
    ports,
    verdict::Verdict,
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
    let Shown { named, share_since_ns } = unsafe { *shown };
    if share_since_ns != 0 {
        maps::give_back(flow.netns, share_since_ns); // an earlier dial, of whose end nobody has told us
    }
    // A failure is a miss, and a miss is a reset.
    let taken = maps::take(flow.netns);
    let is_noted = taken.is_some() && maps::PENDING.insert(&flow, &named, 0).is_ok();
    // SAFETY: as above.
    unsafe { (*shown).share_since_ns = taken.unwrap_or(0) };
    if !is_noted {
        maps::count(Verdict::RefusedPendingShare, flow.netns);
        maps::report(Verdict::RefusedPendingShare, flow.netns, ops.local(), named.endpoint);
    }
    // SAFETY: the context is the running program's own. Asks for `changed`, so that an unclaimed entry does not stay.
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
    let Some(named) = unsafe { maps::LEGS.get(&flow) }.copied() else {
        return;
    };
    let mut shown = Shown { named, share_since_ns: 0 };
    let _: Option<*mut Shown> =
        maps::stored(ops.sk(), &raw mut shown, u64::from(BPF_SK_STORAGE_GET_F_CREATE));
    let _: Result<(), i32> = maps::LEGS.remove(&flow);
}

/// A redirected socket is in another state. Once the agent has fetched what it dialled, or if it is gone, so that nobody will, the
/// pod has its place back. That must not wait until the socket is closed: an application may forget to.
#[inline(always)]
fn changed(ops: SockOps) {
    if !ports::is_magic(ops.remote().port) {
        return;
    }
    let flow = key(ops);
    if ops.second_arg() == BPF_TCP_CLOSE {
        let _: Result<(), i32> = maps::PENDING.remove(&flow);
    } else if maps::PENDING.get_ptr(&flow).is_some() {
        return;
    }
    let Some(shown) = maps::stored(ops.sk(), core::ptr::null_mut(), 0) else {
        return;
    };
    // SAFETY: storage of a live socket, checked for null.
    let share_since_ns = unsafe { core::mem::replace(&mut (*shown).share_since_ns, 0) };
    if share_since_ns != 0 {
        maps::give_back(flow.netns, share_since_ns);
    }
}
