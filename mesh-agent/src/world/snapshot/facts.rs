//! What objects other than pods of their own addresses say about addresses: kept by counting, since several objects may
//! say the same.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use crate::world::names::NodeName;
use crate::world::objects::{EndpointSliceObject, NodeObject, Objects, PodObject, ServiceObject};

/// See the file.
#[derive(Default)]
pub(super) struct AddressFacts {
    /// Sorted by node; how many slices say so.
    endpoints: HashMap<IpAddr, Vec<(NodeName, usize)>>,
    /// Addresses of nodes: how many Node objects and pods with `hostNetwork` show them.
    hosts: HashMap<IpAddr, usize>,
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
        Self::of_pod(pod).for_each(|address| count(&mut self.hosts, address, says));
    }

    pub(super) fn node(&mut self, node: &NodeObject, says: Says) {
        node.addresses.iter().for_each(|address| count(&mut self.hosts, *address, says));
    }

    pub(super) fn service(&mut self, service: &ServiceObject, says: Says) {
        service.cluster_ips.iter().for_each(|address| count(&mut self.services, *address, says));
    }

    pub(super) fn slice(&mut self, slice: &EndpointSliceObject, says: Says) {
        for (address, node) in Self::of_slice(slice) {
            let nodes = self.endpoints.entry(address).or_default();
            match (nodes.binary_search_by(|(other, _)| other.cmp(node)), says) {
                (Ok(at), Says::From) => nodes.get_mut(at).into_iter().for_each(|(_, n)| *n += 1),
                (Ok(at), Says::NoMore) => {
                    nodes.get_mut(at).into_iter().for_each(|(_, n)| *n = n.saturating_sub(1));
                    nodes.retain(|(_, times)| *times > 0);
                }
                (Err(at), Says::From) => nodes.insert(at, (node.clone(), 1)),
                (Err(_), Says::NoMore) => {}
            }
            if nodes.is_empty() {
                self.endpoints.remove(&address);
            }
        }
    }

    /// The addresses of endpoints of which the node is known.
    pub(super) fn endpoints(&self) -> impl Iterator<Item = IpAddr> {
        self.endpoints.keys().copied()
    }

    /// The nodes on which slices see an address.
    pub(super) fn nodes_of_endpoint(&self, address: IpAddr) -> Option<Vec<&NodeName>> {
        Some(self.endpoints.get(&address)?.iter().map(|(node, _)| node).collect())
    }

    /// The addresses of nodes.
    pub(super) fn hosts(&self) -> impl Iterator<Item = IpAddr> {
        self.hosts.keys().copied()
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
