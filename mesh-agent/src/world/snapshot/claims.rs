//! Which pod has which address, when two say they do.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::LocalNode;
use crate::world::announcement::Announcements;
use crate::world::names::PodUid;
use crate::world::objects::{Objects, PodObject};
use crate::world::origin::FieldError;
use crate::world::problem::{Problem, ProblemCode};

/// The settled claims of all pods to their addresses.
pub(super) struct Claims<'a> {
    owners: HashMap<IpAddr, &'a PodObject>,
    lost: HashMap<&'a PodUid, (IpAddr, &'a PodObject)>,
}

impl<'a> Claims<'a> {
    /// Settles by the rule that [`super::Snapshot::build`] states; each lost claim is a problem of
    /// the loser.
    pub(super) fn settle(
        objects: &'a Objects,
        announcements: &Announcements,
        local: &LocalNode,
        problems: &mut Vec<Problem>,
    ) -> Self {
        let captured = captured(objects, announcements, local);
        let own_addresses = |pod: &&Arc<PodObject>| !pod.host_network && !pod.completed;
        let mut pods: Vec<_> = objects.pods().filter(own_addresses).collect();
        // What is captured comes first, or a new file could take a running pod out of the mesh.
        pods.sort_by_key(|pod| {
            let created = pod.created_s.unwrap_or(i64::MAX);
            (!captured.contains(&pod.uid), created, &pod.name, &pod.uid)
        });

        let mut claims = Self { owners: HashMap::new(), lost: HashMap::new() };
        for pod in pods {
            for address in &pod.ips {
                let owner = *claims.owners.entry(*address).or_insert(pod);
                if owner.uid == pod.uid {
                    continue;
                }
                claims.lost.entry(&pod.uid).or_insert((*address, owner));
                let origin = &owner.origin;
                let message = format!(
                    "{address} is already the address of {origin}; this pod is not enrolled"
                );
                let error = FieldError::new(pod.address_field(*address), message)
                    .hint("give each pod its own address, or delete the pod that is gone");
                problems.push(Problem::new(&pod.origin, ProblemCode::AddressTaken, error));
            }
        }
        claims
    }

    /// The addresses that are this pod's own, each once, in its order.
    pub(super) fn owned(&self, pod: &PodObject) -> Vec<IpAddr> {
        let mut owned = Vec::new();
        for address in &pod.ips {
            let own = self.owners.get(address).is_some_and(|owner| owner.uid == pod.uid);
            if own && !owned.contains(address) {
                owned.push(*address);
            }
        }
        owned
    }

    /// The first address that another pod has, and that pod.
    pub(super) fn lost(&self, uid: &PodUid) -> Option<(IpAddr, &'a PodObject)> {
        self.lost.get(uid).copied()
    }
}

/// The pods that their own nodes say are captured.
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
