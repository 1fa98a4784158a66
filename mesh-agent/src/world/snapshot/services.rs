//! Services joined with their endpoint slices, as kube-proxy joins them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::world::names::{NodeName, ObjectName};
use crate::world::objects::{
    EndpointSliceObject, Objects, Protocol, ServiceObject, ServicePortObject,
};
use crate::world::origin::FieldError;
use crate::world::problem::{Problem, ProblemCode};
use crate::world::service::{Endpoint, ServicePort};

type Slices<'a> = HashMap<&'a ObjectName, Vec<&'a EndpointSliceObject>>;

pub(super) fn services(
    objects: &Objects,
    local_node: &NodeName,
    problems: &mut Vec<Problem>,
) -> HashMap<(IpAddr, u16), Arc<ServicePort>> {
    let mut slices: Slices<'_> = HashMap::new();
    for slice in objects.slices() {
        if let Some(service) = &slice.service {
            slices.entry(service).or_default().push(slice);
        }
    }
    let mut found: HashMap<_, (Arc<ServicePort>, &ServiceObject)> = HashMap::new();
    for service in objects.services() {
        let own_slices = slices.get(&service.name).map(Vec::as_slice).unwrap_or_default();
        let tcp = service.ports.iter().enumerate().filter(|(_, p)| p.protocol == Protocol::Tcp);
        for (index, port) in tcp {
            for address in &service.cluster_ips {
                if let Some((_, holder)) = found.get(&(*address, port.port)) {
                    if holder.name != service.name {
                        problems.push(taken(service, index, *address, holder));
                    }
                    continue;
                }
                let entry = service_port(service, port, *address, own_slices, local_node);
                found.insert((*address, port.port), (Arc::new(entry), service));
            }
        }
    }
    found.into_iter().map(|(key, (entry, _))| (key, entry)).collect()
}

fn service_port(
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

fn taken(service: &ServiceObject, port: usize, address: IpAddr, holder: &ServiceObject) -> Problem {
    let message = format!(
        "port {} of {address} is already that of {}; this service is not known there",
        service.ports.get(port).map_or(0, |port| port.port),
        holder.origin
    );
    let error = FieldError::new(format!("spec.ports[{port}].port"), message)
        .hint("give each service its own address");
    Problem::new(&service.origin, ProblemCode::ServiceAddressTaken, error)
}
