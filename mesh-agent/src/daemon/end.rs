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

/// How long pods may take to leave then: the grace, and the time that a hand-over under way takes.
const LEAVE: Duration = Duration::from_secs(15);

/// How many of the connections that a drain cuts are logged; `flows` has all.
const CUT_TOLD: usize = 100;

/// How long the API server may take to tell the others that this node has left the mesh.
const LAST_WORD: Duration = Duration::from_secs(2);

/// What tells the agent to stop.
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
    // As a rule this is known already; by now the agent's own rights may have been deleted too.
    let known = *is_removed.borrow();
    let removed = known || timeout(ANSWER, question?.ask()).await.unwrap_or(false);
    if removed { timeout(LEAVE, over).await.ok() } else { None }
}

/// Lets open connections end, and logs those that have not. New connections are refused by the
/// kernel once the listeners are gone, or go to the successor: strict stays closed.
pub(super) async fn drain(deadline: Duration, serving: &Tasks, flows: &FlowStore) {
    let open = serving.running();
    tracing::info!(open, ?deadline, "draining; programs, maps and the announcement stay in force");
    if timeout(deadline, serving.wait()).await.is_err() {
        let sentence = format!(
            "The agent was told to stop, and the connection was still open when {deadline:?} were over."
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

/// Takes this node's announcement back. This may be done already: with the
/// `CustomResourceDefinition` all announcements go.
pub(super) async fn withdraw(announcer: &Announcer) {
    match timeout(LAST_WORD, announcer.withdraw()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the announcement stays"),
        Err(_elapsed) => tracing::warn!("the announcement stays: the API server does not answer"),
    }
}
