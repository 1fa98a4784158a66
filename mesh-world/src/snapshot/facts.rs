//! What objects say about addresses that are not a pod's own: nodes, `hostNetwork` pods, services
//! and endpoints. Kept by counting or by the objects' names, since several objects may say the
//! same.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::names::{NodeName, ObjectName};
use crate::objects::{EndpointSliceObject, NodeObject, Objects, PodObject, ServiceObject};

/// See the file.
#[derive(Default)]
pub(super) struct AddressFacts {
    /// On which nodes which slices see an address; sorted, with one entry for each time they say
    /// so.
    endpoints: HashMap<IpAddr, Vec<(NodeName, ObjectName)>>,
    /// Addresses of nodes: the Node objects and pods with `hostNetwork` that show them, sorted.
    hosts: HashMap<IpAddr, Vec<Arc<str>>>,
    /// The ends of nodes' tunnels. Pods may have such an address all the same.
    tunnels: HashMap<IpAddr, usize>,
    services: HashMap<IpAddr, usize>,
}

/// Whether an object begins or ceases to say something.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    From,
    NoMore,
}

impl AddressFacts {
    pub(super) fn of(objects: &Objects) -> Self {
        let mut facts = Self::default();
        objects.pods().for_each(|pod| facts.pod(pod, Says::From));
        objects.nodes().for_each(|node| facts.node(node, Says::From));
        objects.services().for_each(|service| facts.service(service, Says::From));
        objects.slices().for_each(|slice| facts.slice(slice, Says::From));
        facts
    }

    /// The addresses about which a pod says something here: those of nodes.
    pub(super) fn of_pod(pod: &PodObject) -> impl Iterator<Item = IpAddr> {
        pod.ips.iter().copied().filter(|_| pod.host_network)
    }

    /// The addresses about which a slice says something.
    pub(super) fn of_slice(
        slice: &EndpointSliceObject,
    ) -> impl Iterator<Item = (IpAddr, &NodeName)> {
        let with_node = slice.endpoints.iter().filter_map(|it| Some((it, it.node.as_ref()?)));
        with_node.flat_map(|(it, node)| it.addresses.iter().map(move |address| (*address, node)))
    }

    pub(super) fn pod(&mut self, pod: &PodObject, says: Says) {
        let mut addresses = Self::of_pod(pod).peekable();
        if addresses.peek().is_some() {
            let name: Arc<str> = format!("Pod {} (hostNetwork)", pod.name).into();
            addresses.for_each(|address| member(&mut self.hosts, address, &name, says));
        }
    }

    pub(super) fn node(&mut self, node: &NodeObject, says: Says) {
        let name: Arc<str> = format!("Node {}", node.name).into();
        node.addresses.iter().for_each(|it| member(&mut self.hosts, *it, &name, says));
        node.tunnels.iter().for_each(|it| count(&mut self.tunnels, *it, says));
    }

    pub(super) fn service(&mut self, service: &ServiceObject, says: Says) {
        service.cluster_ips.iter().for_each(|address| count(&mut self.services, *address, says));
    }

    pub(super) fn slice(&mut self, slice: &EndpointSliceObject, says: Says) {
        for (address, node) in Self::of_slice(slice) {
            member(&mut self.endpoints, address, &(node.clone(), slice.name.clone()), says);
        }
    }

    /// The addresses of endpoints of which the node is known.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.keys().copied()
    }

    /// The nodes on which slices see an address, each with a slice.
    pub(super) fn nodes_of_endpoint(
        &self,
        address: IpAddr,
    ) -> impl Iterator<Item = (&NodeName, &ObjectName)> {
        let nodes = self.endpoints.get(&address).map(Vec::as_slice).unwrap_or_default();
        nodes.chunk_by(|(a, _), (b, _)| a == b).filter_map(|same| {
            let (node, slice) = same.first()?;
            Some((node, slice))
        })
    }

    /// The addresses of nodes, with those of their tunnels.
    pub(super) fn of_nodes(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts.keys().chain(self.tunnels.keys()).copied()
    }

    /// Whether it is one of [`Self::of_nodes`].
    pub(super) fn is_of_node(&self, address: IpAddr) -> bool {
        self.hosts.contains_key(&address) || self.tunnels.contains_key(&address)
    }

    /// An object that says that an address is a node's own.
    pub(super) fn host(&self, address: IpAddr) -> Option<&Arc<str>> {
        self.hosts.get(&address)?.first()
    }

    pub(super) fn is_of_host(&self, address: IpAddr) -> bool {
        self.hosts.contains_key(&address)
    }

    pub(super) fn is_of_service(&self, address: IpAddr) -> bool {
        self.services.contains_key(&address)
    }
}

fn count<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: K, says: Says) {
    match says {
        Says::From => *counts.entry(key).or_default() += 1,
        Says::NoMore => {
            if let std::collections::hash_map::Entry::Occupied(mut times) = counts.entry(key) {
                *times.get_mut() = times.get().saturating_sub(1);
                if *times.get() == 0 {
                    times.remove();
                }
            }
        }
    }
}

/// Adds a member to the sorted ones of a key, or takes it away once.
fn member<V: Ord + Clone>(
    members: &mut HashMap<IpAddr, Vec<V>>,
    key: IpAddr,
    member: &V,
    says: Says,
) {
    match says {
        Says::From => {
            let members = members.entry(key).or_insert_with(|| Vec::with_capacity(1));
            let at = members.partition_point(|other| other < member);
            members.insert(at, member.clone());
        }
        Says::NoMore => {
            let Some(of_key) = members.get_mut(&key) else { return };
            if let Ok(at) = of_key.binary_search(member) {
                of_key.remove(at);
            }
            if of_key.is_empty() {
                members.remove(&key);
            }
        }
    }
}
