//! Writes down what the source says, for an agent that starts while the source is away, or while a
//! part of it cannot be read any more.
//!
//! One agent writes at a time, the one in charge of the node. An agent that hands over writes a
//! last time before it gives up its locks, and so cannot replace what its successor learns later.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mesh_world::{Memory, Objects};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::announce::AnnouncementState;
use super::kept::{KeptError, KeptFile};
use super::state::{Knowledge, SourceState};
use crate::tasks::off_the_workers;

/// Least time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(2);
/// The pause is also this many times the last write's duration, so that at most a fiftieth of a
/// processor goes into writing.
const REST: u32 = 50;
/// How often an unchanged file is marked as still true.
const TOUCH_INTERVAL: Duration = Duration::from_secs(15);

/// The task that writes the file.
pub struct Keep {
    /// `None` only while it is being written.
    file: Option<KeptFile>,
    objects: watch::Receiver<Arc<SourceState>>,
    announcements: watch::Receiver<Arc<AnnouncementState>>,
    /// What follows from the announcements; `None` until it has been worked out once.
    memory: watch::Receiver<Option<Memory>>,
    written: Option<(Arc<Objects>, Memory)>,
    error: Option<String>,
}

impl Keep {
    /// Keeps in a file what these channels say, and which announcements are in force.
    pub fn new(
        file: KeptFile,
        objects: watch::Receiver<Arc<SourceState>>,
        announcements: watch::Receiver<Arc<AnnouncementState>>,
        memory: watch::Receiver<Option<Memory>>,
    ) -> Self {
        let (file, written, error) = (Some(file), None, None);
        Self { file, objects, announcements, memory, written, error }
    }

    /// Works from when this agent is `in_charge` until `stop`, and then writes what is new a last
    /// time. It writes nothing more after it has returned. Await it, rather than drop it, before
    /// another agent may be in charge.
    pub async fn run(mut self, in_charge: CancellationToken, stop: CancellationToken) {
        tokio::select! {
            biased;
            () = in_charge.cancelled() => {}
            () = stop.cancelled() => return,
        }
        while !stop.is_cancelled() {
            let pause = self.write().await;
            tokio::select! {
                () = stop.cancelled() => {}
                () = sleep(pause) => tokio::select! {
                    () = stop.cancelled() => {}
                    () = self.something_new() => {}
                    () = sleep(TOUCH_INTERVAL) => {}
                }
            }
        }
        self.write().await;
    }

    async fn something_new(&mut self) {
        let changed = tokio::select! {
            changed = self.objects.changed() => changed,
            changed = self.announcements.changed() => changed,
            changed = self.memory.changed() => changed,
        };
        if changed.is_err() {
            sleep(TOUCH_INTERVAL).await; // they are ending, and so is this
        }
    }

    /// Writes the file if the source has answered. Returns the pause until the next write.
    async fn write(&mut self) -> Duration {
        let objects = Arc::clone(&self.objects.borrow_and_update());
        let announced = Arc::clone(&self.announcements.borrow_and_update());
        let knowledge = objects.knowledge.worse(announced.knowledge);
        let Some(memory) = self.memory.borrow_and_update().clone() else {
            return WRITE_INTERVAL;
        };
        let objects = Arc::clone(&objects.objects);
        let is_same =
            |(written, known): &(Arc<Objects>, Memory)| **written == *objects && *known == memory;
        let is_written = self.written.as_ref().is_some_and(is_same);
        let as_of = match knowledge {
            Knowledge::Current => Timestamp::now(),
            Knowledge::Since(as_of) => as_of,
            Knowledge::Kept(_) | Knowledge::Nothing => return WRITE_INTERVAL,
        };
        let began = Instant::now();
        let what = (Arc::clone(&objects), memory.clone());
        let written = off_the_workers(&mut self.file, move |file| {
            if is_written && file.touch(as_of).is_ok() {
                return Ok(());
            }
            file.write(&what.0, &what.1, as_of)
        });
        match written.await {
            Some(Ok(())) => {
                self.written = Some((objects, memory));
                self.error = None;
            }
            Some(Err(error)) => self.complain(&error),
            None => {} // the runtime is ending
        }
        WRITE_INTERVAL.max(began.elapsed().saturating_mul(REST))
    }

