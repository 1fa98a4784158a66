//! From where an agent may dial although no pod is known there yet: the nodes' ranges of pod addresses.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::world::cidr::Cidr;
use crate::world::objects::Objects;
use crate::world::workload::Workload;

/// The ranges of pod addresses of all nodes; every address, where they are not known or not what pods are given
/// addresses from (some network plugins have ranges of their own): then any address may be that of a pod.
pub(super) fn pod_cidrs(
    objects: &Objects,
    by_address: &HashMap<IpAddr, Arc<Workload>>,
) -> BTreeSet<Cidr> {
    let ranges: BTreeSet<Cidr> =
        objects.nodes().flat_map(|node| node.pod_cidrs.iter().copied()).collect();
    let shapes: BTreeSet<(bool, u8)> = ranges.iter().map(Cidr::shape).collect();
    let is_inside = |address: &IpAddr| {
        let of_family = shapes.iter().filter(|(v4, _)| *v4 == address.is_ipv4());
        of_family.map(|(_, length)| Cidr::around(*address, *length)).any(|c| ranges.contains(&c))
    };
    if ranges.is_empty() || !by_address.keys().all(is_inside) {
        return BTreeSet::from([Cidr::ALL]);
    }
    ranges
}

/// The nodes' own addresses, also as pods with `hostNetwork` show them; not those that a pod has.
pub(super) fn node_addresses(
    objects: &Objects,
    by_address: &HashMap<IpAddr, Arc<Workload>>,
) -> BTreeSet<IpAddr> {
    let of_nodes = objects.nodes().flat_map(|node| &node.addresses);
    let of_hosts = objects.pods().filter(|pod| pod.host_network).flat_map(|pod| &pod.ips);
    of_nodes.chain(of_hosts).filter(|address| !by_address.contains_key(address)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::super::Snapshot;
    use super::super::testing::{local, namespace, node_object, pod};
    use super::*;

    fn ranges(objects: &Objects) -> Vec<String> {
        let world = Snapshot::build(objects, &[].into(), &local("node1", &[]));
        world.pod_cidrs().map(ToString::to_string).collect()
    }

    #[test]
    fn ranges_are_believed_while_they_have_every_pod_in_them() {
        let mut objects = Objects::default();
        assert_eq!(ranges(&objects), ["::/0"]);
        objects.insert_node(node_object("node1", &["10.244.1.0/24", "fd00:1::/64"], "192.0.2.1"));
        objects.insert_node(node_object("node2", &["10.244.2.0/23"], "192.0.2.2"));
        objects.insert_namespace(namespace("shop", &[]));
        objects.insert_pod(pod("shop", "a", "node1", "10.244.1.9,fd00:1::9", &[]));
        objects.insert_pod(pod("shop", "b", "node2", "10.244.3.9", &[]));
        assert_eq!(ranges(&objects), ["10.244.1.0/24", "10.244.2.0/23", "fd00:1::/64"]);
        let mut host = pod("shop", "proxy", "node2", "192.0.2.2", &[]);
        host.host_network = true;
        objects.insert_pod(host);
        assert_eq!(ranges(&objects).len(), 3);
        objects.insert_pod(pod("shop", "elsewhere", "node2", "172.16.0.9", &[]));
        assert_eq!(ranges(&objects), ["::/0"]);
    }

    #[test]
    fn a_nodes_address_is_no_pods() {
        let mut objects = Objects::default();
        objects.insert_namespace(namespace("shop", &[]));
        objects.insert_node(node_object("node1", &[], "192.0.2.1"));
        objects.insert_pod(pod("shop", "odd", "node1", "192.0.2.9", &[]));
        objects.insert_node(node_object("node9", &[], "192.0.2.9"));
        let mut host = pod("shop", "proxy", "node2", "192.0.2.2", &[]);
        host.host_network = true;
        objects.insert_pod(host);
        let world = Snapshot::build(&objects, &[].into(), &local("node1", &[]));
        let addresses: Vec<_> = world.node_addresses().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.0.2.1", "192.0.2.2"]);
    }
}
