//! Which pods count as captured: this node's by its own knowledge, others by announcement.
//!
//! An announced pod is dialled over TLS or not at all, whatever contradicts the announcement.
//! `EndpointSlice`s, Node objects and ranges can be wrong, and many accounts may write some of
//! them. Only a service's address cannot be announced by any node, since the API server allocates
//! it from a range of its own. Of several announcements of one address, those count that no Pod
//! object and no range of pod addresses contradicts. Of these the first one counts, unless all mean
//! the same identity. Otherwise the address is disputed.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::ProblemCode;

use super::LocalNode;
use super::facts::AddressFacts;
use super::problems::{AnnouncedKey, Problems, Subject};
use super::ranges::Ranges;
use crate::announcement::{AnnouncedPod, Announcements, MeshNode};
use crate::incumbents::Incumbents;
use crate::names::{NodeName, PodUid};
use crate::origin::{FieldError, Origin};
use crate::problem::Problem;
use crate::shared_map::SharedMap;
use crate::standing::{Claimant, Dispute, Standing};
use crate::workload::{Peer, Workload};

/// What objects and history say about addresses.
pub(super) struct AddressEvidence<'a> {
    pub(super) workloads: &'a SharedMap<PodUid, Arc<Workload>>,
    pub(super) by_address: &'a SharedMap<IpAddr, Arc<Workload>>,
    pub(super) facts: &'a AddressFacts,
    pub(super) ranges: &'a Ranges,
    pub(super) incumbents: &'a Incumbents,
    pub(super) local: &'a LocalNode,
}

/// One node's announcement of one address.
#[derive(Clone)]
pub(super) struct AnnouncedAddress<'a> {
    pub(super) pod: &'a AnnouncedPod,
    /// The peer, if nothing contradicts the claim.
    pub(super) peer: Arc<Peer>,
}

/// What contradicts a claim.
struct Doubt {
    what: String,
    /// The pod that objects show there, if it has another identity.
    other: Option<Claimant>,
}

impl Doubt {
    fn of(what: String) -> Self {
        Self { what, other: None }
    }
}

