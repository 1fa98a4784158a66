//! Which pod has which address, when two claim it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::ProblemCode;

use super::LocalNode;
use crate::announcement::Announcements;
use crate::names::PodUid;
use crate::objects::{Objects, PodObject};
use crate::origin::FieldError;
use crate::problem::Problem;

/// What became of one pod's claims.
pub(super) struct Settled<'a> {
    /// The addresses that are its own, each once, in its order.
    pub(super) owned: Vec<IpAddr>,
    /// The first claimed address that is another pod's, and that pod.
    pub(super) lost: Option<(IpAddr, &'a PodObject)>,
}

/// Whether a pod's addresses are its own.
pub(super) fn has_own_addresses(pod: &PodObject) -> bool {
    !pod.host_network && !pod.completed
}

/// The precedence of a pod, by the rule that [`super::Snapshot::build`] states. Of several pods
/// with one address, the pod that sorts first has it. Captured pods come first, or a new file could
/// take a running pod out of the mesh.
pub(super) fn precedence(pod: &PodObject, captured: bool) -> impl Ord + '_ {
    (!captured, pod.created_s.unwrap_or(i64::MAX), &pod.name, &pod.uid)
}

/// The owner of every address, all settled at once.
pub(super) fn owners<'a>(
    objects: &'a Objects,
    announcements: &Announcements,
    local: &LocalNode,
) -> HashMap<IpAddr, &'a PodObject> {
    let captured = captured(objects, announcements, local);
    let mut pods: Vec<&PodObject> =
        objects.pods().map(Arc::as_ref).filter(|pod| has_own_addresses(pod)).collect();
    pods.sort_by_key(|pod| precedence(pod, captured.contains(&pod.uid)));
    let mut owners = HashMap::new();
    for pod in pods {
        for address in &pod.ips {
            owners.entry(*address).or_insert(pod);
        }
    }
    owners
}

/// Settles one pod's claims, given the owner of each address; each lost claim is a problem.
pub(super) fn settle<'a>(
    pod: &PodObject,
    owner: impl Fn(IpAddr) -> Option<&'a PodObject>,
    problems: &mut Vec<Problem>,
) -> Settled<'a> {
    let mut settled = Settled { owned: Vec::new(), lost: None };
    if !has_own_addresses(pod) {
        return settled;
    }
    for address in &pod.ips {
        let Some(owner) = owner(*address) else { continue };
        if owner.uid == pod.uid {
            if !settled.owned.contains(address) {
                settled.owned.push(*address);
            }
            continue;
        }
        settled.lost.get_or_insert((*address, owner));
        let origin = &owner.origin;
        let message =
            format!("{address} is already the address of {origin}; this pod is not enrolled");
        let error = FieldError::new(pod.address_field(*address), message)
            .hint("give each pod its own address, or delete the pod that is gone");
        problems.push(Problem::new(&pod.origin, ProblemCode::AddressTaken, error));
    }
    settled
}

/// The pods that their own nodes announce as captured.
fn captured<'a>(
    objects: &'a Objects,
    announcements: &Announcements,
    local: &LocalNode,
) -> HashSet<&'a PodUid> {
    let mut announced: HashMap<&str, HashSet<&PodUid>> = HashMap::new();
    for (node, announcement) in announcements {
        announced.insert(node.as_str(), announcement.pods.iter().map(|pod| &pod.uid).collect());
    }
    announced.insert(local.name.as_str(), local.enrolled.iter().collect());
    let by_its_node = |pod: &&Arc<PodObject>| {
        let node = pod.node.as_ref().and_then(|node| announced.get(node.as_str()));
        node.is_some_and(|uids| uids.contains(&pod.uid))
    };
    objects.pods().filter(by_its_node).map(|pod| &pod.uid).collect()
}
