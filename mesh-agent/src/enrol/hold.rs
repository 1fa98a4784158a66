//! Holds pods that may not talk yet: strict pods before they are enrolled, or while they cannot be.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use mesh_world::{Announcements, LocalPod, Membership, NotEnabledReason, PodUid, Snapshot, Wanted};
use tokio::time::Instant;

use super::{
    Enroller, Failure, HeldDialling,
    leave::is_another,
    pods::{Guard, Phase},
    tables,
};
use crate::{pod_cgroups::PodCgroups, source::SourceState};

/// How often a held pod's namespace is looked at while the kubelet has reported no address.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

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

    /// Has the dials of held pods wait instead of being refused, as soon as the pods' addresses are
    /// known.
    pub(super) async fn let_dials_wait(&mut self, world: &Snapshot) {
        if !self.programs_attached {
            return;
        }
        let held: Vec<_> = self.pods.held().map(|(uid, _)| uid.clone()).collect();
        for uid in held {
            let pod = world.local_pod(&uid).filter(|pod| self.is_about_to_join(pod));
            let Some(pod) = pod else { continue };
            let reported = &pod.workload.addresses;
            let is_settled = |known: &HeldDialling| match reported.as_slice() {
                // The network plugin may add one more at any time.
                [] => known.seen.elapsed() < LOOK_AGAIN,
                reported => known.addresses == tables::enrolled(reported.iter().copied()),
            };
            if self.held_dialling.get(&uid).is_some_and(is_settled) {
                continue;
            }
            let seen = self.finder.see_only(&self.mesh.factory, pod).await;
            let Some((netns, found)) = seen else { continue };
            let own = own_addresses(&found, reported);
            if !own.is_empty() {
                let addresses = tables::enrolled(own);
                let known = HeldDialling { netns, addresses, seen: Instant::now() };
                self.held_dialling.insert(uid, known);
            }
        }
        let tables = self.mesh.kernel.tables();
        // Each time: a pod that was released a moment ago has lost its share.
        for known in self.held_dialling.values() {
            self.log_failure("count a held pod's dials", tables.shares.add(known.netns));
        }
        self.write_held_dialling();
    }

    /// Has the dials of held pods refused from now on, for an agent that takes over and has other
    /// tables: its programs would let a dial go where it wants that only these tables know.
    pub fn let_no_dial_wait(&mut self) {
        self.held_dialling.clear();
        self.write_held_dialling();
    }

    /// Tells the kernel whose dials wait.
    fn write_held_dialling(&self) {
        let wanted = self.held_dialling.values().map(|known| (known.netns, known.addresses));
        let written = self.mesh.kernel.tables().held.sync(&wanted.collect());
        self.log_failure("have dials wait", written);
    }

    /// Whether a held pod will probably be enrolled soon.
    fn is_about_to_join(&self, pod: &LocalPod) -> bool {
        let has_failed = self.pods.one(&pod.workload.uid, Phase::failure).is_some();
        let has_no_address = matches!(
            pod.workload.membership,
            Membership::Waiting { reason: NotEnabledReason::NoAddress, .. }
        );
        has_no_address || (matches!(pod.wanted, Wanted::In(_)) && !has_failed)
    }

    /// Has dials wait no longer: the pods are enrolled, need not be, or cannot be. If a pod stays
    /// held, its dials are refused from now on.
    fn end_held_dialling(&mut self, world: &Snapshot) {
        let waits = |uid: &PodUid| {
            matches!(self.pods.guard(uid), Guard::Held(_))
                && world.local_pod(uid).is_some_and(|pod| self.is_about_to_join(pod))
        };
        let over: Vec<_> = self.held_dialling.keys().filter(|uid| !waits(uid)).cloned().collect();
        if over.is_empty() {
            return;
        }
        let over: Vec<_> = over.iter().filter_map(|uid| self.held_dialling.remove(uid)).collect();
        self.write_held_dialling();
        let is_enrolled = |netns| {
            self.pods.all(Phase::serving).any(|(_, member)| member.pod.netns.cookie() == netns)
        };
        for known in over.into_iter().filter(|known| !is_enrolled(known.netns)) {
            self.mesh.kernel.tables().shares.remove(known.netns);
        }
    }

    /// Holds the pods that must be held by these, and changes nothing else: another agent is about
    /// to take over. Their dials wait if it shares the kernel's tables with this one. Otherwise
    /// they are refused: see [`Self::let_no_dial_wait`].
    ///
    /// # Cancel safety
    /// Not cancel safe: run it to its end.
    pub async fn only_hold(
        &mut self,
        state: &SourceState,
        announcements: &Arc<Announcements>,
        cgroups: &PodCgroups,
        shares_tables: bool,
    ) {
        let world = self.build(state, announcements).await;
        self.hold(&world, cgroups);
        if shares_tables {
            self.let_dials_wait(&world).await;
        }
    }

    /// Releases the pods that need not be held any more, and says which cgroups are classified.
    pub(super) fn release_held(&mut self, world: &Snapshot, cgroups: &PodCgroups) {
        let stays = |uid: &PodUid, id| {
            cgroups.get(uid).is_some_and(|cgroup| cgroup.id == id)
                && world.local_pod(uid).is_some_and(|pod| {
                    // Until our programs are there, nothing else closes a pod that is enrolled.
                    let stays_closed = pod.workload.membership.means_strict();
                    (!self.programs_attached && stays_closed) || self.must_be_held(pod)
                })
        };
        let over = self.pods.held().filter(|(uid, id)| !stays(uid, *id));
        for (uid, id) in over.map(|(uid, id)| (uid.clone(), id)).collect::<Vec<_>>() {
            self.pods.set_guard(&uid, Guard::None);
            match self.mesh.kernel.release(id) {
                Ok(()) => tracing::info!(%uid, "pod released"),
                Err(error) => tracing::error!(%uid, %error, "pod cannot be released"),
            }
        }
        self.end_held_dialling(world);
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
    /// more. Call it only when no other agent holds pods any more.
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
        let sentence = format!(
            "{strict}, so it cannot be dialled until then, and its dials wait or are refused; {because}"
        );
        let is_held = matches!(self.pods.guard(&workload.uid), Guard::Held(_));
        is_held.then_some(Failure { code, sentence })
    }
}

/// The addresses of a held pod to which its dials may be led: those that are reported, if it has
/// them, else those that were found, if there is one of a family. A packet for another address
/// would leave the pod.
fn own_addresses(found: &BTreeSet<IpAddr>, reported: &[IpAddr]) -> Vec<IpAddr> {
    if !reported.is_empty() {
        let has_all = reported.iter().all(|reported| found.contains(reported));
        return if has_all { reported.to_vec() } else { Vec::new() };
    }
    let only = |is_v4: bool| {
        let mut of_family =
            found.iter().filter(|it| is_reachable(it) && it.is_ipv4() == is_v4).copied();
        of_family.next().filter(|_| of_family.next().is_none())
    };
    only(true).into_iter().chain(only(false)).collect()
}

/// Whether others can reach an address: not that of loopback, nor one of the link alone.
pub(super) fn is_reachable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dials_are_led_to_addresses_that_the_pod_has_and_that_are_certain() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let found = ["127.0.0.1", "10.0.0.1", "fe80::1", "fd00::1", "fd00::2"].map(address).into();
        assert_eq!(own_addresses(&found, &[]), [address("10.0.0.1")], "of two, neither");
        let both = ["10.0.0.1", "fd00::2"].map(address);
        assert_eq!(own_addresses(&found, &both), both);
        assert!(own_addresses(&found, &[address("10.0.0.9")]).is_empty(), "another pod has it now");
    }
}
