//! The world at one moment: built once, then only read.
//!
//! [`Snapshot`] is what the data path holds through `arc-swap`. Every question it asks per
//! connection is one hash look-up, without a lock and without allocation. Building costs time in
//! proportion to all objects. [`World`] (`follow.rs`) makes each snapshot from the one before and
//! the changes, in proportion to the changes, and with the same content.

mod build;
#[cfg(test)]
pub(crate) mod changes;
mod claims;
mod facts;
mod follow;
#[cfg(test)]
mod follow_tests;
mod index;
#[cfg(test)]
mod order_tests;
mod peers;
mod problems;
mod ranges;
mod services;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

pub use follow::{Work, World};
use mesh_api::{Mode, PortSet};
use problems::Problems;
use services::ServiceKey;

use super::announcement::{AnnouncedPod, Announcements, MeshNode};
use super::cidr::Cidr;
use super::incumbents::Incumbents;
use super::names::{NodeName, PodUid};
use super::objects::Objects;
use super::problem::Problem;
use super::service::{Outside, ServicePort};
use super::shared_map::SharedMap;
use super::standing::{DialAs, Standing};
use super::workload::{LocalPod, Peer, Workload};

/// What only this node knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalNode {
    /// This node's name, as in `spec.nodeName`.
    pub name: NodeName,
    /// The pods that are captured here right now. A pod leaves this set *first* when it leaves the
    /// mesh, so that peers hear of it before steering stops.
    pub enrolled: BTreeSet<PodUid>,
    /// The namespace in which the mesh itself runs, in a cluster. Its pods are never held or in the
    /// mesh, whatever labels say: a held agent would hear of nothing any more, not even of its
    /// release.
    pub mesh_namespace: Option<Arc<str>>,
}

impl LocalNode {
    /// Whether this is the namespace in which the mesh itself runs.
    pub(super) fn is_mesh_namespace(&self, namespace: &str) -> bool {
        self.mesh_namespace.as_deref() == Some(namespace)
    }
}

/// The world at one moment. Cloning copies one pointer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(Arc<Inner>);

/// Its maps share unchanged parts with the previous snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Inner {
    workloads: SharedMap<PodUid, Arc<Workload>>,
    by_address: SharedMap<IpAddr, Arc<Workload>>,
    standings: SharedMap<IpAddr, Standing>,
    services: SharedMap<ServiceKey, Arc<ServicePort>>,
    /// The services with a possible dial to a captured pod.
    meshed_services: SharedMap<ServiceKey, ()>,
    /// Captured pods of other nodes.
    remote_pods: usize,
    local_pods: Arc<LocalPods>,
    local_node: Option<NodeName>,
    /// The ranges of pod addresses that are in use.
    pod_cidrs: Arc<BTreeSet<Cidr>>,
    /// Addresses of nodes, which no pod has.
    node_addresses: SharedMap<IpAddr, ()>,
    problems: Problems,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct LocalPods {
    /// By namespace, name and UID.
    sorted: Vec<Arc<LocalPod>>,
    by_uid: BTreeMap<PodUid, Arc<LocalPod>>,
}

/// A row of the kernel's table for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelAddress<'a> {
    /// The address; never IPv4-mapped.
    pub address: IpAddr,
    /// A pod has it, so that TLS may come from it.
    pub known_pod: bool,
    /// A captured pod has it, or several pods are said to: dials go to the agent.
    pub peer: bool,
    /// The pod is on this node.
    pub local: bool,
    /// Ports on which a captured pod is not in the mesh; `None` if it is not captured, or disputed.
    pub exclude_ports: Option<&'a PortSet>,
    /// Ports on which a captured pod of this node takes plaintext although it is strict; `None` for
    /// others.
    pub permissive_ports: Option<&'a PortSet>,
}

