//! Of several tasks that want the same thing at once, one gets it, and the others wait for it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// One queue for each key that a task waits for or has its turn with.
#[derive(Debug)]
pub struct SingleFlight<K: Hash + Eq>(Mutex<HashMap<K, Arc<Queue<()>>>>);

/// A task's turn with a key, until it is dropped. Then the next task has its turn.
#[derive(Debug)]
pub struct Turn<'a, K: Hash + Eq> {
    // Dropped before the place, which forgets the queue if nothing else refers to it.
    _guard: OwnedMutexGuard<()>,
    _place: QueuePosition<'a, K>,
}

/// A place in the queue of a key.
#[derive(Debug)]
struct QueuePosition<'a, K: Hash + Eq> {
    flights: &'a SingleFlight<K>,
    key: K,
    queue: Arc<Queue<()>>,
}

impl<K: Hash + Eq + Clone> SingleFlight<K> {
    /// Waits for this task's turn with a key. Then check again whether anything is to be done: the
    /// task before may have done it.
    ///
    /// # Cancel safety
    /// If dropped, the place in the queue is lost.
    pub async fn turn(&self, key: K) -> Turn<'_, K> {
        let queue = Arc::clone(self.0.lock().entry(key.clone()).or_default());
        let place = QueuePosition { flights: self, key, queue };
        let guard = Arc::clone(&place.queue).lock_owned().await;
        Turn { _guard: guard, _place: place }
    }
}

impl<K: Hash + Eq> Default for SingleFlight<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Hash + Eq> Drop for QueuePosition<'_, K> {
    fn drop(&mut self) {
        let mut queues = self.flights.0.lock();
        // Our own reference goes first, and under the lock: of two places that end at once, the
        // second sees that it is the last.
        self.queue = Arc::default();
        if queues.get(&self.key).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn one_task_at_a_time_has_its_turn_and_nothing_stays_behind() {
        let flights = SingleFlight::default();
        let first = flights.turn("a").await;
        let other = flights.turn("b").await;
        let mut second = Box::pin(flights.turn("a"));
        tokio::select! {
            biased;
            _ = &mut second => panic!("two at once"),
            () = yield_now() => {}
        }
        let mut given_up = Box::pin(flights.turn("a"));
        tokio::select! {
            biased;
            _ = &mut given_up => panic!("three at once"),
            () = yield_now() => {}
        }
        drop(given_up);
        drop(first);
        drop(second.await);
        assert_eq!(flights.0.lock().len(), 1);
        drop(other);
        assert!(flights.0.lock().is_empty());
    }
}
