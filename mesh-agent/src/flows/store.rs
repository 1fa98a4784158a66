//! Where records are kept, and how they are followed.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::panicking,
    time::Instant,
};

use jiff::Timestamp;
use mesh_api::{Bytes, Direction, FlowRecord, Outcome, Reason};
use mesh_common::verdict::Verdict;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{
    ended::Ended,
    fold::{Folds, Kind, Recorded},
    kept::{Finished, FinishedRecords},
    record::{Party, Record, Security},
};

/// How many finished records a slow follower may lag behind.
const LAG: usize = 1024;

/// All records of this agent.
#[derive(Clone)]
pub struct FlowStore {
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<str>,
    next: AtomicU64,
    records: Mutex<Records>,
    finished: broadcast::Sender<Arc<Finished>>,
    /// Why connections are cut off from now on, if that is set.
    cut: OnceLock<Ended>,
    closed: CancellationToken,
}

#[derive(Default)]
struct Records {
    open: BTreeMap<u64, Arc<Mutex<Record>>>,
    finished: FinishedRecords,
    folds: Folds,
}

/// A connection that was refused before anything was done for it.
#[derive(Clone, Copy, Debug)]
pub struct RefusedConnection {
    /// The network namespace of this node's pod that dialled or was dialled, by its cookie.
    pub netns: u64,
    /// Which way it went.
    pub direction: Direction,
    /// The address that dialled.
    pub client: SocketAddr,
    /// The address that was dialled.
    pub server: SocketAddr,
    /// The kernel's verdict.
    pub verdict: Verdict,
    /// What refused it: that verdict, or a limit of the agent's.
    pub outcome: Outcome,
}

/// A connection that is not over. If dropped without [`Flow::end`], it counts as cut off by the
/// agent.
pub struct Flow {
    store: FlowStore,
    record: Arc<Mutex<Record>>,
    id: u64,
    netns: u64,
    begun: Instant,
    over: bool,
    /// If it is dropped now, its client was gone.
    client_waits: bool,
    /// Returns the bytes so far, for a connection that is cut off.
    measure: Option<Measure>,
}

type Measure = Box<dyn Fn() -> Bytes + Send + Sync>;

/// What a follower gets.
#[derive(Debug)]
pub enum Followed {
    /// A record, finished.
    Finished(Box<FlowRecord>),
    /// The follower was too slow and this many records are lost to it.
    Lost(u64),
}

/// Gets each record as it is finished.
pub struct FlowFollower {
    finished: broadcast::Receiver<Arc<Finished>>,
    closed: CancellationToken,
}

