//! How an agent ends: on a signal, or because the installation is deleted.

use std::io;
use std::time::Duration;

use mesh_api::Reason;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use super::keep::Over;
use crate::flows::{Ended, FlowStore};
use crate::source::{Announcer, Question};
use crate::tasks::Tasks;

/// How long the API server may take to say whether the installation has been deleted, when an agent
/// is told to stop.
const ANSWER: Duration = Duration::from_secs(3);

/// How long pods may take to leave a deleted installation: their grace, and a hand-over under way.
const LEAVE: Duration = Duration::from_secs(15);

/// A drain logs at most this many of the connections that it cuts. `mesh-agent flows` shows all.
const CUT_TOLD: usize = 100;

/// How long the API server may take to tell the others that this node has left the mesh.
const LAST_WORD: Duration = Duration::from_secs(2);

/// The signals that stop the agent.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    pub(super) async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// After SIGTERM: if the installation has been deleted, waits until the pods have left, and returns
/// how the agent then ends.
pub(super) async fn is_being_removed(
    is_removed: &watch::Receiver<bool>,
    question: Option<Question>,
    over: &mut oneshot::Receiver<Over>,
) -> Option<Result<Over, oneshot::error::RecvError>> {
    // What the watch has seen comes first: asking fails once the agent's own rights are deleted.
    let known = *is_removed.borrow();
    let removed = known || timeout(ANSWER, question?.ask()).await.unwrap_or(false);
    if removed { timeout(LEAVE, over).await.ok() } else { None }
}

/// Lets open connections end; cuts and logs those that are still open at the deadline. New ones go
/// to the successor, or the kernel refuses them once the listeners are gone: strict stays closed.
pub(super) async fn drain(deadline: Duration, serving: &Tasks, flows: &FlowStore) {
    let open = flows.open();
    tracing::info!(open, ?deadline, "draining; programs, maps and the announcement stay in force");
    if timeout(deadline, serving.wait()).await.is_err() {
        let sentence = format!(
            "The agent was told to stop, and the connection was still open after {deadline:?}."
        );
        flows.cut(Ended::new(Reason::DrainDeadline, sentence));
        let open = flows.list_open();
        tracing::warn!(
            cut = open.len(),
            "the drain's deadline has passed; what is still open is cut"
        );
        for flow in open.iter().take(CUT_TOLD) {
            let opened = flow.opened;
            tracing::warn!(client = %flow.client, server = %flow.server, %opened, "cut");
        }
    }
    serving.stop();
    drop(timeout(Duration::from_secs(1), serving.wait()).await); // tasks end at their next await
    tracing::info!("agent stopped");
}

/// Deletes this node's announcement. It may be gone already: deleting the
/// `CustomResourceDefinition` deletes all announcements.
pub(super) async fn withdraw(announcer: &Announcer) {
    match timeout(LAST_WORD, announcer.withdraw()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "cannot delete the announcement"),
        Err(_elapsed) => tracing::warn!("cannot delete the announcement: it took too long"),
    }
}
