//! One step of enrolment: brings the node's pods from what they are to what the world wants.

use std::{collections::BTreeSet, os::fd::AsFd as _, sync::Arc};

use jiff::Timestamp;
use mesh_wire::identity::OwnCa;
use mesh_world::{AnnouncedCa, Announcements, LocalPod, PodUid, Snapshot, Wanted};
use tokio::time::{Instant, sleep_until};

use super::{Enrolled, Enroller, Listeners, RETRY, orphans::stays_closed, restore_all, tables};
use crate::{
    kernel::KernelError,
    pod_cgroups::PodCgroups,
    proxy::{ListenError, Mesh, Pod, owns},
    source::SourceState,
};

impl Enrolled {
    /// Begins to accept, if it has not yet.
    ///
    /// # Errors
    /// See [`ListenError`].
    fn steer(&mut self, mesh: &Arc<Mesh>) -> Result<(), ListenError> {
        if let Listeners::Made(made) = &mut self.listeners
            && let Some(made) = made.take()
        {
            self.listeners = Listeners::Steered(made.steer(mesh, &self.pod)?);
        }
        Ok(())
    }
}

impl Enroller {
    /// Brings the node's pods to what the world wants, as far as it can be done now. Call it when
    /// the world has changed and when [`Enroller::due`] resolves. A pod that the source does not
    /// know counts as gone only if what the source says is complete. `cgroups` are those of the
    /// node's pods, as far as they are known.
    ///
    /// # Cancel safety
    /// Not cancel safe: run it to its end.
    pub async fn step(
        &mut self,
        state: &SourceState,
        announcements: &Arc<Announcements>,
        cgroups: &PodCgroups,
    ) {
        let (enrolled, complete) = (self.enrolled(), state.complete);
        let mut world = self.build(state, announcements).await;
        if !std::mem::replace(&mut self.looked_back, true) {
            // Without its address a closed pod would be held, which drops the connections that
            // arrive.
            if self.look_for_addresses(&world, &state.objects, cgroups).await {
                world = self.build(state, announcements).await;
            }
            self.look_for_closed(&world).await;
        }
        self.hold(&world, cgroups);
        let found = self.look_for_addresses(&world, &state.objects, cgroups).await;
        let world = if found { self.build(state, announcements).await } else { world };
        // Before a pod is taken in: arrivals at it are judged by these ranges.
        let ranges = self.follower.write_ranges(&self.mesh, &world).err();
        self.remove_vanished(&world).await;
        let leaving = match (complete, self.swept) {
            (true, false) => self.take_in_to_leave(&world).await,
            (true, true) => self.open_unwanted(&world).await,
            (false, _) => Vec::new(),
        };
        self.withdraw_unwanted(&world);
        let joined = self.enrol_wanted(&world).await;
        self.change_settings(&world);
        let unchanged = self.enrolled() == enrolled;
        let world = if unchanged { world } else { self.build(state, announcements).await };
        // Connections that are accepted from now on are judged by a world that knows their pod.
        self.mesh.world.store(Arc::new(world.clone()));
        self.steer(&joined);
        self.steer_leaving(&leaving);
        self.refused = [ranges, self.publish(&world).await.err()];
        self.capture_dials();
        self.are_enrolled_now(&joined);
        self.finish_leaving().await;
        self.hold(&world, cgroups); // the pods that could not be enrolled
        self.release_held(&world, cgroups);
        if complete {
            self.sweep(&world).await;
            self.sweep_held(&world, cgroups);
        }
        self.identities.retain(&self.identity_ids());
        let captured = self.pods.values().filter(|enrolled| enrolled.captured);
        self.plaintext.follow(captured.map(|enrolled| (&enrolled.pod, &enrolled.settings)));
        self.board.write(self.statuses(&world));
    }

    /// Resolves when something has to be done although the world has not changed.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub async fn due(&self) {
        let leaving = self.leaving.values().map(|(_, until)| *until);
        let retries = self.failed.values().map(|(_, at)| *at);
        match leaving.chain(retries).chain(self.sightings.due()).min() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Gives the new world to the kernel and to the other nodes.
    ///
    /// # Errors
    /// What the kernel said of its tables; the next step tries again. The other nodes are told all
    /// the same.
    async fn publish(&mut self, world: &Snapshot) -> Result<(), KernelError> {
        let written = self.follower.write(&self.mesh, world).await;
        let generation =
            |uid: &PodUid| self.pods.get(uid).map_or(0, |enrolled| enrolled.generation);
        let trust_domain = self.mesh.trust_domain.as_str();
        let mut announcement = world.announcement(&self.boot_id, trust_domain, generation);
        if let Some(announcement) = &mut announcement {
            let ca = self.identities.announced_ca();
            announcement.ca = ca.map(|OwnCa { issuer, anchors }| AnnouncedCa { issuer, anchors });
        }
        self.announcement.send_if_modified(|known| {
            let changed = *known != announcement;
            *known = announcement;
            changed
        });
        written
    }

