//! How many connections one pod, and one peer of one pod, may have in the agent at once, so that
//! none takes what the others need.
//!
//! There is no fixed share per pod. A pod that is alone may have most of the capacity; the more
//! pods want much, the less each gets (Choudhury and Hahne, "Dynamic queue length thresholds",
//! 1998). A pod is refused once it has [`SHARE`] times what is free. So one greedy pod leaves a
//! fifth free, two leave a ninth, and a pod that has little always finds room.
//!
//! Connections that a pod dials and connections that are dialled to it are counted apart. Among the
//! latter, each source is counted by the same rule within the pod's part. So a peer that floods a
//! pod takes neither the pod's own dials nor all the connections that other peers may open to it.
//! Where the path gives the connections of several pods one source, each of these pods has its
//! share of what that source may have, by the same rule.
//!
//! A refused connection is accepted and reset at once. To stop accepting instead would leave the
//! choice to the accept queue. The flood is most of what waits there, and its victims would hang
//! where now they get an error.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use mesh_api::Reason;
use parking_lot::{Mutex, MutexGuard};
use prometheus::IntCounter;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::stock::READY_ON_NODE;
use crate::client_key::ClientKey;

/// Connections at once, at most, however many descriptors there are. With some 64 KiB of buffers
/// and state each (measured, docs/security.md), they take 1 GiB.
const MAX_CONNECTIONS: usize = 16_384;

/// Descriptors that are not for connections: six listeners and a namespace for each of 110 pods,
/// the kernel's maps and links, files, the admin socket, connections that are accepted only to be
/// reset, and sockets that are ready for connections.
const RESERVED_DESCRIPTORS: usize = 1_024 + READY_ON_NODE;

/// One to the application, one to the peer.
const DESCRIPTORS_PER_CONNECTION: usize = 2;

/// For so many connections at once, one session is kept in each direction. It has one descriptor.
const CONNECTIONS_PER_KEPT: usize = 8;

/// Descriptors of so many connections and their two kept sessions.
const DESCRIPTORS_PER_GROUP: usize = CONNECTIONS_PER_KEPT * DESCRIPTORS_PER_CONNECTION + 2;

/// Fewer are of no use, whatever the descriptor limit.
const MIN_CONNECTIONS: usize = 64;

/// An owner that has this many times what is free gets no more: alone 4/5 of all, two 4/9 each.
pub(super) const SHARE: usize = 4;

/// Handshakes at once from one source to one pod, including the look at the first bytes and the
/// wait for OPEN. Further ones wait for one of these to end. A handshake takes some milliseconds,
/// so an honest source gets thousands per second. A source that stays silent for all of the
/// handshake's 10 s holds 64 times 9 KiB (measured, docs/security.md).
const HANDSHAKES_PER_SOURCE: usize = 64;

/// The connections of all pods.
pub struct Limits {
    capacity: usize,
    open: AtomicUsize,
    refused: IntCounter,
}

/// The connections of one pod in one direction.
#[derive(Default)]
pub struct Account(Mutex<Counts>);

#[derive(Default)]
struct Counts {
    open: usize,
    /// The clients that have a connection open to the pod; empty for the pod's own dials.
    sources: HashMap<ClientKey, Source>,
}

struct Source {
    open: usize,
    /// Open connections by the pod that they belong to, if it is not the pod at the connection's
    /// address.
    behind: HashMap<ClientKey, usize>,
    handshakes: Arc<Semaphore>,
}

/// One admitted connection, as long as it lives.
pub struct Admitted {
    limits: Arc<Limits>,
    account: Arc<Account>,
    source: Option<ClientKey>,
    behind: Option<ClientKey>,
}

/// A handshake in progress. Only [`Admitted::handshake`] makes one, so that none goes uncounted.
pub struct HandshakeSlot {
    _permit: Option<OwnedSemaphorePermit>,
}

