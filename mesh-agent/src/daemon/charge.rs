//! Being in charge of the node: the locks, and an agent that gives them to its successor.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::SuccessorInfo;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

use super::feeds::Feeds;
use super::{DaemonError, Settings};
use crate::admin;
use crate::handover::{self, Inherited, Predecessor, TakeOverError};
use crate::lock::{LockError, NodeLock, PinLock};
use crate::tasks::Tasks;

/// How long a successor waits for the locks of a predecessor that has just given them up, or for a
/// predecessor that does not answer.
const LOCKS_WAIT: Duration = Duration::from_secs(5);

/// Pause between two attempts.
const LOCKS_PAUSE: Duration = Duration::from_millis(5);

/// How often an agent that waits for its world looks whether the agent in charge has ended
/// meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often an agent that has handed over looks whether any agent is in charge. Two misses in a
/// row outlast the kubelet's first restart back-off.
const LOOK_AFTER_SUCCESSOR: Duration = Duration::from_secs(5);

/// The two locks of an agent that is in charge of its node.
pub(super) type Locks = (NodeLock, PinLock);

fn lock(settings: &Settings) -> Result<Locks, LockError> {
    Ok((NodeLock::take(&settings.runtime_dir)?, PinLock::take(&settings.pin_dir)?))
}

/// How an agent begins: in charge, or beside an agent that still is.
pub(super) struct Begun {
    pub(super) locks: Option<Locks>,
    pub(super) predecessor: Option<Predecessor>,
    pub(super) inherited: Inherited,
}

/// Resolves when this agent may begin. An agent that the source has told nothing yet would enrol no
/// pod, or go by what the other agent has written down. It must not take over from an agent that
/// knows.
pub(super) async fn has_read_or_is_alone(settings: &Settings, feeds: &mut Feeds) {
    let mut is_told = false;
    while !feeds.knowledge().is_told()
        && matches!(lock(settings), Err(LockError::Held { .. } | LockError::PinsHeld { .. }))
    {
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(
                "an agent runs for this node, and this one has not been told of any pod; it waits"
            );
        }
        drop(timeout(LOOK_AGAIN, feeds.changed()).await); // whichever comes first
    }
}

/// Takes the locks, or asks the agent that has them to hand over if that is wanted. An agent that
/// is just starting does not answer yet, and one that is just ending no longer does: both are asked
/// again.
pub(super) async fn begin(settings: &Settings, cgroup: u64) -> Result<Begun, DaemonError> {
    let deadline = Instant::now() + LOCKS_WAIT;
    loop {
        match lock(settings) {
            Ok(locks) => {
                let inherited = Inherited::new();
                return Ok(Begun { locks: Some(locks), predecessor: None, inherited });
            }
            Err(LockError::Held { .. } | LockError::PinsHeld { .. }) if settings.take_over => {}
            Err(error) => return Err(error.into()),
        }
        let ask = SuccessorInfo {
            version: mesh_api::HANDOVER_VERSION,
            pid: std::process::id(),
            node: settings.node.to_string(),
            pin_dir: settings.pin_dir.clone(),
            cgroup,
            layout: Some(mesh_common::ABI),
        };
        match Predecessor::ask(&settings.runtime_dir, ask).await {
            Ok((predecessor, inherited)) => {
                tracing::info!(pid = predecessor.pid, pods = inherited.len(), "taking over");
                return Ok(Begun { locks: None, predecessor: Some(predecessor), inherited });
            }
            Err(TakeOverError::NoAnswer { .. } | TakeOverError::Broken(_))
                if Instant::now() < deadline =>
            {
                sleep(LOCKS_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// From here on this agent is in charge: everything leads to it, and its predecessor may end.
pub(super) async fn succeed(
    mut predecessor: Predecessor,
    settings: &Settings,
    state: &Arc<admin::AdminContext>,
    answering: &Tasks,
) -> Result<Locks, DaemonError> {
    let records = UnixStream::connect(admin::socket_path(&settings.runtime_dir)).await;
    let released = predecessor.release().await;
    let deadline = Instant::now() + LOCKS_WAIT;
    let locks = loop {
        match (lock(settings), &released) {
            (Ok(locks), _) => break locks,
            // Also if the predecessor has not answered: it may have died just now, and its locks
            // with it.
            (Err(_), _) if Instant::now() < deadline => sleep(LOCKS_PAUSE).await,
            (Err(error), Ok(())) => return Err(error.into()),
            (Err(_), Err(_)) => return Err(TakeOverError::TakenBack.into()),
        }
    };
    if let Ok(records) = records {
        let (pid, flows) = (predecessor.pid, state.mesh.flows.clone());
        answering.spawn("predecessor-records", async move {
            if let Err(error) = handover::follow(records, flows).await {
                tracing::warn!(pid, %error, "the records of the predecessor are not complete");
            }
        });
    }
    let (mesh, own) = (Arc::clone(&state.mesh), state.takeovers.cgroup);
    answering.spawn("predecessor", async move {
        predecessor.ended().await;
        tracing::info!(pid = predecessor.pid, "the predecessor has ended");
        let tables = mesh.kernel.tables();
        if let Err(error) = tables.agent_cgroups.sync(&[(own, 1)].into()) {
            tracing::error!(%error, "the predecessor's cgroup cannot be forgotten");
        }
    });
    Ok(locks)
}

/// Resolves when the successor is gone and no other agent has come: the container must then be
/// started again.
pub(super) async fn nobody_is_left(settings: &Settings) {
    let mut free_before = false;
    loop {
        sleep(LOOK_AFTER_SUCCESSOR).await;
        let is_free = lock(settings).is_ok();
        if is_free && free_before {
            return;
        }
        free_before = is_free;
    }
}
