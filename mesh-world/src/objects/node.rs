//! `v1/Node`: the ranges of pods' addresses, and addresses that no pod has.

use std::net::IpAddr;
use std::sync::Arc;

use crate::cidr::Cidr;
use crate::origin::Origin;

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeObject {
    /// Where it was read.
    pub origin: Origin,
    /// Its name.
    pub name: Arc<str>,
    /// `spec.podCIDRs`, else `spec.podCIDR`: its pods have addresses from there, unless the network
    /// plugin assigns them otherwise.
    pub pod_cidrs: Vec<Cidr>,
    /// `status.addresses` of the types `InternalIP` and `ExternalIP`.
    pub addresses: Vec<IpAddr>,
    /// Its addresses in an overlay network, as far as the network plugin has noted them. From there
    /// comes what the node masquerades to pods of other nodes.
    pub tunnels: Vec<IpAddr>,
    /// `status.nodeInfo.bootID`, if the kubelet has said it.
    pub boot_id: Option<String>,
    /// The zone that it is in, from its label.
    pub zone: Option<Arc<str>>,
}
