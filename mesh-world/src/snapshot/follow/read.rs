//! The first half of a step: finds what has changed, and marks what may follow from it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::super::build::namespace_problems;
use super::super::claims::has_own_addresses;
use super::super::facts::{AddressFacts, Says};
use super::super::index::{Announced, Index};
use super::super::problems::{AnnouncedKey, Subject};
use super::super::{Inner, LocalNode, peers, services};
use super::{Step, Work};
use crate::announcement::{AnnouncedPod, Announcements, MeshNode};
use crate::incumbents::Incumbents;
use crate::names::{NodeName, PodUid};
use crate::objects::{NodeObject, Objects};

impl<'a> Step<'a> {
    pub(super) fn new(
        objects: &'a Objects,
        announcements: &'a Announcements,
        local: &'a LocalNode,
        (index, incumbents): (&'a mut Index, &'a mut Incumbents),
        world: Inner,
    ) -> Self {
        Self {
            objects,
            announcements,
            local,
            index,
            incumbents,
            world,
            work: Work::default(),
            claimants: HashMap::new(),
            owners: HashSet::new(),
            pods: HashSet::new(),
            peers: HashSet::new(),
            announced: HashSet::new(),
            services: HashSet::new(),
            named_services: HashSet::new(),
            meshed: HashSet::new(),
            local_pods: false,
        }
    }

    pub(super) fn read_pods(&mut self, before: &Objects) {
        for changed in self.objects.pods.differences(&before.pods) {
            for (pod, says) in [(changed.before, Says::NoMore), (changed.now, Says::From)] {
                let Some(pod) = pod else { continue };
                self.index.pod(pod, says, &self.local.name);
                self.owners.extend(pod.ips.iter().filter(|_| has_own_addresses(pod)));
                self.peers.extend(AddressFacts::of_pod(pod));
                self.local_pods |= pod.node.as_ref() == Some(&self.local.name);
            }
            self.pods.insert(changed.key.clone());
        }
    }

    pub(super) fn read_nodes(&mut self, before: &Objects) {
        for changed in self.objects.nodes.differences(&before.nodes) {
            let ranges = |node: &&Arc<NodeObject>| node.pod_cidrs.clone();
            let same_ranges =
                changed.before.map(|it| ranges(&it)) == changed.now.map(|it| ranges(&it));
            for (node, says) in [(changed.before, Says::NoMore), (changed.now, Says::From)] {
                let Some(node) = node else { continue };
                self.index.facts.node(node, says);
                self.peers.extend(node.addresses.iter().chain(&node.tunnels));
                if !same_ranges {
                    self.index.ranges.node(node, says);
                }
            }
        }
    }

    pub(super) fn read_namespaces(&mut self, before: &Objects) {
        for changed in self.objects.namespaces.differences(&before.namespaces) {
            let found = changed.now.map_or_else(Vec::new, |it| namespace_problems(it, self.local));
            self.world.problems.set(Subject::Namespace(Arc::clone(changed.key)), found);
            self.pods.extend(self.index.pods_in(changed.key).cloned());
        }
    }

    pub(super) fn read_slices(&mut self, before: &Objects) {
        for changed in self.objects.slices.differences(&before.slices) {
            for (slice, says) in [(changed.before, Says::NoMore), (changed.now, Says::From)] {
                let Some(slice) = slice else { continue };
                self.index.slice(slice, says);
                self.peers.extend(AddressFacts::of_slice(slice).map(|(address, _)| address));
                let service = slice.service.as_ref().and_then(|it| self.objects.services.get(it));
                let keys = service.into_iter().flat_map(|service| services::keys(service));
                self.services.extend(keys.map(|(key, _)| key));
            }
        }
    }

    pub(super) fn read_services(&mut self, before: &Objects) {
        for changed in self.objects.services.differences(&before.services) {
            for (service, says) in [(changed.before, Says::NoMore), (changed.now, Says::From)] {
                let Some(service) = service else { continue };
                self.index.service(service, says);
                self.peers.extend(&service.cluster_ips);
                self.services.extend(services::keys(service).map(|(key, _)| key));
            }
            self.named_services.insert(changed.key.clone());
        }
    }

