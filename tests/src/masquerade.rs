//! Something on the path that changes source addresses or ports of what leaves a node over the
//! link.

use anyhow::Result;

use crate::{Node, Pod};

/// The port at which agents ask which source address and port arrive.
pub const AGENTS_PORT: u16 = 60_998;

/// A rule on a node's end of the link; removed when dropped.
#[derive(Debug)]
pub struct Masquerade {
    node: Node,
}

/// Which ports a masquerade gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// The connection's own, where it is free (`masquerade`).
    Kept,
    /// Any (`masquerade random`).
    Random,
    /// Any below the mesh's.
    Low,
}

impl Masquerade {
    /// Masquerades every connection that begins from now on, over both families.
    pub fn on(node: &Node, ports: Ports) -> Result<Self> {
        let how = match ports {
            Ports::Kept => "masquerade",
            Ports::Random => "masquerade random",
            Ports::Low => "masquerade to :1024-60000",
        };
        Self::rule(node, &format!("meta l4proto tcp {how}"))
    }

    /// An attacker on the path that changes nothing but the source port of this pod's agent's
    /// questions over IPv4.
    pub fn of_questions(node: &Node, pod: &Pod) -> Result<Self> {
        let v4 = pod.v4;
        Self::rule(
            node,
            &format!("ip saddr {v4} tcp dport {AGENTS_PORT} snat ip to {v4}:1024-60000"),
        )
    }

    fn rule(node: &Node, rule: &str) -> Result<Self> {
        let rules = format!(
            "table inet path {{ chain post {{ type nat hook postrouting priority srcnat; \
             oifname \"uplink\" {rule}; }}; }}"
        );
        node.run(["nft", &rules])?.success()?;
        Ok(Self { node: node.clone() })
    }

    /// Leaves all connections that begin from now on alone.
    pub fn remove(self) {}
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        if let Err(error) = self.node.run(["nft", "delete", "table", "inet", "path"]) {
            eprintln!("{}: {error:#}", self.node.name);
        }
    }
}
