//! Follows a changing world: each snapshot out of the one before and what has changed, in proportion to that.
//!
//! What a snapshot says of one object follows from few others ([`Index`] knows which). A step finds the objects that
//! changed, marks what follows from them, and judges that anew by the very rules of the full build, in its order: who has
//! an address; the pods; who is believed about an address; services; this node's pods. A judgement that comes out as
//! before is not written, so that nothing follows from it.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{has_own_addresses, precedence};
use super::facts::{AddressFacts, Says};
use super::index::{Announced, Index};
use super::peers::{self, Known};
use super::problems::{AnnouncedKey, Subject};
use super::ranges::Holders;
use super::services::{self, Here, ServiceKey};
use super::{Inner, LocalNode, Snapshot, build};
use crate::world::announcement::{AnnouncedPod, Announcements, MeshNode};
use crate::world::names::{NodeName, ObjectName, PodUid};
use crate::world::objects::{NamespaceObject, NodeObject, Objects, PodObject, ServiceObject};
use crate::world::problem::Problem;
use crate::world::workload::Peer;

/// The world as it was last, and what the next step needs to know of it.
pub struct World {
    objects: Arc<Objects>,
    announcements: Arc<Announcements>,
    local: LocalNode,
    index: Index,
    snapshot: Snapshot,
    work: Work,
}

/// What the last step had to judge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Pods.
    pub pods: usize,
    /// Pods in announcements.
    pub announced: usize,
    /// Addresses and ports of services.
    pub services: usize,
}

impl Work {
    /// All of it.
    pub fn total(&self) -> usize {
        self.pods + self.announced + self.services
    }
}

impl World {
    /// Begins with a full build.
    pub fn new(
        objects: &Arc<Objects>,
        announcements: &Arc<Announcements>,
        local: &LocalNode,
    ) -> Self {
        let snapshot = Snapshot::build(objects, announcements, local);
        let index = Index::of(objects, announcements, local, &snapshot.0);
        let work = Work {
            pods: snapshot.workloads(),
            announced: announcements.values().map(|node| node.pods.len()).sum(),
            services: snapshot.0.services.len(),
        };
        let (objects, announcements) = (Arc::clone(objects), Arc::clone(announcements));
        Self { objects, announcements, local: local.clone(), index, snapshot, work }
    }

    /// The snapshot of the last step.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// What the last step had to judge.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Whether this is what the last step was given; found out without looking at the objects.
    pub fn is_of(
        &self,
        objects: &Arc<Objects>,
        announcements: &Arc<Announcements>,
        local: &LocalNode,
    ) -> bool {
        Arc::ptr_eq(&self.objects, objects)
            && Arc::ptr_eq(&self.announcements, announcements)
            && self.local == *local
    }

    /// The world with these: what [`Snapshot::build`] would make of them. If nothing follows from
    /// what has changed, it is the very snapshot of the last step.
    pub fn update(
        &mut self,
        objects: &Arc<Objects>,
        announcements: &Arc<Announcements>,
        local: &LocalNode,
    ) -> &Snapshot {
        if self.is_of(objects, announcements, local) {
            self.work = Work::default();
            return &self.snapshot;
        }
        if self.must_begin_anew(objects, local) {
            let before = self.snapshot.clone();
            *self = Self::new(objects, announcements, local);
            if self.snapshot == before {
                self.snapshot = before;
            }
            return &self.snapshot;
        }
        let world = Inner::clone(&self.snapshot.0);
        let mut step = Step::new(objects, announcements, local, &mut self.index, world);
        step.read_pods(&self.objects);
        step.read_nodes(&self.objects);
        step.read_namespaces(&self.objects);
        step.read_slices(&self.objects);
        step.read_services(&self.objects);
        step.read_announcements(&self.announcements);
        step.read_enrolled(&self.local);
        step.judge_pods();
        step.tell_nodes();
        step.judge_peers();
        step.join_services();
        step.update_local_pods();
        let Step { world, work, .. } = step;

        self.work = work;
        if !world.is(&self.snapshot.0) {
            self.snapshot = Snapshot(Arc::new(world));
        }
        self.objects = Arc::clone(objects);
        self.announcements = Arc::clone(announcements);
        self.local = local.clone();
        &self.snapshot
    }

