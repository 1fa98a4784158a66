//! The world from the API server.
//!
//! The watches are: this node's pods; and of the cluster Namespaces, Nodes, Services,
//! `EndpointSlice`s and `MeshNode`s. The pods of another node are asked for only while
//! its announcement is in question (`node_pods.rs`). Each object is trimmed as it comes. While the
//! API server is away, its last answers stay in force; an agent that starts meanwhile goes on with
//! what an earlier one has written down (`fallback.rs`).

mod api_object;
mod away;
mod content;
#[cfg(test)]
mod content_tests;
mod crd;
mod fallback;
mod installation;
mod installed;
mod mesh_nodes;
mod node_pods;
mod told;
mod watches;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use kube::{Client, Config};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

pub(crate) use self::api_object::ApiObject;
pub(crate) use self::away::AWAY;
use self::away::Away;
use self::content::{Change, Content};
pub use self::crd::mesh_node_crd;
use self::fallback::Fallback;
pub use self::installation::{Installation, Question};
use self::installed::Installed;
pub use self::installed::{CA_NOTICE, CA_NOTICE_KEY};
pub use self::mesh_nodes::{KubeAnnouncerTask, kube_announcer};
pub use self::node_pods::NodePodsTask;
pub use self::told::sentence;
pub(crate) use self::told::{Repeats, of_watch};
pub(crate) use self::watches::{events, settled};
use mesh_world::{NodeName, Objects};

use super::announce::AnnouncementState;
use super::earlier::Earlier;
use super::state::{Knowledge, SourceState};

/// How long the agent waits for more after a change, so that a rollout is not a hundred worlds.
const QUIET: Duration = Duration::from_millis(5);
/// How long connecting to the API server may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The longest that a change waits for others.
const MAX_WAIT_FOR_QUIET: Duration = Duration::from_millis(50);

/// The watches of everything but announcements.
pub struct KubeSource {
    client: Client,
    changes: SelectAll<BoxStream<'static, Change>>,
    content: Content,
    away: Away,
    installed: Installed,
    /// What an earlier agent knew, until everything has been listed.
    fallback: Fallback<Objects>,
    state: watch::Sender<Arc<SourceState>>,
}

impl KubeSource {
    /// Watches for the agent of `node`. Nothing happens unless [`Self::run`] runs. The state has
    /// revision 0 and no objects until everything has been listed once, or an earlier agent's
    /// knowledge comes into force.
    pub fn new(
        client: Client,
        node: &NodeName,
        earlier: &Earlier,
    ) -> (Self, watch::Receiver<Arc<SourceState>>) {
        let (state, receiver) = watch::channel(Arc::default());
        let changes = watches::all(&client, node);
        let (content, away) = (Content::default(), Away::default());
        let installed = Installed::new(&client);
        let fallback = earlier.objects();
        (Self { client, changes, content, away, installed, fallback, state }, receiver)
    }

    /// Follows the API server until `cancel` is done.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            tokio::select! {
                () = &mut cancel => return,
                change = self.changes.next() => {
                    let Some(change) = change else { return };
                    self.take_in(change);
                    self.take_in_more().await;
                }
                () = self.away.look(&self.client) => {}
                () = self.installed.changed() => {}
                () = self.fallback.comes_into_force() => {}
            }
            self.tell();
        }
    }

    /// Takes in further changes that follow at once.
    async fn take_in_more(&mut self) {
        let latest = Instant::now() + MAX_WAIT_FOR_QUIET;
        while Instant::now() < latest {
            match timeout(QUIET, self.changes.next()).await {
                Ok(Some(change)) => self.take_in(change),
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn take_in(&mut self, change: Change) {
        match change {
            Change::Failed { kind, error } => self.away.failed(kind, error),
            change => {
                if !matches!(change, Change::ListBegins(_)) {
                    self.away.heard_of(change.kind()); // the beginning of a list proves nothing
                }
                self.content.apply(change);
            }
        }
    }

    /// Publishes the state, if it has changed, once everything has been listed. Before that only
    /// errors, and what an earlier agent knew.
    fn tell(&mut self) {
        if self.content.is_listed()
            && let Some(earlier) = self.fallback.is_over()
        {
            self.content.inherit(&earlier);
        }
        let before = Arc::clone(&self.state.borrow());
        let errors = self.content.errors().cloned().chain(self.away.error());
        let errors = errors.chain(self.installed.errors());
        let errors: Vec<_> = errors.chain(self.fallback.errors().cloned()).collect();
        super::last_good::log_new(&errors, &before.errors);
        let (objects, complete, knowledge) = if self.content.is_listed() {
            let knowledge = self.away.since().map_or(Knowledge::Current, Knowledge::Since);
            (self.content.objects(), self.content.knows_all_pods(), knowledge)
        } else if let Some((objects, as_of)) = self.fallback.in_force() {
            (&**objects, false, Knowledge::Kept(as_of))
        } else {
            if errors != before.errors {
                self.state.send_replace(Arc::new(SourceState { errors, ..SourceState::default() }));
            }
            return;
        };
        let is_same =
            *objects == *before.objects && errors == before.errors && knowledge == before.knowledge;
        if before.revision == 0 || !is_same {
            let (objects, revision) = (Arc::new(objects.clone()), before.revision + 1);
            let state = SourceState { objects, errors, complete, knowledge, revision };
            self.state.send_replace(Arc::new(state));
        }
    }
}

/// A client of the API server that this agent is to ask.
///
/// # Errors
/// The configuration does not say where it is.
pub async fn api_server() -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.read_timeout = Some(watches::READ_TIMEOUT);
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    Client::try_from(config)
}

/// Waits until everything has been listed once or is known from an earlier agent, at most for
/// `limit`.
pub async fn listed(
    objects: &mut watch::Receiver<Arc<SourceState>>,
    announcements: &mut watch::Receiver<Arc<AnnouncementState>>,
    limit: Duration,
) -> bool {
    let both = async {
        objects.wait_for(|state| state.revision > 0).await.is_ok()
            && announcements.wait_for(|state| state.revision > 0).await.is_ok()
    };
    timeout(limit, both).await.unwrap_or(false)
}
