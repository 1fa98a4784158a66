//! `mesh-agent status`.

use clap::Args;
use jiff::Timestamp;

use super::{Asked, Output, print_line, table};
use crate::{
    admin::{self, KnowledgeSource},
    enrol::{PodState, PodStatus},
};

/// Show the agent, its pods and what is wrong.
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    asked: Asked,
    /// How to print
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: Output,
}

impl Status {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let status = self.asked.status()?;
        match self.output {
            Output::Json => print_line(&serde_json::to_string(&status)?),
            Output::Table => print(&status),
        }
    }
}

fn print(status: &admin::Status) -> anyhow::Result<()> {
    let draining = if status.draining { ", draining" } else { "" };
    let anchors = match status.anchors.len() {
        1 => String::new(),
        several => format!(", {several} trust anchors"),
    };
    print_line(&format!(
        "mesh-agent {} on {} (pid {}, up {}{draining}), trust domain {}{anchors}",
        status.version,
        status.node,
        status.pid,
        age(status.started),
        status.trust_domain
    ))?;
    let counters = &status.counters;
    print_line(&format!(
        "connections carried: {} outbound, {} inbound, {} open; pods of other nodes in the mesh: {}",
        counters.accepted_outbound, counters.accepted_inbound, counters.open, status.remote_peers
    ))?;
    if let Some(as_of) = status.knowledge.as_of {
        let from = match status.knowledge.from {
            KnowledgeSource::Disk => ", from an earlier agent's file",
            KnowledgeSource::Nobody | KnowledgeSource::Source => "",
        };
        print_line(&format!("what is known of the cluster is {} old{from}", age(as_of)))?;
    }
    print_line("")?;
    if status.pods.is_empty() {
        print_line("No pods of this node are known.")?;
    } else {
        print_line(&table::table(
            ["POD", "ADDRESS", "STATE", "MODE", "SINCE", "CONNECTIONS", "REASON"],
            status.pods.iter().map(row),
        ))?;
    }
    for identity in status.identities.iter().filter(|identity| identity.failure.is_some()) {
        print_line(&format!(
            "\n✗ {}: {}",
            identity.id,
            identity.failure.as_deref().unwrap_or_default()
        ))?;
    }
    if !status.not_carried.is_empty() {
        print_line(&format!(
            "\nports of services that are reached from outside the cluster too, at addresses (node ports, load balancers) that the mesh does not carry when its pods dial them: {} (-o json lists them)",
            status.not_carried.len()
        ))?;
    }
    for problem in &status.problems {
        print_line(&format!("\n✗ {}: {}", problem.code, problem.message))?;
    }
    Ok(())
}

fn row(pod: &PodStatus) -> [String; 7] {
    let state = match pod.state {
        PodState::Enrolled => "✓ enrolled",
        PodState::Leaving => "leaving",
        PodState::Held => "✗ held",
        PodState::NotEnrolled => "not enrolled",
    };
    [
        format!("{}/{}", pod.namespace, pod.name),
        pod.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        state.to_owned(),
        mode(pod),
        pod.since.map_or_else(|| "-".to_owned(), age),
        pod.connections.to_string(),
        reason(pod),
    ]
}

/// The code before the sentence: the documents and metrics go by codes.
fn reason(pod: &PodStatus) -> String {
    if pod.code.is_empty() { String::new() } else { format!("{}: {}", pod.code, pod.reason) }
}

fn mode(pod: &PodStatus) -> String {
    let mode = pod.mode.map_or_else(|| "-".to_owned(), |mode| mode.to_string());
    if pod.permissive_ports.is_empty() {
        mode
    } else {
        format!("{mode}, but not on {}", pod.permissive_ports)
    }
}

fn age(since: Timestamp) -> String {
    let micros = Timestamp::now().duration_since(since).as_micros();
    table::duration(u64::try_from(micros).unwrap_or(0))
}