/// The owner that has too many connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitReached {
    /// The pod, or all pods together.
    #[error(
        "the pod has as many connections open as the agent can spare for it; they are too many, or other pods of the node have as many"
    )]
    Pod,
    /// One client of the pod.
    #[error(
        "this client has as many connections open to the pod as the agent can spare for one client"
    )]
    Source,
    /// One client of the pod, which begins handshakes and does not finish them.
    #[error(
        "{HANDSHAKES_PER_SOURCE} earlier connections of this client to the pod have not finished their handshakes, and this one waited for them in vain"
    )]
    Handshakes,
}

impl LimitReached {
    /// Its code, sentence and the rest.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Pod => Reason::LimitConnections,
            Self::Source => Reason::LimitConnectionsOfClient,
            Self::Handshakes => Reason::LimitHandshakes,
        }
    }
}

/// How many connections this many descriptors are enough for.
pub fn capacity_of(descriptors: u64) -> usize {
    let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
    let descriptors = descriptors.saturating_sub(RESERVED_DESCRIPTORS);
    let connections = descriptors / DESCRIPTORS_PER_GROUP * CONNECTIONS_PER_KEPT;
    connections.clamp(MIN_CONNECTIONS, MAX_CONNECTIONS)
}

/// How many sessions may be kept in either direction, beside so many connections.
pub(super) const fn kept_capacity_of(connections: usize) -> usize {
    connections / CONNECTIONS_PER_KEPT
}

impl Limits {
    /// Limits for this many connections at once. `refused` counts those that are refused.
    pub(super) fn new(capacity: usize, refused: IntCounter) -> Self {
        Self { capacity, open: AtomicUsize::default(), refused }
    }

    /// How many there are.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// How many connections there may be at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Admits a connection, or says which limit is reached. `source` is the client that dials the
    /// pod; `None` for the pod's own dials.
    ///
    /// # Errors
    /// See [`LimitReached`].
    pub fn admit(
        self: &Arc<Self>,
        account: &Arc<Account>,
        source: Option<ClientKey>,
    ) -> Result<Admitted, LimitReached> {
        let admitted = account.lock().take(self.room(), source);
        if let Err(reached) = admitted {
            self.refused.inc();
            return Err(reached);
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        let (limits, account) = (Arc::clone(self), Arc::clone(account));
        Ok(Admitted { limits, account, source, behind: None })
    }

    /// How many are free. Two that are admitted at the same moment may see the same one; the
    /// reserve covers that too.
    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.open.load(Ordering::Relaxed))
    }
}

impl Account {
    /// How many there are.
    pub(super) fn open(&self) -> usize {
        self.lock().open
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock()
    }
}

impl Source {
    fn new() -> Self {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_PER_SOURCE));
        Self { open: 0, behind: HashMap::new(), handshakes }
    }
}

impl Counts {
    fn take(&mut self, room: usize, source: Option<ClientKey>) -> Result<(), LimitReached> {
        let most = SHARE * room;
        if self.open >= most {
            return Err(LimitReached::Pod);
        }
        if let Some(client) = source {
            let has = self.sources.get(&client).map_or(0, |source| source.open);
            if has >= SHARE * (most - self.open) {
                return Err(LimitReached::Source);
            }
            self.sources.entry(client).or_insert_with(Source::new).open += 1;
        }
        self.open += 1;
        Ok(())
    }

    /// Counts an open connection as that of a pod behind its source.
    fn take_behind(
        &mut self,
        room: usize,
        source: ClientKey,
        pod: ClientKey,
    ) -> Result<(), LimitReached> {
        let left = (SHARE * room).saturating_sub(self.open);
        let Some(source) = self.sources.get_mut(&source) else { return Ok(()) };
        let has = source.behind.get(&pod).copied().unwrap_or(0);
        // It is open already: only a pod that has other connections may have too many.
        if has > 0 && has >= SHARE * (SHARE * left).saturating_sub(source.open) {
            return Err(LimitReached::Source);
        }
        *source.behind.entry(pod).or_default() += 1;
        Ok(())
    }

    fn give_back(&mut self, source: Option<ClientKey>, behind: Option<ClientKey>) {
        self.open = self.open.saturating_sub(1);
        let Some(client) = source else { return };
        let Some(of) = self.sources.get_mut(&client) else { return };
        of.open = of.open.saturating_sub(1);
        if of.open == 0 {
            self.sources.remove(&client);
        } else if let Some(pod) = behind
            && let Some(has) = of.behind.get_mut(&pod)
        {
            *has = has.saturating_sub(1);
            if *has == 0 {
                of.behind.remove(&pod);
            }
        }
    }
}

