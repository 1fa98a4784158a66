//! Pods that an earlier agent had in the mesh and that are not in it any more: they left before it ended, or have been
//! made to leave since, or their object is gone. Peers may not have heard of it, so the rule about agents' source ports
//! stays as long as their network namespaces live. All that is known of them is what the kernel's tables say.

use std::{collections::BTreeSet, sync::Arc};

use mesh_common::{addr::Addr, maps::LOCAL_LEFT};

use super::{Enroller, tables};
use crate::{
    netns::Netns,
    world::{LocalPod, Membership, PodUid, Settings, Snapshot, Wanted},
};

/// Their namespaces' cookies.
#[derive(Default)]
pub(super) struct Orphans(BTreeSet<u64>);

impl Enroller {
    /// Pods that an earlier agent had in the mesh, and that are not wanted there now, are taken in, only to leave in order:
    /// peers still dial them over TLS. Returns who; those that cannot be taken in are left to [`Enroller::adopt`].
    pub(super) async fn take_in_to_leave(&mut self, world: &Snapshot) -> Vec<PodUid> {
        let local = self.mesh.kernel.tables().local.content();
        let mut taken = Vec::new();
        let unwanted = |pod: &&Arc<LocalPod>| {
            // One that is meant to be strict stays as closed as it was.
            let membership = &pod.workload.membership;
            let leaves =
                !matches!(membership, Membership::Invalid { .. }) && !membership.means_strict();
            leaves && matches!(pod.wanted, Wanted::Out)
        };
        for pod in world.local_pods().iter().filter(unwanted) {
            let Some(netns) = &pod.netns else { continue };
            let Ok(netns) = Netns::open(&self.mesh.factory, netns.path()).await else { continue };
            let had = || local.iter().filter(|(_, entry)| entry.netns == netns.cookie());
            let is_its_own = |address: &Addr| {
                pod.workload.addresses.iter().any(|own| Addr::from(*own) == *address)
            };
            let leaves = had().next().is_some()
                && had().all(|(own, entry)| entry.flags & LOCAL_LEFT == 0 && is_its_own(own));
            if !leaves {
                continue;
            }
            let uid = &pod.workload.uid;
            match self.enrol(pod, &Settings::default()).await {
                Ok(enrolled) => {
                    self.pods.insert(uid.clone(), enrolled);
                    taken.push(uid.clone());
                }
                Err(error) => tracing::warn!(%uid, %error, "a pod cannot leave in order"),
            }
        }
        taken
    }

    /// Lets an earlier agent's pod go, as one that leaves; `false` if its namespace is gone.
    pub(super) fn adopt(&mut self, netns: u64) -> bool {
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

    /// Somebody knows more of it now.
    pub(super) fn no_orphan(&mut self, netns: u64) {
        self.orphans.0.remove(&netns);
    }

    /// Those whose namespaces are gone leave nothing behind.
    pub(super) fn bury_orphans(&mut self) {
        let gone = |netns: &u64| !self.mesh.kernel.keep_attached(*netns).unwrap_or(true);
        let gone: Vec<u64> = self.orphans.0.iter().filter(|netns| gone(netns)).copied().collect();
        for netns in gone {
            self.orphans.0.remove(&netns);
            self.forget_namespace(netns);
        }
    }

    /// Takes away all that the kernel has of a namespace.
    pub(super) fn forget_namespace(&self, netns: u64) {
        let tables = self.mesh.kernel.tables();
        for (address, entry) in tables.local.content() {
            if entry.netns == netns {
                self.log_failure("forget", tables.local.remove(&address));
            }
        }
        self.log_failure("detach", self.mesh.kernel.detach_pod(netns));
    }
}