    /// Whether something has changed from which everything follows: then a step would not be shorter than a full build.
    fn must_begin_anew(&self, objects: &Objects, local: &LocalNode) -> bool {
        let zone = |objects: &Objects| {
            objects.nodes.get(local.name.as_str()).and_then(|node| node.zone.clone())
        };
        self.local.name != local.name || zone(&self.objects) != zone(objects)
    }
}

impl Inner {
    /// Whether nothing was written since the one was copied from the other.
    fn is(&self, other: &Self) -> bool {
        self.workloads.is(&other.workloads)
            && self.by_address.is(&other.by_address)
            && self.peers.is(&other.peers)
            && self.services.is(&other.services)
            && self.meshed_services.is(&other.meshed_services)
            && self.problems.is(&other.problems)
            && Arc::ptr_eq(&self.local_pods, &other.local_pods)
            && Arc::ptr_eq(&self.pod_cidrs, &other.pod_cidrs)
            && self.node_addresses.is(&other.node_addresses)
    }
}

/// One step: the new objects, the snapshot that becomes theirs, and what has yet to be judged.
struct Step<'a> {
    objects: &'a Objects,
    announcements: &'a Announcements,
    local: &'a LocalNode,
    index: &'a mut Index,
    world: Inner,
    work: Work,
    /// Addresses that may have another owner.
    owners: HashSet<IpAddr>,
    pods: HashSet<PodUid>,
    /// Addresses at which another pod may be captured, or which may be a node's, or no node's any more.
    peers: HashSet<IpAddr>,
    announced: HashSet<AnnouncedKey>,
    services: HashSet<ServiceKey>,
    /// Services that may have other problems.
    named_services: HashSet<ObjectName>,
    /// Services that may lead into the mesh, or not any more.
    meshed: HashSet<ServiceKey>,
    local_pods: bool,
}

/// Who is captured at an address.
#[derive(Clone)]
enum Captured {
    /// A pod of this node.
    Here(Arc<Peer>),
    /// The first announced pod to which nobody objects.
    There(AnnouncedKey),
    Nobody,
}

