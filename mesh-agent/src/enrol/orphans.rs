//! Pods that an earlier agent had in the mesh and that are no longer in it. They left before that
//! agent ended, have been made to leave since, or have lost their object. Peers may not know yet,
//! so the rule about agents' source ports stays as long as the pods' network namespaces live. Only
//! the kernel's tables know of these pods.

use std::collections::BTreeSet;

use mesh_common::{addr::Addr, maps::LOCAL_LEFT};
use mesh_world::{LocalPod, Membership, PodUid, Settings, Snapshot, Wanted};

use super::{Enroller, saved::restore, tables};
use crate::proxy::Pod;

/// Whether what an earlier agent left of a pod stays. It stays if the pod's settings cannot be read
/// now, if the pod is meant to be strict and waits for something, or if the pod could not be
/// enrolled.
pub(super) fn stays_closed(pod: &LocalPod) -> bool {
    let membership = &pod.workload.membership;
    matches!(membership, Membership::Invalid { .. })
        || membership.means_strict()
        || matches!(pod.wanted, Wanted::In(_))
}

/// The cookies of the orphans' network namespaces.
#[derive(Default)]
pub(super) struct Orphans(BTreeSet<u64>);

impl Enroller {
    /// Takes in pods that an earlier agent had in the mesh and that are not wanted there now, only
    /// so that they leave in order: peers still dial them over TLS. Returns their UIDs. Pods that
    /// cannot be taken in are left to [`Enroller::adopt`].
    pub(super) async fn take_in_to_leave(&mut self, world: &Snapshot) -> Vec<PodUid> {
        let mut taken = Vec::new();
        for pod in world.local_pods().iter().filter(|pod| !stays_closed(pod)) {
            if self.took_in_to_leave(pod).await {
                taken.push(pod.workload.uid.clone());
            }
        }
        taken
    }

    /// The same later, for pods that stayed closed because they were meant to, once they are no
    /// longer meant to. A pod that cannot be taken in is let go at once.
    pub(super) async fn open_unwanted(&mut self, world: &Snapshot) -> Vec<PodUid> {
        let is_over =
            |uid: &PodUid, _: &mut u64| !world.local_pod(uid).is_some_and(|pod| stays_closed(pod));
        let over: Vec<_> = self.left_closed.extract_if(.., is_over).collect();
        let mut taken = Vec::new();
        for (uid, netns) in over {
            tracing::info!(%uid, "a pod that stayed closed is opened");
            self.closed_before.remove(&uid);
            match world.local_pod(&uid) {
                Some(pod) if self.took_in_to_leave(pod).await => taken.push(uid),
                _ => {
                    self.left_closed.remove(&uid); // it has failed once more
                    self.let_go(netns).await;
                }
            }
        }
        taken
    }

    async fn took_in_to_leave(&mut self, pod: &LocalPod) -> bool {
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
        let uid = &pod.workload.uid;
        match self.enrol(pod, &Settings::default()).await {
            Ok(enrolled) => {
                self.pods.insert(uid.clone(), enrolled);
                true
            }
            Err(error) => {
                tracing::warn!(%uid, %error, "a pod cannot leave in order");
                false
            }
        }
    }

    /// Notes that the kernel still has something of a pod that is not enrolled.
    pub(super) fn leave_closed(&mut self, pod: &Pod) {
        self.left_closed.insert(pod.uid.clone(), pod.netns.cookie());
    }

    /// Lets go what an earlier agent left of a namespace: its own dials at once, arrivals as those
    /// of a pod that leaves.
    pub(super) async fn let_go(&mut self, netns: u64) {
        self.log_failure("let go", self.mesh.kernel.tables().enrolled.remove(&netns));
        if !self.adopt(netns) {
            self.forget_namespace(netns);
        }
        restore(&self.mesh.factory, &self.saved_dir, netns).await;
    }

    /// Lets an earlier agent's pod go, as one that leaves. Returns `false` if its namespace is
    /// gone, or if nothing is attached there.
    fn adopt(&mut self, netns: u64) -> bool {
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
        self.orphans.0.insert(netns);
        true
    }

    /// A namespace is no orphan once its pod is enrolled.
    pub(super) fn no_orphan(&mut self, netns: u64) {
        self.orphans.0.remove(&netns);
    }

    /// Removes all that is left of orphans whose namespaces are gone.
    pub(super) fn bury_orphans(&mut self) {
        let gone = |netns: &u64| !self.mesh.kernel.is_attached(*netns);
        let gone: Vec<u64> = self.orphans.0.iter().filter(|netns| gone(netns)).copied().collect();
        for netns in gone {
            self.orphans.0.remove(&netns);
            self.forget_namespace(netns);
        }
    }

    /// Takes away all that the kernel has of a namespace.
    fn forget_namespace(&self, netns: u64) {
        let tables = self.mesh.kernel.tables();
        for (address, entry) in tables.local.content() {
            if entry.netns == netns {
                self.log_failure("forget", tables.local.remove(&address));
            }
        }
        self.log_failure("detach", self.mesh.kernel.detach_pod(netns));
    }
}