/// A row of the kernel's table for one service address.
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
    /// Builds a snapshot. The result depends only on the arguments, and not on the order in which
    /// objects were inserted. Takes time in proportion to all objects. [`World`] begins with it,
    /// and tests compare its steps with it.
    ///
    /// Rules, where objects contradict each other:
    /// - Of several pods with one address the incumbent has it: first a pod that is captured on its
    ///   own node, then the one created first, then the first by namespace, name and UID. The
    ///   others keep their remaining addresses but are not enrolled.
    /// - Of several services with one address and port the first by namespace and name has it.
    /// - What a node announces is dialled over TLS or not at all, see `peers.rs`. Of several nodes
    ///   that announce an address about which no object says anything, the first one heard is
    ///   believed.
    ///
    /// Each contradiction is a [`Problem`].
    pub fn build(
        objects: &Objects,
        announcements: &Announcements,
        local: &LocalNode,
        incumbents: &Incumbents,
    ) -> Self {
        Self(Arc::new(build::build(objects, announcements, local, incumbents)))
    }

    /// The pod with this address, in the mesh or not. Pods with `hostNetwork` and ended pods are
    /// never returned: their addresses are not their own.
    pub fn workload(&self, address: IpAddr) -> Option<&Arc<Workload>> {
        self.0.by_address.get(&address.to_canonical())
    }

    /// How many pods there are, in the mesh or not.
    pub fn workloads(&self) -> usize {
        self.0.workloads.len()
    }

    /// Which pod is captured at this address. `None`: none is known to be, and dials may go there
    /// as without a mesh.
    pub fn standing(&self, address: IpAddr) -> Option<&Standing> {
        self.0.standings.get(&address.to_canonical())
    }

    /// How a captured pod's dial to this address and port must go, if it is not a service's.
    pub fn dial_as(&self, to: SocketAddr) -> DialAs<'_> {
        match self.standing(to.ip()) {
            None => DialAs::Plain,
            Some(standing) if standing.excludes(to.port()) => DialAs::Plain,
            Some(Standing::Believed(peer)) => DialAs::Tls(peer),
            Some(Standing::Disputed(dispute)) => DialAs::Refused(dispute),
        }
    }

    /// The captured pod with this address, if it is known which; a disputed address proves nothing.
    pub fn believed(&self, address: IpAddr) -> Option<&Arc<Peer>> {
        self.standing(address).and_then(Standing::believed)
    }

    /// The service at this address and TCP port. A service without endpoints is returned, too.
    pub fn service(&self, address: IpAddr, port: u16) -> Option<&Arc<ServicePort>> {
        self.0.services.get(&(address.to_canonical(), port))
    }

    /// Every pod of this node, by namespace, name and UID, with what enrolment should do.
    pub fn local_pods(&self) -> &[Arc<LocalPod>] {
        &self.0.local_pods.sorted
    }

    /// A pod of this node.
    pub fn local_pod(&self, uid: &PodUid) -> Option<&Arc<LocalPod>> {
        self.0.local_pods.by_uid.get(uid)
    }

    /// How many captured pods of other nodes there are.
    pub fn remote_pods(&self) -> usize {
        self.0.remote_pods
    }

    /// Whether both are the same snapshot, in constant time.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The kernel's row for an address; `None` if no pod has it.
    pub fn kernel_address(&self, address: IpAddr) -> Option<KernelAddress<'_>> {
        let workload = self.0.by_address.get(&address);
        let standing = self.0.standings.get(&address);
        if workload.is_none() && standing.is_none() {
            return None;
        }
        let on_this_node =
            workload.is_some_and(|pod| pod.node.is_some() && pod.node == self.0.local_node);
        let here = standing.and_then(Standing::believed).filter(|peer| peer.local);
        Some(KernelAddress {
            address,
            known_pod: true,
            peer: standing.is_some(),
            local: on_this_node,
            exclude_ports: standing.and_then(Standing::exclude_ports),
            permissive_ports: here.map(|peer| &peer.permissive_ports),
        })
    }

    /// One row for every address of a pod, in no order.
    pub fn kernel_addresses(&self) -> impl Iterator<Item = KernelAddress<'_>> {
        let announced_only =
            self.0.standings.keys().filter(|address| !self.0.by_address.contains_key(*address));
        let all = self.0.by_address.keys().chain(announced_only);
        all.filter_map(|address| self.kernel_address(*address))
    }

    /// The addresses of pods and nodes with a possibly different row than in an earlier snapshot.
    /// Takes time in proportion to their number.
    pub fn changed_addresses(&self, before: &Self) -> HashSet<IpAddr> {
        let pods = self.0.by_address.differences(&before.0.by_address);
        let standings = self.0.standings.differences(&before.0.standings);
        let standings = standings.into_iter().map(|difference| *difference.key);
        let nodes = self.0.node_addresses.differences(&before.0.node_addresses);
        let others = standings.chain(nodes.into_iter().map(|difference| *difference.key));
        pods.into_iter().map(|difference| *difference.key).chain(others).collect()
    }

    /// Whether a dial to a service address may end at a captured pod.
    pub fn is_meshed_service(&self, address: IpAddr, port: u16) -> bool {
        self.0.meshed_services.contains_key(&(address, port))
    }

    /// The ranges in which unknown pods' addresses lie; [`Cidr::ALL`] if no Node object has a
    /// range, or if a pod has an address outside of all ranges. While the ranges are equal, this is
    /// the same set, so that comparing pointers shows a change.
    pub fn pod_cidrs(&self) -> &Arc<BTreeSet<Cidr>> {
        &self.0.pod_cidrs
    }

    /// Addresses of nodes, from which no agent dials for a pod; in no order.
    pub fn node_addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.0.node_addresses.keys()
    }

    /// Whether an address is one of these.
    pub fn is_node_address(&self, address: IpAddr) -> bool {
        self.0.node_addresses.contains_key(&address)
    }

    /// One row for every service address and TCP port, in no order.
    pub fn kernel_services(&self) -> impl Iterator<Item = KernelService> {
        self.0.services.keys().map(|(address, port)| KernelService {
            address: *address,
            port: *port,
            has_meshed_endpoint: self.is_meshed_service(*address, *port),
        })
    }

    /// The services that lead into the mesh and can also be reached from outside the cluster.
    /// Sorted, each port once for each address family. Takes time in proportion to the services
    /// that lead into the mesh.
    pub fn services_with_outside(&self) -> Vec<&Arc<ServicePort>> {
        let meshed = self.0.meshed_services.keys().filter_map(|key| self.0.services.get(key));
        let mut found: Vec<_> = meshed.filter(|it| it.outside != Outside::default()).collect();
        let key = |it: &ServicePort| {
            let (namespace, name) = (Arc::clone(&it.namespace), Arc::clone(&it.name));
            (namespace, name, it.port, it.outside.addresses.clone())
        };
        found.sort_by_cached_key(|it| key(it));
        found.dedup();
        found
    }

    /// The strict pods of other nodes that have ports on which plaintext reaches them, by namespace
    /// and name. Takes time in proportion to the captured pods.
    pub fn strict_peers_with_open_ports(&self) -> Vec<&Arc<Peer>> {
        let is_open = |peer: &Peer| {
            let has_ports = !peer.exclude_ports.is_empty() || !peer.permissive_ports.is_empty();
            peer.mode == Mode::Strict && has_ports
        };
        let all = self.0.standings.iter().filter(|(address, it)| build::counts_here(**address, it));
        let peers = all.filter_map(|(_, standing)| standing.believed());
        let mut open: Vec<_> = peers.filter(|peer| is_open(peer)).collect();
        open.sort_by_key(|peer| (&peer.namespace, &peer.name, &peer.node));
        open
    }

    /// The service addresses and ports whose [`Self::is_meshed_service`] differs from an earlier
    /// snapshot's. Takes time in proportion to their number.
    pub fn changed_services(&self, before: &Self) -> Vec<(IpAddr, u16)> {
        let services = self.0.meshed_services.differences(&before.0.meshed_services);
        services.into_iter().map(|difference| *difference.key).collect()
    }

    /// The captured pods that this node has to announce. `generation` is asked for each. `None` for
    /// the empty snapshot, which belongs to no node.
    pub fn announcement(
        &self,
        boot_id: &str,
        trust_domain: &str,
        generation: impl Fn(&PodUid) -> u64,
    ) -> Option<MeshNode> {
        let captured = self.0.local_pods.sorted.iter().filter(|pod| pod.enrolled);
        let first_address = captured.filter_map(|pod| pod.workload.addresses.first());
        let peers = first_address.filter_map(|address| self.believed(*address));
        let pods = peers.map(|peer| AnnouncedPod {
            uid: peer.uid.clone(),
            namespace: peer.namespace.to_string(),
            name: peer.name.to_string(),
            service_account: peer.service_account.to_string(),
            addresses: peer.addresses.clone(),
            mode: peer.mode,
            exclude_ports: peer.exclude_ports.clone(),
            permissive_ports: peer.permissive_ports.clone(),
            generation: generation(&peer.uid),
        });
        Some(MeshNode {
            node: self.0.local_node.clone()?,
            boot_id: boot_id.to_owned(),
            trust_domain: trust_domain.to_owned(),
            ca: None,
            pods: pods.collect(),
        })
    }

    /// What is wrong with the declared objects, sorted by object and field. Takes time in
    /// proportion to the number of problems.
    pub fn problems(&self) -> Vec<Problem> {
        self.0.problems.sorted()
    }
}
