//! `mesh-agent run`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, value_parser};
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
    /// Take the world from the API server, and announce there: in a pod by its service account,
    /// elsewhere by KUBECONFIG
    #[arg(long, conflicts_with_all = ["source", "announce_dir"])]
    kubernetes: bool,
    /// The DaemonSet of its own namespace that this agent belongs to: when it is deleted, the agent
    /// takes away everything that it has put on the node
    #[arg(long, requires = "kubernetes", value_parser = super::object_name, value_name = "NAME")]
    daemon_set: Option<String>,
    /// Directory of Kubernetes objects (Namespace, Node, Pod, Service, EndpointSlice) in YAML or
    /// JSON; watched
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    source: Option<PathBuf>,
    /// Directory shared by all nodes, where each announces the pods it has captured
    #[arg(long, value_name = "DIR", required_unless_present = "kubernetes")]
    announce_dir: Option<PathBuf>,
    /// Directory of the CA made by `mesh-agent ca init`: this agent signs for itself
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// The trust domain that the CA must be of; without it, the CA says
    #[arg(long, env = "NODEMESH_TRUST_DOMAIN", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Where the agent keeps its socket, lock and notes; one per agent
    #[arg(long, env = "NODEMESH_RUNTIME_DIR", default_value = RUNTIME_DIR, value_name = "DIR")]
    runtime_dir: PathBuf,
    /// Where programs and maps are pinned, on a bpffs; one per agent
    #[arg(long, env = "NODEMESH_PIN_DIR", default_value = PIN_DIR, value_name = "DIR")]
    pin_dir: PathBuf,
    /// The cgroup v2 directory above this node's pods. Without it, an agent that is a pod finds it,
    /// and any other takes the root of cgroup v2
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// What becomes of TCP connections of a pod that the agent has not heard of yet; strict pods it
    /// has heard of are refused theirs in any case until they are enrolled
    #[arg(long, default_value = "open", value_name = "WHAT")]
    unclassified: Unclassified,
    /// How many seconds open connections may take to end after SIGTERM
    #[arg(long, default_value_t = 25, value_parser = value_parser!(u64).range(..=A_DAY_S), value_name = "SECONDS")]
    drain_seconds: u64,
    /// If an agent runs for this node already, take over from it: new connections go on without a
    /// gap, and those that are open inside it get until its --drain-seconds are over
    #[arg(long, env = "NODEMESH_TAKE_OVER")]
    take_over: bool,
    /// How many seconds certificates live; renewed at half of it
    #[arg(long, default_value_t = A_DAY_S, value_parser = value_parser!(u64).range(1..=LONGEST_LEAF_S), value_name = "SECONDS")]
    leaf_ttl_seconds: u64,
    /// How many connections may be open at once, over all pods; without it, and at most, what the
    /// descriptor limit is enough for (half of what is left of it beside 1024), up to 16384
    #[arg(long, value_parser = connections, value_name = "NUMBER")]
    max_connections: Option<usize>,
    /// Where to serve metrics for Prometheus (GET /metrics), to anybody who reaches it, such as
    /// [::]:15020; not at all without it
    #[arg(long, value_name = "ADDRESS:PORT")]
    metrics: Option<metrics::Address>,
    #[command(flatten)]
    log: log::Log,
    /// How to log
    #[arg(long, default_value = "text", value_name = "FORMAT")]
    log_format: log::Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Unclassified {
    /// They go on, as without a mesh
    Open,
    /// They are refused, also while the agent is away; needs --cgroup, and is not for --kubernetes,
    /// where it would cut static pods off
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
