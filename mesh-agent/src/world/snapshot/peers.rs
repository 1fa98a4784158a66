//! Which pods count as captured: this node's by its own knowledge, others by announcement.
//!
//! A node is believed about an address only if nothing contradicts it. What is known is asked in
//! this order: pods say which node an address or UID is on and which identity it has; where no pod
//! is known (an agent need not watch all pods) the nodes' ranges of pod addresses and endpoint slices say the node. A
//! service's address and a node's own (from Node objects, or seen at pods with `hostNetwork`) are nobody's to announce.

use std::net::IpAddr;
use std::sync::Arc;

use super::LocalNode;
use super::facts::AddressFacts;
use super::problems::{AnnouncedKey, Problems, Subject};
use super::ranges::Ranges;
use crate::world::announcement::{AnnouncedPod, Announcements, MeshNode};
use crate::world::names::{NodeName, PodUid};
use crate::world::origin::{FieldError, Origin};
use crate::world::problem::{Problem, ProblemCode};
use crate::world::shared_map::SharedMap;
use crate::world::workload::{Peer, Workload};

/// What objects say about addresses.
pub(super) struct Known<'a> {
    pub(super) workloads: &'a SharedMap<PodUid, Arc<Workload>>,
    pub(super) by_address: &'a SharedMap<IpAddr, Arc<Workload>>,
    pub(super) facts: &'a AddressFacts,
    pub(super) ranges: &'a Ranges,
}

impl Known<'_> {
    /// Why `node` is not believed about this address of this pod.
    pub(super) fn objection(
        &self,
        node: &NodeName,
        pod: &AnnouncedPod,
        address: IpAddr,
    ) -> Option<String> {
        if self.facts.is_of_service(address) {
            return Some("is a service's address".to_owned());
        }
        if self.facts.is_of_host(address) {
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
        if let Some(objection) = self.ranges.objection(node, address) {
            return Some(objection);
        }
        let nodes = self.facts.nodes_of_endpoint(address)?;
        if nodes.contains(&node) {
            return None;
        }
        let nodes: Vec<_> = nodes.into_iter().map(NodeName::as_str).collect();
        Some(format!("belongs to an endpoint on {}", nodes.join(", ")))
    }
}

/// All captured pods by address, judged one after another.
pub(super) fn peers(
    known: &Known<'_>,
    announcements: &Announcements,
    local: &LocalNode,
    problems: &mut Problems,
) -> SharedMap<IpAddr, Arc<Peer>> {
    let mut peers = SharedMap::default();
    for workload in local.enrolled.iter().filter_map(|uid| known.workloads.get(uid)) {
        insert(&mut peers, local_peer(workload, &local.name));
    }
    for (node, announcement) in announcements.iter().filter(|(node, _)| **node != local.name) {
        if let Some(problem) = whole_objection(node, announcement) {
            problems.set(Subject::Node(node.clone()), vec![problem]);
            continue;
        }
        for (key, index) in announced(node, announcement) {
            let Some(pod) = announcement.pods.get(index) else { continue };
            let mut found = Vec::new();
            let incumbent = |address: IpAddr| peers.get(&address).map(|peer| describe(peer));
            let peer = judge(known, node, (index, pod), incumbent, &mut found);
            problems.set(Subject::Announced(key), found);
            insert(&mut peers, peer);
        }
    }
    peers
}

fn insert(peers: &mut SharedMap<IpAddr, Arc<Peer>>, peer: Option<Peer>) {
    let Some(peer) = peer.map(Arc::new) else { return };
    for address in &peer.addresses {
        peers.insert(*address, Arc::clone(&peer));
    }
}

/// Why nothing is believed of what is announced under a node's name.
pub(super) fn whole_objection(node: &NodeName, announcement: &MeshNode) -> Option<Problem> {
    if announcement.node == *node {
        return None;
    }
    let origin = Origin::api("MeshNode", None, node.as_str());
    let error = FieldError::new(
        "metadata.name",
        format!("node {node} speaks for {}; none of it is believed", announcement.node),
    );
    Some(Problem::new(&origin, ProblemCode::AnnouncementRefused, error))
}

