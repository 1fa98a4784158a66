//! Puts the parts of a snapshot together, each from the ones before.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::Claims;
use super::{Inner, LocalNode, peers, ranges, services};
use crate::world::announcement::Announcements;
use crate::world::membership::{Membership, NotEnabledReason};
use crate::world::names::PodUid;
use crate::world::objects::{Objects, PodObject};
use crate::world::origin::FieldError;
use crate::world::problem::{Problem, ProblemCode};
use crate::world::workload::{LocalPod, Wanted, Workload};

pub(super) fn build(objects: &Objects, announcements: &Announcements, local: &LocalNode) -> Inner {
    let mut problems = Vec::new();
    for namespace in objects.namespaces() {
        problems.extend(namespace.mesh.problems(&namespace.origin));
    }
    let claims = Claims::settle(objects, announcements, local, &mut problems);

    let mut workloads = BTreeMap::new();
    let mut by_address = HashMap::new();
    for pod in objects.pods() {
        problems.extend(pod.mesh.problems(&pod.origin));
        let workload = Arc::new(workload(pod, objects, &claims, &mut problems));
        for address in &workload.addresses {
            by_address.insert(*address, Arc::clone(&workload));
        }
        workloads.insert(workload.uid.clone(), workload);
    }

    let known = peers::Known::new(objects, &workloads, &by_address);
    let peers = peers::peers(&known, announcements, local, &mut problems);
    let local_pods = local_pods(objects, &workloads, local, |address| peers.contains_key(&address));
    let services = services::services(objects, &local.name, &mut problems);
    problems.sort_by(|a, b| {
        let key = |p: &Problem| (p.code, p.message.clone());
        (a.origin.sort_key(), &a.field)
            .cmp(&(b.origin.sort_key(), &b.field))
            .then_with(|| key(a).cmp(&key(b)))
    });
    Inner {
        pod_cidrs: ranges::pod_cidrs(objects, &by_address),
        node_addresses: ranges::node_addresses(objects, &by_address),
        local_by_uid: local_pods.iter().map(|p| (p.workload.uid.clone(), Arc::clone(p))).collect(),
        workloads,
        by_address,
        peers,
        services,
        local_pods,
        local_node: Some(local.name.clone()),
        problems,
    }
}

fn workload(
    pod: &PodObject,
    objects: &Objects,
    claims: &Claims<'_>,
    problems: &mut Vec<Problem>,
) -> Workload {
    let namespace = objects.namespaces.get(&pod.name.namespace);
    if namespace.is_none() {
        let name = &pod.name.namespace;
        let message = format!("the Namespace {name:?} is not there; the pod is not in the mesh");
        let error = FieldError::new("metadata.namespace", message);
        let error = error.hint(format!("add the object: kind Namespace, metadata.name {name}"));
        problems.push(Problem::new(&pod.origin, ProblemCode::NamespaceMissing, error));
    }
    let mut membership = Membership::decide(pod, namespace.map(Arc::as_ref));
    if let (Some(settings), Some((address, holder))) =
        (membership.settings().cloned(), claims.lost(&pod.uid))
    {
        let reason = NotEnabledReason::AddressTaken { address, holder: holder.name.to_string() };
        membership = Membership::Waiting { reason, settings };
    }
    Workload {
        uid: pod.uid.clone(),
        namespace: Arc::clone(&pod.name.namespace),
        name: Arc::clone(&pod.name.name),
        service_account: Arc::clone(&pod.service_account),
        node: pod.node.clone(),
        addresses: claims.owned(pod),
        membership,
    }
}

fn local_pods(
    objects: &Objects,
    workloads: &BTreeMap<PodUid, Arc<Workload>>,
    local: &LocalNode,
    is_peer: impl Fn(IpAddr) -> bool,
) -> Vec<Arc<LocalPod>> {
    let here = objects.pods().filter(|pod| pod.node.as_ref() == Some(&local.name));
    let mut pods: Vec<_> = here
        .filter_map(|pod| {
            let workload = Arc::clone(workloads.get(&pod.uid)?);
            let settings = workload.membership.settings();
            Some(Arc::new(LocalPod {
                wanted: settings.map_or(Wanted::Out, |settings| Wanted::In(settings.clone())),
                enrolled: local.enrolled.contains(&pod.uid)
                    && workload.addresses.iter().any(|address| is_peer(*address)),
                netns: pod.netns.clone(),
                workload,
            }))
        })
        .collect();
    let key = |pod: &LocalPod| {
        let workload = &pod.workload;
        (Arc::clone(&workload.namespace), Arc::clone(&workload.name), workload.uid.clone())
    };
    pods.sort_by_cached_key(|pod| key(pod));
    pods
}