impl Admitted {
    /// Waits up to `patience` until this connection's source has fewer than
    /// [`HANDSHAKES_PER_SOURCE`] handshakes in progress.
    ///
    /// # Errors
    /// [`LimitReached::Handshakes`] if it waited in vain.
    ///
    /// # Cancel safety
    /// If dropped, the place in the queue is lost.
    pub async fn handshake(&self, patience: Duration) -> Result<HandshakeSlot, LimitReached> {
        let handshakes = {
            let counts = self.account.lock();
            let source = self.source.and_then(|client| counts.sources.get(&client));
            source.map(|source| Arc::clone(&source.handshakes))
        };
        let Some(handshakes) = handshakes else { return Ok(HandshakeSlot { _permit: None }) };
        let Ok(slot) = timeout(patience, handshakes.acquire_owned()).await else {
            self.limits.refused.inc();
            return Err(LimitReached::Handshakes);
        };
        Ok(HandshakeSlot { _permit: slot.ok() })
    }

    /// Counts the connection also as that pod's, among those of its source, which a whole node may
    /// share. It is not counted as the pod's alone, because only a peer's word names the pod: an
    /// agent could use up another pod's share.
    ///
    /// # Errors
    /// [`LimitReached::Source`] if that pod has too many of them.
    pub fn count_behind(&mut self, pod: ClientKey) -> Result<(), LimitReached> {
        let Some(source) = self.source else { return Ok(()) };
        let room = self.limits.room();
        let counted = self.account.lock().take_behind(room, source, pod);
        match counted {
            Ok(()) => self.behind = Some(pod),
            Err(_) => self.limits.refused.inc(),
        }
        counted
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.account.lock().give_back(self.source, self.behind);
        self.limits.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{Future as _, poll_fn},
        net::{IpAddr, Ipv4Addr},
        task::Poll,
    };

    use super::*;

    const ONE: Option<ClientKey> = Some(client(1));
    const OTHER: Option<ClientKey> = Some(client(2));
    const LONG: Duration = Duration::from_mins(1);

    const fn client(host: u8) -> ClientKey {
        ClientKey::of_pod(IpAddr::V4(Ipv4Addr::new(10, 0, 0, host)))
    }

    fn limits() -> Arc<Limits> {
        Arc::new(Limits::new(1000, IntCounter::new("refused", "refused").unwrap()))
    }

    /// Takes until it is refused.
    fn take_all(
        limits: &Arc<Limits>,
        account: &Arc<Account>,
        source: Option<ClientKey>,
    ) -> (Vec<Admitted>, LimitReached) {
        let mut taken = Vec::new();
        loop {
            match limits.admit(account, source) {
                Ok(admitted) => taken.push(admitted),
                Err(reached) => return (taken, reached),
            }
        }
    }

    #[test]
    fn one_greedy_pod_leaves_a_fifth_and_the_next_finds_room() {
        let limits = limits();
        let (greedy, modest) = (Arc::default(), Arc::default());
        let (taken, reached) = take_all(&limits, &greedy, None);
        assert_eq!((taken.len(), reached), (800, LimitReached::Pod));
        let (more, _) = take_all(&limits, &modest, None);
        assert_eq!(more.len(), 160, "four fifths of what was free");
        drop(taken);
        let (rest, _) = take_all(&limits, &modest, None);
        assert_eq!(more.len() + rest.len(), 800, "now it is alone");
        assert_eq!(limits.refused.get(), 3);
    }

    #[test]
    fn a_greedy_source_leaves_the_pod_reachable_for_others() {
        let limits = limits();
        let inbound = Arc::default();
        let (taken, reached) = take_all(&limits, &inbound, ONE);
        assert_eq!(reached, LimitReached::Source);
        assert!((700..800).contains(&taken.len()), "{}", taken.len());
        assert!(limits.admit(&inbound, OTHER).is_ok());
        assert!(limits.admit(&Arc::default(), None).is_ok(), "and the pod may dial");
        drop(taken);
        assert_eq!(limits.room(), 1000);
        assert!(inbound.lock().sources.is_empty(), "no client is remembered");
    }

