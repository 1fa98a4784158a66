//! Which pods count as captured: this node's by its own knowledge, others by announcement.
//!
//! A node is believed about an address only if nothing contradicts it. What is known is asked in
//! this order: pods say which node an address or UID is on and which identity it has; where no pod
//! is known (an agent need not watch all pods) endpoint slices say the node. A service's address
//! and a node's own (from Node objects, or seen at pods with `hostNetwork`) are nobody's to announce.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::LocalNode;
use crate::world::announcement::{AnnouncedPod, Announcements};
use crate::world::names::{NodeName, PodUid};
use crate::world::objects::Objects;
use crate::world::origin::{FieldError, Origin};
use crate::world::problem::{Problem, ProblemCode};
use crate::world::workload::{Peer, Workload};

/// What objects say about addresses.
pub(super) struct Known<'a> {
    workloads: &'a BTreeMap<PodUid, Arc<Workload>>,
    by_address: &'a HashMap<IpAddr, Arc<Workload>>,
    nodes_by_slice: HashMap<IpAddr, BTreeSet<&'a NodeName>>,
    of_hosts: HashSet<IpAddr>,
    of_services: HashSet<IpAddr>,
}

impl<'a> Known<'a> {
    pub(super) fn new(
        objects: &'a Objects,
        workloads: &'a BTreeMap<PodUid, Arc<Workload>>,
        by_address: &'a HashMap<IpAddr, Arc<Workload>>,
    ) -> Self {
        let mut nodes_by_slice: HashMap<_, BTreeSet<_>> = HashMap::new();
        for endpoint in objects.slices().flat_map(|slice| &slice.endpoints) {
            let Some(node) = &endpoint.node else { continue };
            for address in &endpoint.addresses {
                nodes_by_slice.entry(*address).or_default().insert(node);
            }
        }
        let hosts = objects.pods().filter(|pod| pod.host_network);
        Self {
            workloads,
            by_address,
            nodes_by_slice,
            of_hosts: hosts
                .flat_map(|pod| &pod.ips)
                .chain(objects.nodes().flat_map(|node| &node.addresses))
                .copied()
                .collect(),
            of_services: objects.services().flat_map(|s| s.cluster_ips.iter().copied()).collect(),
        }
    }

    /// Why `node` is not believed about this address of this pod.
    fn objection(&self, node: &NodeName, pod: &AnnouncedPod, address: IpAddr) -> Option<String> {
        if self.of_services.contains(&address) {
            return Some("is a service's address".to_owned());
        }
        if self.of_hosts.contains(&address) {
            return Some("is a node's own address".to_owned());
        }
        let owner = self.by_address.get(&address);
        let same_uid = self.workloads.get(&pod.uid);
        for known in owner.into_iter().chain(same_uid) {
            let Workload { namespace, name, service_account, .. } = &**known;
            if known.uid != pod.uid || **name != *pod.name || **namespace != *pod.namespace {
                return Some(format!("belongs to pod {namespace}/{name}"));
            }
            if **service_account != *pod.service_account {
                return Some(format!("belongs to a pod of service account {service_account}"));
            }
            if known.node.as_ref() != Some(node) {
                let place = known.node.as_ref().map_or("no node yet", NodeName::as_str);
                return Some(format!("belongs to a pod on {place}"));
            }
        }
        if owner.is_some() {
            return None;
        }
        let nodes = self.nodes_by_slice.get(&address)?;
        if nodes.contains(node) {
            return None;
        }
        let nodes: Vec<_> = nodes.iter().map(|node| node.as_str()).collect();
        Some(format!("belongs to an endpoint on {}", nodes.join(", ")))
    }
}

pub(super) fn peers(
    known: &Known<'_>,
    announcements: &Announcements,
    local: &LocalNode,
    problems: &mut Vec<Problem>,
) -> HashMap<IpAddr, Arc<Peer>> {
    let mut peers = HashMap::new();
    for workload in local.enrolled.iter().filter_map(|uid| known.workloads.get(uid)) {
        let here = workload.node.as_ref() == Some(&local.name);
        // Out of the mesh means: announced no more, though still captured until drained.
        let Some(settings) = workload.membership.settings().filter(|_| here) else {
            continue;
        };
        let peer = Arc::new(Peer {
            uid: workload.uid.clone(),
            namespace: Arc::clone(&workload.namespace),
            name: Arc::clone(&workload.name),
            service_account: Arc::clone(&workload.service_account),
            node: local.name.clone(),
            addresses: workload.addresses.clone(),
            mode: settings.mode,
            exclude_ports: settings.exclude_ports.clone(),
            local: true,
        });
        peers.extend(peer.addresses.iter().map(|address| (*address, Arc::clone(&peer))));
    }
    for (node, announcement) in announcements.iter().filter(|(node, _)| **node != local.name) {
        let origin = Origin::api("MeshNode", None, node.as_str());
        if announcement.node != *node {
            let error = FieldError::new(
                "metadata.name",
                format!("node {node} speaks for {}; none of it is believed", announcement.node),
            );
            problems.push(Problem::new(&origin, ProblemCode::AnnouncementRefused, error));
            continue;
        }
        let mut pods: Vec<_> = announcement.pods.iter().enumerate().collect();
        pods.sort_by_key(|(_, pod)| &pod.uid);
        for (index, pod) in pods {
            let mut refuse = |i: usize, code, why: String| {
                let field = format!("spec.pods[{index}].addresses[{i}]");
                let error = FieldError::new(field, why).hint(
                    "if this does not pass within seconds, find out what runs as that node's agent",
                );
                problems.push(Problem::new(&origin, code, error));
            };
            let believed = believed(known, &peers, node, pod, &mut refuse);
            let peer = Arc::new(remote_peer(node, pod, believed));
            peers.extend(peer.addresses.iter().map(|address| (*address, Arc::clone(&peer))));
        }
    }
    peers
}

fn believed(
    known: &Known<'_>,
    peers: &HashMap<IpAddr, Arc<Peer>>,
    node: &NodeName,
    pod: &AnnouncedPod,
    mut refuse: impl FnMut(usize, ProblemCode, String),
) -> Vec<IpAddr> {
    let mut believed = Vec::new();
    for (i, address) in pod.addresses.iter().enumerate() {
        let who = format!("{}/{}", pod.namespace, pod.name);
        if let Some(objection) = known.objection(node, pod, *address) {
            let why =
                format!("{address} is announced for pod {who}, but {objection}; not believed");
            refuse(i, ProblemCode::AnnouncementRefused, why);
        } else if let Some(incumbent) = peers.get(address) {
            let Peer { namespace, name, node, .. } = &**incumbent;
            let why = format!(
                "{address} is announced for pod {who}, but already for pod {namespace}/{name} on \
                 {node}; not believed"
            );
            refuse(i, ProblemCode::AnnouncementConflict, why);
        } else if !believed.contains(address) {
            believed.push(*address);
        }
    }
    believed
}

fn remote_peer(node: &NodeName, pod: &AnnouncedPod, addresses: Vec<IpAddr>) -> Peer {
    Peer {
        uid: pod.uid.clone(),
        namespace: Arc::from(pod.namespace.as_str()),
        name: Arc::from(pod.name.as_str()),
        service_account: Arc::from(pod.service_account.as_str()),
        node: node.clone(),
        addresses,
        mode: pod.mode,
        exclude_ports: pod.exclude_ports.clone(),
        local: false,
    }
}
