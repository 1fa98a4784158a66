//! The threads that enter namespaces.

use std::{fs::File, io, os::fd::AsFd as _, sync::Arc, thread};

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::sched::{CloneFlags, setns};
use thiserror::Error;
use tokio::sync::oneshot;

/// Threads that make sockets. Each job takes some 10 µs. With two threads, one may wait for a slow
/// `/proc` write, or look at a namespace with many addresses, without delaying dials.
const THREADS: usize = 2;

type Job = Box<dyn FnOnce(io::Result<()>) + Send>;

struct Request {
    netns: Arc<File>,
    job: Job,
}

/// Runs jobs inside network namespaces, off the data path's threads.
#[derive(Clone)]
pub struct Factory(Sender<Request>);

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
        let home = Arc::new(File::open("/proc/thread-self/ns/net")?);
        let (requests, queue) = unbounded();
        for number in 0..THREADS {
            let (home, queue) = (Arc::clone(&home), Receiver::clone(&queue));
            let thread = thread::Builder::new().name(format!("netns-{number}"));
            thread.spawn(move || work(&queue, &home))?;
        }
        Ok(Self(requests))
    }

    /// Runs a job inside a namespace and returns what it returned, or why the namespace could not
    /// be entered.
    ///
    /// # Errors
    /// The threads are gone.
    ///
    /// # Cancel safety
    /// The job runs even if its caller waits no more; what it made is dropped then.
    pub async fn run<T: Send + 'static>(
        &self,
        netns: &Arc<File>,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<io::Result<T>, FactoryGone> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |entered| {
            let result = entered.map(|()| job());
            drop(answer.send(result)); // the caller waits no more: what was made goes
        });
        self.0.send(Request { netns: Arc::clone(netns), job }).map_err(|_gone| FactoryGone)?;
        answered.await.map_err(|_gone| FactoryGone)
    }

    /// Runs a job that nothing waits for, and tells it whether the namespace was entered. Dropped
    /// if the threads are gone.
    pub fn run_later(&self, netns: &Arc<File>, job: impl FnOnce(bool) + Send + 'static) {
        let job: Job = Box::new(move |entered| job(entered.is_ok()));
        self.0.send(Request { netns: Arc::clone(netns), job }).ok();
    }
}

/// Does jobs until no caller can ask for one any more. An idle thread returns to the agent's own
/// namespace first: inside a pod's namespace it would keep the namespace alive after the pod.
fn work(queue: &Receiver<Request>, home: &File) {
    loop {
        let request = queue.try_recv().ok().or_else(|| {
            if let Err(error) = setns(home.as_fd(), CloneFlags::CLONE_NEWNET) {
                tracing::error!(%error, "cannot return to the agent's own network namespace");
            }
            queue.recv().ok()
        });
        let Some(Request { netns, job }) = request else {
            return;
        };
        let entered = setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from);
        drop(netns);
        job(entered);
    }
}
