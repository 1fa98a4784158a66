//! Holding pods that may not talk yet: strict ones before they are enrolled, or as long as they cannot be.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{Enroller, Failure};
use crate::{
    pod_cgroups::PodCgroups,
    world::{LocalPod, Membership, NotEnabledReason, PodUid, Snapshot},
};

impl Enroller {
    /// Holds whoever must be held by this world and is not yet. Cheap, so that it can be done before anything else is: the
    /// pod may be about to start.
    pub fn hold(&mut self, world: &Snapshot, cgroups: &PodCgroups) {
        for (uid, cgroup) in cgroups {
            if self.held.get(uid) == Some(&cgroup.id)
                || !world.local_pod(uid).is_some_and(|pod| self.must_be_held(pod))
            {
                continue;
            }
            match self.mesh.kernel.hold(&cgroup.path) {
                Ok(()) => {
                    tracing::info!(%uid, cgroup = %cgroup.path.display(), "pod held until it is enrolled");
                    self.held.insert(uid.clone(), cgroup.id);
                }
                Err(error) => {
                    tracing::error!(%uid, %error, "pod cannot be held; it can send and take plaintext until it is enrolled");
                }
            }
        }
    }

    /// Releases whoever need not be held any more, and says which cgroups are classified.
    pub(super) fn release_held(&mut self, world: &Snapshot, cgroups: &PodCgroups) {
        let stays = |this: &Self, uid: &PodUid| {
            cgroups.get(uid).map(|cgroup| cgroup.id) == this.held.get(uid).copied()
                && world.local_pod(uid).is_some_and(|pod| this.must_be_held(pod))
        };
        let over: Vec<_> = self.held.keys().filter(|uid| !stays(self, uid)).cloned().collect();
        for uid in over {
            let Some(id) = self.held.remove(&uid) else { continue };
            match self.mesh.kernel.release(id) {
                Ok(()) => tracing::info!(%uid, "pod released"),
                Err(error) => tracing::error!(%uid, %error, "pod cannot be released"),
            }
        }
        // Without its namespace nobody knows what a pod is meant to be.
        let is_known = |pod: &Arc<LocalPod>| {
            let missing = Membership::Disabled(NotEnabledReason::NamespaceMissing);
            pod.workload.membership != missing
        };
        let known = cgroups.iter().filter(|(uid, _)| world.local_pod(uid).is_some_and(is_known));
        let classified: HashMap<u64, u32> = known.map(|(_, cgroup)| (cgroup.id, 1)).collect();
        let synced = self.mesh.kernel.tables().classified.sync(&classified);
        self.log_failure("classify pods", synced);
    }

    /// Releases what an earlier agent held and nobody needs to be held for any more. Only what a complete source does not
    /// know may be taken for gone.
    pub(super) fn sweep_held(&self) {
        let held: BTreeSet<u64> = self.held.values().copied().collect();
        for id in self.mesh.kernel.held().unwrap_or_default() {
            if !held.contains(&id) {
                tracing::debug!(cgroup = id, "an earlier agent's hold is over");
                self.log_failure("release", self.mesh.kernel.release(id));
            }
        }
    }

    /// Whether a pod may neither send nor take plaintext and nothing else sees to that yet.
    fn must_be_held(&self, pod: &LocalPod) -> bool {
        let workload = &pod.workload;
        let enrolled = self.pods.get(&workload.uid).is_some_and(|enrolled| enrolled.captured);
        let seen_to = enrolled || self.closed_before.contains(&workload.uid);
        !seen_to && workload.membership.means_strict()
    }

    /// Why a held pod is held, for `status`.
    pub(super) fn why_held(&self, pod: &LocalPod) -> Option<Failure> {
        let workload = &pod.workload;
        let (code, because) = match self.failed.get(&workload.uid) {
            Some((failure, _)) => (failure.code, failure.sentence.clone()),
            None => (workload.membership.code(), workload.membership.reason()),
        };
        let sentence = format!("strict, so its TCP connections are refused until then; {because}");
        self.held.contains_key(&workload.uid).then_some(Failure { code, sentence })
    }
}