    /// Takes, as one of the pods behind a source, until it is refused.
    fn take_all_behind(
        limits: &Arc<Limits>,
        account: &Arc<Account>,
        source: Option<ClientKey>,
        pod: ClientKey,
    ) -> (Vec<Admitted>, LimitReached) {
        let mut taken = Vec::new();
        loop {
            let counted = limits.admit(account, source).and_then(|mut admitted| {
                admitted.count_behind(pod)?;
                Ok(admitted)
            });
            match counted {
                Ok(admitted) => taken.push(admitted),
                Err(reached) => return (taken, reached),
            }
        }
    }

    #[test]
    fn clients_behind_one_address_are_told_apart_once_they_are_proven() {
        let gateway = Some(ClientKey::of_stranger([192, 168, 0, 1].into()));
        let limits = limits();
        let inbound = Arc::default();
        let (greedy, reached) = take_all_behind(&limits, &inbound, gateway, client(1));
        assert_eq!((reached, limits.refused.get()), (LimitReached::Source, 1));
        assert!((700..800).contains(&greedy.len()), "{}", greedy.len());
        let mut modest = limits.admit(&inbound, gateway).unwrap();
        assert_eq!(modest.count_behind(client(2)), Ok(()));
        drop((greedy, modest));
        assert_eq!(limits.room(), 1000);
        assert!(inbound.lock().sources.is_empty(), "no client is remembered");
    }

    #[test]
    fn a_peer_that_speaks_for_another_pod_uses_up_its_own_share() {
        let (mad, victim) = (OTHER, client(1));
        let limits = limits();
        let inbound = Arc::default();
        let (taken, _) = take_all_behind(&limits, &inbound, mad, victim);
        assert!((700..800).contains(&taken.len()), "{}", taken.len());
        // The pod itself, from its own address and from behind another one. The other peer counts
        // only as itself.
        for source in [Some(victim), Some(client(3))] {
            let mut admitted = limits.admit(&inbound, source).unwrap();
            assert_eq!(admitted.count_behind(victim), Ok(()));
        }
        let mut others = Vec::new();
        for pod in 10..30 {
            let (more, _) = take_all_behind(&limits, &inbound, mad, client(pod));
            others.extend(more);
        }
        let all = taken.len() + others.len();
        assert!(all < 800, "by speaking for many, it has {all}");
        assert!(limits.admit(&inbound, Some(victim)).is_ok());
    }

    #[tokio::test]
    async fn handshakes_of_one_source_wait_for_each_other_only() {
        let limits = limits();
        let inbound = Arc::default();
        let mut slots = Vec::new();
        for _ in 0..HANDSHAKES_PER_SOURCE {
            let admitted = limits.admit(&inbound, ONE).unwrap();
            slots.push((admitted.handshake(LONG).await.unwrap(), admitted));
        }
        let (late, other) = (limits.admit(&inbound, ONE).unwrap(), limits.admit(&inbound, OTHER));
        let mut waits = std::pin::pin!(late.handshake(LONG));
        assert!(poll_fn(|cx| Poll::Ready(waits.as_mut().poll(cx).is_pending())).await);
        assert!(other.unwrap().handshake(LONG).await.is_ok());
        let in_vain =
            limits.admit(&inbound, ONE).unwrap().handshake(Duration::from_millis(1)).await;
        assert_eq!((in_vain.err(), limits.refused.get()), (Some(LimitReached::Handshakes), 1));
        slots.pop();
        assert!(waits.await.is_ok());
    }

    #[test]
    fn descriptors_are_shared_between_connections_and_the_rest() {
        assert_eq!(capacity_of(20_000), 8_200);
        assert_eq!(capacity_of(1_024), MIN_CONNECTIONS);
        assert_eq!(capacity_of(u64::MAX), MAX_CONNECTIONS);
    }
}
