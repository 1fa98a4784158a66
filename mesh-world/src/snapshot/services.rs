//! Services joined with their endpoint slices, as kube-proxy joins them.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::ProblemCode;

use super::problems::{Problems, Subject};
use crate::names::{NodeName, ObjectName};
use crate::objects::{EndpointSliceObject, Objects, Protocol, ServiceObject, ServicePortObject};
use crate::origin::FieldError;
use crate::problem::Problem;
use crate::service::{Endpoint, Outside, ServicePort};
use crate::shared_map::SharedMap;
use crate::standing::Standing;

/// A service's address and TCP port.
pub(super) type ServiceKey = (IpAddr, u16);

/// All services, joined one after another.
pub(super) fn services(
    objects: &Objects,
    here: Here<'_>,
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
                let entry = service_port(service, port, key.0, own_slices, here);
                joined.insert(key, Arc::new(entry));
            }
        }
        let found = taken(service, |key| holders.get(&key).copied());
        problems.set(Subject::Service(service.name.clone()), found);
    }
    joined
}

/// The keys of a service, each with the port's entry; the first of equal ones counts.
pub(super) fn keys(
    service: &ServiceObject,
) -> impl Iterator<Item = (ServiceKey, &ServicePortObject)> {
    let tcp = service.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    tcp.flat_map(|port| {
        service.cluster_ips.iter().map(move |address| ((*address, port.port), port))
    })
}

/// The problems of a service whose addresses and ports belong to other services.
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

/// Whether a dial to a service may end at a captured pod, if the node's service proxy carries it.
pub(super) fn has_meshed_endpoint(
    service: &ServicePort,
    standings: &SharedMap<IpAddr, Standing>,
) -> bool {
    service.targets().any(|target| {
        let standing = standings.get(&target.ip());
        standing.is_some_and(|standing| !standing.excludes(target.port()))
    })
}

/// The node of the clients.
#[derive(Clone, Copy)]
pub(super) struct Here<'a> {
    node: &'a NodeName,
    /// Its zone, if it has one.
    zone: Option<&'a str>,
}

impl<'a> Here<'a> {
    pub(super) fn of(objects: &'a Objects, node: &'a NodeName) -> Self {
        Self { node, zone: objects.nodes.get(node.as_str()).and_then(|node| node.zone.as_deref()) }
    }
}

/// What is known of one endpoint.
#[derive(Clone, Copy, Default)]
struct Candidate {
    ready: bool,
    last_resort: bool,
    /// Whether a hint means it for clients of this node; `None` without a hint.
    for_node: Option<bool>,
    /// The same for this node's zone.
    for_zone: Option<bool>,
}

pub(super) fn service_port(
    service: &ServiceObject,
    port: &ServicePortObject,
    address: IpAddr,
    slices: &[&EndpointSliceObject],
    here: Here<'_>,
) -> ServicePort {
    // While a slice is rewritten an endpoint may be in two of them: the better state counts.
    let mut candidates: BTreeMap<(IpAddr, u16), Candidate> = BTreeMap::new();
    let mut others: BTreeSet<SocketAddr> = BTreeSet::new();
    for slice in slices {
        let same_name = |p: &&_| -> bool { matches_port(p, port) };
        let Some(target) = slice.ports.iter().find(same_name) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            let of_family =
                endpoint.addresses.iter().filter(|it| it.is_ipv4() == address.is_ipv4());
            others.extend(of_family.map(|address| SocketAddr::new(*address, target.port)));
            if service.local_only && endpoint.node.as_ref() != Some(here.node) {
                continue;
            }
            // Several addresses of one endpoint are interchangeable; kube-proxy takes the first.
            let Some(first) = endpoint.addresses.first() else {
                continue;
            };
            if first.is_ipv4() != address.is_ipv4() {
                continue;
            }
            let entry = candidates.entry((*first, target.port)).or_default();
            entry.ready |= endpoint.ready || service.publish_not_ready;
            entry.last_resort |= endpoint.serving && endpoint.terminating;
            hint(&mut entry.for_node, &endpoint.for_nodes, Some(here.node.as_str()));
            hint(&mut entry.for_zone, &endpoint.for_zones, here.zone);
        }
    }
    let any_ready = candidates.values().any(|candidate| candidate.ready);
    let is_meant = meant(service, candidates.values());
    let usable = candidates.into_iter().filter(|(_, candidate)| {
        if any_ready { candidate.ready && is_meant(candidate) } else { candidate.last_resort }
    });
    let endpoints: Arc<[Endpoint]> = usable
        .map(|((addr, port), Candidate { ready, .. })| Endpoint { addr, port, ready })
        .collect();
    for endpoint in &*endpoints {
        others.remove(&endpoint.socket_addr());
    }
    let outside_ips = service.outside_ips.iter().copied();
    ServicePort {
        namespace: Arc::clone(&service.name.namespace),
        name: Arc::clone(&service.name.name),
        port_name: Arc::clone(&port.name),
        port: port.port,
        endpoints,
        others: others.into_iter().collect(),
        affinity: service.affinity_s.map(|seconds| Duration::from_secs(seconds.into())),
        outside: Outside {
            addresses: outside_ips.filter(|ip| ip.is_ipv4() == address.is_ipv4()).collect(),
            node_port: port.node_port,
        },
    }
}

fn hint(known: &mut Option<bool>, names: &[Arc<str>], here: Option<&str>) {
    if !names.is_empty() {
        let is_for_here = names.iter().any(|name| Some(&**name) == here);
        *known = Some(is_for_here || *known == Some(true));
    }
}

/// Which ready endpoints are meant for clients of this node, by the hints that
/// `trafficDistribution` has led to. As in kube-proxy (`pkg/proxy/topology.go`), hints count only
/// if every ready endpoint has one and one of them is for here. Hints for nodes count before those
/// for zones, and none count with `internalTrafficPolicy: Local`.
fn meant<'a>(
    service: &ServiceObject,
    all: impl Iterator<Item = &'a Candidate>,
) -> fn(&Candidate) -> bool {
    let ready: Vec<_> = all.filter(|candidate| candidate.ready).collect();
    let every = |is: fn(&Candidate) -> bool| ready.iter().all(|candidate| is(candidate));
    let any = |is: fn(&Candidate) -> bool| ready.iter().any(|candidate| is(candidate));
    if service.local_only {
        |_| true
    } else if every(|it| it.for_node.is_some()) && any(|it| it.for_node == Some(true)) {
        |it| it.for_node == Some(true)
    } else if every(|it| it.for_zone.is_some()) && any(|it| it.for_zone == Some(true)) {
        |it| it.for_zone == Some(true)
    } else {
        |_| true
    }
}

fn matches_port(slice: &crate::objects::SlicePort, service: &ServicePortObject) -> bool {
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
