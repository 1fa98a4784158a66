//! Holds pods that may not talk yet: strict pods before they are enrolled, or while they cannot be.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use mesh_world::{Announcements, LocalPod, Membership, NotEnabledReason, PodUid, Snapshot, Wanted};

use super::{
    Enroller, Failure,
    leave::is_another,
    pods::{Guard, Phase},
};
use crate::{pod_cgroups::PodCgroups, source::SourceState};

impl Enroller {
    /// Holds the pods that must be held by this world and are not yet. It is cheap, so it can run
    /// before anything else: the pod may be about to start.
    pub fn hold(&mut self, world: &Snapshot, cgroups: &PodCgroups) {
        for (uid, cgroup) in cgroups {
            let Some(pod) = world.local_pod(uid).filter(|pod| self.must_be_held(pod)) else {
                continue;
            };
            if self.pods.guard(uid) == Guard::Held(cgroup.id) {
                continue;
            }
            let pod = format!("{}/{}", pod.workload.namespace, pod.workload.name);
            match self.mesh.kernel.hold(&cgroup.path) {
                Ok(()) => {
                    tracing::info!(pod, %uid, cgroup = %cgroup.path.display(), "pod held until it is enrolled");
                    self.pods.set_guard(uid, Guard::Held(cgroup.id));
                }
                Err(error) => {
                    tracing::error!(pod, %uid, %error, "pod cannot be held; it can send and take plaintext until it is enrolled");
                }
            }
        }
    }

    /// Holds the pods that must be held by these, and changes nothing else: another agent is about
    /// to take over.
    ///
    /// # Cancel safety
    /// Not cancel safe: run it to its end.
    pub async fn only_hold(
        &mut self,
        state: &SourceState,
        announcements: &Arc<Announcements>,
        cgroups: &PodCgroups,
    ) {
        let world = self.build(state, announcements).await;
        self.hold(&world, cgroups);
    }

    /// Releases the pods that need not be held any more, and says which cgroups are classified.
    pub(super) fn release_held(&mut self, world: &Snapshot, cgroups: &PodCgroups) {
        let stays = |uid: &PodUid, id| {
            cgroups.get(uid).is_some_and(|cgroup| cgroup.id == id)
                && world.local_pod(uid).is_some_and(|pod| self.must_be_held(pod))
        };
        let over = self.pods.held().filter(|(uid, id)| !stays(uid, *id));
        for (uid, id) in over.map(|(uid, id)| (uid.clone(), id)).collect::<Vec<_>>() {
            self.pods.set_guard(&uid, Guard::None);
            match self.mesh.kernel.release(id) {
                Ok(()) => tracing::info!(%uid, "pod released"),
                Err(error) => tracing::error!(%uid, %error, "pod cannot be released"),
            }
        }
        // While a pod's namespace object is missing, it is not known what the pod is meant to be.
        let is_known = |pod: &Arc<LocalPod>| {
            let missing = Membership::Disabled(NotEnabledReason::NamespaceMissing);
            pod.workload.membership != missing
        };
        let known = cgroups.iter().filter(|(uid, _)| world.local_pod(uid).is_some_and(is_known));
        let classified: HashMap<u64, u32> = known.map(|(_, cgroup)| (cgroup.id, 1)).collect();
        let synced = self.mesh.kernel.tables().classified.sync(&classified);
        self.log_failure("classify pods", synced);
    }

    /// Releases what another agent held and need not be held any more: the cgroup is gone, or the
    /// pod is known by now. A pod that is not known yet stays held: the agent that held it knew
    /// more.
    pub(super) fn sweep_held(&self, world: &Snapshot, cgroups: &PodCgroups) {
        let held: BTreeSet<u64> = self.pods.held().map(|(_, id)| id).collect();
        for id in self.mesh.kernel.held().unwrap_or_default() {
            let of_pod = cgroups.iter().find(|(_, cgroup)| cgroup.id == id);
            let is_over = match of_pod {
                Some((uid, _)) => world.local_pod(uid).is_some_and(|pod| !self.must_be_held(pod)),
                None => !self.mesh.kernel.is_held(id),
            };
            if is_over && !held.contains(&id) {
                tracing::debug!(cgroup = id, "another agent's hold is over");
                self.log_failure("release", self.mesh.kernel.release(id));
            }
        }
    }

    /// Whether a pod that is meant to be strict has to be held: nothing else keeps it from sending
    /// and taking plaintext, or will not for long.
    fn must_be_held(&self, pod: &LocalPod) -> bool {
        let workload = &pod.workload;
        let is_closed = match self.pods.one(&workload.uid, Phase::captured) {
            Some(member) => {
                matches!(pod.wanted, Wanted::In(_)) && !is_another(&self.finder, pod, &member.pod)
            }
            // A pod may have got another namespace since, which nothing closes.
            None => match self.pods.guard(&workload.uid) {
                Guard::Earlier(netns) => self.mesh.kernel.is_attached(netns),
                Guard::None | Guard::Held(_) => false,
            },
        };
        !is_closed && workload.membership.means_strict()
    }

    /// Why a held pod is held, for `status`.
    pub(super) fn why_held(&self, pod: &LocalPod) -> Option<Failure> {
        let workload = &pod.workload;
        let (code, because) = match self.pods.one(&workload.uid, Phase::failure) {
            Some((failure, _)) => (failure.code, failure.sentence.clone()),
            None => (workload.membership.code(), workload.membership.reason()),
        };
        let strict = match workload.membership {
            Membership::Invalid { .. } => "its mode is strict, or cannot be read",
            _ => "strict",
        };
        let sentence =
            format!("{strict}, so its TCP connections are refused until then; {because}");
        let is_held = matches!(self.pods.guard(&workload.uid), Guard::Held(_));
        is_held.then_some(Failure { code, sentence })
    }
}
