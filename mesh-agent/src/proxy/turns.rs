//! Which handshake is worked on next. Handshakes are the only way in which a peer makes the agent
//! compute: some 0.5 ms each. Left to the runtime, a flood of them would lie in its queue before
//! the bytes of all connections.
//!
//! So only half of the threads work on handshakes at once; the other half is left for bytes.
//! Waiting handshakes are served in turn: pod by pod, and within a pod source by source. A flood
//! slows its own handshakes, and delays another pod's by one step of one handshake.

use std::{
    collections::{HashMap, VecDeque},
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
};

use parking_lot::{Mutex, MutexGuard};

use crate::client_key::ClientKey;

/// The owner of a handshake that wants to be worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct TurnOwner {
    /// Cookie of the pod's namespace.
    pub(super) pod: u64,
    /// The pod's peer: the client that dials it, or the server that it dials.
    pub(super) peer: ClientKey,
}

/// Gives out turns.
pub(super) struct Turns(Mutex<TurnQueue>);

struct TurnQueue {
    free: usize,
    next: u64,
    pods: Ring<u64, Ring<ClientKey, VecDeque<u64>>>,
    /// Waiting tickets. A ticket that has given up is missing here, but still in its queue.
    waiting: HashMap<u64, Waiting>,
}

struct Waiting {
    waker: Waker,
    granted: bool,
}

/// Queues by key, taken from in turn.
struct Ring<K, Q> {
    order: VecDeque<K>,
    queues: HashMap<K, Q>,
}

/// A place in the queue, or a turn that was granted and not yet used.
struct TurnTicket<'a> {
    turns: &'a Turns,
    ticket: Option<u64>,
}

impl Turns {
    /// For this many threads.
    pub(super) fn new(threads: usize) -> Self {
        Self(Mutex::new(TurnQueue {
            free: (threads / 2).max(1),
            next: 0,
            pods: Ring::default(),
            waiting: HashMap::new(),
        }))
    }

    /// Runs a future. Each of its steps waits for its turn.
    ///
    /// # Cancel safety
    /// That of the future.
    pub(super) async fn run<T>(&self, claim: TurnOwner, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        let mut place = TurnTicket { turns: self, ticket: None };
        poll_fn(|cx| {
            if place.poll(claim, cx).is_pending() {
                return Poll::Pending;
            }
            let _turn = Turn(self);
            work.as_mut().poll(cx)
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, TurnQueue> {
        self.0.lock()
    }
}

impl TurnTicket<'_> {
    fn poll(&mut self, claim: TurnOwner, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.turns.lock();
        if let Some(ticket) = self.ticket {
            match state.waiting.get_mut(&ticket) {
                Some(waiting) if !waiting.granted => {
                    waiting.waker.clone_from(cx.waker());
                    return Poll::Pending;
                }
                _ => {
                    state.waiting.remove(&ticket);
                    self.ticket = None;
                    return Poll::Ready(());
                }
            }
        }
        if state.free > 0 {
            state.free -= 1;
            return Poll::Ready(());
        }
        let ticket = state.next;
        state.next += 1;
        state.pods.queue(claim.pod).queue(claim.peer).push_back(ticket);
        state.waiting.insert(ticket, Waiting { waker: cx.waker().clone(), granted: false });
        self.ticket = Some(ticket);
        Poll::Pending
    }
}

impl Drop for TurnTicket<'_> {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let gone = self.turns.lock().waiting.remove(&ticket);
        if gone.is_some_and(|waiting| waiting.granted) {
            drop(Turn(self.turns)); // for the next one
        }
    }
}

/// A turn in use. Passes to the next ticket when dropped, also by a panic.
struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        while let Some(ticket) = state.pop() {
            if let Some(waiting) = state.waiting.get_mut(&ticket) {
                waiting.granted = true;
                let waker = waiting.waker.clone();
                drop(state);
                return waker.wake();
            }
        }
        state.free += 1;
    }
}

impl TurnQueue {
    fn pop(&mut self) -> Option<u64> {
        self.pods.pop(|peers| {
            let ticket = peers.pop(|queue| (queue.pop_front(), queue.is_empty()));
            (ticket, peers.order.is_empty())
        })
    }
}

impl<K: Copy + Eq + std::hash::Hash, Q: Default> Ring<K, Q> {
    fn queue(&mut self, key: K) -> &mut Q {
        self.queues.entry(key).or_insert_with(|| {
            self.order.push_back(key);
            Q::default()
        })
    }

    /// Takes from the queue whose turn it is. `take` also returns whether that queue is now empty.
    fn pop<T>(&mut self, take: impl FnOnce(&mut Q) -> (Option<T>, bool)) -> Option<T> {
        let key = self.order.pop_front()?;
        let (taken, empty) = self.queues.get_mut(&key).map(take)?;
        if empty {
            self.queues.remove(&key);
        } else {
            self.order.push_back(key);
        }
        taken
    }
}

impl<K, Q> Default for Ring<K, Q> {
    fn default() -> Self {
        Self { order: VecDeque::new(), queues: HashMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::tasks::Tasks;

    fn claim(pod: u64, peer: u8) -> TurnOwner {
        TurnOwner { pod, peer: ClientKey::of_pod([10, 0, 0, peer].into()) }
    }

    /// Queues all claims behind one that holds the only turn, and returns the order in which they
    /// are served.
    async fn served(claims: &[TurnOwner]) -> Vec<TurnOwner> {
        let turns = Arc::new(Turns::new(2));
        let order = Arc::new(Mutex::new(Vec::new()));
        turns.lock().free = 0;
        let tasks = Tasks::new();
        for &claim in claims {
            let (turns, order) = (Arc::clone(&turns), Arc::clone(&order));
            let note = async move { order.lock().push(claim) };
            tasks.spawn("waits", async move { turns.run(claim, note).await });
        }
        while turns.lock().waiting.len() < claims.len() {
            tokio::task::yield_now().await;
        }
        drop(Turn(&turns));
        tasks.wait().await;
        assert_eq!(turns.lock().free, 1, "the turn is given back");
        assert!(turns.lock().waiting.is_empty() && turns.lock().pods.order.is_empty());
        Arc::into_inner(order).unwrap().into_inner()
    }

    #[tokio::test]
    async fn pods_are_served_in_turn_and_within_a_pod_peers() {
        let flood = [claim(1, 1); 5];
        let order = served(&[&flood[..], &[claim(1, 2), claim(2, 3)]].concat()).await;
        assert_eq!(order[..3], [claim(1, 1), claim(2, 3), claim(1, 2)]);
        assert_eq!(order[3..], flood[1..]);
    }

    #[tokio::test]
    async fn who_gives_up_passes_the_turn_on() {
        let turns = Turns::new(1);
        let gone = async {
            let mut place = TurnTicket { turns: &turns, ticket: None };
            poll_fn(|cx| Poll::Ready(place.poll(claim(1, 1), cx))).await
        };
        assert!(gone.await.is_ready(), "the only turn is taken, and held");
        let run = || Box::pin(turns.run(claim(1, 1), async {}));
        let (mut first, mut second) = (run(), run());
        for waits in [&mut first, &mut second] {
            assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx))).await.is_pending());
        }
        drop(Turn(&turns)); // granted to the first, which never uses it
        drop(first);
        second.await;
        assert_eq!(turns.lock().free, 1);
    }
}
