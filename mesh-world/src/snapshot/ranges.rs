//! The nodes' ranges of pod addresses: from where an agent may dial although no pod is known there
//! yet, and which node's pods may have an address.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::facts::{AddressFacts, Says};
use crate::cidr::Cidr;
use crate::names::NodeName;
use crate::objects::{NodeObject, Objects};
use crate::shared_map::SharedMap;
use crate::workload::Workload;

/// The ranges of pod addresses of all nodes, and the addresses that contradict them.
#[derive(Default)]
pub(super) struct Ranges {
    /// The nodes of each range: usually one.
    nodes: BTreeMap<Cidr, BTreeSet<Arc<str>>>,
    of_node: HashMap<Arc<str>, Vec<Cidr>>,
    /// How many ranges there are of each family and length.
    shapes: BTreeMap<(bool, u8), usize>,
    /// How many pods' addresses lie in none of them.
    outside: usize,
    /// The addresses of pods and endpoints that do not lie in their own node's ranges.
    strays: HashSet<IpAddr>,
    binding: bool,
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

/// What [`Ranges::settle`] has found.
pub(super) struct Settled {
    /// The ranges in use, if they may have changed.
    pub(super) believed: Option<Arc<BTreeSet<Cidr>>>,
    /// Whether each announced address has to be judged again.
    pub(super) judge_announced: bool,
}

/// The pods and endpoints at each address.
#[derive(Clone, Copy)]
pub(super) struct Holders<'a> {
    pub(super) by_address: &'a SharedMap<IpAddr, Arc<Workload>>,
    pub(super) facts: &'a AddressFacts,
}

impl Ranges {
    pub(super) fn of(objects: &Objects, holders: Holders<'_>) -> Self {
        let mut ranges = Self::default();
        objects.nodes().for_each(|node| ranges.node(node, Says::From));
        ranges.count(holders);
        ranges.settle(holders);
        ranges
    }

    /// A node begins or ceases to have its ranges.
    pub(super) fn node(&mut self, node: &NodeObject, says: Says) {
        self.changed = Changed::Ranges;
        match says {
            Says::From => drop(self.of_node.insert(Arc::clone(&node.name), node.pod_cidrs.clone())),
            Says::NoMore => drop(self.of_node.remove(&node.name)),
        }
        for range in &node.pod_cidrs {
            match says {
                Says::From => {
                    let is_new = !self.nodes.contains_key(range);
                    self.nodes.entry(*range).or_default().insert(Arc::clone(&node.name));
                    if is_new {
                        more(&mut self.shapes, range.shape());
                    }
                }
                Says::NoMore => {
                    let Entry::Occupied(mut nodes) = self.nodes.entry(*range) else { continue };
                    nodes.get_mut().remove(&node.name);
                    if nodes.get().is_empty() {
                        nodes.remove();
                        less(&mut self.shapes, range.shape());
                    }
                }
            }
        }
    }

    /// An address begins or ceases to be a pod's.
    pub(super) fn address(&mut self, address: IpAddr, says: Says) {
        if self.around(address).next().is_some() {
            return;
        }
        self.changed = self.changed.max(Changed::Addresses);
        self.outside = match says {
            Says::From => self.outside + 1,
            Says::NoMore => self.outside.saturating_sub(1),
        };
    }

    /// The holders of an address have changed.
    pub(super) fn look_at(&mut self, address: IpAddr, holders: Holders<'_>) {
        if self.is_stray(address, holders) {
            self.strays.insert(address);
        } else {
            self.strays.remove(&address);
        }
    }

    /// Looks at all addresses only if the ranges have changed.
    pub(super) fn settle(&mut self, holders: Holders<'_>) -> Settled {
        let changed = std::mem::take(&mut self.changed);
        if changed == Changed::Ranges {
            self.count(holders);
        }
        let evident = self.outside == 0 && self.strays.is_empty();
        let binding = evident && !self.nodes.is_empty() && holders.by_address.len() > 0;
        let was_binding = std::mem::replace(&mut self.binding, binding);
        let others_bind = changed == Changed::Ranges && binding;
        Settled {
            believed: (changed != Changed::Nothing).then(|| self.believed()),
            judge_announced: was_binding != binding || others_bind,
        }
    }

    /// The ranges in use. Every address, if no ranges are known or pods have addresses outside of
    /// them (some network plugins have ranges of their own): any address may then be that of a pod.
    pub(super) fn believed(&self) -> Arc<BTreeSet<Cidr>> {
        if self.nodes.is_empty() || self.outside > 0 {
            return Arc::new(BTreeSet::from([Cidr::ALL]));
        }
        Arc::new(self.nodes.keys().copied().collect())
    }

