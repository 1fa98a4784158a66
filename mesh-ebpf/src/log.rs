//! Rare failures that need a person, as lines in the agent's log (aya-log). A connection that goes
//! well runs no instruction for it.

use aya_ebpf::{btf_maps::Array, macros::btf_map};
use aya_log_ebpf::warn;

use crate::maps;

/// At most one line of a kind in this time, of all programs on all processors. A failure that comes
/// once may come a thousand times a second.
const PAUSE_NS: u64 = 1_000_000_000;

/// When the last line of each kind was written (`CLOCK_BOOTTIME`).
#[btf_map]
static LOGGED: Array<u64, 3> = Array::new();
const DIAL_NOT_NOTED: u32 = 0;
const NO_MEMORY: u32 = 1;
const KUBELET_NOT_NOTED: u32 = 2;

/// A dial could not be noted for the agent, although its pod has room for it.
#[inline(never)]
pub(crate) fn dial_not_noted(netns: u64) {
    if is_time(DIAL_NOT_NOTED) {
        warn!(
            (),
            "PENDING takes no entry: it is full, or the node is short of memory; a dial of network namespace {} is refused",
            netns
        );
    }
}

/// The kernel has no memory for what a socket is to remember.
#[inline(never)]
pub(crate) fn no_memory(netns: u64) {
    if is_time(NO_MEMORY) {
        warn!(
            (),
            "no memory for a socket's storage: the node is short of it, or the socket has used up its own; a dial of network namespace {} is refused",
            netns
        );
    }
}

/// A dial of the kubelet could not be noted.
#[inline(never)]
pub(crate) fn kubelet_not_noted(port: u16) {
    if is_time(KUBELET_NOT_NOTED) {
        warn!(
            (),
            "KUBELET_DIALS takes no entry: strict pods refuse the kubelet's dial to port {}", port
        );
    }
}

/// Whether a line may be written now. Two processors may both find that it may.
#[inline(always)]
fn is_time(kind: u32) -> bool {
    let Some(last) = LOGGED.get_ptr_mut(kind) else { return false };
    let now = maps::boot_ns();
    // SAFETY: a pointer into the array, valid for the program's run.
    unsafe {
        if now.wrapping_sub(last.read_volatile()) < PAUSE_NS {
            return false;
        }
        last.write_volatile(now);
    }
    true
}
