//! The world at one moment: built once, then only read.
//!
//! [`Snapshot`] is what the data path holds through `arc-swap`. Every question it asks per
//! connection is one hash look-up, without a lock and without allocation. Building costs time in
//! proportion to all objects; a source that changes often should wait a little and build once.

mod build;
mod claims;
#[cfg(test)]
mod order_tests;
mod peers;
mod ranges;
mod services;
#[cfg(test)]
pub(in crate::world) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::announcement::{AnnouncedPod, Announcements, MeshNode};
use super::cidr::Cidr;
use super::names::{NodeName, PodUid};
use super::objects::Objects;
use super::ports::PortSet;
use super::problem::Problem;
use super::service::ServicePort;
use super::settings::Mode;
use super::workload::{LocalPod, Peer, Workload};

/// What only this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// This node's name, as in `spec.nodeName`.
    pub name: NodeName,
    /// The pods that are captured here right now. A pod leaves this set *first* when it leaves the
    /// mesh, so that peers hear of it before steering stops.
    pub enrolled: BTreeSet<PodUid>,
}

/// The world at one moment. Cloning copies one pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(Arc<Inner>);

#[derive(Debug, Default, PartialEq, Eq)]
struct Inner {
    workloads: BTreeMap<PodUid, Arc<Workload>>,
    by_address: HashMap<IpAddr, Arc<Workload>>,
    peers: HashMap<IpAddr, Arc<Peer>>,
    services: HashMap<(IpAddr, u16), Arc<ServicePort>>,
    /// By namespace, name and UID.
    local_pods: Vec<Arc<LocalPod>>,
    local_by_uid: HashMap<PodUid, Arc<LocalPod>>,
    local_node: Option<NodeName>,
    pod_cidrs: BTreeSet<Cidr>,
    node_addresses: BTreeSet<IpAddr>,
    problems: Vec<Problem>,
}

/// What the kernel's table says of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelAddress<'a> {
    /// The address; never IPv4-mapped.
    pub address: IpAddr,
    /// A pod has it: TLS may come from it.
    pub known_pod: bool,
    /// A captured pod has it: dials go by TLS.
    pub peer: bool,
    /// The pod is on this node.
    pub local: bool,
    /// A captured pod that takes only what comes through the mesh.
    pub strict: bool,
    /// Ports on which a captured pod is not in the mesh; `None` if it is not captured.
    pub exclude_ports: Option<&'a PortSet>,
}

/// What the kernel's table says of one service address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelService {
    /// The service's address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// Whether a dial may end at a captured pod and so has to come to the agent.
    pub has_meshed_endpoint: bool,
}

impl Snapshot {
    /// Puts the world together. Depends on nothing but its arguments, and not on the order in
    /// which objects were inserted.
    ///
    /// Rules, where objects contradict each other:
    /// - Of several pods with one address the incumbent has it: first a pod that is captured on
    ///   its own node, then the one created first, then the first by namespace, name and UID. The
    ///   others keep their remaining addresses but are not enrolled.
    /// - Of several services with one address and port the first by namespace and name has it.
    /// - A node is believed only about its own pods, see `peers.rs`. Of several nodes that
    ///   announce an address about which no object says anything, the first by name is believed.
    ///
    /// Each contradiction is a [`Problem`].
    pub fn build(objects: &Objects, announcements: &Announcements, local: &LocalNode) -> Self {
        Self(Arc::new(build::build(objects, announcements, local)))
    }

    /// The pod with this address, in the mesh or not. Not pods with `hostNetwork`, nor ended ones:
    /// their addresses are not their own.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.0.by_address.get(&address.to_canonical())
    }

    /// The pod with this UID.
    pub fn workload_by_uid(&self, uid: &PodUid) -> Option<&Arc<Workload>> {
        self.0.workloads.get(uid)
    }

    /// All pods, by UID.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.0.workloads.values()
    }

    /// The captured pod with this address.
    pub fn peer(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.0.peers.get(&address.to_canonical())
    }

    /// The service at this address and TCP port. A service without endpoints is there, too.
    pub fn service(&self, address: IpAddr, port: u16) -> Option<&Arc<ServicePort>> {
        self.0.services.get(&(address.to_canonical(), port))
    }

    /// Every pod of this node, by namespace, name and UID, with what enrolment should do.
    pub fn local_pods(&self) -> &[Arc<LocalPod>] {
        &self.0.local_pods
    }

    /// A pod of this node.
    pub fn local_pod(&self, uid: &PodUid) -> Option<&Arc<LocalPod>> {
        self.0.local_by_uid.get(uid)
    }

    /// One row for every address of a pod, in no order.
    pub fn kernel_addresses(&self) -> impl Iterator<Item = KernelAddress<'_>> {
        let announced_only =
            self.0.peers.keys().filter(|address| !self.0.by_address.contains_key(address));
        self.0.by_address.keys().chain(announced_only).map(|address| {
            let workload = self.0.by_address.get(address);
            let peer = self.0.peers.get(address);
            let on_this_node =
                workload.is_some_and(|pod| pod.node.is_some() && pod.node == self.0.local_node);
            KernelAddress {
                address: *address,
                known_pod: true,
                peer: peer.is_some(),
                local: on_this_node,
                strict: peer.is_some_and(|peer| peer.mode == Mode::Strict),
                exclude_ports: peer.map(|peer| &peer.exclude_ports),
            }
        })
    }

    /// The ranges in which the addresses of pods lie that are not known yet; [`Cidr::ALL`] where nobody has said.
    pub fn pod_cidrs(&self) -> impl Iterator<Item = &Cidr> {
        self.0.pod_cidrs.iter()
    }

    /// Addresses of nodes, which no agent dials from for a pod.
    pub fn node_addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.0.node_addresses.iter()
    }

    /// One row for every service address and TCP port, in no order.
    pub fn kernel_services(&self) -> impl Iterator<Item = KernelService> {
        self.0.services.iter().map(|((address, port), service)| {
            let meshed = |endpoint: &super::Endpoint| {
                let peer = self.0.peers.get(&endpoint.addr);
                peer.is_some_and(|peer| !peer.exclude_ports.contains(endpoint.port))
            };
            KernelService {
                address: *address,
                port: *port,
                has_meshed_endpoint: service.endpoints.iter().any(meshed),
            }
        })
    }

    /// What this node has to announce: its captured pods. `generation` is asked for each.
    /// `None` for the empty snapshot, which belongs to no node.
    pub fn announcement(
        &self,
        boot_id: &str,
        trust_domain: &str,
        generation: impl Fn(&PodUid) -> u64,
    ) -> Option<MeshNode> {
        let captured = self.0.local_pods.iter().filter(|pod| pod.enrolled);
        let first_address = captured.filter_map(|pod| pod.workload.addresses.first());
        let peers = first_address.filter_map(|address| self.0.peers.get(address));
        let pods = peers.map(|peer| AnnouncedPod {
            uid: peer.uid.clone(),
            namespace: peer.namespace.to_string(),
            name: peer.name.to_string(),
            service_account: peer.service_account.to_string(),
            addresses: peer.addresses.clone(),
            mode: peer.mode,
            exclude_ports: peer.exclude_ports.clone(),
            generation: generation(&peer.uid),
        });
        Some(MeshNode {
            node: self.0.local_node.clone()?,
            boot_id: boot_id.to_owned(),
            trust_domain: trust_domain.to_owned(),
            pods: pods.collect(),
        })
    }

    /// What is wrong with the world as written, sorted by object and field.
    pub fn problems(&self) -> &[Problem] {
        &self.0.problems
    }
}
