//! What successor and predecessor say to each other: lines of JSON, and after [`PredecessorInfo`]
//! the listeners' descriptors in its order.

use std::{net::IpAddr, path::PathBuf};

use mesh_common::maps::{INBOUND, ListenerKey, OUTBOUND};
use serde::{Deserialize, Serialize};

/// The version of this protocol. An agent refuses another one.
pub const HANDOVER_VERSION: u32 = 1;

/// What the successor says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuccessorInfo {
    /// [`HANDOVER_VERSION`].
    pub version: u32,
    /// Its process.
    pub pid: u32,
    /// Its node.
    pub node: String,
    /// Where it pins programs and maps.
    pub pin_dir: PathBuf,
    /// The id of the cgroup that it dials from.
    pub cgroup: u64,
    /// Its version of the layout of the kernel's tables; earlier agents do not say.
    #[serde(default)]
    pub layout: Option<u32>,
}

/// What the predecessor has to give.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PredecessorInfo {
    /// Its process.
    pub pid: u32,
    /// The id of the cgroup that it dials from until it ends.
    pub cgroup: u64,
    /// Its listeners.
    pub listeners: Vec<Listener>,
}

/// A listening socket inside a pod's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Cookie of the namespace.
    pub netns: u64,
    /// The pod's address that it is for.
    pub address: IpAddr,
    /// Whether it takes what the pod dials; else it takes what peers' agents dial.
    pub outbound: bool,
}

impl Listener {
    /// Its key in the kernel's table.
    pub fn key(&self) -> ListenerKey {
        let direction = if self.outbound { OUTBOUND } else { INBOUND };
        ListenerKey::new(self.netns, self.address.into(), direction)
    }
}
