//! `mesh-agent run`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};
use mesh_api::SameNode;
use mesh_wire::identity::TrustDomain;
use mesh_world::NodeName;

use super::{PIN_DIR, RUNTIME_DIR, log};
use crate::{
    daemon::{self, Settings, WorldSource},
    metrics,
};

const A_DAY_S: u64 = 24 * 60 * 60;
/// The lifetime of a CA that is made here; no certificate outlives its CA.
const LONGEST_LEAF_S: u64 = 3650 * A_DAY_S;

/// Run the agent of a node.
#[derive(Debug, Args)]
pub(super) struct Run {
    /// This node's name, as in the pods' spec.nodeName
    #[arg(long, env = "NODE_NAME", value_parser = node, value_name = "NAME")]
    node: NodeName,
    /// Read the cluster's objects from the API server, and announce this node's pods there. A pod
    /// uses its service account; elsewhere KUBECONFIG is used
    #[arg(long, conflicts_with_all = ["source", "announce_dir"])]
    kubernetes: bool,
    /// The DaemonSet, in the agent's own namespace, that this agent belongs to. When it is deleted,
    /// the agent removes everything that it has put on the node
    #[arg(long, requires = "kubernetes", value_parser = super::object_name, value_name = "NAME")]
    daemon_set: Option<String>,
    /// Directory of Kubernetes objects (Namespace, Node, Pod, Service, EndpointSlice) in YAML or
    /// JSON. The agent follows its changes
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    source: Option<PathBuf>,
    /// Directory shared by all nodes. Each node announces its captured pods there
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    announce_dir: Option<PathBuf>,
    /// Directory of a CA made by `mesh-agent ca init`. The agent signs its certificates with it
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// The trust domain that the CA must have. By default, it is the CA's own
    #[arg(long, env = "NODEMESH_TRUST_DOMAIN", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Directory of the agent's socket, lock and notes. Each node's agent has its own
    #[arg(long, env = "NODEMESH_RUNTIME_DIR", default_value = RUNTIME_DIR, value_name = "DIR")]
    runtime_dir: PathBuf,
    /// Directory on a bpffs where programs and maps are pinned. Each node's agent has its own
    #[arg(long, env = "NODEMESH_PIN_DIR", default_value = PIN_DIR, value_name = "DIR")]
    pin_dir: PathBuf,
    /// The cgroup v2 directory above this node's pods. By default, an agent in a pod finds it, and
    /// any other agent uses the root of cgroup v2
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// What happens to TCP connections of a pod that the agent does not know yet. Those of a strict
    /// pod that it knows are always refused until the pod is enrolled
    #[arg(long, default_value = "open", value_name = "WHAT")]
    unclassified: Unclassified,
    /// How connections between two pods of this node go, where no annotation says so: tls as
    /// between nodes, or local through the agent once and without TLS
    #[arg(long, env = "NODEMESH_SAME_NODE", default_value_t, value_name = "WAY")]
    same_node: SameNode,
    /// How many seconds open connections may take to end after SIGTERM
    #[arg(long, default_value_t = 25, value_parser = value_parser!(u64).range(..=A_DAY_S), value_name = "SECONDS")]
    drain_seconds: u64,
    /// If an agent already runs for this node, take over from it. There is no gap for new
    /// connections. Open ones stay with the old agent for at most its --drain-seconds
    #[arg(long, env = "NODEMESH_TAKE_OVER")]
    take_over: bool,
    /// How many seconds a certificate is valid. It is renewed after half of that time
    #[arg(long, default_value_t = A_DAY_S, value_parser = value_parser!(u64).range(1..=LONGEST_LEAF_S), value_name = "SECONDS")]
    leaf_ttl_seconds: u64,
    /// How many connections may be open at once, over all pods. The default, which is also the
    /// maximum, depends on the descriptor limit: half of what it leaves beside 1024, up to 16384
    #[arg(long, value_parser = connections, value_name = "NUMBER")]
    max_connections: Option<usize>,
    /// Where to serve metrics for Prometheus (GET /metrics), such as [::]:15020. Anyone who can
    /// reach it can read them. By default, no metrics are served
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<metrics::Address>,
    #[command(flatten)]
    log: log::Log,
    /// The log's format
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: log::Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unclassified {
    /// They are allowed, as without a mesh
    Open,
    /// They are refused, also while the agent is away. Needs --cgroup. Not for --kubernetes, where
    /// it would cut off static pods
    Refuse,
}

impl Run {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        self.log.init(self.log_format)?;
        let settings = Settings {
            node: self.node,
            world: match (self.source, self.announce_dir) {
                (Some(source), Some(announce_dir)) => WorldSource::Files { source, announce_dir },
                _ => WorldSource::Kubernetes { daemon_set: self.daemon_set },
            },
            ca_dir: self.ca_dir,
            trust_domain: self.trust_domain,
            runtime_dir: self.runtime_dir,
            pin_dir: self.pin_dir,
            cgroup: self.cgroup,
            unclassified: match self.unclassified {
                Unclassified::Open => daemon::Unclassified::Open,
                Unclassified::Refuse => daemon::Unclassified::Refuse,
            },
            same_node: self.same_node,
            drain: Duration::from_secs(self.drain_seconds),
            leaf_ttl: Duration::from_secs(self.leaf_ttl_seconds),
            max_connections: self.max_connections,
            metrics: self.metrics,
            take_over: self.take_over,
            stays_until_told: self.kubernetes,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("mesh").build()?;
        runtime.block_on(daemon::run(settings))?;
        Ok(())
    }
}

fn connections(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err("write a number from 1 on".to_owned()),
        Ok(number) => Ok(number),
    }
}

fn node(text: &str) -> Result<NodeName, String> {
    NodeName::parse(text)
}
