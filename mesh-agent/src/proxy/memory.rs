//! Stores that all pods share, by the rule of `limits.rs`: a pod has its share once it holds
//! [`SHARE`] times what is free.
//!
//! One store is the room for busy streams ([`Spare`]). A connection has room for one record each
//! way. Room for up to seven more, which a busy stream fills, comes from the store. A stream that
//! gets no more goes on with one record, at some two thirds of the speed. Another store is the
//! kernel's memory of sockets (`socket_memory.rs`).

use std::sync::{
    Arc,
    atomic::{AtomicIsize, AtomicUsize, Ordering},
};

use super::limits::SHARE;

/// Records beyond each connection's first ones, over all pods: at 16.6 KiB each, 130 MiB. Enough
/// for 585 streams at full speed both ways.
const SPARE_RECORDS: usize = 8_192;

/// What is left for all pods. May fall below zero if usage is measured and not requested.
#[derive(Clone, Debug)]
pub(super) struct Store(Arc<AtomicIsize>);

/// How much a pod holds of a store.
pub(super) type Used = Arc<AtomicUsize>;

/// What one connection holds of a store. Given back on drop.
#[derive(Debug)]
pub struct Lease {
    store: Store,
    used: Used,
    has: usize,
}

/// Room for busy streams.
pub(super) struct Spare(Store);

impl Default for Spare {
    fn default() -> Self {
        Self(Store::of(SPARE_RECORDS))
    }
}

impl Spare {
    /// An empty lease, for one direction of a connection of a pod.
    pub(super) fn lease(&self, used: &Used) -> Lease {
        self.0.lease(used)
    }
}

impl Store {
    /// A store of this amount.
    pub(super) fn of(amount: usize) -> Self {
        Self(Arc::new(AtomicIsize::new(amount.cast_signed())))
    }

    /// An empty lease, for a connection of a pod.
    pub(super) fn lease(&self, used: &Used) -> Lease {
        Lease { store: self.clone(), used: Arc::clone(used), has: 0 }
    }

    /// What is left.
    pub(super) fn free(&self) -> usize {
        self.0.load(Ordering::Relaxed).max(0).cast_unsigned()
    }
}

impl Lease {
    /// Takes this much more, if it can be spared.
    pub fn grow(&mut self, amount: usize) -> bool {
        self.take(amount);
        // What was free before counts: so a pod that is alone gets four fifths.
        let fits = self.store.0.load(Ordering::Relaxed) >= 0;
        if !fits || self.used() - amount >= SHARE * (self.store.free() + amount) {
            self.give_back(amount);
            return false;
        }
        true
    }

    /// Sets what it holds, whether that can be spared or not.
    pub(super) fn set(&mut self, amount: usize) {
        if amount > self.has {
            self.take(amount - self.has);
        } else {
            self.give_back(self.has - amount);
        }
    }

    /// How much it holds.
    pub fn has(&self) -> usize {
        self.has
    }

    /// How much the pod holds.
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Whether the pod has used up its share.
    pub(super) fn is_over(&self) -> bool {
        self.used() >= SHARE * self.store.free()
    }

    /// Gives everything back.
    pub fn clear(&mut self) {
        self.give_back(self.has);
    }

    fn take(&mut self, amount: usize) {
        self.has += amount;
        self.used.fetch_add(amount, Ordering::Relaxed);
        self.store.0.fetch_sub(amount.cast_signed(), Ordering::Relaxed);
    }

    fn give_back(&mut self, amount: usize) {
        self.has -= amount;
        self.used.fetch_sub(amount, Ordering::Relaxed);
        self.store.0.fetch_add(amount.cast_signed(), Ordering::Relaxed);
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
        let left = spare.0.free();
        assert!((SPARE_RECORDS / 6..SPARE_RECORDS / 4).contains(&left), "{left}");
        assert_eq!(greedy.load(Ordering::Relaxed) + left, SPARE_RECORDS);
        assert!(spare.lease(&modest).grow(7));
        drop(all);
        assert_eq!(spare.0.free(), SPARE_RECORDS);
        assert_eq!(greedy.load(Ordering::Relaxed) + modest.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_is_not_there_is_not_given() {
        let (spare, used) = (Spare::default(), Used::default());
        assert!(!spare.lease(&used).grow(SPARE_RECORDS + 1));
        let mut lease = spare.lease(&used);
        assert!(lease.grow(1));
        lease.clear();
        assert_eq!(spare.0.free(), SPARE_RECORDS);
    }

    #[test]
    fn what_is_measured_counts_also_beyond_what_there_is() {
        let (store, greedy, modest) = (Store::of(100), Used::default(), Used::default());
        let (mut much, mut little) = (store.lease(&greedy), store.lease(&modest));
        little.set(1);
        much.set(70);
        assert!(!much.is_over() && !little.is_over());
        much.set(90);
        assert!(much.is_over() && !little.is_over());
        much.set(200);
        assert_eq!((store.free(), much.used()), (0, 200));
        assert!(!little.grow(1), "nothing is there");
        much.set(10);
        assert_eq!((store.free(), little.has()), (89, 1));
        drop((much, little));
        assert_eq!(store.free(), 100);
    }
}