impl AddressEvidence<'_> {
    /// Which pod is captured at an address, given all claims to it, in the order of
    /// [`AnnouncedKey`].
    pub(super) fn standing(
        &self,
        address: IpAddr,
        claims: &[AnnouncedAddress<'_>],
    ) -> Option<Standing> {
        if let Some(peer) = self.here(address) {
            return Some(Standing::Believed(Arc::new(peer)));
        }
        if self.facts.is_of_service(address) {
            return None;
        }
        if let [only] = claims
            && self.of_objects(only, address).is_none()
        {
            return Some(Standing::Believed(Arc::clone(&only.peer)));
        }
        let sound: Vec<_> =
            claims.iter().filter(|claim| self.of_objects(claim, address).is_none()).collect();
        let in_question = if sound.is_empty() { claims.iter().collect() } else { sound };
        let incumbent = self.incumbents.of(address);
        let of_incumbent: Vec<_> =
            in_question.iter().filter(|it| Some(&it.peer.node) == incumbent).copied().collect();
        let deciding = [&of_incumbent, &in_question].into_iter().find_map(|claims| one(claims));
        let doubt = deciding.and_then(|claim| self.of_objects(claim, address));
        let other = doubt.and_then(|doubt| doubt.other);
        if let (Some(deciding), None) = (deciding, &other) {
            return Some(Standing::Believed(merged(&deciding.peer, claims)));
        }
        let first = in_question.first()?;
        let other = other.or_else(|| self.of_objects(first, address)?.other);
        let claimants = in_question.iter().map(|claim| claimant(&claim.peer)).chain(other);
        Some(Standing::Disputed(Arc::new(Dispute { claimants: claimants.collect() })))
    }

    /// The pod of this node that is captured at an address: no other node's announcement counts
    /// there.
    fn here(&self, address: IpAddr) -> Option<Peer> {
        let owner = self.by_address.get(&address)?;
        let is_enrolled = self.local.enrolled.contains(&owner.uid);
        local_peer(owner, &self.local.name).filter(|_| is_enrolled)
    }

    /// What contradicts a claim, from everything known.
    fn doubt(&self, claim: &AnnouncedAddress<'_>, address: IpAddr) -> Option<Doubt> {
        if let Some(doubt) = self.of_objects(claim, address) {
            return Some(doubt);
        }
        if let Some(host) = self.facts.host(address) {
            return Some(Doubt::of(format!("{host} has it as a node's own address")));
        }
        if self.by_address.contains_key(&address) {
            return None;
        }
        let mut nodes = self.facts.nodes_of_endpoint(address).peekable();
        let (node, slice) = nodes.peek().copied()?;
        if nodes.any(|(node, _)| *node == claim.peer.node) {
            return None;
        }
        Some(Doubt::of(format!("EndpointSlice {slice} has it as an endpoint on {node}")))
    }

    /// What Pod objects and ranges of pod addresses say against a claim. They decide between
    /// several claims.
    fn of_objects(&self, claim: &AnnouncedAddress<'_>, address: IpAddr) -> Option<Doubt> {
        let AnnouncedAddress { pod, peer } = claim;
        let owner = self.by_address.get(&address);
        let same_uid = self.workloads.get(&pod.uid);
        for known in owner.into_iter().chain(same_uid) {
            let Workload { namespace, name, service_account, .. } = &**known;
            let node = known.node.as_ref();
            let what = if known.uid != pod.uid || *name != peer.name || *namespace != peer.namespace
            {
                format!("it belongs to pod {namespace}/{name}")
            } else if *service_account != peer.service_account {
                format!("it belongs to a pod of service account {service_account}")
            } else if node != Some(&peer.node) {
                let place = node.map_or("no node yet", NodeName::as_str);
                format!("it belongs to a pod on {place}")
            } else {
                continue;
            };
            let is_other = *namespace != peer.namespace || *service_account != peer.service_account;
            let other = is_other.then(|| Claimant {
                name: format!("the object of pod {namespace}/{name}"),
                namespace: Arc::clone(namespace),
                service_account: Arc::clone(service_account),
            });
            return Some(Doubt { what, other });
        }
        if owner.is_some() {
            return None;
        }
        self.ranges.objection(&peer.node, address).map(Doubt::of)
    }

    /// What is wrong with one announced pod, the `index`th of its node, given the standing of each
    /// address.
    pub(super) fn problems<'s>(
        &self,
        index: usize,
        claim: &AnnouncedAddress<'_>,
        standing: impl Fn(IpAddr) -> Option<&'s Standing>,
    ) -> Vec<Problem> {
        let mut problems = Vec::new();
        let Peer { namespace, name, node, .. } = &*claim.peer;
        for (i, address) in claim.pod.addresses.iter().enumerate() {
            let said = format!("{address} is announced for pod {namespace}/{name}");
            let doubt = self.doubt(claim, *address).map(|doubt| doubt.what);
            let (code, why) = match standing(*address) {
                None => (
                    ProblemCode::AnnouncementRefused,
                    format!("{said}, but is a service's address; not believed"),
                ),
                Some(Standing::Disputed(dispute)) => (
                    ProblemCode::DisputedAddress,
                    format!(
                        "{said}, but several are said to be there: {dispute}; nothing decides between them, and pods of the mesh cannot dial it"
                    ),
                ),
                Some(Standing::Believed(peer)) => {
                    let is_other = peer.uid != claim.peer.uid || peer.node != *node;
                    let also = is_other.then(|| format!("also for {}", describe(peer)));
                    let code = match also {
                        Some(_) => ProblemCode::AnnouncementConflict,
                        None => ProblemCode::AnnouncementDoubted,
                    };
                    let against: Vec<String> = also.into_iter().chain(doubt).collect();
                    if against.is_empty() {
                        continue;
                    }
                    let (against, peer) = (against.join(", and "), describe(peer));
                    let then = format!("dialled over TLS as {peer}, or not at all");
                    (code, format!("{said}, but {against}; {then}"))
                }
            };
            let field = format!("spec.pods[{index}].addresses[{i}]");
            let error = FieldError::new(field, why).hint(
                "if this does not pass within seconds, find out what runs as that node's agent, and who has written what contradicts it",
            );
            let origin = Origin::api("MeshNode", None, node.as_str());
            problems.push(Problem::new(&origin, code, error));
        }
        problems
    }
}

