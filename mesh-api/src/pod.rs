//! How enrolment of one pod stands.

use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Mode, PlaintextFacts, PodState, PortSet};

/// How enrolment of one pod stands. Also the form in which `mesh-agent status -o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is in the mesh.
    pub state: PodState,
    /// Since when it is enrolled.
    pub since: Option<Timestamp>,
    /// `permissive` or `strict`, if it is enrolled or held.
    pub mode: Option<Mode>,
    /// Ports on which it is not in the mesh, if it is enrolled.
    #[serde(default)]
    pub exclude_ports: PortSet,
    /// Ports on which it takes plaintext although it is strict, if it is enrolled.
    #[serde(default)]
    pub permissive_ports: PortSet,
    /// The identity that is shown for it, if it is enrolled.
    pub identity: Option<String>,
    /// Stable code of why it is not enrolled ([`PodCode`](crate::PodCode)); empty if it is.
    pub code: String,
    /// The same as a sentence, with the remedy where there is one.
    pub reason: String,
    /// Cookie of its network namespace, by which the kernel's counters go.
    pub netns: Option<u64>,
    /// Connections of it that the agent carries now.
    pub connections: usize,
    /// Its plaintext connections that predate its mesh membership or strict mode.
    #[serde(default)]
    pub plaintext: PlaintextFacts,
}