impl<'a> Step<'a> {
    fn new(
        objects: &'a Objects,
        announcements: &'a Announcements,
        local: &'a LocalNode,
        index: &'a mut Index,
        world: Inner,
    ) -> Self {
        Self {
            objects,
            announcements,
            local,
            index,
            world,
            work: Work::default(),
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

    fn read_pods(&mut self, before: &Objects) {
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

    fn read_nodes(&mut self, before: &Objects) {
        for changed in self.objects.nodes.differences(&before.nodes) {
            let ranges = |node: &&Arc<NodeObject>| node.pod_cidrs.clone();
            let same_ranges =
                changed.before.map(|it| ranges(&it)) == changed.now.map(|it| ranges(&it));
            for (node, says) in [(changed.before, Says::NoMore), (changed.now, Says::From)] {
                let Some(node) = node else { continue };
                self.index.facts.node(node, says);
                self.peers.extend(&node.addresses);
                if !same_ranges {
                    self.index.ranges.node(node, says);
                }
            }
        }
    }

    fn read_namespaces(&mut self, before: &Objects) {
        for changed in self.objects.namespaces.differences(&before.namespaces) {
            let problems = |it: &NamespaceObject| it.mesh.problems(&it.origin).collect();
            let found = changed.now.map_or_else(Vec::new, |namespace| problems(namespace));
            self.world.problems.set(Subject::Namespace(Arc::clone(changed.key)), found);
            self.pods.extend(self.index.pods_in(changed.key).cloned());
        }
    }

    fn read_slices(&mut self, before: &Objects) {
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

    fn read_services(&mut self, before: &Objects) {
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

    fn read_announcements(&mut self, before: &Announcements) {
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
        // Two sorted runs, which sorting merges in one pass: of each key, what it was stands before what it is.
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

    /// One pod of an announcement, and its place in it, as it was and as it is.
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
                self.index.announced_at.set(*address, key, says);
                self.peers.insert(*address);
            }
        }
        self.announced.insert(key.clone());
    }

    fn read_enrolled(&mut self, before: &LocalNode) {
        for uid in self.local.enrolled.symmetric_difference(&before.enrolled) {
            self.capture_changed(uid, &self.local.name);
            if let Some(workload) = self.world.workloads.get(uid) {
                self.peers.extend(&workload.addresses);
            }
            self.local_pods = true;
        }
    }

    /// A node has captured a pod, or has let it go: that may decide about an address that several pods have.
    fn capture_changed(&mut self, uid: &PodUid, node: &NodeName) {
        let Some(pod) = self.objects.pods.get(uid) else { return };
        if pod.node.as_ref() == Some(node) && has_own_addresses(pod) {
            let disputed = pod.ips.iter().filter(|ip| self.index.claimants.of(ip).len() > 1);
            self.owners.extend(disputed);
        }
    }

    fn judge_pods(&mut self) {
        for address in &self.owners {
            self.pods.extend(self.index.claimants.of(address).iter().cloned());
        }
        let owners = Owners { step: self, settled: RefCell::default() };
        let mut judged = Vec::new();
        for uid in &self.pods {
            let pod = self.objects.pods.get(uid);
            let owner = |address| owners.of(address);
            judged.push((uid.clone(), pod.map(|pod| build::workload(pod, self.objects, owner))));
        }
        drop(owners);
        self.work.pods += judged.len();

        let mut touched = HashSet::new();
        for (uid, judged) in judged {
            let (workload, problems) = judged.unzip();
            self.world.problems.set(Subject::Pod(uid.clone()), problems.unwrap_or_default());
            let before = self.world.workloads.get(&uid).cloned();
            if before.as_deref() == workload.as_ref() {
                continue;
            }
            for pod in before.as_deref().into_iter().chain(&workload) {
                touched.extend(pod.addresses.iter().copied());
                self.local_pods |= pod.node.as_ref() == Some(&self.local.name);
            }
            for key in self.index.announced_as.of(&uid) {
                let pod = self.index.announced_pod(key);
                self.peers.extend(pod.into_iter().flat_map(|(_, pod)| &pod.addresses));
                self.announced.insert(key.clone());
            }
            match workload {
                Some(workload) => self.world.workloads.insert(uid, Arc::new(workload)),
                None => drop(self.world.workloads.remove(&uid)),
            }
        }
        let owners = Owners { step: self, settled: RefCell::default() };
        let workload = |address: &IpAddr| {
            let pod = owners.of(*address)?;
            self.world.workloads.get(&pod.uid).cloned()
        };
        let resettled: Vec<_> = touched.iter().map(|it| (*it, workload(it))).collect();
        drop(owners);
        for (address, workload) in resettled {
            let had = self.world.by_address.contains_key(&address);
            match (had, &workload) {
                (false, Some(_)) => self.index.ranges.address(address, Says::From),
                (true, None) => self.index.ranges.address(address, Says::NoMore),
                (true, Some(_)) | (false, None) => {}
            }
            match workload {
                Some(workload) => self.world.by_address.insert(address, workload),
                None => drop(self.world.by_address.remove(&address)),
            }
        }
        self.peers.extend(touched);
    }

    /// Which addresses are nodes' own, and which ranges are those of pods.
    fn tell_nodes(&mut self) {
        for address in &self.peers {
            let is_node = self.index.facts.is_of_host(*address)
                && !self.world.by_address.contains_key(address);
            if !is_node {
                self.world.node_addresses.remove(address);
            } else if !self.world.node_addresses.contains_key(address) {
                self.world.node_addresses.insert(*address, ());
            }
        }
        let Index { ranges, facts, announced_at, .. } = &mut *self.index;
        let holders = Holders { by_address: &self.world.by_address, facts };
        self.peers.iter().for_each(|address| ranges.look_at(*address, holders));
        let settled = ranges.settle(holders);
        if settled.judge_announced {
            self.peers.extend(announced_at.keys());
        }
        if let Some(believed) = settled.believed
            && *believed != *self.world.pod_cidrs
        {
            self.world.pod_cidrs = believed;
        }
    }

    fn judge_peers(&mut self) {
        for address in &self.peers {
            self.announced.extend(self.index.announced_at.of(address).iter().cloned());
        }
        let captured = CapturedAt { step: self, known: RefCell::default() };
        let mut problems = Vec::new();
        let mut peers: HashMap<IpAddr, Option<Arc<Peer>>> = HashMap::new();
        for address in &self.peers {
            let here = match captured.at(*address) {
                Captured::Here(peer) => Some(peer),
                Captured::There(_) | Captured::Nobody => None,
            };
            peers.insert(*address, here);
        }
        for key in &self.announced {
            let (peer, found) = captured.judge(key);
            problems.push((key.clone(), found));
            let Some(peer) = peer.map(Arc::new) else { continue };
            for address in &peer.addresses {
                peers.insert(*address, Some(Arc::clone(&peer)));
            }
        }
        drop(captured);
        self.work.announced += problems.len();
        for (key, found) in problems {
            self.world.problems.set(Subject::Announced(key), found);
        }
        for (address, peer) in peers {
            self.set_peer(address, peer);
        }
    }

    fn set_peer(&mut self, address: IpAddr, peer: Option<Arc<Peer>>) {
        let before = self.world.peers.get(&address);
        if before == peer.as_ref() {
            return;
        }
        let counts = |peer: &Arc<Peer>| usize::from(build::counts_here(address, peer));
        let remote_pods = self.world.remote_pods + peer.as_ref().map_or(0, counts);
        self.world.remote_pods = remote_pods - before.map_or(0, counts);
        let owner = self.world.by_address.get(&address);
        self.local_pods |= owner.is_some_and(|pod| pod.node.as_ref() == Some(&self.local.name));
        match peer {
            Some(peer) => self.world.peers.insert(address, peer),
            None => drop(self.world.peers.remove(&address)),
        }
        self.meshed.extend(self.index.leading_to.of(&address));
    }

    fn join_services(&mut self) {
        self.work.services += self.services.len();
        for key in std::mem::take(&mut self.services) {
            let claimants = self.index.services.of(&key);
            self.named_services.extend(claimants.iter().cloned());
            let joined = self.holder(key).and_then(|service| {
                let (_, port) = services::keys(service).find(|(other, _)| *other == key)?;
                let slices = self.index.slices.of(&service.name).iter();
                let slices: Vec<_> =
                    slices.filter_map(|it| self.objects.slices.get(it).map(Arc::as_ref)).collect();
                let here = Here::of(self.objects, &self.local.name);
                Some(services::service_port(service, port, key.0, &slices, here))
            });
            let before = self.world.services.get(&key).cloned();
            if before.as_deref() == joined.as_ref() {
                continue;
            }
            self.index.leads(key, before.as_deref(), joined.as_ref());
            match joined {
                Some(joined) => self.world.services.insert(key, Arc::new(joined)),
                None => drop(self.world.services.remove(&key)),
            }
            self.meshed.insert(key);
        }
        for name in std::mem::take(&mut self.named_services) {
            let service = self.objects.services.get(&name);
            let taken = |service: &ServiceObject| services::taken(service, |key| self.holder(key));
            let found = service.map_or_else(Vec::new, |service| taken(service));
            self.world.problems.set(Subject::Service(name), found);
        }
        for key in std::mem::take(&mut self.meshed) {
            let service = self.world.services.get(&key);
            let meshed =
                service.is_some_and(|it| services::has_meshed_endpoint(it, &self.world.peers));
            if !meshed {
                self.world.meshed_services.remove(&key);
            } else if !self.world.meshed_services.contains_key(&key) {
                self.world.meshed_services.insert(key, ());
            }
        }
    }

    /// The service that has an address and port.
    fn holder(&self, key: ServiceKey) -> Option<&'a ServiceObject> {
        let name = self.index.services.of(&key).first()?;
        self.objects.services.get(name).map(Arc::as_ref)
    }

    fn update_local_pods(&mut self) {
        if !self.local_pods {
            return;
        }
        let here = self.index.here.iter();
        let here = here.filter_map(|uid| self.objects.pods.get(uid).map(Arc::as_ref));
        let world = &self.world;
        let pods = build::local_pods(here, &world.workloads, self.local, &world.peers);
        if pods != *self.world.local_pods {
            self.world.local_pods = Arc::new(pods);
        }
    }

    /// Whether a pod's own node says that it is captured.
    fn is_captured(&self, pod: &PodObject) -> bool {
        pod.node.as_ref().is_some_and(|node| {
            if *node == self.local.name {
                self.local.enrolled.contains(&pod.uid)
            } else {
                self.index.announces(node, &pod.uid)
            }
        })
    }
}

/// Who has which address, each settled once, however many claim it.
struct Owners<'s, 'a> {
    step: &'s Step<'a>,
    settled: RefCell<HashMap<IpAddr, Option<&'a PodObject>>>,
}

impl<'a> Owners<'_, 'a> {
    fn of(&self, address: IpAddr) -> Option<&'a PodObject> {
        *self.settled.borrow_mut().entry(address).or_insert_with(|| {
            let objects = self.step.objects;
            let claimants = self.step.index.claimants.of(&address).iter();
            let pods = claimants.filter_map(|uid| objects.pods.get(uid).map(Arc::as_ref));
            pods.min_by_key(|pod| precedence(pod, self.step.is_captured(pod)))
        })
    }
}

