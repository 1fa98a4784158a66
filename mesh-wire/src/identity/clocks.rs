//! Peers whose clock differs from this node's: they show certificates of the mesh that begin in the
//! future.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};

use super::SpiffeId;

/// How long a differing clock is reported after it was last seen.
const TOLD: Duration = Duration::from_mins(2);
/// Identities that are remembered at a time.
const KNOWN: usize = 16;

/// What is known of other clocks.
#[derive(Debug, Default)]
pub struct Clocks {
    ahead: Mutex<BTreeMap<SpiffeId, ClockLead>>,
    /// Whether `ahead` has entries: handshakes are many, and differing clocks rare.
    any: AtomicBool,
}

#[derive(Debug)]
struct ClockLead {
    by: Duration,
    at: Instant,
}

impl Clocks {
    /// Notes that a genuine certificate begins only after `by`.
    pub(super) fn is_ahead(&self, id: SpiffeId, by: Duration) {
        let mut ahead = self.ahead();
        ahead.retain(|_, seen| seen.at.elapsed() < TOLD);
        if ahead.len() < KNOWN || ahead.contains_key(&id) {
            ahead.insert(id, ClockLead { by, at: Instant::now() });
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// Notes that a certificate of this identity is valid at the present time.
    pub(super) fn is_right(&self, id: &SpiffeId) {
        if self.any.load(Ordering::Relaxed) {
            let mut ahead = self.ahead();
            ahead.remove(id);
            self.any.store(!ahead.is_empty(), Ordering::Relaxed);
        }
    }

    /// The report for people.
    pub fn problem(&self) -> Option<String> {
        let ahead = self.ahead();
        let current = ahead.iter().filter(|(_, seen)| seen.at.elapsed() < TOLD);
        let told: Vec<_> =
            current.map(|(id, seen)| format!("{id} in {} s", seen.by.as_secs())).collect();
        (!told.is_empty()).then(|| {
            format!(
                "certificates of peers begin only in the future by this node's clock ({}): their nodes' clocks are ahead, or this one's is behind; connections with them fail until the clocks are right",
                told.join(", ")
            )
        })
    }

    /// A panic elsewhere leaves the table valid: each change is one insertion or removal.
    fn ahead(&self) -> MutexGuard<'_, BTreeMap<SpiffeId, ClockLead>> {
        self.ahead.lock()
    }
}
