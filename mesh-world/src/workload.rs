//! The pods as the data path, enrolment and the kernel's tables see them.

use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::{Mode, PortSet};

use super::membership::Membership;
use super::names::{NodeName, PodUid};
use super::objects::NetnsRef;
use super::settings::PodSettings;

/// A pod that is known, in the mesh or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What it is keyed by.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// Its node, once scheduled.
    pub node: Option<NodeName>,
    /// The addresses that are its own; for a pod with `hostNetwork` none.
    pub addresses: Vec<IpAddr>,
    /// Whether it is to be in the mesh.
    pub membership: Membership,
}

/// A captured pod: dials to it from the mesh speak TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// What it is keyed by.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
    /// Its service account; with the namespace its expected identity.
    pub service_account: Arc<str>,
    /// The node that captured it.
    pub node: NodeName,
    /// The addresses that its node says it has, each once.
    pub addresses: Vec<IpAddr>,
    /// Permissive or strict.
    pub mode: Mode,
    /// Ports on which it is not in the mesh.
    pub exclude_ports: PortSet,
    /// Ports on which it takes plaintext although it is strict.
    pub permissive_ports: PortSet,
    /// Whether it is on this node.
    pub local: bool,
}

/// A pod of this node, for enrolment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalPod {
    /// The pod.
    pub workload: Arc<Workload>,
    /// The state that it should have.
    pub wanted: Wanted,
    /// Whether it counts as captured in this snapshot.
    pub enrolled: bool,
    /// The network namespace that its file names.
    pub netns: Option<NetnsRef>,
}

/// What enrolment should bring about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Captured, with these settings.
    In(PodSettings),
    /// Left alone, or released; the workload's membership says why.
    Out,
}