    /// Logs each new error once.
    fn complain(&mut self, error: &KeptError) {
        let error = error.to_string();
        if self.error.as_ref() != Some(&error) {
            tracing::warn!(%error, "what the source says cannot be written down; an agent that begins without it will know nothing");
        }
        self.error = Some(error);
    }
}

#[cfg(test)]
mod tests {
    use mesh_world::{Announcements, NodeName};

    use super::super::testing::{TestDir, soon};
    use super::*;
    use crate::tasks::Tasks;

    /// A writer whose world comes from the API server, with the tokens that put it in charge and
    /// stop it.
    struct Writer {
        in_charge: CancellationToken,
        stop: CancellationToken,
        running: Tasks,
        objects: watch::Sender<Arc<SourceState>>,
        _announcements: watch::Sender<Arc<AnnouncementState>>,
        _memory: watch::Sender<Option<Memory>>,
    }

    fn world(namespaces: &[&str]) -> SourceState {
        let mut objects = Objects::default();
        for name in namespaces {
            let object = serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            super::super::kept::insert(object, &mut objects, &mut Announcements::new()).unwrap();
        }
        let knowledge = Knowledge::Current;
        SourceState { objects: Arc::new(objects), knowledge, revision: 1, ..SourceState::default() }
    }

    fn file(dir: &TestDir) -> KeptFile {
        KeptFile::new(dir.path(), &NodeName::parse("node1").unwrap(), "b1")
    }

    fn writer(dir: &TestDir, namespaces: &[&str]) -> Writer {
        let announced =
            AnnouncementState { knowledge: Knowledge::Current, ..AnnouncementState::default() };
        let objects = watch::Sender::new(Arc::new(world(namespaces)));
        let announcements = watch::Sender::new(Arc::new(announced));
        let memory = watch::Sender::new(Some(Memory::default()));
        let (told, heard) = (objects.subscribe(), announcements.subscribe());
        let keep = Keep::new(file(dir), told, heard, memory.subscribe());
        let (in_charge, stop, running) =
            (CancellationToken::new(), CancellationToken::new(), Tasks::new());
        running.spawn("world-file", keep.run(in_charge.clone(), stop.clone()));
        Writer { in_charge, stop, running, objects, _announcements: announcements, _memory: memory }
    }

    fn namespaces(dir: &TestDir) -> Option<usize> {
        file(dir).read().unwrap().map(|kept| kept.objects.namespaces().count())
    }

    async fn until_namespaces(dir: &TestDir, count: usize) {
        soon("the file", async {
            while namespaces(dir) != Some(count) {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    }

    #[tokio::test]
    async fn only_the_agent_in_charge_writes_and_a_successor_has_the_last_word() {
        let dir = TestDir::new();
        let old = writer(&dir, &["shop"]);
        old.in_charge.cancel();
        until_namespaces(&dir, 1).await;
        let successor = writer(&dir, &["shop", "new", "newer"]);
        let in_vain = writer(&dir, &[]);
        in_vain.stop.cancel();
        in_vain.running.wait().await;
        // What the old agent hears after its last write is written when it ends, whatever its
        // successor knows.
        old.objects.send_replace(Arc::new(world(&["shop", "new"])));
        old.stop.cancel();
        old.running.wait().await;
        assert_eq!(
            namespaces(&dir),
            Some(2),
            "the successor, or an agent never in charge, has written"
        );
        successor.in_charge.cancel();
        until_namespaces(&dir, 3).await;
        successor.stop.cancel();
        successor.running.wait().await;
        assert_eq!(namespaces(&dir), Some(3));
    }

    #[tokio::test]
    async fn while_the_api_server_is_away_the_file_is_as_old_as_what_was_known_last() {
        let dir = TestDir::new();
        let writer = writer(&dir, &["shop"]);
        writer.in_charge.cancel();
        until_namespaces(&dir, 1).await;
        let as_of = Timestamp::from_second(1_700_000_000).unwrap();
        let away = SourceState { knowledge: Knowledge::Since(as_of), ..world(&["shop"]) };
        writer.objects.send_replace(Arc::new(away));
        writer.stop.cancel();
        writer.running.wait().await;
        assert_eq!(file(&dir).read().unwrap().unwrap().as_of, as_of);
    }
}
