//! What an agent is told, and why it may not start.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use mesh_api::SameNode;
use mesh_wire::identity::{TrustDomain, file_ca::CaError};
use mesh_world::NodeName;
use thiserror::Error;

use super::WorldSource;
use crate::admin;
use crate::handover::TakeOverError;
use crate::kernel::KernelError;
use crate::lock::LockError;
use crate::metrics;
use crate::netns::NetnsError;
use crate::preflight::PreflightError;
use crate::source::OpenError;

/// What `mesh-agent run` was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: NodeName,
    /// Where the world comes from.
    pub world: WorldSource,
    /// Directory of the CA.
    pub ca_dir: PathBuf,
    /// The trust domain, if it was given.
    pub trust_domain: Option<TrustDomain>,
    /// Where socket, lock and notes are.
    pub runtime_dir: PathBuf,
    /// Where programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// The cgroup above the pods, if it was given.
    pub cgroup: Option<PathBuf>,
    /// What becomes of pods that are not classified yet.
    pub unclassified: Unclassified,
    /// How connections between two pods of the node go, where nothing else is said.
    pub same_node: SameNode,
    /// How long open connections may take to end after SIGTERM.
    pub drain: Duration,
    /// How long certificates live.
    pub leaf_ttl: Duration,
    /// How many connections at once, if fewer than the descriptors allow.
    pub max_connections: Option<usize>,
    /// Where to serve metrics, if at all.
    pub metrics: Option<metrics::Address>,
    /// Whether to take over from an agent that runs for this node.
    pub take_over: bool,
    /// Whether to go on, doing nothing, after having handed over: a container that ends is started
    /// again.
    pub stays_until_told: bool,
}

/// What becomes of the TCP connections of a pod whose object the agent has not seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unclassified {
    /// They go on, as without a mesh.
    #[default]
    Open,
    /// They are refused, also while the agent is away.
    Refuse,
}

/// Why the agent did not start, or could not clean up.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The host lacks something.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// Another agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// Another agent runs, and this one could not take over from it.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The task that keeps pods enrolled is gone.
    #[error("the task that keeps pods enrolled has ended by itself; the log says why")]
    NobodyEnrols,
    /// The agent that had taken over is gone.
    #[error(
        "the agent that took over is gone, and no other has come; this one has to be started again"
    )]
    NobodyInCharge,
    /// The CA directory is not usable.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The CA is another trust domain's.
    #[error(
        "the CA in {dir} is that of trust domain {found}, but --trust-domain says {wanted}; use the right directory, or leave --trust-domain out"
    )]
    TrustDomain {
        /// Its directory.
        dir: PathBuf,
        /// Its trust domain.
        found: TrustDomain,
        /// What was asked for.
        wanted: TrustDomain,
    },
    /// A directory cannot be watched.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// No setting says where the API server is.
    #[error(
        "there is no API server to ask: {}; as a pod the agent needs its service account's token, elsewhere KUBECONFIG",
        crate::source::sentence(.0)
    )]
    NoApiServer(#[from] kube::Error),
    /// The kernel side failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The node's own network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The admin socket failed.
    #[error(transparent)]
    Admin(#[from] admin::ServeError),
    /// Two metrics have one name.
    #[error("the metrics cannot be registered, which is a defect of the agent: {0}")]
    Metrics(#[from] prometheus::Error),
    /// Something of the operating system failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