/// Who is captured where, each found out once.
struct CapturedAt<'s, 'a> {
    step: &'s Step<'a>,
    known: RefCell<HashMap<IpAddr, Captured>>,
}

impl CapturedAt<'_, '_> {
    fn facts(&self) -> Known<'_> {
        let Step { world, index, .. } = self.step;
        let (workloads, by_address) = (&world.workloads, &world.by_address);
        Known { workloads, by_address, facts: &index.facts, ranges: &index.ranges }
    }

    fn at(&self, address: IpAddr) -> Captured {
        let mut known = self.known.borrow_mut();
        known.entry(address).or_insert_with(|| self.find(address)).clone()
    }

    fn find(&self, address: IpAddr) -> Captured {
        let Step { local, index, world, .. } = self.step;
        let owner = world.by_address.get(&address);
        let enrolled = owner.filter(|pod| local.enrolled.contains(&pod.uid));
        if let Some(peer) = enrolled.and_then(|pod| peers::local_peer(pod, &local.name)) {
            return Captured::Here(Arc::new(peer));
        }
        let believed = |key: &&AnnouncedKey| {
            let pod = index.announced_pod(key);
            pod.is_some_and(|(_, pod)| self.facts().objection(&key.node, pod, address).is_none())
        };
        let first = index.announced_at.of(&address).iter().find(believed);
        first.map_or(Captured::Nobody, |key| Captured::There(key.clone()))
    }

    /// What is believed of an announced pod; nothing of one that is announced no more.
    fn judge(&self, key: &AnnouncedKey) -> (Option<Peer>, Vec<Problem>) {
        let mut problems = Vec::new();
        let Some((index, pod)) = self.step.index.announced_pod(key) else {
            return (None, problems);
        };
        let incumbent = |address: IpAddr| match self.at(address) {
            Captured::Here(peer) => Some(peers::describe(&peer)),
            Captured::There(first) if first != *key => {
                let (_, pod) = self.step.index.announced_pod(&first)?;
                Some(peers::describe_announced(&first.node, pod))
            }
            Captured::There(_) | Captured::Nobody => None,
        };
        let peer = peers::judge(&self.facts(), &key.node, (index, pod), incumbent, &mut problems);
        (peer, problems)
    }
}
