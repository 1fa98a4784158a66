//! `raw_tracepoint`, attached to nothing: the agent runs it when it has taken a dial out of
//! `PENDING`. Other programs count the pods' dials at the same time. If the agent wrote the counts
//! itself, it would undo what they add meanwhile. Kernel 5.10.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::maps;

/// Arguments: the namespace's cookie, and `share_since_ns` of the entry that was taken out.
#[raw_tracepoint]
pub(crate) fn nm_give_back(context: RawTracePointContext) -> i32 {
    maps::give_back(context.arg(0), context.arg(1));
    0
}
