//! One step of enrolment: brings the node's pods from what they are to what the world wants.

use std::{os::fd::AsFd as _, sync::Arc};

use mesh_wire::identity::OwnCa;
use mesh_world::{AnnouncedCa, Announcements, PodSettings, PodUid, Snapshot, Wanted};
use tokio::time::sleep_until;

use super::{Enroller, Listeners, Member, pods::Phase, tables};
use crate::{
    kernel::KernelError,
    pod_cgroups::PodCgroups,
    proxy::{ListenError, Mesh, Pod, owns},
    source::SourceState,
};

/// Proof that connections are judged by this world, which knows the pods that were taken in. Only
/// then is anything steered to the agent.
pub(super) struct InForce(Snapshot);

/// Proof that a world was given to the kernel's tables and the other nodes. Only then does the
/// redirection of a pod's own dials begin or end.
pub(super) struct Published {
    /// What the kernel refused.
    refused: Option<KernelError>,
}

impl Member {
    /// Begins to accept, if it has not yet.
    ///
    /// # Errors
    /// See [`ListenError`].
    pub(super) fn steer(&mut self, mesh: &Arc<Mesh>) -> Result<(), ListenError> {
        if let Listeners::Made(made) = &mut self.listeners
            && let Some(made) = made.take()
        {
            self.listeners = Listeners::Steered(made.steer(mesh, &self.pod)?);
        }
        Ok(())
    }

    /// Whether it accepts, or can. If its listeners could not be steered to, they are lost.
    pub(super) fn has_listeners(&self) -> bool {
        !matches!(self.listeners, Listeners::Made(None))
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
        let enrolled = self.enrolled();
        let world = self.hold_first(state, announcements, cgroups).await;

        // First: arrivals at pods that are taken in below are judged by these ranges.
        let ranges = self.follower.write_ranges(&self.mesh, &world).err();
        self.remove_vanished(&world).await;
        if state.complete {
            self.open_unwanted(&world).await;
        }
        self.withdraw_unwanted(&world);
        self.enrol_wanted(&world).await;
        self.enrol_inherited(&world).await;
        self.change_settings(&world);

        let unchanged = self.enrolled() == enrolled;
        let world = if unchanged { world } else { self.build(state, announcements).await };
        let in_force = self.put_in_force(world);
        self.steer(&in_force);
        let published = self.publish(&in_force).await;
        self.capture_dials(&published);
        self.finish_leaving(&published).await;

        let InForce(world) = in_force;
        self.hold(&world, cgroups); // the pods that could not be enrolled
        self.let_dials_wait(&world).await;
        self.release_held(&world, cgroups);
        if state.complete {
            self.settle_earlier(&world).await;
            if self.programs_attached {
                self.sweep_held(&world, cgroups);
            }
        }
        self.refused = [ranges, published.refused];
        self.tell(&world);
        self.pods.forget_idle();
    }

    /// Resolves when something has to be done although the world has not changed.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub async fn due(&self) {
        let left = self.left.values().min().copied();
        match self.pods.due().into_iter().chain(self.sightings.due()).chain(left).min() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Holds the pods that must be held, before anything else takes its time. Returns the world
    /// with the addresses that were found.
    async fn hold_first(
        &mut self,
        state: &SourceState,
        announcements: &Arc<Announcements>,
        cgroups: &PodCgroups,
    ) -> Snapshot {
        self.look_for_hosts().await;
        let mut world = self.build(state, announcements).await;
        if self.earlier.found.is_some() {
            // A closed pod is recognised by its addresses. Otherwise it would be held, which drops
            // the connections that arrive.
            if self.look_for_addresses(&world, &state.objects, cgroups).await {
                world = self.build(state, announcements).await;
            }
            self.recognise_closed(&world).await;
        }
        self.hold(&world, cgroups);
        self.let_dials_wait(&world).await;
        if self.look_for_addresses(&world, &state.objects, cgroups).await {
            world = self.build(state, announcements).await;
        }
        world
    }

    fn put_in_force(&self, world: Snapshot) -> InForce {
        self.mesh.world.store(Arc::new(world.clone()));
        InForce(world)
    }

    /// Gives the new world to the kernel and to the other nodes. If the kernel refuses, the other
    /// nodes get it all the same, and the next step tries the kernel again.
    async fn publish(&mut self, InForce(world): &InForce) -> Published {
        let refused = self.follower.write(&self.mesh, world).await.err();
        let generation =
            |uid: &PodUid| self.pods.one(uid, Phase::enrolled).map_or(0, |it| it.generation);
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
        Published { refused }
    }

    /// Tells the rest of the agent which pods there are.
    fn tell(&self, world: &Snapshot) {
        let serving = self.pods.all(Phase::serving).map(|(_, member)| member.pod.identity.clone());
        self.identities.retain(&serving.collect());
        let captured = self.pods.all(Phase::captured).map(|(_, it)| (&it.pod, &it.settings));
        self.plaintext.follow(captured);
        self.board.write(self.statuses(world));
    }

    /// Applies changed settings to pods that are and stay enrolled.
    fn change_settings(&mut self, world: &Snapshot) {
        let same_node = self.same_node;
        let mut changed = Vec::new();
        for (uid, member) in self.pods.serving_mut() {
            let wanted = world.local_pod(uid).map(|pod| &pod.wanted);
            let Some(Wanted::In(settings)) = wanted else { continue };
            if member.settings != *settings {
                member.settings = settings.clone();
                member.pod.set_same_node(settings.same_node.unwrap_or(same_node));
                self.generation += 1;
                member.generation = self.generation;
                changed.push((Arc::clone(&member.pod), settings.mode));
            }
        }
        for (pod, mode) in &changed {
            tracing::info!(pod = %pod.name, %mode, "settings changed");
            self.log_failure("change the mode", self.set_mode(pod, tables::local_flags(*mode)));
        }
    }

    /// Tells a pod how its connections on the same node go.
    pub(super) fn set_same_node(&self, pod: &Pod, settings: &PodSettings) {
        pod.set_same_node(settings.same_node.unwrap_or(self.same_node));
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

    /// Stops redirecting a pod's dials and steering its arrivals. Open connections go on.
    pub(super) fn release(&self, member: &Member) {
        let netns = member.pod.netns.cookie();
        self.log_failure("release", self.mesh.kernel.tables().enrolled.remove(&netns));
        if let Listeners::Steered(steered) = &member.listeners {
            steered.withdraw(&self.mesh);
        }
        member.pod.accepting.stop();
        self.mesh.kernel.tables().remove_pod_verdicts(netns);
        self.mesh.kernel.tables().shares.remove(netns);
    }

    pub(super) fn log_failure<T>(&self, what: &str, result: Result<T, KernelError>) {
        if let Err(error) = result {
            tracing::error!(node = %self.node, what, %error, "the kernel's tables could not be changed");
        }
    }
}
