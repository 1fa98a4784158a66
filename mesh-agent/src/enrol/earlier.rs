//! What an earlier agent left in the kernel. It is read once, before this agent changes anything.
//!
//! 1. The first step recognises the strict pods that the earlier agent's programs keep closed.
//! 2. Pods that are not wanted any more are taken in only to leave in order: peers still dial them
//!    over TLS. Pods that are meant to be closed stay so, whether they can be enrolled or not.
//! 3. Once the source names all pods, the rest is settled. A namespace that is no pod's any more
//!    counts as that of a pod that has just left: peers may not know yet.

use std::collections::{BTreeSet, HashMap};

use mesh_common::{
    addr::Addr,
    maps::{LOCAL_LEFT, LocalEntry},
};
use mesh_world::{LocalPod, Membership, PodSettings, PodUid, Snapshot, Wanted};

use super::{
    Enroller,
    floors::Floors,
    pods::{Guard, Phase},
    saved::{restore, restore_all},
    tables::{self, is_strict},
};
use crate::kernel::Kernel;

/// What an earlier agent left, as far as it is not settled.
pub(super) struct Earlier {
    /// The tables as they were. `None` once its closed pods are recognised.
    pub(super) found: Option<Found>,
    /// The cookies of its namespaces. `None` once they are settled.
    pub(super) namespaces: Option<BTreeSet<u64>>,
}

/// The kernel's tables as this agent found them.
pub(super) struct Found {
    /// Namespaces with `sk_lookup`.
    attached: BTreeSet<u64>,
    /// Namespaces whose dials are redirected.
    captured: BTreeSet<u64>,
    /// Namespaces and modes of the pods' addresses.
    local: HashMap<Addr, LocalEntry>,
}

impl Earlier {
    /// Reads the kernel's tables, and takes the floors from them.
    pub(super) fn read(kernel: &Kernel) -> (Self, Floors) {
        let found = Found {
            attached: kernel.attached_pods().unwrap_or_default().into_iter().collect(),
            captured: kernel.tables().enrolled.content().into_keys().collect(),
            local: kernel.tables().local.content(),
        };
        let local = found.local.values().map(|entry| entry.netns);
        let others = found.attached.iter().chain(&found.captured).copied();
        let namespaces = Some(local.chain(others).collect());
        let floors = Floors::of(&found.local, &kernel.tables().ports.content());
        (Self { found: Some(found), namespaces }, floors)
    }
}

impl Found {
    /// Whether the pinned programs refuse plaintext to and from a pod with this namespace.
    fn keeps_closed(&self, pod: &LocalPod, netns: u64) -> bool {
        let addresses = &pod.workload.addresses;
        self.attached.contains(&netns)
            && self.captured.contains(&netns)
            && !addresses.is_empty()
            && addresses.iter().all(|address| {
                let entry = self.local.get(&(*address).into());
                entry.is_some_and(|entry| entry.netns == netns && is_strict(entry.flags))
            })
    }
}

/// Whether a closed pod stays so. It does if its settings cannot be read now, if it is meant to be
/// strict and waits for something, or if it could not be enrolled.
fn stays_closed(pod: &LocalPod) -> bool {
    let membership = &pod.workload.membership;
    matches!(membership, Membership::Invalid { .. })
        || membership.means_strict()
        || matches!(pod.wanted, Wanted::In(_))
}

impl Enroller {
    /// Once: finds the strict pods that need not be held until this agent has enrolled them.
    pub(super) async fn recognise_closed(&mut self, world: &Snapshot) {
        let Some(found) = self.earlier.found.take() else { return };
        for pod in world.local_pods().iter().filter(|pod| pod.workload.membership.means_strict()) {
            if let Ok(netns) = self.finder.find(&self.mesh.factory, pod).await
                && found.keeps_closed(pod, netns.cookie())
            {
                self.pods.set_guard(&pod.workload.uid, Guard::Earlier(netns.cookie()));
            }
        }
    }

    /// Opens pods that were closed and need not be any more. They are taken in first, only so that
    /// they leave in order. A pod that cannot be taken in is let go: at once, or by
    /// [`Enroller::settle_earlier`] if that has not run yet.
    pub(super) async fn open_unwanted(&mut self, world: &Snapshot) {
        let is_over = |uid: &PodUid| !world.local_pod(uid).is_some_and(|pod| stays_closed(pod));
        self.pods.end_guards(|uid, guard| matches!(guard, Guard::Earlier(_)) && is_over(uid));
        if self.earlier.namespaces.is_some() {
            for pod in world.local_pods().iter().filter(|pod| !stays_closed(pod)) {
                self.take_in_to_leave(pod).await;
            }
            return;
        }
        let over = self.pods.all(Phase::closed).filter(|(uid, _)| is_over(uid));
        let over: Vec<_> = over.map(|(uid, netns)| (uid.clone(), netns)).collect();
        for (uid, netns) in over {
            tracing::info!(%uid, "a pod that stayed closed is opened");
            let is_taken_in = match world.local_pod(&uid) {
                Some(pod) => self.take_in_to_leave(pod).await,
                None => false,
            };
            if !is_taken_in {
                self.pods.set_closed(&uid, None);
                self.let_go(netns).await;
            }
        }
    }

