//! `raw_tracepoint`, attached to nothing: the agent runs it when it has taken a dial out of `PENDING`. Programs count the pods'
//! dials while it does, so the agent cannot write the counts itself: that would undo what they add meanwhile. Kernel 5.10.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};

use crate::maps;

/// Arguments: the namespace's cookie, and `share_since_ns` of what was taken out.
#[raw_tracepoint]
pub(crate) fn nm_give_back(context: RawTracePointContext) -> i32 {
    maps::give_back(context.arg(0), context.arg(1));
    0
}
