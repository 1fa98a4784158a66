//! Writes down what the API server says, for an agent that may have to begin without it.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::super::announce::AnnouncementState;
use super::super::state::{Knowledge, SourceState};
use super::kept::{KeptError, KeptFile};
use crate::tasks::off_the_workers;
use crate::world::{Announcements, Objects};

/// Least time between two writes.
const WRITE_INTERVAL: Duration = Duration::from_secs(2);
/// And as many times as long as the last write took: at most a fiftieth of a processor goes into it.
const REST: u32 = 50;
/// How often a file whose content has not changed is said to be still true.
const TOUCH_INTERVAL: Duration = Duration::from_secs(15);

/// The task that does it.
pub struct Keep {
    /// `None` only while it is being written.
    file: Option<KeptFile>,
    objects: watch::Receiver<Arc<SourceState>>,
    announcements: watch::Receiver<Arc<AnnouncementState>>,
    written: Option<(Arc<Objects>, Arc<Announcements>)>,
    error: Option<String>,
}

impl Keep {
    /// Keeps in a file what these two tell.
    pub fn new(
        file: KeptFile,
        objects: watch::Receiver<Arc<SourceState>>,
        announcements: watch::Receiver<Arc<AnnouncementState>>,
    ) -> Self {
        Self { file: Some(file), objects, announcements, written: None, error: None }
    }

    /// Works until `stop`, and writes what is new then. Nothing is written any more when this has ended: to be waited for,
    /// not dropped.
    pub async fn run(mut self, stop: CancellationToken) {
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
        };
        if changed.is_err() {
            sleep(TOUCH_INTERVAL).await; // they are ending, and so is this
        }
    }

    /// Writes it if the API server has told it. How long to leave it then.
    async fn write(&mut self) -> Duration {
        let objects = Arc::clone(&self.objects.borrow_and_update());
        let announced = Arc::clone(&self.announcements.borrow_and_update());
        let knowledge = objects.knowledge.worse(announced.knowledge);
        let (objects, announced) =
            (Arc::clone(&objects.objects), Arc::clone(&announced.announcements));
        let is_same = |(written, told): &(Arc<Objects>, Arc<Announcements>)| {
            **written == *objects && **told == *announced
        };
        let is_written = self.written.as_ref().is_some_and(is_same);
        let as_of = match knowledge {
            Knowledge::Current => Timestamp::now(),
            Knowledge::Since(as_of) if !is_written => as_of,
            Knowledge::Since(_) | Knowledge::Kept(_) | Knowledge::Nothing => return WRITE_INTERVAL,
        };
        let began = Instant::now();
        let what = (Arc::clone(&objects), Arc::clone(&announced));
        let written = off_the_workers(&mut self.file, move |file| {
            if is_written && file.touch(as_of).is_ok() {
                return Ok(());
            }
            file.write(&what.0, &what.1, as_of)
        });
        match written.await {
            Some(Ok(())) => {
                self.written = Some((objects, announced));
                self.error = None;
            }
            Some(Err(error)) => self.complain(&error),
            None => {} // the runtime is ending
        }
        WRITE_INTERVAL.max(began.elapsed().saturating_mul(REST))
    }

    /// Once for each thing that is wrong.
    fn complain(&mut self, error: &KeptError) {
        let error = error.to_string();
        if self.error.as_ref() != Some(&error) {
            tracing::warn!(%error, "what the API server says cannot be written down; an agent that begins without it will know nothing");
        }
        self.error = Some(error);
    }
}
