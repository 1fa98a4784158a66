//! Puts the parts of a snapshot together, each from the parts before it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::ProblemCode;

use super::facts::AddressFacts;
use super::peers::AddressEvidence;
use super::problems::{Problems, Subject};
use super::ranges::{Holders, Ranges};
use super::services::Here;
use super::{Inner, LocalNode, LocalPods, claims, peers, services};
use crate::announcement::Announcements;
use crate::incumbents::Incumbents;
use crate::membership::{Membership, NotEnabledReason};
use crate::names::PodUid;
use crate::objects::{NamespaceObject, Objects, PodObject};
use crate::origin::{FieldError, Origin};
use crate::problem::Problem;
use crate::settings::{Declaration, MESH_LABEL, MeshLabel};
use crate::shared_map::SharedMap;
use crate::standing::Standing;
use crate::workload::{LocalPod, Peer, Wanted, Workload};

pub(super) fn build(
    objects: &Objects,
    announcements: &Announcements,
    local: &LocalNode,
    incumbents: &Incumbents,
) -> Inner {
    let mut problems = Problems::default();
    for namespace in objects.namespaces() {
        let found = namespace_problems(namespace, local);
        problems.set(Subject::Namespace(Arc::clone(&namespace.name)), found);
    }
    let owners = claims::owners(objects, announcements, local);

    let mut workloads = SharedMap::default();
    let mut by_address = SharedMap::default();
    for pod in objects.pods() {
        let owner = |address: IpAddr| owners.get(&address).copied();
        let (workload, found) = workload(pod, objects, local, owner);
        problems.set(Subject::Pod(pod.uid.clone()), found);
        let workload = Arc::new(workload);
        for address in &workload.addresses {
            by_address.insert(*address, Arc::clone(&workload));
        }
        workloads.insert(workload.uid.clone(), workload);
    }

    let facts = AddressFacts::of(objects);
    let ranges = Ranges::of(objects, Holders { by_address: &by_address, facts: &facts });
    let known = AddressEvidence {
        workloads: &workloads,
        by_address: &by_address,
        facts: &facts,
        ranges: &ranges,
        incumbents,
        local,
    };
    let standings = peers::standings(&known, announcements, &mut problems);
    let here = objects.pods().filter(|pod| pod.node.as_ref() == Some(&local.name));
    let local_pods = local_pods(here.map(Arc::as_ref), &workloads, local, &standings);
    let services = services::services(objects, Here::of(objects, &local.name), &mut problems);
    let meshed = services.iter().filter(|(_, it)| services::has_meshed_endpoint(it, &standings));
    let node_addresses = facts.of_nodes().filter(|address| !by_address.contains_key(address));
    Inner {
        pod_cidrs: ranges.believed(),
        node_addresses: node_addresses.map(|address| (address, ())).collect(),
        meshed_services: meshed.map(|(key, _)| (*key, ())).collect(),
        remote_pods: standings.iter().filter(|(address, it)| counts_here(**address, it)).count(),
        workloads,
        by_address,
        standings,
        services,
        local_pods: Arc::new(local_pods),
        local_node: Some(local.name.clone()),
        problems,
    }
}

/// Whether a captured pod is counted at this address as one of another node's, so that each pod
/// counts once.
pub(super) fn counts_here(address: IpAddr, standing: &Standing) -> bool {
    let first = |peer: &Arc<Peer>| !peer.local && peer.addresses.first() == Some(&address);
    standing.believed().is_some_and(first)
}

/// What is wrong with a namespace.
pub(super) fn namespace_problems(namespace: &NamespaceObject, local: &LocalNode) -> Vec<Problem> {
    let mut problems: Vec<_> = namespace.mesh.problems(&namespace.origin).collect();
    if local.is_mesh_namespace(&namespace.name) {
        problems.extend(wants_the_mesh_itself(&namespace.mesh, &namespace.origin));
    }
    problems
}

