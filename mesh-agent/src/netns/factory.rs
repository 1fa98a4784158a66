//! The threads that enter namespaces.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread,
};

use nix::sched::{CloneFlags, setns};
use thiserror::Error;
use tokio::sync::oneshot;

/// Threads that make sockets. Each job takes some 10 µs; two let one wait for a slow `/proc` write without delaying dials.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Request {
    netns: Arc<File>,
    job: Job,
}

/// Runs jobs inside network namespaces, off the data path's threads.
#[derive(Clone)]
pub struct Factory {
    requests: mpsc::Sender<Request>,
}

/// The threads have ended.
#[derive(Debug, Error)]
#[error("the threads that enter namespaces have ended")]
pub struct FactoryGone;

impl Factory {
    /// Starts the threads. They end when the last clone of the factory is dropped.
    ///
    /// # Errors
    /// The threads could not be started.
    pub fn start() -> io::Result<Self> {
        let (requests, queue) = mpsc::channel::<Request>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..THREADS {
            let queue = Arc::clone(&queue);
            thread::Builder::new().name(format!("netns-{number}")).spawn(move || work(&queue))?;
        }
        Ok(Self { requests })
    }

    /// Runs a job inside a namespace and returns what it returned, or why the namespace could not be entered.
    ///
    /// # Errors
    /// The threads are gone.
    ///
    /// # Cancel safety
    /// The job runs also if nobody waits for it any more; what it made is dropped then.
    pub async fn run<T: Send + 'static>(
        &self,
        netns: &Arc<File>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<io::Result<T>, FactoryGone> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |entered| {
            let result = entered.map(|()| job());
            drop(answer.send(result)); // nobody waits any more: what was made goes
        });
        self.requests
            .send(Request { netns: Arc::clone(netns), job })
            .map_err(|_gone| FactoryGone)?;
        answered.await.map_err(|_gone| FactoryGone)
    }
}

fn work(queue: &Mutex<mpsc::Receiver<Request>>) {
    loop {
        // The lock is held while waiting: the other threads wait for the lock instead, and wake one by one.
        let request = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Request { netns, job }) = request else {
            return;
        };
        let entered = setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        drop(netns);
        job(entered);
    }
}
