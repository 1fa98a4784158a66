//! The processes that follow the flows, and their limit. A follower whose terminal has gone may not
//! notice it: a process that `kubectl exec` has started in a container stays there when kubectl is
//! gone.

use std::collections::VecDeque;

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// Each costs a process of some megabytes in the agent's container.
pub(super) const MOST: usize = 16;

/// The present followers, the longest first.
#[derive(Debug, Default)]
pub struct Followers(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    places: VecDeque<(u64, CancellationToken)>,
}

/// The place of one follower, until it is dropped.
pub(super) struct FollowerSlot<'a> {
    followers: &'a Followers,
    number: u64,
    /// Cancelled when a later follower has taken the place.
    pub(super) taken: CancellationToken,
}

impl Followers {
    /// Adds a follower. If there are too many, the longest one has to go.
    pub(super) fn join(&self) -> FollowerSlot<'_> {
        let mut queue = self.lock();
        let (number, taken) = (queue.next, CancellationToken::new());
        queue.next += 1;
        queue.places.push_back((number, taken.clone()));
        if queue.places.len() > MOST
            && let Some((_, longest)) = queue.places.pop_front()
        {
            longest.cancel();
        }
        FollowerSlot { followers: self, number, taken }
    }

    /// A panic elsewhere cannot leave the queue wrong: each change is one insertion or removal.
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock()
    }
}

impl Drop for FollowerSlot<'_> {
    fn drop(&mut self) {
        self.followers.lock().places.retain(|(number, _)| *number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_followed_longest_goes_for_another() {
        let followers = Followers::default();
        let mut places: Vec<_> = (0..MOST).map(|_| followers.join()).collect();
        assert!(places.iter().all(|place| !place.taken.is_cancelled()));
        drop(places.pop());
        let _one_more = followers.join();
        assert!(places.iter().all(|place| !place.taken.is_cancelled()), "there was room");
        let _too_many = followers.join();
        let taken: Vec<_> = places.iter().map(|place| place.taken.is_cancelled()).collect();
        assert_eq!(taken.iter().position(|taken| *taken), Some(0));
        assert_eq!(taken.iter().filter(|taken| **taken).count(), 1);
    }
}
