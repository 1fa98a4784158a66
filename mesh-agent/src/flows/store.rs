//! Where records are kept, and how they are followed.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use jiff::Timestamp;
use tokio::sync::broadcast;

use super::record::{Bytes, Direction, Ended, FlowRecord, Party, Security};

/// Finished records that are kept: some 700 bytes each, so 3 MiB.
const KEPT: usize = 4096;
/// Finished records that a slow follower may lag behind.
const LAG: usize = 1024;

/// All records of this agent.
#[derive(Clone)]
pub struct FlowStore {
    inner: Arc<Inner>,
}

struct Inner {
    node: String,
    next: AtomicU64,
    records: Mutex<Records>,
    finished: broadcast::Sender<Arc<FlowRecord>>,
}

#[derive(Default)]
struct Records {
    open: BTreeMap<u64, Arc<Mutex<FlowRecord>>>,
    finished: VecDeque<Arc<FlowRecord>>,
}

/// A connection that is not over. Dropped without [`Flow::end`] it counts as cut off by the agent.
pub struct Flow {
    store: FlowStore,
    record: Arc<Mutex<FlowRecord>>,
    id: u64,
    begun: Instant,
    over: bool,
}

/// What a follower gets.
#[derive(Debug)]
pub enum Followed {
    /// A record, finished.
    Finished(Arc<FlowRecord>),
    /// The follower was too slow and this many records are lost to it.
    Lost(u64),
}

/// Gets each record as it is finished.
pub struct Follower(broadcast::Receiver<Arc<FlowRecord>>);

impl Follower {
    /// The next record; `None` when the agent stops.
    ///
    /// # Cancel safety
    /// No record is lost.
    pub async fn next(&mut self) -> Option<Followed> {
        match self.0.recv().await {
            Ok(record) => Some(Followed::Finished(record)),
            Err(broadcast::error::RecvError::Lagged(lost)) => Some(Followed::Lost(lost)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl FlowStore {
    /// An empty store for a node.
    pub fn new(node: impl Into<String>) -> Self {
        let (finished, _) = broadcast::channel(LAG);
        let inner = Inner {
            node: node.into(),
            next: AtomicU64::new(1),
            records: Mutex::default(),
            finished,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins a record.
    pub fn begin(&self, direction: Direction, client: Party, server: Party, verdict: &str) -> Flow {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let original_destination = (server.address, server.port).into();
        let record = Arc::new(Mutex::new(FlowRecord {
            id,
            node: self.inner.node.clone(),
            direction,
            opened: Timestamp::now(),
            duration_us: None,
            client,
            server,
            original_destination,
            service: None,
            verdict: verdict.to_owned(),
            security: Security::None,
            outcome: "open".to_owned(),
            reason: String::new(),
            bytes: Bytes::default(),
        }));
        self.lock().open.insert(id, Arc::clone(&record));
        Flow { store: self.clone(), record, id, begun: Instant::now(), over: false }
    }

    /// The newest finished records, oldest first, and then those that are open.
    pub fn list(&self) -> Vec<FlowRecord> {
        let records = self.lock();
        let finished = records.finished.iter().map(|record| FlowRecord::clone(record));
        let open = records
            .open
            .values()
            .map(|record| record.lock().unwrap_or_else(PoisonError::into_inner).clone());
        finished.chain(open).collect()
    }

    /// How many connections are open.
    pub fn open(&self) -> usize {
        self.lock().open.len()
    }

    /// Follows the store from now on.
    pub fn follow(&self) -> Follower {
        Follower(self.inner.finished.subscribe())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Records> {
        self.inner.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    /// Writes down something that has become known.
    pub fn note(&self, change: impl FnOnce(&mut FlowRecord)) {
        change(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Completes the record.
    pub fn end(mut self, ended: &Ended, bytes: Bytes) {
        self.finish(ended, Some(bytes));
    }

    fn finish(&mut self, ended: &Ended, bytes: Option<Bytes>) {
        self.over = true;
        let finished = {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            record.duration_us =
                Some(u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX));
            ended.code.clone_into(&mut record.outcome);
            record.reason.clone_from(&ended.sentence);
            if let Some(bytes) = bytes {
                record.bytes = bytes;
            }
            Arc::new(record.clone())
        };
        tracing::debug!(
            id = finished.id, direction = ?finished.direction, client = %finished.client.address,
            server = %finished.server.address, port = finished.server.port, outcome = %finished.outcome,
            reason = %finished.reason, "flow"
        );
        {
            let mut records = self.store.lock();
            records.open.remove(&self.id);
            if records.finished.len() == KEPT {
                records.finished.pop_front();
            }
            records.finished.push_back(Arc::clone(&finished));
        }
        drop(self.store.inner.finished.send(finished)); // nobody follows
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.over {
            self.finish(
                &Ended::new(
                    "agent_stopped",
                    "The agent ended the connection: it is stopping, or the pod is gone.",
                ),
                None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(store: &FlowStore) -> Flow {
        let client = Party::at("10.0.0.1:40000".parse().unwrap());
        let server = Party::at("10.0.0.2:80".parse().unwrap());
        store.begin(Direction::Outbound, client, server, "redirect_peer")
    }

    #[tokio::test]
    async fn a_record_is_open_and_then_finished_and_followed() {
        let store = FlowStore::new("node1");
        let mut follower = store.follow();
        let flow = begin(&store);
        assert_eq!(store.list().first().unwrap().outcome, "open");
        flow.note(|record| record.service = Some("shop/cart".to_owned()));
        flow.end(&Ended::new("finished", "Both ended."), Bytes { sent: 3, received: 4 });
        let Some(Followed::Finished(record)) = follower.next().await else {
            panic!("nothing to follow")
        };
        assert_eq!((record.outcome.as_str(), record.bytes.received), ("finished", 4));
        assert_eq!(record.service.as_deref(), Some("shop/cart"));
        assert!(record.duration_us.is_some());
        assert_eq!(store.list(), [FlowRecord::clone(&record)]);
    }

    #[test]
    fn a_dropped_flow_says_that_the_agent_ended_it() {
        let store = FlowStore::new("node1");
        drop(begin(&store));
        assert_eq!(store.list().first().unwrap().outcome, "agent_stopped");
    }

    #[test]
    fn only_the_newest_are_kept() {
        let store = FlowStore::new("node1");
        for _ in 0..KEPT + 5 {
            begin(&store).end(&Ended::new("finished", ""), Bytes::default());
        }
        let list = store.list();
        assert_eq!((list.len(), list.first().unwrap().id), (KEPT, 6));
    }
}
