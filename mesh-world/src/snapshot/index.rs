//! Which facts depend on which: what has to be judged again when one object or announcement
//! changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::has_own_addresses;
use super::facts::{AddressFacts, Says};
use super::peers::{announced, whole_objection};
use super::problems::AnnouncedKey;
use super::ranges::{Holders, Ranges};
use super::services::{ServiceKey, keys};
use super::{Inner, LocalNode};
use crate::announcement::{AnnouncedPod, Announcements, MeshNode};
use crate::names::{NodeName, ObjectName, PodUid};
use crate::objects::{EndpointSliceObject, Objects, PodObject, ServiceObject};
use crate::service::ServicePort;

/// See the file.
#[derive(Default)]
pub(super) struct Index {
    pub(super) facts: AddressFacts,
    pub(super) ranges: Ranges,
    /// The pods that claim an address.
    pub(super) claimants: Many<IpAddr, PodUid>,
    /// The slices of a service.
    pub(super) slices: Many<ObjectName, ObjectName>,
    /// The services that claim an address and port; the first has them.
    pub(super) services: Many<ServiceKey, ObjectName>,
    /// The services that lead to an address.
    pub(super) leading_to: Many<IpAddr, ServiceKey>,
    /// The announced pods with an address, in the order in which they are judged.
    pub(super) announced_at: Many<IpAddr, AnnouncedKey>,
    /// The announced pods with a UID.
    pub(super) announced_as: Many<PodUid, AnnouncedKey>,
    pods_in: HashMap<Arc<str>, HashSet<PodUid>>,
    /// The pods of this node.
    pub(super) here: BTreeSet<PodUid>,
    announced: HashMap<NodeName, Arc<Announced>>,
}

/// What one other node announces.
pub(super) struct Announced {
    announcement: Arc<MeshNode>,
    /// Sorted, with their places in the announcement.
    pub(super) keys: Vec<(AnnouncedKey, usize)>,
    /// Whether the announcement names this node; otherwise it counts as having no pods.
    believed: bool,
}

/// Sets by key, most of which have one member.
pub(super) struct Many<K, V>(HashMap<K, Vec<V>>);

impl Index {
    /// Indexes everything, once.
    pub(super) fn of(
        objects: &Objects,
        announcements: &Announcements,
        local: &LocalNode,
        world: &Inner,
    ) -> Self {
        let mut index = Self::default();
        objects.pods().for_each(|pod| index.pod(pod, Says::From, &local.name));
        objects.nodes().for_each(|node| index.facts.node(node, Says::From));
        objects.slices().for_each(|slice| index.slice(slice, Says::From));
        objects.services().for_each(|service| index.service(service, Says::From));
        let holders = Holders { by_address: &world.by_address, facts: &index.facts };
        index.ranges = Ranges::of(objects, holders);
        for (key, service) in world.services.iter() {
            index.leads(*key, None, Some(service));
        }
        for (node, announcement) in announcements.iter().filter(|(node, _)| **node != local.name) {
            let announced = Announced::of(node, announcement);
            for (key, index_of_pod) in &announced.keys {
                let Some(pod) = announced.pod(*index_of_pod) else { continue };
                index.announced_as.set(pod.uid.clone(), key, Says::From);
                for address in &pod.addresses {
                    index.announced_at.set(*address, key, Says::From);
                }
            }
            index.announced.insert(node.clone(), Arc::new(announced));
        }
        index
    }

    pub(super) fn pod(&mut self, pod: &PodObject, says: Says, local_node: &NodeName) {
        self.facts.pod(pod, says);
        if has_own_addresses(pod) {
            for address in &pod.ips {
                self.claimants.set(*address, &pod.uid, says);
            }
        }
        let here = pod.node.as_ref() == Some(local_node);
        match says {
            Says::From => {
                let namespace = Arc::clone(&pod.name.namespace);
                self.pods_in.entry(namespace).or_default().insert(pod.uid.clone());
                if here {
                    self.here.insert(pod.uid.clone());
                }
            }
            Says::NoMore => {
                if let Some(pods) = self.pods_in.get_mut(&pod.name.namespace) {
                    pods.remove(&pod.uid);
                    if pods.is_empty() {
                        self.pods_in.remove(&pod.name.namespace);
                    }
                }
                self.here.remove(&pod.uid);
            }
        }
    }

