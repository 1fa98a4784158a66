//! Which pod is captured at an address: the one answer for dials, the kernel's tables and services.

use std::fmt;
use std::sync::Arc;

use mesh_api::PortSet;

use super::workload::Peer;

/// How many claimants a sentence names: a node may announce one address for each of its pods.
const NAMED: usize = 4;

/// What is known of an announced address. Neither of the two means plaintext, whatever contradicts
/// the announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// One identity: a dial to the address speaks TLS and accepts only this identity.
    Believed(Arc<Peer>),
    /// Several identities, and nothing decides between them: no pod of the mesh dials the address.
    Disputed(Arc<Dispute>),
}

impl Standing {
    /// The pod, unless several are said to be there.
    pub fn believed(&self) -> Option<&Arc<Peer>> {
        match self {
            Self::Believed(peer) => Some(peer),
            Self::Disputed(_) => None,
        }
    }

    /// Ports on which the pod is not in the mesh. A disputed address has none.
    pub fn exclude_ports(&self) -> Option<&PortSet> {
        self.believed().map(|peer| &peer.exclude_ports)
    }

    /// Whether the mesh leaves connections to this port alone.
    pub fn excludes(&self, port: u16) -> bool {
        self.exclude_ports().is_some_and(|ports| ports.contains(port))
    }
}

/// How a dial of a captured pod must go.
#[derive(Clone, Copy, Debug)]
pub enum DialAs<'a> {
    /// The mesh leaves it alone: no node announces a pod of the mesh there, or the port is
    /// excluded.
    Plain,
    /// Over TLS, to this pod.
    Tls(&'a Arc<Peer>),
    /// Not at all.
    Refused(&'a Arc<Dispute>),
}

/// Announcements of one address that contradict each other about the identity there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// The pods that are said to be there: at least two, of different identities.
    pub claimants: Vec<Claimant>,
}

/// One pod that is said to have an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claimant {
    /// The pod, and the source of the claim.
    pub name: String,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
}

impl fmt::Display for Dispute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, claimant) in self.claimants.iter().take(NAMED).enumerate() {
            let Claimant { name, namespace, service_account } = claimant;
            let and = if i == 0 { "" } else { " and " };
            write!(f, "{and}{name} (service account {namespace}/{service_account})")?;
        }
        match self.claimants.len().saturating_sub(NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}
