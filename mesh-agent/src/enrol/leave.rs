//! Letting pods go.

use std::net::IpAddr;

use mesh_common::maps::LOCAL_LEFT;
use mesh_world::{LocalPod, PodUid, Snapshot, Wanted};
use tokio::time::Instant;

use super::{Enrolled, Enroller, Finder, LEAVE_GRACE, Saved};
use crate::proxy::{Pod, owns};

impl Enroller {
    /// Removes all that is left of pods whose namespace or address is gone.
    pub(super) async fn remove_vanished(&mut self, world: &Snapshot) {
        let finder = &self.finder;
        let gone = |uid: &PodUid, enrolled: &Enrolled| is_gone(finder, world, uid, &enrolled.pod);
        let mut removed: Vec<Enrolled> =
            self.pods.extract_if(.., |uid, enrolled| gone(uid, enrolled)).map(|(_, e)| e).collect();
        let leaving = self.leaving.extract_if(.., |uid, (enrolled, _)| gone(uid, enrolled));
        removed.extend(leaving.map(|(_, (enrolled, _))| enrolled));
        let left = self.left.extract_if(.., |uid, enrolled| gone(uid, enrolled));
        removed.extend(left.map(|(_, enrolled)| enrolled));
        for enrolled in removed {
            let pod = &enrolled.pod;
            tracing::info!(pod = %pod.name, netns = %pod.netns.path().display(), "pod gone");
            self.release(&enrolled);
            self.log_failure("detach", self.mesh.kernel.detach_pod(pod.netns.cookie()));
            for address in pod.addresses().map(Into::into) {
                if owns(&self.mesh, pod, &address) {
                    self.log_failure("forget", self.mesh.kernel.tables().local.remove(&address));
                }
            }
            pod.connections.stop();
            self.restore_ports(pod).await;
        }
        self.bury_orphans();
        self.failed.retain(|uid, _| world.local_pod(uid).is_some());
    }

    /// Withdraws pods that are to leave: they go on taking TLS, and take plaintext from now on.
    pub(super) fn withdraw_unwanted(&mut self, world: &Snapshot) {
        let wanted = |uid: &PodUid| {
            world.local_pod(uid).is_some_and(|pod| matches!(pod.wanted, Wanted::In(_)))
        };
        self.failed.retain(|uid, _| wanted(uid));
        let until = Instant::now() + LEAVE_GRACE;
        let leaving: Vec<_> = self.pods.extract_if(.., |uid, _| !wanted(uid)).collect();
        for (uid, enrolled) in leaving {
            tracing::info!(pod = %enrolled.pod.name, %uid, "pod leaves the mesh");
            self.log_failure("open", self.set_mode(&enrolled.pod, 0));
            self.leaving.insert(uid, (enrolled, until));
        }
    }

    /// Stops redirecting the dials of pods that leave, and ends the steering of those whose grace
    /// is over.
    pub(super) async fn finish_leaving(&mut self) {
        let now = Instant::now();
        for (enrolled, _) in self.leaving.values() {
            let netns = enrolled.pod.netns.cookie();
            self.log_failure("release", self.mesh.kernel.tables().enrolled.remove(&netns));
        }
        let over: Vec<_> = self.leaving.extract_if(.., |_, (_, until)| *until <= now).collect();
        for (uid, (enrolled, _)) in over {
            self.log_failure("leave", self.set_mode(&enrolled.pod, LOCAL_LEFT));
            self.release(&enrolled);
            self.restore_ports(&enrolled.pod).await;
            // The rule about agents' source ports stays as long as the pod lives.
            self.left.insert(uid, enrolled);
        }
    }

    async fn restore_ports(&self, pod: &Pod) {
        let cookie = pod.netns.cookie();
        if let Some(saved) = Saved::read(&self.saved_dir, cookie) {
            let before = saved.reserved_ports;
            let restore = move || crate::netns::restore_ports(&before);
            let restored = pod.netns.run(&self.mesh.factory, restore).await;
            if !matches!(restored, Ok(Ok(()))) {
                tracing::debug!(pod = %pod.name, "the reserved ports could not be put back; the namespace is going");
            }
            Saved::forget(&self.saved_dir, cookie);
        }
    }
}

/// Whether a pod is no longer what was enrolled. A pod that has lost only its object still runs,
/// and leaves in order.
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
