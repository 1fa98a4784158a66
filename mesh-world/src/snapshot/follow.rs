//! Follows a changing world: builds each snapshot from the one before and the changes, in time
//! proportional to the changes.
//!
//! What a snapshot says of one object follows from few others ([`Index`] knows which). A step finds
//! the changed objects, marks what follows from them, and judges that again. It uses the rules of
//! the full build, in its order: the owners of addresses; the pods; the standings of addresses;
//! services; this node's pods. A judgement with the same result is not written, so that nothing
//! follows from it.

mod judge;
mod read;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::index::Index;
use super::problems::AnnouncedKey;
use super::services::ServiceKey;
use super::{Inner, LocalNode, Snapshot};
use crate::announcement::Announcements;
use crate::incumbents::Incumbents;
use crate::names::{NodeName, ObjectName, PodUid};
use crate::objects::Objects;

/// The world after the last step, with what the next step needs.
pub struct World {
    objects: Arc<Objects>,
    announcements: Arc<Announcements>,
    local: LocalNode,
    incumbents: Incumbents,
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
    /// Begins with a full build, given the incumbents so far.
    pub fn new(
        objects: &Arc<Objects>,
        announcements: &Arc<Announcements>,
        local: &LocalNode,
        incumbents: Incumbents,
    ) -> Self {
        let snapshot = Snapshot::build(objects, announcements, local, &incumbents);
        let index = Index::of(objects, announcements, local, &snapshot.0);
        let work = Work {
            pods: snapshot.workloads(),
            announced: announcements.values().map(|node| node.pods.len()).sum(),
            services: snapshot.0.services.len(),
        };
        let (objects, announcements) = (Arc::clone(objects), Arc::clone(announcements));
        Self { objects, announcements, local: local.clone(), incumbents, index, snapshot, work }
    }

    /// The snapshot of the last step.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Which node was first, where several nodes announce one address.
    pub fn incumbents(&self) -> &Incumbents {
        &self.incumbents
    }

    /// What the last step had to judge.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Whether these are the arguments of the last step, found out without looking at the objects.
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

    /// The world with these arguments: what [`Snapshot::build`] would make of them and
    /// [`Self::incumbents`]. If nothing follows from the changes, it is the very snapshot of the
    /// last step.
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
            let incumbents = std::mem::take(&mut self.incumbents);
            let incumbents = incumbents.after(&self.announcements, announcements, &local.name);
            *self = Self::new(objects, announcements, local, incumbents);
            if self.snapshot == before {
                self.snapshot = before;
            }
            return &self.snapshot;
        }
        let world = Inner::clone(&self.snapshot.0);
        let Self { index, incumbents, .. } = self;
        let mut step = Step::new(objects, announcements, local, (index, incumbents), world);
        step.read_pods(&self.objects);
        step.read_nodes(&self.objects);
        step.read_namespaces(&self.objects);
        step.read_slices(&self.objects);
        step.read_services(&self.objects);
        step.read_announcements(&self.announcements);
        step.settle_incumbents();
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

    /// Whether a change affects everything, so that a step would take as long as a full build.
    fn must_begin_anew(&self, objects: &Objects, local: &LocalNode) -> bool {
        let zone = |objects: &Objects| {
            objects.nodes.get(local.name.as_str()).and_then(|node| node.zone.clone())
        };
        self.local.name != local.name
            || self.local.mesh_namespace != local.mesh_namespace
            || zone(&self.objects) != zone(objects)
    }
}

impl Inner {
    /// Whether nothing was written since one was copied from the other.
    fn is(&self, other: &Self) -> bool {
        self.workloads.is(&other.workloads)
            && self.by_address.is(&other.by_address)
            && self.standings.is(&other.standings)
            && self.services.is(&other.services)
            && self.meshed_services.is(&other.meshed_services)
            && self.problems.is(&other.problems)
            && Arc::ptr_eq(&self.local_pods, &other.local_pods)
            && Arc::ptr_eq(&self.pod_cidrs, &other.pod_cidrs)
            && self.node_addresses.is(&other.node_addresses)
    }
}

/// One step: the new objects, the snapshot under construction, and what has yet to be judged.
struct Step<'a> {
    objects: &'a Objects,
    announcements: &'a Announcements,
    local: &'a LocalNode,
    index: &'a mut Index,
    incumbents: &'a mut Incumbents,
    world: Inner,
    work: Work,
    /// For each address that is announced or withdrawn: the nodes that announced it before this
    /// step.
    claimants: HashMap<IpAddr, Vec<NodeName>>,
    /// Addresses that may have another owner.
    owners: HashSet<IpAddr>,
    pods: HashSet<PodUid>,
    /// Addresses with a possible change of the captured pod, or of being a node's own.
    peers: HashSet<IpAddr>,
    announced: HashSet<AnnouncedKey>,
    services: HashSet<ServiceKey>,
    /// Services whose problems may have changed.
    named_services: HashSet<ObjectName>,
    /// Services that may have begun or ceased to lead into the mesh.
    meshed: HashSet<ServiceKey>,
    local_pods: bool,
}
