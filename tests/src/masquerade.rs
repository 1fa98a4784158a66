//! Something on the path that masquerades: what leaves a node over the link carries the node's address.

use anyhow::Result;

use crate::Node;

/// A masquerade on a node's end of the link, both families; removed when dropped.
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
    /// Masquerades every connection that begins from now on.
    pub fn on(node: &Node, ports: Ports) -> Result<Self> {
        let how = match ports {
            Ports::Kept => "masquerade",
            Ports::Random => "masquerade random",
            Ports::Low => "masquerade to :1024-60000",
        };
        let rules = format!(
            "table inet path {{ chain post {{ type nat hook postrouting priority srcnat; \
             oifname \"uplink\" meta l4proto tcp {how}; }}; }}"
        );
        node.run(["nft", &rules])?.success()?;
        Ok(Self { node: node.clone() })
    }

    /// Leaves every connection that begins from now on alone.
    pub fn remove(self) {}
}

impl Drop for Masquerade {
    fn drop(&mut self) {
        if let Err(error) = self.node.run(["nft", "delete", "table", "inet", "path"]) {
            eprintln!("{}: {error:#}", self.node.name);
        }
    }
}