    pub(super) fn read_announcements(&mut self, before: &Announcements) {
        let now = self.announcements;
        let gone = before.keys().filter(|node| !now.contains_key(*node));
        let same = |node: &NodeName, announcement: &Arc<MeshNode>| {
            before.get(node).is_some_and(|before| Arc::ptr_eq(before, announcement))
        };
        let changed = now.iter().filter(|(node, it)| !same(node, it)).map(|(node, _)| node);
        for node in gone.chain(changed).filter(|node| **node != self.local.name) {
            self.read_announcement(node);
        }
    }

    fn read_announcement(&mut self, node: &NodeName) {
        let announcement = self.announcements.get(node);
        let problem = announcement.and_then(|it| peers::whole_objection(node, it));
        self.world.problems.set(Subject::Node(node.clone()), problem.into_iter().collect());
        let now = announcement.map(|it| Arc::new(Announced::of(node, it)));
        let before = self.index.announce(node, now.clone());
        let keys = |it: &Option<Arc<Announced>>| it.iter().map(|it| it.keys.len()).sum::<usize>();
        let mut places = Vec::with_capacity(keys(&before) + keys(&now));
        for (is_new, announced) in [(false, &before), (true, &now)] {
            let keys = announced.iter().flat_map(|announced| &announced.keys);
            places.extend(keys.map(|(key, index)| (key, is_new, *index)));
        }
        // Two sorted runs, which sorting merges in one pass. For each key, the old state stands
        // before the new one.
        places.sort_by_key(|(key, is_new, _)| (&key.uid, key.nth, *is_new));
        for of_key in places.chunk_by(|(a, ..), (b, ..)| a == b) {
            let place = |wanted: bool| {
                of_key.iter().find(|(_, is_new, _)| *is_new == wanted).map(|(.., index)| *index)
            };
            let (Some((key, ..)), old, new) = (of_key.first(), place(false), place(true)) else {
                continue;
            };
            let old_pod = before.as_ref().and_then(|it| it.pod(old?));
            let new_pod = now.as_ref().and_then(|it| it.pod(new?));
            self.read_announced(key, (old, old_pod), (new, new_pod));
        }
    }

    /// One pod of an announcement and its place in it, before and after.
    fn read_announced(
        &mut self,
        key: &AnnouncedKey,
        (old, old_pod): (Option<usize>, Option<&AnnouncedPod>),
        (new, new_pod): (Option<usize>, Option<&AnnouncedPod>),
    ) {
        if key.nth == 0 && old.is_some() != new.is_some() {
            self.capture_changed(&key.uid, &key.node);
        }
        if old_pod == new_pod {
            // A problem names the place in the announcement.
            if old != new && self.world.problems.has(&Subject::Announced(key.clone())) {
                self.announced.insert(key.clone());
            }
            return;
        }
        for (pod, says) in [(old_pod, Says::NoMore), (new_pod, Says::From)] {
            let Some(pod) = pod else { continue };
            self.index.announced_as.set(pod.uid.clone(), key, says);
            for address in &pod.addresses {
                let index = &*self.index;
                let claimants = self.claimants.entry(*address);
                claimants.or_insert_with(|| index.nodes_that_announce(*address));
                self.index.announced_at.set(*address, key, says);
                self.peers.insert(*address);
            }
        }
        self.announced.insert(key.clone());
    }

    /// Settles which node was first, of those that announce an address now.
    pub(super) fn settle_incumbents(&mut self) {
        for (address, before) in std::mem::take(&mut self.claimants) {
            let now = self.index.nodes_that_announce(address);
            self.incumbents.settle(address, &before, &now);
        }
    }

    pub(super) fn read_enrolled(&mut self, before: &LocalNode) {
        for uid in self.local.enrolled.symmetric_difference(&before.enrolled) {
            self.capture_changed(uid, &self.local.name);
            if let Some(workload) = self.world.workloads.get(uid) {
                self.peers.extend(&workload.addresses);
            }
            self.local_pods = true;
        }
    }

    /// A node has captured or released a pod: that may decide about an address that several pods
    /// have.
    fn capture_changed(&mut self, uid: &PodUid, node: &NodeName) {
        let Some(pod) = self.objects.pods.get(uid) else { return };
        if pod.node.as_ref() == Some(node) && has_own_addresses(pod) {
            let disputed = pod.ips.iter().filter(|ip| self.index.claimants.of(ip).len() > 1);
            self.owners.extend(disputed);
        }
    }
}