/// All captured pods by address, and what is wrong with announcements.
pub(super) fn standings(
    known: &AddressEvidence<'_>,
    announcements: &Announcements,
    problems: &mut Problems,
) -> SharedMap<IpAddr, Standing> {
    let local = known.local;
    let mut announced_pods: Vec<(AnnouncedKey, usize, AnnouncedAddress<'_>)> = Vec::new();
    for (node, announcement) in announcements.iter().filter(|(node, _)| **node != local.name) {
        if let Some(problem) = whole_objection(node, announcement) {
            problems.set(Subject::Node(node.clone()), vec![problem]);
            continue;
        }
        for (key, index) in announced(node, announcement) {
            let Some(pod) = announcement.pods.get(index) else { continue };
            let peer = Arc::new(remote_peer(node, pod));
            announced_pods.push((key, index, AnnouncedAddress { pod, peer }));
        }
    }
    let mut claims: HashMap<IpAddr, Vec<AnnouncedAddress<'_>>> = HashMap::new();
    for (_, _, claim) in &announced_pods {
        for address in &claim.peer.addresses {
            claims.entry(*address).or_insert_with(|| Vec::with_capacity(1)).push(claim.clone());
        }
    }
    let mut standings = SharedMap::default();
    let enrolled = local.enrolled.iter().filter_map(|uid| known.workloads.get(uid));
    let here = enrolled.flat_map(|pod| &pod.addresses).map(|address| (address, &[][..]));
    let there = claims.iter().map(|(address, claims)| (address, &**claims));
    for (address, claims) in here.chain(there) {
        if let Some(standing) = known.standing(*address, claims) {
            standings.insert(*address, standing);
        }
    }
    drop(claims);
    for (key, index, claim) in announced_pods {
        let found = known.problems(index, &claim, |address| standings.get(&address));
        problems.set(Subject::Announced(key), found);
    }
    standings
}

/// Why an announcement under a node's name is not believed at all.
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

/// The announced pods in the order in which they are judged, each with its place in the
/// announcement.
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

/// A captured pod of this node. Once it is out of the mesh it is not announced any more, though it
/// stays captured until it is drained.
fn local_peer(workload: &Workload, local_node: &NodeName) -> Option<Peer> {
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

/// An announced pod, as its node describes it.
pub(super) fn remote_peer(node: &NodeName, pod: &AnnouncedPod) -> Peer {
    let mut addresses: Vec<IpAddr> = Vec::with_capacity(pod.addresses.len());
    for address in &pod.addresses {
        if !addresses.contains(address) {
            addresses.push(*address);
        }
    }
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

/// The first of these claims, if all mean one identity.
fn one<'c, 'a>(claims: &[&'c AnnouncedAddress<'a>]) -> Option<&'c AnnouncedAddress<'a>> {
    let (first, others) = claims.split_first()?;
    let identity = |claim: &&AnnouncedAddress<'_>| {
        (Arc::clone(&claim.peer.namespace), Arc::clone(&claim.peer.service_account))
    };
    others.iter().all(|other| identity(other) == identity(first)).then_some(*first)
}

/// The pod, no more open than every claim to its address says.
fn merged(peer: &Arc<Peer>, claims: &[AnnouncedAddress<'_>]) -> Arc<Peer> {
    let all = || claims.iter().map(|claim| &claim.peer);
    let mode = all().map(|other| other.mode).fold(peer.mode, Ord::max);
    let exclude_ports =
        peer.exclude_ports.only(|port| all().all(|other| other.exclude_ports.contains(port)));
    let permissive_ports =
        peer.permissive_ports.only(|port| all().all(|other| other.permissive_ports.contains(port)));
    let closed = Peer { mode, exclude_ports, permissive_ports, ..Peer::clone(peer) };
    if closed == **peer { Arc::clone(peer) } else { Arc::new(closed) }
}

fn claimant(peer: &Peer) -> Claimant {
    let Peer { namespace, service_account, .. } = peer;
    let (namespace, service_account) = (Arc::clone(namespace), Arc::clone(service_account));
    Claimant { name: describe(peer), namespace, service_account }
}

/// How a pod is named in a problem.
fn describe(peer: &Peer) -> String {
    format!("pod {}/{} on {}", peer.namespace, peer.name, peer.node)
}