    /// Why a pod of `node` cannot have this address. An objection needs every known pod and
    /// endpoint to have an address in its own node's range; otherwise this network assigns
    /// addresses in another way.
    pub(super) fn objection(&self, node: &NodeName, address: IpAddr) -> Option<String> {
        if !self.binding || self.is_own(node, address) {
            return None;
        }
        let others: Vec<&str> = self.around(address).flatten().map(|node| &**node).collect();
        if !others.is_empty() {
            return Some(format!("it lies in the range of pod addresses of {}", others.join(", ")));
        }
        let own = self.of_node.get(node.as_str()).into_iter().flatten();
        let own: Vec<_> = own.filter(|range| range.shape().0 == address.is_ipv4()).collect();
        let first = own.first()?;
        Some(format!("it lies outside of {first}, from which {node} gives addresses to its pods"))
    }

    fn count(&mut self, holders: Holders<'_>) {
        let pods = || holders.by_address.keys().copied();
        self.outside = pods().filter(|address| self.around(*address).next().is_none()).count();
        let all = pods().chain(holders.facts.endpoints());
        self.strays = all.filter(|address| self.is_stray(*address, holders)).collect();
        self.changed = Changed::Nothing;
    }

    /// An endpoint at a node's own address (`hostNetwork`) says nothing about ranges.
    fn is_stray(&self, address: IpAddr, holders: Holders<'_>) -> bool {
        let pod = holders.by_address.get(&address).and_then(|pod| pod.node.as_ref());
        let endpoints = holders.facts.nodes_of_endpoint(address).map(|(node, _)| node);
        let endpoints = endpoints.filter(|_| !holders.facts.is_of_host(address));
        pod.into_iter().chain(endpoints).any(|node| !self.is_own(node, address))
    }

    fn is_own(&self, node: &NodeName, address: IpAddr) -> bool {
        self.around(address).any(|nodes| nodes.contains(node.as_str()))
    }

    /// The nodes of each range in which an address lies.
    fn around(&self, address: IpAddr) -> impl Iterator<Item = &BTreeSet<Arc<str>>> {
        let of_family = self.shapes.keys().filter(move |(v4, _)| *v4 == address.is_ipv4());
        of_family.filter_map(move |(_, length)| self.nodes.get(&Cidr::around(address, *length)))
    }
}

fn more<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    *counts.entry(key).or_default() += 1;
}

