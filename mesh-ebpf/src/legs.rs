//! The agent's legs to applications: what it has noted of each before it dials, and how far the leg
//! is.

use aya_ebpf::{btf_maps::HashMap, macros::btf_map};
use mesh_common::maps::{FlowKey, LEG_ACCEPTED, LEG_ARRIVED, Named, limits};

use crate::maps::NO_PREALLOC;

/// Agent's leg to an application, as the agent's socket sees it → real client. The agent writes the
/// entry before it connects; sockops moves it into the accepted socket's storage.
#[btf_map]
static LEGS: HashMap<FlowKey, Named, { limits::PENDING }, NO_PREALLOC> = HashMap::new();

/// Whether the agent has noted a leg from another pod that the application does not have yet. Its
/// packet has come: the agent looks whether it has.
#[inline(always)]
pub(crate) fn arrives(flow: &FlowKey) -> bool {
    let Some(noted) = LEGS.get_ptr_mut(flow) else { return false };
    // SAFETY: each access is of one aligned word of a live entry; other processors do the same.
    let state = unsafe { &raw mut (*noted).verdict };
    // SAFETY: as above.
    if unsafe { state.read_volatile() } == LEG_ACCEPTED {
        return false;
    }
    // SAFETY: as above.
    unsafe { state.write_volatile(LEG_ARRIVED) };
    true
}

/// What is noted of a leg that the application has now. One from another pod is known by its note
/// as long as it is open, but lets nothing in any more.
#[inline(always)]
pub(crate) fn accepted(flow: &FlowKey) -> Option<Named> {
    let noted = LEGS.get_ptr_mut(flow)?;
    // SAFETY: the value is copied at once; the agent does not change it.
    let named = unsafe { *noted };
    if flow.local == flow.remote {
        let _: Result<(), i32> = LEGS.remove(flow);
    } else {
        // SAFETY: one aligned word of a live entry.
        unsafe { (&raw mut (*noted).verdict).write_volatile(LEG_ACCEPTED) };
    }
    Some(named)
}
