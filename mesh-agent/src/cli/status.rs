//! `mesh-agent status`.

use clap::Args;
use mesh_api::{KnowledgeSource, Mode, OpenPeer, PodState, PodStatus, PortSet};

use super::{Asked, Output, print_line, table, table::age};

/// How many pods of other nodes with open ports are shown. `-o json` lists all.
const OPEN_PEERS_SHOWN: usize = 8;

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

fn print(status: &mesh_api::Status) -> anyhow::Result<()> {
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
    let sessions = &counters.sessions;
    print_line(&format!(
        "TLS sessions: {} handshakes ({} resumed), {} connections without one, {} sessions kept",
        sessions.handshakes_outbound + sessions.handshakes_inbound,
        sessions.resumed_outbound + sessions.resumed_inbound,
        sessions.reused_outbound + sessions.reused_inbound,
        sessions.kept_outbound + sessions.kept_inbound
    ))?;
    if let Some(as_of) = status.knowledge.as_of {
        let from = match status.knowledge.from {
            KnowledgeSource::Disk => ", from an earlier agent's file",
            KnowledgeSource::Nobody | KnowledgeSource::Source => "",
        };
        print_line(&format!("knowledge of the cluster: {} old{from}", age(as_of)))?;
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
    // Those of strict pods are among the problems.
    let has_older = |pod: &&PodStatus| pod.plaintext.count > 0 && pod.mode != Some(Mode::Strict);
    for pod in status.pods.iter().filter(has_older) {
        let (name, count) = (format!("{}/{}", pod.namespace, pod.name), pod.plaintext.count);
        print_line(&format!(
            "\nplaintext connections of {name} with other pods of the mesh, from before both had joined: {count}; they end by themselves, or by: mesh-agent reset {name}"
        ))?;
    }
    for identity in status.identities.iter().filter(|identity| identity.failure.is_some()) {
        print_line(&format!(
            "\n✗ {}: {}",
            identity.id,
            identity.failure.as_deref().unwrap_or_default()
        ))?;
    }
    if !status.open_peers.is_empty() {
        print_line(&format!(
            "\nstrict pods of other nodes that plaintext reaches on some ports: {}",
            open_peers(&status.open_peers)
        ))?;
    }
    if !status.not_carried.is_empty() {
        print_line(&format!(
            "\nservice ports that are also exposed at node ports or load balancers; the mesh does not carry what its pods dial there: {} (-o json lists them)",
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

/// The reason's code, then its sentence. Documentation and metrics use the code.
fn reason(pod: &PodStatus) -> String {
    if pod.code.is_empty() { String::new() } else { format!("{}: {}", pod.code, pod.reason) }
}

fn mode(pod: &PodStatus) -> String {
    match pod.mode {
        None => "-".to_owned(),
        Some(Mode::Strict) => match open_ports(&pod.exclude_ports, &pod.permissive_ports) {
            ports if ports.is_empty() => "strict".to_owned(),
            ports => format!("strict, open: {ports}"),
        },
        Some(Mode::Permissive) if pod.exclude_ports.is_empty() => "permissive".to_owned(),
        Some(Mode::Permissive) => format!("permissive, excluded: {}", pod.exclude_ports),
    }
}

/// The ports on which plaintext reaches a strict pod, by either annotation.
fn open_ports(excluded: &PortSet, permissive: &PortSet) -> String {
    let others = permissive.only(|port| !excluded.contains(port));
    let both = [excluded, &others].map(ToString::to_string);
    both.into_iter().filter(|ports| !ports.is_empty()).collect::<Vec<_>>().join(",")
}

/// The strict pods of other nodes that are not closed on all ports.
fn open_peers(peers: &[OpenPeer]) -> String {
    let shown = peers.iter().take(OPEN_PEERS_SHOWN).map(|peer| {
        let ports = open_ports(&peer.exclude_ports, &peer.permissive_ports);
        format!("{} on {} ({ports})", peer.pod, peer.node)
    });
    let more = match peers.len().saturating_sub(OPEN_PEERS_SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more (-o json lists them)"),
    };
    format!("{}{more}", shown.collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_ports_are_told_once_whichever_annotation_opens_them() {
        let open = |excluded: &str, permissive: &str| {
            open_ports(&excluded.parse().unwrap(), &permissive.parse().unwrap())
        };
        assert_eq!(open("6379,8000-8010", ""), "6379,8000-8010");
        assert_eq!(open("", "9102"), "9102");
        assert_eq!(open("6379", "6379,9102"), "6379,9102");
        assert_eq!(open("", ""), "");
    }

    #[test]
    fn other_nodes_pods_are_named_up_to_a_bound() {
        let peer = |number: usize| OpenPeer {
            pod: format!("shop/db-{number}"),
            node: "node2".to_owned(),
            exclude_ports: "6379".parse().unwrap(),
            permissive_ports: PortSet::default(),
        };
        let peers: Vec<_> = (0..10).map(peer).collect();
        assert_eq!(open_peers(&peers[..1]), "shop/db-0 on node2 (6379)");
        assert!(
            open_peers(&peers)
                .ends_with(", shop/db-7 on node2 (6379) and 2 more (-o json lists them)")
        );
    }
}
