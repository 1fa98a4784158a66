//! The one way to start a task: it has a name, its panic is reported and takes nothing else down,
//! and a drain waits for it.

use std::{
    any::Any,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    task::Poll,
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Starts tasks and stops them together.
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    /// The groups above, which wait for our tasks too.
    above: Vec<TaskTracker>,
    stop: CancellationToken,
}

impl Tasks {
    /// No tasks yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A group that stops with this one, or earlier by itself.
    #[must_use]
    pub fn child(&self) -> Self {
        let mut above = self.above.clone();
        above.push(self.tracker.clone());
        Self { tracker: TaskTracker::new(), above, stop: self.stop.child_token() }
    }

    /// Starts a task that runs until it ends by itself or the group is stopped. Being stopped drops
    /// its future at an `.await`.
    pub fn spawn(&self, name: &'static str, future: impl Future<Output = ()> + Send + 'static) {
        let future = Box::pin(future); // else each future around it has room for it once more
        let stop = self.stop.clone();
        let counted: Vec<_> = self.above.iter().map(TaskTracker::token).collect();
        drop(self.tracker.spawn(async move {
            let _counted = counted;
            let _: Option<()> = stop.run_until_cancelled(reported(name, future)).await;
        }));
    }

    /// Tells all tasks to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Resolves when the group is told to stop.
    pub fn stopped(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// How many tasks have not ended yet, those of groups below included.
    pub fn running(&self) -> usize {
        self.tracker.len()
    }

    /// Waits until every task has ended, those of groups below included.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub async fn wait(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Does long work on what is in `slot`, on a thread where it keeps no connection waiting. A panic
/// of the work is the caller's own.
///
/// Returns `None` if the slot is empty, with nothing done: an earlier call was dropped before its
/// end. Also `None` if the runtime is being shut down.
/// # Cancel safety
/// Not cancel safe: what was in the slot is lost.
pub async fn off_the_workers<T: Send + 'static, R: Send + 'static>(
    slot: &mut Option<T>,
    work: impl FnOnce(&mut T) -> R + Send + 'static,
) -> Option<R> {
    let mut subject = slot.take()?;
    let working = tokio::task::spawn_blocking(move || {
        let result = work(&mut subject);
        (subject, result)
    });
    match working.await {
        Ok((subject, result)) => {
            *slot = Some(subject);
            Some(result)
        }
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_stopped_runtime) => None,
        },
    }
}

/// Runs a future to its end, or to its panic, which is logged with the task's name.
async fn reported(name: &'static str, future: impl Future<Output = ()>) {
    let mut future = pin!(future);
    let ended = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Pending) => Poll::Pending,
        Ok(Poll::Ready(())) => Poll::Ready(Ok(())),
        Err(panic) => Poll::Ready(Err(panic)),
    })
    .await;
    if let Err(panic) = ended {
        tracing::error!(
            task = name,
            panic = message(&*panic),
            "a task panicked; only what it did is lost"
        );
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("of unknown kind")
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn a_panic_ends_its_task_only() {
        let tasks = Tasks::new();
        let done = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&done);
        tasks.spawn("panics", async { panic!("on purpose") });
        tasks.spawn("works", async move { seen.store(true, Ordering::Release) });
        tasks.wait().await;
        assert!(done.load(Ordering::Acquire));
    }

    #[tokio::test]
    async fn a_child_stops_with_its_parent_but_not_the_other_way_round() {
        let parent = Tasks::new();
        let (early, late) = (parent.child(), parent.child());
        early.spawn("waits", std::future::pending());
        late.spawn("waits", std::future::pending());
        early.stop();
        early.wait().await;
        assert_eq!((late.running(), parent.running()), (1, 1));
        parent.stop();
        parent.wait().await;
        assert_eq!(late.running(), 0);
    }
}
