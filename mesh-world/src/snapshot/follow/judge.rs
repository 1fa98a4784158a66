//! The second half of a step: judges again what may have changed, in the order of the full build.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::super::claims::precedence;
use super::super::facts::Says;
use super::super::index::Index;
use super::super::peers::{AddressEvidence, AnnouncedAddress, remote_peer};
use super::super::problems::{AnnouncedKey, Subject};
use super::super::ranges::Holders;
use super::super::services::{Here, ServiceKey};
use super::super::{build, services};
use super::Step;
use crate::objects::{PodObject, ServiceObject};
use crate::problem::Problem;
use crate::standing::Standing;
use crate::workload::Peer;

impl<'a> Step<'a> {
    pub(super) fn judge_pods(&mut self) {
        for address in &self.owners {
            self.pods.extend(self.index.claimants.of(address).iter().cloned());
        }
        let owners = Owners { step: self, settled: RefCell::default() };
        let mut judged = Vec::new();
        for uid in &self.pods {
            let pod = self.objects.pods.get(uid);
            let owner = |address| owners.of(address);
            let judge = |pod| build::workload(pod, self.objects, self.local, owner);
            judged.push((uid.clone(), pod.map(|pod: &Arc<PodObject>| judge(pod))));
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

    /// The addresses of nodes, and the ranges of pod addresses.
    pub(super) fn tell_nodes(&mut self) {
        for address in &self.peers {
            let is_node = self.index.facts.is_of_node(*address)
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

    pub(super) fn judge_peers(&mut self) {
        for address in &self.peers {
            self.announced.extend(self.index.announced_at.of(address).iter().cloned());
        }
        let claims = Claims { step: self, known: RefCell::default() };
        let settle = |address: &IpAddr| (*address, claims.standing(*address));
        let standings: Vec<_> = self.peers.iter().map(settle).collect();
        drop(claims);
        for (address, standing) in standings {
            self.set_standing(address, standing);
        }
        let claims = Claims { step: self, known: RefCell::default() };
        let problems: Vec<_> =
            self.announced.iter().map(|key| (key.clone(), claims.problems(key))).collect();
        drop(claims);
        self.work.announced += problems.len();
        for (key, found) in problems {
            self.world.problems.set(Subject::Announced(key), found);
        }
    }

    fn set_standing(&mut self, address: IpAddr, standing: Option<Standing>) {
        let before = self.world.standings.get(&address);
        if before == standing.as_ref() {
            return;
        }
        let counts = |standing: &Standing| usize::from(build::counts_here(address, standing));
        let remote_pods = self.world.remote_pods + standing.as_ref().map_or(0, counts);
        self.world.remote_pods = remote_pods - before.map_or(0, counts);
        let owner = self.world.by_address.get(&address);
        self.local_pods |= owner.is_some_and(|pod| pod.node.as_ref() == Some(&self.local.name));
        match standing {
            Some(standing) => self.world.standings.insert(address, standing),
            None => drop(self.world.standings.remove(&address)),
        }
        self.meshed.extend(self.index.leading_to.of(&address));
    }

    pub(super) fn join_services(&mut self) {
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
                service.is_some_and(|it| services::has_meshed_endpoint(it, &self.world.standings));
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

    pub(super) fn update_local_pods(&mut self) {
        if !self.local_pods {
            return;
        }
        let here = self.index.here.iter();
        let here = here.filter_map(|uid| self.objects.pods.get(uid).map(Arc::as_ref));
        let world = &self.world;
        let pods = build::local_pods(here, &world.workloads, self.local, &world.standings);
        if pods != *self.world.local_pods {
            self.world.local_pods = Arc::new(pods);
        }
    }

    /// Whether a pod's own node announces it as captured.
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

/// The owner of each address, settled once, however many pods claim it.
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

/// The claims to addresses. Each announced pod is looked at once, however many addresses it has.
struct Claims<'s, 'a> {
    step: &'s Step<'a>,
    known: RefCell<HashMap<&'s AnnouncedKey, Arc<Peer>>>,
}

impl<'s> Claims<'s, '_> {
    fn known(&self) -> AddressEvidence<'s> {
        let Step { world, index, incumbents, local, .. } = self.step;
        let (workloads, by_address) = (&world.workloads, &world.by_address);
        let (facts, ranges) = (&index.facts, &index.ranges);
        AddressEvidence { workloads, by_address, facts, ranges, incumbents, local }
    }

    /// An announced pod and its place in the announcement; `None` if it is announced no more.
    fn claim(&self, key: &'s AnnouncedKey) -> Option<(usize, AnnouncedAddress<'s>)> {
        let (index, pod) = self.step.index.announced_pod(key)?;
        let mut known = self.known.borrow_mut();
        let peer = known.entry(key).or_insert_with(|| Arc::new(remote_peer(&key.node, pod)));
        Some((index, AnnouncedAddress { pod, peer: Arc::clone(peer) }))
    }

    fn standing(&self, address: IpAddr) -> Option<Standing> {
        let keys = self.step.index.announced_at.of(&address);
        let claims: Vec<_> = keys.iter().filter_map(|key| Some(self.claim(key)?.1)).collect();
        self.known().standing(address, &claims)
    }

    fn problems(&self, key: &'s AnnouncedKey) -> Vec<Problem> {
        let Some((index, claim)) = self.claim(key) else { return Vec::new() };
        let standings = &self.step.world.standings;
        self.known().problems(index, &claim, |address| standings.get(&address))
    }
}
