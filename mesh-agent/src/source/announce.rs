//! How a node tells the others what it has captured, and hears it from them: the interface.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::error::SourceError;
use crate::world::{Announcements, MeshNode, NodeName};

/// A future behind a pointer: the implementation is chosen when the agent starts.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What all nodes announce, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnouncementState {
    /// Each node's latest usable announcement.
    pub announcements: Arc<Announcements>,
    /// What is wrong with some of them; the one before stays in force.
    pub errors: Vec<SourceError>,
    /// Rises by one with every state that differs from the one before; the first is 1.
    pub revision: u64,
}

/// The channel between the nodes' agents. One implementation writes files, one will write
/// `MeshNode` objects.
pub trait Announcer: Send + Sync {
    /// Announces that this and nothing else is captured here. Done when it, or what was published
    /// after it, is where others can read it; at most one write a second, the first at once.
    ///
    /// Cancel safety: dropping the future does not take the wish back. After an error the write
    /// is tried again every second until it succeeds or something else is wished.
    fn publish(&self, announcement: MeshNode) -> BoxFuture<'_, Result<(), AnnounceError>>;

    /// Takes this node's announcement back, at once. Done when others can no longer read it.
    ///
    /// Cancel safety: as [`Self::publish`].
    fn withdraw(&self) -> BoxFuture<'_, Result<(), AnnounceError>>;

    /// What all nodes announce, now and from now on.
    fn subscribe(&self) -> watch::Receiver<Arc<AnnouncementState>>;
}

/// Why an announcement is not where it should be.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AnnounceError {
    /// A node speaks only for itself. Fault: ours.
    #[error("node {own} was asked to announce for node {other}")]
    OtherNode {
        /// This node.
        own: NodeName,
        /// The node named in the announcement.
        other: NodeName,
    },
    /// Fault: the host.
    #[error("{} cannot be written: {cause}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: Arc<std::io::Error>,
    },
    /// Fault: the host.
    #[error("{} cannot be removed: {cause}", path.display())]
    Remove {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        cause: Arc<std::io::Error>,
    },
    /// Nothing can be published any more: the agent is stopping.
    #[error("the announcer has been stopped")]
    Stopped,
}
