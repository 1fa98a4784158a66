//! From where an agent may dial although no pod is known there yet: the nodes' ranges of pod addresses.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::facts::Says;
use crate::world::cidr::Cidr;
use crate::world::objects::{NodeObject, Objects};
use crate::world::shared_map::SharedMap;
use crate::world::workload::Workload;

/// The ranges of pod addresses of all nodes, and how many pods' addresses lie in none of them.
#[derive(Default)]
pub(super) struct Ranges {
    /// How many nodes have which: usually one.
    nodes: BTreeMap<Cidr, usize>,
    /// Of how many ranges an address may be one, by family and length.
    shapes: BTreeMap<(bool, u8), usize>,
    outside: usize,
    changed: Changed,
}

/// What has changed since [`Ranges::settle`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    #[default]
    Nothing,
    /// How many addresses lie outside.
    Addresses,
    /// The ranges: each address has to be looked at again.
    Ranges,
}

impl Ranges {
    pub(super) fn of(objects: &Objects, by_address: &SharedMap<IpAddr, Arc<Workload>>) -> Self {
        let mut ranges = Self::default();
        objects.nodes().for_each(|node| ranges.node(node, Says::From));
        ranges.count(by_address);
        ranges
    }

    /// A node begins or ceases to have its ranges.
    pub(super) fn node(&mut self, node: &NodeObject, says: Says) {
        for range in &node.pod_cidrs {
            let other = match says {
                Says::From => more(&mut self.nodes, *range),
                Says::NoMore => less(&mut self.nodes, *range),
            };
            if !other {
                continue;
            }
            self.changed = Changed::Ranges;
            match says {
                Says::From => more(&mut self.shapes, range.shape()),
                Says::NoMore => less(&mut self.shapes, range.shape()),
            };
        }
    }

    /// An address begins or ceases to be a pod's.
    pub(super) fn address(&mut self, address: IpAddr, says: Says) {
        if self.is_inside(address) {
            return;
        }
        self.changed = self.changed.max(Changed::Addresses);
        self.outside = match says {
            Says::From => self.outside + 1,
            Says::NoMore => self.outside.saturating_sub(1),
        };
    }

    /// What is now believed, if that may be something else than before. Looks at all addresses only if the ranges
    /// have changed.
    pub(super) fn settle(
        &mut self,
        by_address: &SharedMap<IpAddr, Arc<Workload>>,
    ) -> Option<Arc<BTreeSet<Cidr>>> {
        let changed = std::mem::take(&mut self.changed);
        if changed == Changed::Ranges {
            self.count(by_address);
        }
        (changed != Changed::Nothing).then(|| self.believed())
    }

    /// The ranges; every address, where they are not known or not what pods are given addresses from (some network
    /// plugins have ranges of their own): then any address may be that of a pod.
    pub(super) fn believed(&self) -> Arc<BTreeSet<Cidr>> {
        if self.nodes.is_empty() || self.outside > 0 {
            return Arc::new(BTreeSet::from([Cidr::ALL]));
        }
        Arc::new(self.nodes.keys().copied().collect())
    }

    fn count(&mut self, by_address: &SharedMap<IpAddr, Arc<Workload>>) {
        self.outside = by_address.keys().filter(|address| !self.is_inside(**address)).count();
        self.changed = Changed::Nothing;
    }

    fn is_inside(&self, address: IpAddr) -> bool {
        let of_family = self.shapes.keys().filter(|(v4, _)| *v4 == address.is_ipv4());
        let mut around = of_family.map(|(_, length)| Cidr::around(address, *length));
        around.any(|range| self.nodes.contains_key(&range))
    }
}

/// Whether it is the first.
fn more<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    let count = counts.entry(key).or_default();
    *count += 1;
    *count == 1
}

/// Whether it was the last.
fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) -> bool {
    let Entry::Occupied(mut count) = counts.entry(key) else { return false };
    *count.get_mut() = count.get().saturating_sub(1);
    let was_last = *count.get() == 0;
    if was_last {
        count.remove();
    }
    was_last
}

#[cfg(test)]
mod tests {
    use super::super::Snapshot;
    use super::super::testing::{local, namespace, node_object, pod};
    use super::*;

    fn ranges(objects: &Objects) -> Vec<String> {
        let world = Snapshot::build(objects, &[].into(), &local("node1", &[]));
        world.pod_cidrs().iter().map(ToString::to_string).collect()
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
        let addresses: BTreeSet<_> = world.node_addresses().map(ToString::to_string).collect();
        let expected = ["192.0.2.1", "192.0.2.2"].map(str::to_owned);
        assert_eq!(addresses, BTreeSet::from(expected));
    }
}