/// The problem of a label that would put the mesh's own pods into the mesh.
fn wants_the_mesh_itself(declared: &Declaration, origin: &Origin) -> Option<Problem> {
    if !matches!(declared.mesh.in_force(), Ok(Some(MeshLabel::Enabled))) {
        return None;
    }
    let field = format!("metadata.labels[{MESH_LABEL}]");
    let namespace = origin.namespace.as_ref().unwrap_or(&origin.name);
    let message = format!(
        "the mesh itself runs in namespace {namespace}, whose pods are never held or in the mesh; the label has no effect"
    );
    let error = FieldError::new(field, message)
        .hint(format!("remove the label, or write {MESH_LABEL}=disabled"));
    Some(Problem::new(origin, ProblemCode::MeshNamespace, error))
}

/// One pod and its problems, given the owner of each address.
pub(super) fn workload<'a>(
    pod: &PodObject,
    objects: &Objects,
    local: &LocalNode,
    owner: impl Fn(IpAddr) -> Option<&'a PodObject>,
) -> (Workload, Vec<Problem>) {
    let is_of_mesh = local.is_mesh_namespace(&pod.name.namespace);
    let mut problems: Vec<_> = pod.mesh.problems(&pod.origin).collect();
    if is_of_mesh {
        problems.extend(wants_the_mesh_itself(&pod.mesh, &pod.origin));
    }
    let claims = claims::settle(pod, owner, &mut problems);
    let namespace = objects.namespaces.get(&pod.name.namespace);
    if namespace.is_none() {
        let name = &pod.name.namespace;
        let message = format!("the Namespace {name:?} is not there; the pod is not in the mesh");
        let error = FieldError::new("metadata.namespace", message);
        let error = error.hint(format!("add the object: kind Namespace, metadata.name {name}"));
        problems.push(Problem::new(&pod.origin, ProblemCode::NamespaceMissing, error));
    }
    let mut membership = Membership::decide(pod, namespace.map(Arc::as_ref));
    if is_of_mesh {
        membership = Membership::Disabled(NotEnabledReason::MeshNamespace);
    } else if let (Some(settings), Some((address, holder))) =
        (membership.settings().cloned(), claims.lost)
    {
        let reason = NotEnabledReason::AddressTaken { address, holder: holder.name.to_string() };
        membership = Membership::Waiting { reason, settings };
    }
    let workload = Workload {
        uid: pod.uid.clone(),
        namespace: Arc::clone(&pod.name.namespace),
        name: Arc::clone(&pod.name.name),
        service_account: Arc::clone(&pod.service_account),
        node: pod.node.clone(),
        addresses: claims.owned,
        membership,
    };
    (workload, problems)
}

/// The pods of this node, from their objects.
pub(super) fn local_pods<'a>(
    here: impl Iterator<Item = &'a PodObject>,
    workloads: &SharedMap<PodUid, Arc<Workload>>,
    local: &LocalNode,
    standings: &SharedMap<IpAddr, Standing>,
) -> LocalPods {
    let is_here = |uid: &PodUid, address: &IpAddr| {
        let peer = standings.get(address).and_then(Standing::believed);
        peer.is_some_and(|peer| peer.local && peer.uid == *uid)
    };
    let mut sorted: Vec<_> = here
        .filter_map(|pod| {
            let workload = Arc::clone(workloads.get(&pod.uid)?);
            let settings = workload.membership.settings();
            Some(Arc::new(LocalPod {
                wanted: settings.map_or(Wanted::Out, |settings| Wanted::In(settings.clone())),
                enrolled: local.enrolled.contains(&pod.uid)
                    && workload.addresses.iter().any(|address| is_here(&pod.uid, address)),
                netns: pod.netns.clone(),
                workload,
            }))
        })
        .collect();
    let key = |pod: &LocalPod| {
        let workload = &pod.workload;
        (Arc::clone(&workload.namespace), Arc::clone(&workload.name), workload.uid.clone())
    };
    sorted.sort_by_cached_key(|pod| key(pod));
    let by_uid = |pod: &Arc<LocalPod>| (pod.workload.uid.clone(), Arc::clone(pod));
    let by_uid: BTreeMap<_, _> = sorted.iter().map(by_uid).collect();
    LocalPods { sorted, by_uid }
}