impl FlowFollower {
    /// The next record; `None` when the agent stops.
    ///
    /// # Cancel safety
    /// No record is lost.
    pub async fn next(&mut self) -> Option<Followed> {
        let next = tokio::select! {
            biased; // pending records come before the end
            next = self.finished.recv() => next,
            () = self.closed.cancelled() => return None,
        };
        match next {
            Ok(finished) => Some(Followed::Finished(Box::new(finished.printed()))),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Followed::Lost(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Records {
    fn open(&self) -> Vec<Record> {
        self.open.values().map(|record| record.lock().clone()).collect()
    }
}

impl FlowStore {
    /// An empty store for a node.
    pub fn new(node: impl Into<Arc<str>>) -> Self {
        let (finished, _) = broadcast::channel(LAG);
        let inner = Inner {
            node: node.into(),
            next: AtomicU64::new(1),
            records: Mutex::default(),
            finished,
            cut: OnceLock::new(),
            closed: CancellationToken::new(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins a record. `netns` is the cookie of the network namespace of this node's pod.
    pub fn begin(
        &self,
        netns: u64,
        direction: Direction,
        client: Party,
        server: Party,
        verdict: Verdict,
    ) -> Flow {
        let id = self.number();
        let original_destination = (server.address, server.port).into();
        let record = Arc::new(Mutex::new(Record {
            id,
            node: Arc::clone(&self.inner.node),
            direction,
            opened: Timestamp::now(),
            duration_us: None,
            client,
            server,
            original_destination,
            service: None,
            verdict,
            security: Security::None,
            outcome: None,
            fault: None,
            reason: Cow::default(),
            bytes: Bytes::default(),
            alike: 0,
        }));
        self.lock().open.insert(id, Arc::clone(&record));
        let (store, begun) = (self.clone(), Instant::now());
        Flow { store, record, id, netns, begun, over: false, client_waits: false, measure: None }
    }

    /// Records a refusal. If there are too many of its kind, it is only counted. Only if it is
    /// recorded, `tell` is called: it returns the sentence and fills in the pods at the addresses.
    pub fn refuse(
        &self,
        refused: RefusedConnection,
        tell: impl FnOnce(&mut Party, &mut Party) -> Cow<'static, str>,
    ) {
        let RefusedConnection { netns, direction, client, server, verdict, outcome } = refused;
        let (mut client, mut server) = (Party::at(client), Party::at(server));
        let kind =
            Kind { direction, outcome, client: Some(client.address), server: Some(server.address) };
        if self.count(netns, kind.clone()) == Recorded::Folded {
            return;
        }
        let sentence = tell(&mut client, &mut server);
        let flow = self.begin(netns, direction, client, server, verdict);
        flow.close(
            Ended { outcome, sentence, fault: outcome.fault() },
            Bytes::default(),
            Some(&kind),
        );
    }

    /// Records the refusals that were only counted and whose window is over. Call it about once a
    /// second.
    pub fn sweep(&self) {
        let ended = self.lock().folds.sweep(Instant::now());
        for record in ended {
            self.keep_folded(record);
        }
    }

    fn count(&self, netns: u64, kind: Kind) -> Recorded {
        let (recorded, ended) = self.lock().folds.count(netns, kind, Instant::now());
        if let Some(record) = ended {
            self.keep_folded(record);
        }
        recorded
    }

    /// Keeps a record that stands for others.
    fn keep_folded(&self, record: Record) {
        self.keep(Finished::Own(Record { id: self.number(), ..record }));
    }

    fn keep(&self, finished: Finished) {
        let finished = Arc::new(finished);
        self.lock().finished.push(Arc::clone(&finished));
        drop(self.inner.finished.send(finished)); // fails if there is no follower
    }

    /// A new number for a record.
    fn number(&self) -> u64 {
        self.inner.next.fetch_add(1, Ordering::Relaxed)
    }

    /// The newest finished records, oldest first, and then those that are open.
    pub fn list(&self) -> Vec<FlowRecord> {
        let (finished, open) = {
            let records = self.lock();
            (records.finished.list(), records.open())
        };
        let finished = finished.iter().map(|record| record.printed());
        finished.chain(open.iter().map(FlowRecord::from)).collect()
    }

    /// The open records, oldest first.
    pub fn list_open(&self) -> Vec<FlowRecord> {
        let open = self.lock().open();
        open.iter().map(FlowRecord::from).collect()
    }

    /// Keeps a record of an agent that has handed over to this one.
    pub fn adopt(&self, record: FlowRecord) {
        self.keep(Finished::Adopted(FlowRecord { id: self.number(), ..record }));
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// Follows the store from now on.
    pub fn follow(&self) -> FlowFollower {
        let (finished, closed) = (self.inner.finished.subscribe(), self.closed());
        FlowFollower { finished, closed }
    }

    /// Sets the reason for connections that are cut off from now on.
    pub fn cut(&self, why: Ended) {
        drop(self.inner.cut.set(why)); // the first reason counts
    }

    /// Ends the store: followers end when they have read what there is.
    pub fn close(&self) {
        self.inner.closed.cancel();
    }

    /// A token that is cancelled when no more records come.
    pub fn closed(&self) -> CancellationToken {
        self.inner.closed.clone()
    }

    fn lock(&self) -> parking_lot::MutexGuard<'_, Records> {
        self.inner.records.lock()
    }
}

impl Flow {
    /// Notes something that has become known.
    pub fn note(&self, change: impl FnOnce(&mut Record)) {
        change(&mut self.record.lock());
    }

    /// Sets whether the client still waits for its connection: what is dropped meanwhile has lost
    /// its client.
    pub fn client_waits(&mut self, waits: bool) {
        self.client_waits = waits;
    }

    /// Sets how the bytes are measured if the connection is cut off.
    pub fn measure(&mut self, bytes: impl Fn() -> Bytes + Send + Sync + 'static) {
        self.measure = Some(Box::new(bytes));
    }

    /// Completes the record. Of many alike connections that failed without carrying a byte, further
    /// ones are only counted.
    pub fn end(self, ended: Ended, bytes: Bytes) {
        let is_closed = ended.outcome == Reason::Closed.into();
        let failed_empty = bytes.sent + bytes.received == 0 && !is_closed;
        let kind = failed_empty.then(|| self.kind(ended.outcome));
        let is_folded = |kind| self.store.count(self.netns, kind) == Recorded::Folded;
        if kind.clone().is_some_and(is_folded) {
            return self.forget();
        }
        self.close(ended, bytes, kind.as_ref());
    }

    fn kind(&self, outcome: Outcome) -> Kind {
        let record = self.record.lock();
        let (client, server) = (Some(record.client.address), Some(record.server.address));
        Kind { direction: record.direction, outcome, client, server }
    }

    /// Leaves no record: it was no application's connection.
    pub fn forget(mut self) {
        self.over = true;
        self.store.lock().open.remove(&self.id);
    }

    fn close(mut self, ended: Ended, bytes: Bytes, kind: Option<&Kind>) {
        self.finish(ended, Some(bytes), kind);
    }

    fn finish(&mut self, ended: Ended, bytes: Option<Bytes>, kind: Option<&Kind>) {
        self.over = true;
        let Ended { outcome, sentence, fault } = ended;
        let mut record = self.record.lock().clone(); // its names are shared, not copied
        record.duration_us =
            Some(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX));
        (record.outcome, record.reason, record.fault) = (Some(outcome), sentence, fault);
        record.bytes = bytes.unwrap_or(record.bytes);
        tracing::debug!(
            id = record.id, direction = ?record.direction, client = %record.client.address,
            server = %record.server.address, port = record.server.port, outcome = outcome.code(),
            reason = %record.reason, "flow"
        );
        let finished = {
            let mut records = self.store.lock();
            records.open.remove(&self.id);
            if let Some(kind) = kind {
                records.folds.example(self.netns, kind, &record);
            }
            let finished = Arc::new(Finished::Own(record));
            records.finished.push(Arc::clone(&finished));
            finished
        };
        drop(self.store.inner.finished.send(finished)); // fails if there is no follower
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let ended = if panicking() {
            Ended::new(
                Reason::AgentPanicked,
                "The agent failed at this connection, and it alone was cut; the agent's log has the panic. Please report it.",
            )
        } else if let Some(cut) = self.store.inner.cut.get() {
            cut.clone()
        } else if self.client_waits {
            Ended::new(Reason::ClientGone, Reason::ClientGone.sentence())
        } else {
            Ended::new(
                Reason::AgentStopped,
                "The agent ended the connection: it is stopping, or the pod is gone.",
            )
        };
        let bytes = self.measure.take().map(|measure| measure());
        self.finish(ended, bytes, None);
    }
}

#[cfg(test)]
mod tests {
    use mesh_world::ObjectName;

    use super::{
        super::{fold::SINGLY, kept::KEPT},
        *,
    };

    fn begin(store: &FlowStore) -> Flow {
        let client = Party::at("10.0.0.1:40000".parse().unwrap());
        let server = Party::at("10.0.0.2:80".parse().unwrap());
        store.begin(1, Direction::Outbound, client, server, Verdict::RedirectPeer)
    }

    #[tokio::test]
    async fn a_record_is_open_and_then_finished_and_followed() {
        let store = FlowStore::new("node1");
        let mut follower = store.follow();
        let flow = begin(&store);
        assert_eq!(store.list().first().unwrap().outcome, "open");
        flow.note(|record| record.service = Some(ObjectName::new("shop", "cart")));
        flow.end(Ended::new(Reason::Closed, "Both ended."), Bytes { sent: 3, received: 4 });
        let Some(Followed::Finished(record)) = follower.next().await else {
            panic!("nothing to follow")
        };
        assert_eq!((record.outcome.as_str(), record.bytes.received), ("closed", 4));
        assert_eq!(record.service.as_deref(), Some("shop/cart"));
        assert!(record.duration_us.is_some());
        assert_eq!(store.list(), [*record]);
    }

    #[test]
    fn a_dropped_flow_says_that_the_agent_ended_it() {
        let store = FlowStore::new("node1");
        drop(begin(&store));
        assert_eq!(store.list().first().unwrap().outcome, "agent_stopped");
    }

    #[tokio::test]
    async fn a_cut_connection_says_why_and_what_it_had_carried() {
        let store = FlowStore::new("node1");
        let mut follower = store.follow();
        let mut flow = begin(&store);
        flow.measure(|| Bytes { sent: 3, received: 4 });
        store.cut(Ended::new(Reason::DrainDeadline, ""));
        drop(flow);
        store.close();
        let Some(Followed::Finished(record)) = follower.next().await else {
            panic!("nothing to follow")
        };
        assert_eq!((&*record.outcome, record.bytes.received), ("drain_deadline", 4));
        assert!(follower.next().await.is_none(), "nothing more comes");
    }

    #[test]
    fn a_panic_is_said_to_be_one() {
        let store = FlowStore::new("node1");
        let flow = begin(&store);
        std::thread::spawn(move || {
            let _flow = flow;
            panic!("on purpose");
        })
        .join()
        .unwrap_err();
        assert_eq!(store.list().first().unwrap().outcome, "agent_panicked");
    }

    #[test]
    fn a_record_of_a_newer_agent_is_kept_as_it_came() {
        let store = FlowStore::new("node1");
        end(&store, "10.0.0.1:1", Reason::Closed, 1);
        let of_newer = FlowRecord {
            verdict: "of_a_newer_agent".to_owned(),
            outcome: "unheard_of".to_owned(),
            ..store.list().remove(0)
        };
        store.adopt(of_newer.clone());
        assert_eq!(store.list()[1], FlowRecord { id: 2, ..of_newer.clone() });
        // It counts as its pod's, like the records of this agent.
        for _ in 0..KEPT {
            store.adopt(of_newer.clone());
            end(&store, "10.0.0.1:1", Reason::Closed, 1);
            end(&store, "10.0.0.9:1", Reason::Closed, 1);
        }
        let other = Some("shop/10.0.0.9".to_owned());
        let others = store.list().iter().filter(|record| record.client.pod == other).count();
        assert!(others.abs_diff(KEPT / 2) <= 2, "{others} of {KEPT}");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let store = FlowStore::new("node1");
        for _ in 0..KEPT + 5 {
            begin(&store).end(Ended::new(Reason::Closed, ""), Bytes { sent: 1, received: 0 });
        }
        let list = store.list();
        assert_eq!((list.len(), list.first().unwrap().id), (KEPT, 6));
    }

    /// Ends one connection of a pod that dialled.
    fn end(store: &FlowStore, pod: &str, reason: Reason, sent: u64) {
        let at = Party::at(pod.parse().unwrap());
        let name = ObjectName::new("shop", &at.address.to_string());
        end_of(store, Party { pod: Some(name), ..at }, reason, sent);
    }

    fn end_of(store: &FlowStore, client: Party, reason: Reason, sent: u64) {
        let server = Party::at("10.0.0.2:80".parse().unwrap());
        let flow = store.begin(1, Direction::Outbound, client, server, Verdict::RedirectPeer);
        flow.end(Ended::new(reason, ""), Bytes { sent, received: 0 });
    }

    #[test]
    fn a_pod_with_many_connections_pushes_out_its_own() {
        let store = FlowStore::new("node1");
        end(&store, "10.0.0.1:1", Reason::Closed, 1);
        for _ in 0..KEPT * 2 {
            end(&store, "10.0.0.9:1", Reason::ApplicationReset, 1);
        }
        let list = store.list();
        assert_eq!((list.len(), list.first().unwrap().id), (KEPT, 1));
    }

    #[test]
    fn a_pod_with_many_addresses_pushes_out_its_own() {
        let store = FlowStore::new("node1");
        for _ in 0..10 {
            end(&store, "10.0.0.1:1", Reason::Closed, 1);
        }
        for number in 0..2 * KEPT as u32 {
            let address = std::net::Ipv4Addr::from_bits(0x0b00_0000 + number);
            end_of(&store, Party::at((address, 1).into()), Reason::ApplicationReset, 1);
        }
        let ours = store.list().iter().filter(|record| record.outcome == "closed").count();
        assert_eq!((store.list().len(), ours), (KEPT, 10));
    }

    #[test]
    fn a_flood_that_comes_to_nothing_is_counted_and_pushes_out_nothing() {
        let (store, flood) = (FlowStore::new("node1"), 100_000);
        let (client, server) = ("10.9.0.1:7".parse().unwrap(), "10.0.0.1:80".parse().unwrap());
        let (direction, verdict) = (Direction::Inbound, Verdict::RefusedStrict);
        let outcome = verdict.into();
        let refused = RefusedConnection { netns: 1, direction, client, server, verdict, outcome };
        end(&store, "10.0.0.1:1", Reason::Closed, 1);
        for _ in 0..flood {
            store.refuse(refused, |_, _| "strict".into());
            end(&store, "10.0.0.1:1", Reason::ConnectionRefused, 0);
        }
        let list = store.list();
        assert_eq!((list.len(), store.open()), (1 + 2 * SINGLY as usize, 0));
        assert_eq!(list.first().unwrap().outcome, "closed");
        // Once the window is over, the others are recorded.
        let told = store.lock().folds.sweep(Instant::now() + std::time::Duration::from_mins(1));
        assert_eq!(told.len(), 2);
        assert!(told.iter().all(|record| record.alike == flood - u64::from(SINGLY)));
        assert!(told.iter().any(|record| record.reason.contains("strict")));
    }
}
