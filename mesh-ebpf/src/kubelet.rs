//! The kubelet's own connections: probes and lifecycle hooks, which a strict pod takes although
//! they are plaintext. These programs are on the cgroup that the kubelet is in. `connect4` and
//! `connect6` mark the sockets of its processes. `sockops` notes what each of them dials, before
//! the SYN leaves. `sk_lookup` finds the note. Kernel 5.15.
//!
//! An address proves nothing, because pods can have the node's. A noted 4-tuple does: another
//! sender from that 4-tuple gets no answer, since the answer goes to the kubelet's socket.

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_SOCK_OPS_TCP_CONNECT_CB,
        BPF_TCP_CLOSE,
    },
    helpers::{bpf_get_current_cgroup_id, bpf_sock_ops_cb_flags_set},
    macros::{cgroup_sock_addr, sock_ops},
    programs::{SockAddrContext, SockOpsContext},
};
use mesh_common::{
    maps::{DialKey, NODE_KUBELET_CGROUP},
    verdict::Verdict,
};

use crate::{
    ctx::{SockAddr, SockOps},
    log, maps,
};

/// These programs refuse nothing.
const ALLOW: i32 = 1;
/// Sockops programs answer through `reply`; the return value only has to be 1.
const DONE: u32 = 1;

#[cgroup_sock_addr(connect4)]
pub(crate) fn nm_kubelet_connect4(context: SockAddrContext) -> i32 {
    mark(&context)
}

#[cgroup_sock_addr(connect6)]
pub(crate) fn nm_kubelet_connect6(context: SockAddrContext) -> i32 {
    mark(&context)
}

/// Marks the socket of a process that is in the kubelet's cgroup itself. Where that cgroup is above
/// the pods', this program sees the pods' dials, too. The mark is made here and not in sockops,
/// since only here the kernel tells which process dials (6.1). A socket may connect several times.
#[inline(always)]
fn mark(context: &SockAddrContext) -> i32 {
    let addr = SockAddr(context.sock_addr);
    let sk = addr.sk();
    if !addr.is_tcp() || sk.is_null() {
        return ALLOW;
    }
    // SAFETY: no preconditions.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if cgroup == maps::node(NODE_KUBELET_CGROUP) {
        let mut mark = 1;
        // SAFETY: `sk` was checked for null; the storage belongs to the socket. Without memory it
        // stays unmarked.
        let _: *mut u32 =
            unsafe { maps::KUBELET_SOCKETS.get_or_insert_ptr_mut(context, Some(&mut mark)) };
    } else {
        // SAFETY: `sk` was checked for null.
        let _: Result<(), i32> = unsafe { maps::KUBELET_SOCKETS.delete(sk) };
    }
    ALLOW
}

#[sock_ops]
pub(crate) fn nm_kubelet_sockops(context: SockOpsContext) -> u32 {
    let ops = SockOps(context.ops);
    match ops.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB if maps::is_kubelet_socket(ops.sk()) => dialling(ops),
        BPF_SOCK_OPS_STATE_CB
            if ops.second_arg() == BPF_TCP_CLOSE && maps::is_kubelet_socket(ops.sk()) =>
        {
            let _: Result<(), i32> = maps::KUBELET_DIALS.remove(&key(ops));
        }
        _ => {}
    }
    DONE
}

#[inline(always)]
fn key(ops: SockOps) -> DialKey {
    DialKey { from: ops.local(), to: ops.remote() }
}

/// Both ports are known, and the SYN is about to leave. The note stays until the socket closes, not
/// only until it is connected. Where the pod answers with a SYN cookie (SYN flood), `sk_lookup`
/// runs again for what follows.
#[inline(always)]
fn dialling(ops: SockOps) {
    if maps::KUBELET_DIALS.insert(&key(ops), &maps::boot_ns(), 0).is_err() {
        log::kubelet_not_noted(ops.remote().port);
        return maps::count(Verdict::KubeletNotNoted, 0);
    }
    // SAFETY: the context is the running program's own.
    unsafe {
        bpf_sock_ops_cb_flags_set(
            ops.0,
            (ops.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG).cast_signed(),
        )
    };
}