    /// Begins to accept for pods that have just joined.
    fn steer(&mut self, joined: &[PodUid]) {
        for uid in joined {
            let Some(enrolled) = self.pods.get_mut(uid) else { continue };
            if let Err(error) = enrolled.steer(&self.mesh) {
                let Some(enrolled) = self.pods.remove(uid) else { continue };
                self.leave_closed(&enrolled.pod);
                self.failed_to_join(uid, &enrolled.pod.name.to_string(), &error.into());
            }
        }
    }

    /// Notes when the last step of joining was done.
    fn are_enrolled_now(&mut self, joined: &[PodUid]) {
        for uid in joined {
            if let Some(enrolled) = self.pods.get_mut(uid) {
                enrolled.since = Timestamp::now();
            }
        }
    }

    /// Begins to accept for pods that were taken in only to leave.
    fn steer_leaving(&mut self, leaving: &[PodUid]) {
        for uid in leaving {
            let Some((enrolled, _)) = self.leaving.get_mut(uid) else { continue };
            if let Err(error) = enrolled.steer(&self.mesh) {
                tracing::warn!(%uid, %error, "a pod cannot leave in order");
            }
        }
    }

    /// Applies changed settings to pods that are and stay enrolled.
    fn change_settings(&mut self, world: &Snapshot) {
        let mut changed = Vec::new();
        for (uid, enrolled) in &mut self.pods {
            let wanted = world.local_pod(uid).map(|pod| &pod.wanted);
            let Some(Wanted::In(settings)) = wanted else { continue };
            if enrolled.settings != *settings {
                enrolled.settings = settings.clone();
                self.generation += 1;
                enrolled.generation = self.generation;
                changed.push((Arc::clone(&enrolled.pod), settings.mode));
            }
        }
        for (pod, mode) in &changed {
            tracing::info!(pod = %pod.name, %mode, "settings changed");
            self.log_failure("change the mode", self.set_mode(pod, tables::local_flags(*mode)));
        }
    }

    /// Once, when the source is complete: lets go what an earlier agent left of pods that are not
    /// in the mesh any more. Pods for which [`stays_closed`] holds stay as they are, until
    /// [`Enroller::open_unwanted`].
    async fn sweep(&mut self, world: &Snapshot) {
        if std::mem::replace(&mut self.swept, true) {
            return;
        }
        let leaving = self.leaving.values().map(|(enrolled, _)| enrolled);
        let ours = self.pods.values().chain(leaving);
        let mut kept: Vec<u64> = ours.map(|enrolled| enrolled.pod.netns.cookie()).collect();
        let stays =
            |pod: &&Arc<LocalPod>| stays_closed(pod) && !self.pods.contains_key(&pod.workload.uid);
        let mut left_closed = Vec::new();
        for pod in world.local_pods().iter().filter(stays) {
            if let Ok(netns) = self.finder.find(&self.mesh.factory, pod).await {
                left_closed.push((pod.workload.uid.clone(), netns.cookie()));
            }
        }
        self.left_closed.extend(left_closed);
        kept.extend(self.left_closed.values());
        self.closed_before.retain(|uid| world.local_pod(uid).is_some_and(|pod| stays_closed(pod)));
        let tables = self.mesh.kernel.tables();
        let attached = self.mesh.kernel.attached_pods().unwrap_or_default();
        let (enrolled, local) = (tables.enrolled.content(), tables.local.content());
        let local = local.values().map(|entry| entry.netns);
        let earlier: BTreeSet<u64> = enrolled.into_keys().chain(local).chain(attached).collect();
        for netns in earlier.into_iter().filter(|netns| !kept.contains(netns)) {
            self.let_go(netns).await;
        }
        if let Err(error) = restore_all(&self.mesh.factory, &self.saved_dir, &kept).await {
            tracing::warn!(%error, "cannot read the notes of an earlier agent");
        }
    }

    /// Writes a pod's mode (as `LOCAL_*` bits) wherever it is kept, at the addresses that are still
    /// the pod's own.
    pub(super) fn set_mode(&self, pod: &Pod, flags: u32) -> Result<(), KernelError> {
        let strict = tables::is_strict(flags);
        pod.set_strict(strict);
        for address in pod.addresses().map(Into::into) {
            if owns(&self.mesh, pod, &address) {
                let entry = tables::local(pod.netns.cookie(), flags);
                self.mesh.kernel.tables().local.put(address, entry)?;
            }
        }
        self.mesh.kernel.attach_pod(pod.netns.as_fd(), pod.netns.cookie(), strict)
    }

    /// Stops steering; open connections go on.
    pub(super) fn release(&self, enrolled: &Enrolled) {
        let netns = enrolled.pod.netns.cookie();
        self.log_failure("release", self.mesh.kernel.tables().enrolled.remove(&netns));
        if let Listeners::Steered(steered) = &enrolled.listeners {
            steered.withdraw(&self.mesh);
        }
        enrolled.pod.accepting.stop();
        self.mesh.kernel.tables().remove_pod_verdicts(netns);
        self.mesh.kernel.tables().shares.remove(netns);
    }

    pub(super) fn log_failure<T>(&self, what: &str, result: Result<T, KernelError>) {
        if let Err(error) = result {
            tracing::error!(node = %self.node, what, %error, "the kernel's tables could not be changed");
        }
    }

    /// When a failed enrolment is tried again.
    pub(super) fn retry_at() -> Instant {
        Instant::now() + RETRY
    }
}