/// The announced pods in the order in which they are judged, with their place in the announcement.
pub(super) fn announced(node: &NodeName, announcement: &MeshNode) -> Vec<(AnnouncedKey, usize)> {
    let mut pods: Vec<_> = announcement.pods.iter().map(|pod| &pod.uid).enumerate().collect();
    pods.sort_by_key(|(_, uid)| *uid); // stable: of one UID the first is judged first
    let mut keys: Vec<(AnnouncedKey, usize)> = Vec::with_capacity(pods.len());
    for (index, uid) in pods {
        let before = keys.last().filter(|(key, _)| key.uid == *uid);
        let nth = before.map_or(0, |(key, _)| key.nth + 1);
        keys.push((AnnouncedKey { node: node.clone(), uid: uid.clone(), nth }, index));
    }
    keys
}

/// A pod of this node that is captured. Out of the mesh means: announced no more, though still
/// captured until drained.
pub(super) fn local_peer(workload: &Workload, local_node: &NodeName) -> Option<Peer> {
    let here = workload.node.as_ref() == Some(local_node);
    let settings = workload.membership.settings().filter(|_| here)?;
    Some(Peer {
        uid: workload.uid.clone(),
        namespace: Arc::clone(&workload.namespace),
        name: Arc::clone(&workload.name),
        service_account: Arc::clone(&workload.service_account),
        node: local_node.clone(),
        addresses: workload.addresses.clone(),
        mode: settings.mode,
        exclude_ports: settings.exclude_ports.clone(),
        permissive_ports: settings.permissive_ports.clone(),
        local: true,
    })
}

/// What is believed of one announced pod; `None` if nothing is. `incumbent` describes who is
/// believed to have an address already, judged before this one.
pub(super) fn judge(
    known: &Known<'_>,
    node: &NodeName,
    (index, pod): (usize, &AnnouncedPod),
    incumbent: impl Fn(IpAddr) -> Option<String>,
    problems: &mut Vec<Problem>,
) -> Option<Peer> {
    let mut refuse = |i: usize, code, why: String| {
        let field = format!("spec.pods[{index}].addresses[{i}]");
        let error = FieldError::new(field, why)
            .hint("if this does not pass within seconds, find out what runs as that node's agent");
        let origin = Origin::api("MeshNode", None, node.as_str());
        problems.push(Problem::new(&origin, code, error));
    };
    let mut believed = Vec::new();
    for (i, address) in pod.addresses.iter().enumerate() {
        if let Some(objection) = known.objection(node, pod, *address) {
            let who = format!("{}/{}", pod.namespace, pod.name);
            let why =
                format!("{address} is announced for pod {who}, but {objection}; not believed");
            refuse(i, ProblemCode::AnnouncementRefused, why);
        } else if let Some(incumbent) = incumbent(*address) {
            let who = format!("{}/{}", pod.namespace, pod.name);
            let why = format!(
                "{address} is announced for pod {who}, but already for {incumbent}; not believed"
            );
            refuse(i, ProblemCode::AnnouncementConflict, why);
        } else if !believed.contains(address) {
            believed.push(*address);
        }
    }
    (!believed.is_empty()).then(|| remote_peer(node, pod, believed))
}

/// How an incumbent is named in a problem.
pub(super) fn describe(peer: &Peer) -> String {
    format!("pod {}/{} on {}", peer.namespace, peer.name, peer.node)
}

/// The same for one that is announced.
pub(super) fn describe_announced(node: &NodeName, pod: &AnnouncedPod) -> String {
    format!("pod {}/{} on {node}", pod.namespace, pod.name)
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
        permissive_ports: pod.permissive_ports.clone(),
        local: false,
    }
}
