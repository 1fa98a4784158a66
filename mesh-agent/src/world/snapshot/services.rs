//! Services joined with their endpoint slices, as kube-proxy joins them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::problems::{Problems, Subject};
use crate::world::names::{NodeName, ObjectName};
use crate::world::objects::{
    EndpointSliceObject, Objects, Protocol, ServiceObject, ServicePortObject,
};
use crate::world::origin::FieldError;
use crate::world::problem::{Problem, ProblemCode};
use crate::world::service::{Endpoint, ServicePort};
use crate::world::shared_map::SharedMap;
use crate::world::workload::Peer;

/// A service's address and TCP port.
pub(super) type ServiceKey = (IpAddr, u16);

/// All services, joined one after another.
pub(super) fn services(
    objects: &Objects,
    local_node: &NodeName,
    problems: &mut Problems,
) -> SharedMap<ServiceKey, Arc<ServicePort>> {
    let mut slices: HashMap<&ObjectName, Vec<&EndpointSliceObject>> = HashMap::new();
    for slice in objects.slices() {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice);
        }
    }
    let mut joined = SharedMap::default();
    let mut holders: HashMap<ServiceKey, &ServiceObject> = HashMap::new();
    for service in objects.services().map(Arc::as_ref) {
        let own_slices = slices.get(&service.name).map(Vec::as_slice).unwrap_or_default();
        for (key, port) in keys(service) {
            if let Entry::Vacant(vacant) = holders.entry(key) {
                vacant.insert(service);
                let entry = service_port(service, port, key.0, own_slices, local_node);
                joined.insert(key, Arc::new(entry));
            }
        }
        let found = taken(service, |key| holders.get(&key).copied());
        problems.set(Subject::Service(service.name.clone()), found);
    }
    joined
}

/// Where a service is to be found, with the port's entry; the first of equal ones counts.
pub(super) fn keys(
    service: &ServiceObject,
) -> impl Iterator<Item = (ServiceKey, &ServicePortObject)> {
    let tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    tcp.flat_map(|port| {
        service.cluster_ips.iter().map(move |address| ((*address, port.port), port))
    })
}

/// The problems of a service whose addresses and ports others have.
pub(super) fn taken<'a>(
    service: &ServiceObject,
    holder: impl Fn(ServiceKey) -> Option<&'a ServiceObject>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let tcp = service.ports.iter().enumerate().filter(|(_, port)| port.protocol == Protocol::Tcp);
    for (index, port) in tcp {
        for address in &service.cluster_ips {
            let holder = holder((*address, port.port));
            if let Some(holder) = holder.filter(|holder| holder.name != service.name) {
                problems.push(taken_port(service, index, *address, holder));
            }
        }
    }
    problems
}

/// Whether a dial to a service may end at a captured pod.
pub(super) fn has_meshed_endpoint(
    service: &ServicePort,
    peers: &SharedMap<IpAddr, Arc<Peer>>,
) -> bool {
    service.endpoints.iter().any(|endpoint| {
        let peer = peers.get(&endpoint.addr);
        peer.is_some_and(|peer| !peer.exclude_ports.contains(endpoint.port))
    })
}

pub(super) fn service_port(
    service: &ServiceObject,
    port: &ServicePortObject,
    address: IpAddr,
    slices: &[&EndpointSliceObject],
    local_node: &NodeName,
) -> ServicePort {
    // During a slice's rewriting an endpoint may be in two of them: the better word counts.
    let mut candidates: BTreeMap<(IpAddr, u16), (bool, bool)> = BTreeMap::new();
    for slice in slices {
        let same_name = |p: &&_| -> bool { matches_port(p, port) };
        let Some(target) = slice.ports.iter().find(same_name) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            if service.local_only && endpoint.node.as_ref() != Some(local_node) {
                continue;
            }
            // Several addresses of one endpoint are interchangeable; kube-proxy takes the first.
            let Some(first) = endpoint.addresses.first() else {
                continue;
            };
            if first.is_ipv4() != address.is_ipv4() {
                continue;
            }
            let ready = endpoint.ready || service.publish_not_ready;
            let last_resort = endpoint.serving && endpoint.terminating;
            let entry = candidates.entry((*first, target.port)).or_default();
            *entry = (entry.0 || ready, entry.1 || last_resort);
        }
    }
    let any_ready = candidates.values().any(|(ready, _)| *ready);
    let usable = candidates
        .into_iter()
        .filter(|(_, (ready, last_resort))| if any_ready { *ready } else { *last_resort });
    ServicePort {
        namespace: Arc::clone(&service.name.namespace),
        name: Arc::clone(&service.name.name),
        port_name: Arc::clone(&port.name),
        port: port.port,
        endpoints: usable
            .map(|((addr, port), (ready, _))| Endpoint { addr, port, ready })
            .collect(),
    }
}

fn matches_port(slice: &crate::world::objects::SlicePort, service: &ServicePortObject) -> bool {
    slice.protocol == Protocol::Tcp && slice.name == service.name
}

fn taken_port(
    service: &ServiceObject,
    port: usize,
    address: IpAddr,
    holder: &ServiceObject,
) -> Problem {
    let message = format!(
        "port {} of {address} is already that of {}; this service is not known there",
        service.ports.get(port).map_or(0, |port| port.port),
        holder.origin
    );
    let error = FieldError::new(format!("spec.ports[{port}].port"), message)
        .hint("give each service its own address");
    Problem::new(&service.origin, ProblemCode::ServiceAddressTaken, error)
}
