//! How pods leave the mesh.

use std::net::IpAddr;

use mesh_common::maps::LOCAL_LEFT;
use mesh_world::{LocalPod, PodUid, Snapshot, Wanted};
use tokio::time::Instant;

use super::{Enroller, Finder, LEAVE_GRACE, LEFT_FOR, Member, Saved, pods::Phase, step::Published};
use crate::proxy::Pod;

impl Enroller {
    /// Removes all that is left of pods whose namespace or address is gone.
    pub(super) async fn remove_vanished(&mut self, world: &Snapshot) {
        let finder = &self.finder;
        let is_gone = |uid: &PodUid, member: &Member| is_gone(finder, world, uid, &member.pod);
        for member in self.pods.take_all(is_gone) {
            let pod = &member.pod;
            tracing::info!(pod = %pod.name, netns = %pod.netns.path().display(), "pod gone");
            self.release(&member);
            self.forget_namespace(pod.netns.cookie());
            pod.connections.stop();
            self.restore_ports(pod).await;
        }
        self.forget_left();
    }

    /// Withdraws pods that are to leave. They still take TLS, and from now on plaintext too.
    pub(super) fn withdraw_unwanted(&mut self, world: &Snapshot) {
        let is_wanted = |uid: &PodUid| {
            world.local_pod(uid).is_some_and(|pod| matches!(pod.wanted, Wanted::In(_)))
        };
        self.pods.forget_failures(is_wanted);
        let until = Instant::now() + LEAVE_GRACE;
        let enrolled = self.pods_that(Phase::enrolled).into_iter();
        for (uid, pod) in enrolled.filter(|(uid, _)| !is_wanted(uid)) {
            tracing::info!(pod = %pod.name, %uid, "pod leaves the mesh");
            self.log_failure("open", self.set_mode(&pod, 0));
            self.pods.withdraw(&uid, until);
        }
    }

    /// Stops redirecting the dials of pods that leave, and ends the steering of those whose grace
    /// is over.
    pub(super) async fn finish_leaving(&mut self, _: &Published) {
        for (_, (member, _)) in self.pods.all(Phase::leaving) {
            let netns = member.pod.netns.cookie();
            self.log_failure("release", self.mesh.kernel.tables().enrolled.remove(&netns));
        }
        let now = Instant::now();
        let over = self.pods.all(Phase::leaving).filter(|(_, (_, until))| *until <= now);
        for uid in over.map(|(uid, _)| uid.clone()).collect::<Vec<_>>() {
            let Some(member) = self.pods.take(&uid) else { continue };
            self.log_failure("leave", self.set_mode(&member.pod, LOCAL_LEFT));
            self.release(&member);
            self.restore_ports(&member.pod).await;
            self.note_left(member.pod.netns.cookie());
        }
    }

    /// Notes that the pod of a namespace has left it. Peers may not know yet.
    pub(super) fn note_left(&mut self, netns: u64) {
        self.left.insert(netns, Instant::now() + LEFT_FOR);
    }

    /// Removes all that the kernel has of namespaces whose pods have left long ago, or that are
    /// gone.
    fn forget_left(&mut self) {
        let (kernel, now) = (&self.mesh.kernel, Instant::now());
        let is_over =
            |netns: &u64, until: &mut Instant| *until <= now || !kernel.is_attached(*netns);
        for (netns, _) in self.left.extract_if(.., is_over).collect::<Vec<_>>() {
            self.forget_namespace(netns);
        }
    }

    async fn restore_ports(&self, pod: &Pod) {
        let cookie = pod.netns.cookie();
        if let Some(saved) = Saved::read(&self.saved_dir, cookie) {
            let before = saved.reserved_ports;
            let restore = move || crate::netns::restore_ports(&before);
            let restored = pod.netns.run(&self.mesh.factory, restore).await;
            if !matches!(restored, Ok(Ok(()))) {
                tracing::debug!(pod = %pod.name, "the reserved ports could not be put back; the namespace is probably gone");
            }
            Saved::forget(&self.saved_dir, cookie);
        }
    }
}

/// Whether a pod is no longer what was enrolled. A pod of which only the API object is gone still
/// runs, and leaves in order.
fn is_gone(finder: &Finder, world: &Snapshot, uid: &PodUid, pod: &Pod) -> bool {
    if !finder.is_still_there(uid, &pod.netns) {
        return true;
    }
    world.local_pod(uid).is_some_and(|local| is_another(finder, local, pod))
}

/// Whether a pod's object names another namespace, or other addresses, than were enrolled.
pub(super) fn is_another(finder: &Finder, local: &LocalPod, pod: &Pod) -> bool {
    let mut now: Vec<IpAddr> = local.workload.addresses.clone();
    let mut then: Vec<IpAddr> = pod.addresses().collect();
    now.sort();
    then.sort();
    finder.is_elsewhere(local, &pod.netns) || now != then
}