    /// Takes in a pod that the kernel still has as one of the mesh, so that it leaves in order.
    /// Returns `false` for any other pod, or if that fails.
    async fn take_in_to_leave(&mut self, pod: &LocalPod) -> bool {
        let uid = &pod.workload.uid;
        if self.pods.one(uid, Phase::serving).is_some() {
            return false; // `withdraw_unwanted` lets it leave
        }
        let Ok(netns) = self.finder.find(&self.mesh.factory, pod).await else { return false };
        let local = self.mesh.kernel.tables().local.content();
        let had = || local.iter().filter(|(_, entry)| entry.netns == netns.cookie());
        let is_its_own =
            |address: &Addr| pod.workload.addresses.iter().any(|own| Addr::from(*own) == *address);
        let leaves = had().next().is_some()
            && had().all(|(own, entry)| entry.flags & LOCAL_LEFT == 0 && is_its_own(own));
        if !leaves {
            return false;
        }
        match self.enrol(pod, &PodSettings::default()).await {
            Ok(member) => {
                self.join(member).await;
                true
            }
            Err(error) => {
                tracing::warn!(%uid, %error, "a pod cannot leave in order");
                false
            }
        }
    }

    /// Once, when the source is complete: lets go what an earlier agent left of pods that are not
    /// in the mesh any more. Pods for which [`stays_closed`] holds stay as they are, until
    /// [`Enroller::open_unwanted`] opens them.
    pub(super) async fn settle_earlier(&mut self, world: &Snapshot) {
        let Some(namespaces) = self.earlier.namespaces.take() else { return };
        for pod in world.local_pods().iter().filter(|pod| stays_closed(pod)) {
            let uid = &pod.workload.uid;
            if self.pods.one(uid, Phase::serving).is_some() {
                continue;
            }
            let found = self.finder.find(&self.mesh.factory, pod).await;
            let netns = match (found, self.pods.guard(uid)) {
                (Ok(netns), _) => netns.cookie(),
                // It cannot be found now, and is still what an earlier agent closed.
                (Err(_), Guard::Earlier(netns)) => netns,
                (Err(_), Guard::None | Guard::Held(_)) => continue,
            };
            // In file mode, two pods can name one namespace. It is the other's.
            if self.holder_of(netns, uid).is_none() {
                self.pods.set_closed(uid, Some(netns));
            }
        }
        let serving = self.pods.all(Phase::serving).map(|(_, member)| member.pod.netns.cookie());
        let closed = self.pods.all(Phase::closed).map(|(_, netns)| netns);
        let kept: Vec<u64> = serving.chain(closed).collect();
        for netns in namespaces.into_iter().filter(|netns| !kept.contains(netns)) {
            self.let_go(netns).await;
        }
        let dialling: Vec<_> = self.held_dialling.values().map(|known| known.netns).collect();
        let is_known = |netns| kept.contains(&netns) || dialling.contains(&netns);
        self.mesh.kernel.tables().shares.retain(is_known);
        if let Err(error) = restore_all(&self.mesh.factory, &self.saved_dir, &kept).await {
            tracing::warn!(%error, "cannot read the notes of an earlier agent");
        }
    }

    /// Lets go of a namespace: its dials are not redirected any more, and arrivals are treated like
    /// those at a pod that has left. A namespace with a pod that takes TLS is that pod's.
    pub(super) async fn let_go(&mut self, netns: u64) {
        if self.pods.all(Phase::serving).any(|(_, member)| member.pod.netns.cookie() == netns) {
            return;
        }
        self.pods.end_guards(|_, guard| guard == Guard::Earlier(netns));
        let tables = self.mesh.kernel.tables();
        self.log_failure("let go", tables.enrolled.remove(&netns));
        tables.remove_pod_verdicts(netns);
        tables.shares.remove(netns);
        if self.adopt(netns) {
            self.note_left(netns);
        } else {
            self.forget_namespace(netns);
        }
        restore(&self.mesh.factory, &self.saved_dir, netns).await;
    }

    /// Treats a namespace like that of a pod that has left. Returns `false` if it is gone, or if
    /// nothing is attached there.
    fn adopt(&self, netns: u64) -> bool {
        if !self.mesh.kernel.keep_attached(netns).unwrap_or(false) {
            return false;
        }
        let tables = self.mesh.kernel.tables();
        for (address, entry) in tables.local.content() {
            if entry.netns == netns {
                let left = tables.local.put(address, tables::local(netns, LOCAL_LEFT));
                self.log_failure("leave", left);
            }
        }
        true
    }

    /// Takes away all that the kernel has of a namespace.
    pub(super) fn forget_namespace(&self, netns: u64) {
        self.log_failure("detach", self.mesh.kernel.detach_pod(netns));
        let tables = self.mesh.kernel.tables();
        for (address, entry) in tables.local.content() {
            if entry.netns == netns {
                self.log_failure("forget", tables.local.remove(&address));
            }
        }
        tables.remove_steered(netns);
    }
}