    pub(super) fn slice(&mut self, slice: &EndpointSliceObject, says: Says) {
        self.facts.slice(slice, says);
        if let Some(service) = &slice.service {
            self.slices.set(service.clone(), &slice.name, says);
        }
    }

    pub(super) fn service(&mut self, service: &ServiceObject, says: Says) {
        self.facts.service(service, says);
        for (key, _) in keys(service) {
            self.services.set(key, &service.name, says);
        }
    }

    /// A service leads to other addresses than before.
    pub(super) fn leads(
        &mut self,
        key: ServiceKey,
        before: Option<&ServicePort>,
        now: Option<&ServicePort>,
    ) {
        let addresses = |service: Option<&ServicePort>| -> HashSet<IpAddr> {
            service.into_iter().flat_map(ServicePort::targets).map(|target| target.ip()).collect()
        };
        let (before, now) = (addresses(before), addresses(now));
        for address in before.difference(&now) {
            self.leading_to.set(*address, &key, Says::NoMore);
        }
        for address in now.difference(&before) {
            self.leading_to.set(*address, &key, Says::From);
        }
    }

    /// The pods of a namespace, by their objects.
    pub(super) fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &PodUid> {
        self.pods_in.get(namespace).into_iter().flatten()
    }

    /// Replaces what a node announces and returns the previous announcement.
    pub(super) fn announce(
        &mut self,
        node: &NodeName,
        now: Option<Arc<Announced>>,
    ) -> Option<Arc<Announced>> {
        match now {
            Some(now) => self.announced.insert(node.clone(), now),
            None => self.announced.remove(node),
        }
    }

    /// Whether a node announces that it has captured a pod.
    pub(super) fn announces(&self, node: &NodeName, uid: &PodUid) -> bool {
        let keys = self.announced.get(node).map(|announced| &announced.keys);
        keys.is_some_and(|keys| keys.binary_search_by(|(key, _)| key.uid.cmp(uid)).is_ok())
    }

    /// The nodes that announce an address, sorted.
    pub(super) fn nodes_that_announce(&self, address: IpAddr) -> Vec<NodeName> {
        let keys = self.announced_at.of(&address);
        let nodes = keys.chunk_by(|a, b| a.node == b.node).filter_map(|same| same.first());
        nodes.map(|key| key.node.clone()).collect()
    }

    /// An announced pod and its place in the announcement.
    pub(super) fn announced_pod(&self, key: &AnnouncedKey) -> Option<(usize, &AnnouncedPod)> {
        let announced = self.announced.get(&key.node)?;
        let place =
            |(other, _): &(AnnouncedKey, usize)| (&other.uid, other.nth).cmp(&(&key.uid, key.nth));
        let at = announced.keys.binary_search_by(place).ok()?;
        let (_, index) = announced.keys.get(at)?;
        Some((*index, announced.pod(*index)?))
    }
}

impl Announced {
    pub(super) fn of(node: &NodeName, announcement: &Arc<MeshNode>) -> Self {
        Self {
            announcement: Arc::clone(announcement),
            keys: announced(node, announcement),
            believed: whole_objection(node, announcement).is_none(),
        }
    }

    /// One of its pods, if the announcement is believed at all.
    pub(super) fn pod(&self, index: usize) -> Option<&AnnouncedPod> {
        self.announcement.pods.get(index).filter(|_| self.believed)
    }
}

impl<K: Eq + Hash, V: Ord + Clone> Many<K, V> {
    /// All keys that have members.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// The members, sorted.
    pub(super) fn of(&self, key: &K) -> &[V] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// Adds or removes a member; does nothing if it is there, or absent, already.
    pub(super) fn set(&mut self, key: K, member: &V, says: Says) {
        match says {
            Says::From => {
                let members = self.0.entry(key).or_insert_with(|| Vec::with_capacity(1));
                if let Err(at) = members.binary_search(member) {
                    members.insert(at, member.clone());
                }
            }
            Says::NoMore => {
                let Some(members) = self.0.get_mut(&key) else { return };
                if let Ok(at) = members.binary_search(member) {
                    members.remove(at);
                }
                if members.is_empty() {
                    self.0.remove(&key);
                }
            }
        }
    }
}

impl<K, V> Default for Many<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}