fn less<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    let Entry::Occupied(mut count) = counts.entry(key) else { return };
    *count.get_mut() = count.get().saturating_sub(1);
    if *count.get() == 0 {
        count.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::super::Snapshot;
    use serde_json::json;

    use super::super::testing::{announcements, local, namespace, node_object, pod, slice};
    use super::*;
    use crate::incumbents::Incumbents;

    fn ranges(objects: &Objects) -> Vec<String> {
        let world =
            Snapshot::build(objects, &[].into(), &local("node1", &[]), &Incumbents::default());
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

    /// The believed claims of node 2, and why the others are not believed, in a world with these
    /// facts beside two nodes.
    fn claims(and: impl FnOnce(&mut Objects)) -> (Vec<String>, Vec<String>) {
        let mut objects = Objects::default();
        objects.insert_namespace(namespace("shop", &[]));
        objects.insert_node(node_object("node1", &["10.244.1.0/24"], "192.0.2.1"));
        objects.insert_node(node_object("node2", &["10.244.2.0/24"], "192.0.2.2"));
        and(&mut objects);
        let pods = [
            ("own", "10.244.2.9"),
            ("other", "10.244.1.9"),
            ("far", "198.51.100.7"),
            ("six", "fd00::1"),
        ];
        let heard = announcements(&[("node2", &pods)]);
        let world = Snapshot::build(&objects, &heard, &local("node1", &[]), &Incumbents::default());
        let believed =
            pods.iter().filter(|(_, address)| world.standing(address.parse().unwrap()).is_some());
        let problems = world.problems().into_iter().map(|problem| problem.message).collect();
        (believed.map(|(name, _)| (*name).to_owned()).collect(), problems)
    }

    #[test]
    fn an_address_that_a_nodes_pods_cannot_have_is_a_problem_and_captured_all_the_same() {
        let (believed, problems) = claims(|objects| {
            objects.insert_pod(pod("shop", "a", "node1", "10.244.1.4", &[]));
            // A pod with hostNetwork has its node's address, and its endpoint too.
            let host = json!([{"addresses": ["192.0.2.2"], "nodeName": "node2"}]);
            objects.insert_slice(slice("host", "host", &json!([]), &host));
        });
        assert_eq!(believed, ["own", "other", "far", "six"]);
        assert_eq!(
            problems,
            [
                "10.244.1.9 is announced for pod shop/other, but it lies in the range of pod addresses \
                 of node1; dialled over TLS as pod shop/other on node2, or not at all",
                "198.51.100.7 is announced for pod shop/far, but it lies outside of 10.244.2.0/24, from \
                 which node2 gives addresses to its pods; dialled over TLS as pod shop/far on node2, or \
                 not at all",
            ]
        );
    }

    #[test]
    fn ranges_bind_nobody_where_anything_known_has_its_address_from_elsewhere() {
        assert!(claims(|_| {}).1.is_empty(), "nothing is known that would show it");
        let home = || pod("shop", "a", "node1", "10.244.1.4", &[]);
        let (_, problems) = claims(|objects| {
            objects.insert_pod(home());
            objects.insert_pod(pod("shop", "b", "node1", "10.244.2.5", &[]));
        });
        assert!(problems.is_empty(), "a pod of node 1 has an address from node 2's range");
        let (_, problems) = claims(|objects| {
            objects.insert_pod(home());
            let endpoints = json!([{"addresses": ["10.99.0.1"], "nodeName": "node2"}]);
            objects.insert_slice(slice("s", "s", &json!([]), &endpoints));
        });
        assert!(problems.is_empty(), "an endpoint on node 2 has one from no node's range");
    }

    #[test]
    fn a_range_that_binds_decides_between_two_claims_and_never_for_plaintext() {
        let mut objects = Objects::default();
        objects.insert_namespace(namespace("shop", &[]));
        objects.insert_node(node_object("node1", &["10.244.1.0/24"], "192.0.2.1"));
        objects.insert_node(node_object("node2", &["10.244.2.0/24"], "192.0.2.2"));
        objects.insert_node(node_object("node3", &["10.244.3.0/24"], "192.0.2.3"));
        objects.insert_pod(pod("shop", "a", "node1", "10.244.1.4", &[]));
        let before = announcements(&[("node2", &[("early", "10.244.3.9")])]);
        let both = [("node2", &[("early", "10.244.3.9")][..]), ("node3", &[("own", "10.244.3.9")])];
        let (both, here) = (announcements(&both), local("node1", &[]));
        let incumbents = Incumbents::default().after(&before, &both, &here.name);
        let at = "10.244.3.9".parse().unwrap();
        assert_eq!(incumbents.of(at).unwrap().as_str(), "node2");
        let world = Snapshot::build(&objects, &both, &here, &incumbents);
        assert_eq!(&*world.believed(at).unwrap().name, "own");
        // An account that may write EndpointSlices can end that, and then time decides.
        let endpoints = json!([{"addresses": ["10.99.0.1"], "nodeName": "node2"}]);
        objects.insert_slice(slice("s", "s", &json!([]), &endpoints));
        let world = Snapshot::build(&objects, &both, &here, &incumbents);
        assert_eq!(&*world.believed(at).unwrap().name, "early");
    }

    #[test]
    fn a_nodes_address_is_no_pods() {
        let mut objects = Objects::default();
        objects.insert_namespace(namespace("shop", &[]));
        objects.insert_node(node_object("node1", &[], "192.0.2.1"));
        objects.insert_pod(pod("shop", "odd", "node1", "192.0.2.9", &[]));
        objects.insert_node(node_object("node9", &[], "192.0.2.9"));
        let tunnels = ["10.244.3.0", "192.0.2.9"].map(|it| it.parse().unwrap()).into();
        objects.insert_node(NodeObject { tunnels, ..node_object("node3", &[], "192.0.2.3") });
        let mut host = pod("shop", "proxy", "node2", "192.0.2.2", &[]);
        host.host_network = true;
        objects.insert_pod(host);
        let world =
            Snapshot::build(&objects, &[].into(), &local("node1", &[]), &Incumbents::default());
        let addresses: BTreeSet<_> = world.node_addresses().map(ToString::to_string).collect();
        let expected = ["10.244.3.0", "192.0.2.1", "192.0.2.2", "192.0.2.3"].map(str::to_owned);
        assert_eq!(addresses, BTreeSet::from(expected));
    }
}
