//! Memory for busy streams. Every connection has room for one record each way; room for up to seven more, which a busy
//! stream fills, comes from a store that all pods share by the rule of `limits.rs`: a pod is refused once it has [`SHARE`]
//! times what is free. A stream that gets no more goes on with one record, at some two thirds of the speed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use super::limits::SHARE;

/// Records beside each connection's first ones, over all pods: at 16.4 KiB, 128 MiB. Enough for 585 streams at full speed
/// both ways.
const SPARE_RECORDS: usize = 8_192;

/// What is left, for all pods.
#[derive(Clone)]
pub(super) struct Spare(Arc<AtomicUsize>);

/// How much a pod has of it.
pub(super) type Used = Arc<AtomicUsize>;

/// Where a connection gets room from. Gives back what it has when dropped.
#[derive(Debug)]
pub struct Lease {
    spare: Arc<AtomicUsize>,
    used: Used,
    records: usize,
}

impl Default for Spare {
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(SPARE_RECORDS)))
    }
}

impl Spare {
    /// Nothing yet, for one direction of a connection of a pod.
    pub(super) fn lease(&self, used: &Used) -> Lease {
        Lease { spare: Arc::clone(&self.0), used: Arc::clone(used), records: 0 }
    }
}

impl Lease {
    /// Takes room for so many records more, if they can be spared.
    pub fn grow(&mut self, records: usize) -> bool {
        let enough = |spare: usize| spare.checked_sub(records);
        let taken = self.spare.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough);
        let Ok(spare) = taken else { return false };
        let used = self.used.fetch_add(records, Ordering::Relaxed);
        self.records += records;
        if used >= SHARE * spare {
            self.give_back(records);
            return false;
        }
        true
    }

    /// Needs nothing beside the first record any more.
    pub fn clear(&mut self) {
        self.give_back(self.records);
    }

    fn give_back(&mut self, records: usize) {
        self.records -= records;
        self.used.fetch_sub(records, Ordering::Relaxed);
        self.spare.fetch_add(records, Ordering::Relaxed);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_greedy_pod_leaves_room_for_others_streams() {
        let (spare, greedy, modest) = (Spare::default(), Used::default(), Used::default());
        let mut all = Vec::new();
        loop {
            let mut lease = spare.lease(&greedy);
            if !lease.grow(7) {
                break;
            }
            all.push(lease);
        }
        let left = spare.0.load(Ordering::Relaxed);
        assert!((SPARE_RECORDS / 6..SPARE_RECORDS / 4).contains(&left), "{left}");
        assert_eq!(greedy.load(Ordering::Relaxed) + left, SPARE_RECORDS);
        assert!(spare.lease(&modest).grow(7));
        drop(all);
        assert_eq!(spare.0.load(Ordering::Relaxed), SPARE_RECORDS);
        assert_eq!(greedy.load(Ordering::Relaxed) + modest.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let (spare, used) = (Spare::default(), Used::default());
        assert!(!spare.lease(&used).grow(SPARE_RECORDS + 1));
        let mut lease = spare.lease(&used);
        assert!(lease.grow(1));
        lease.clear();
        assert_eq!(spare.0.load(Ordering::Relaxed), SPARE_RECORDS);
    }
}
