//! Passing the node on to another agent, and taking it back.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use mesh_api::Listener;
use mesh_common::maps::{ASKING, ListenerKey, OUTBOUND};
use mesh_world::{PodUid, Snapshot};
use tokio::{net::TcpListener, time::sleep_until};

use super::{
    Enroller, Listeners,
    pods::{Guard, Phase},
};

impl Enroller {
    /// Whether a pod is leaving: an agent that hands over waits until it has left.
    pub fn is_anyone_leaving(&self) -> bool {
        self.pods.all(Phase::leaving).next().is_some()
    }

    /// The listeners of all pods, but for those of dials that wait: each agent has its own.
    pub fn listeners(&self) -> Vec<(Listener, Arc<TcpListener>)> {
        let mut listeners = Vec::new();
        for (_, member) in self.pods.all(Phase::enrolled) {
            let Listeners::Steered(steered) = &member.listeners else { continue };
            let netns = member.pod.netns.cookie();
            let accepts = |key: &ListenerKey| key.direction != ASKING;
            for (key, socket) in steered.sockets().filter(|(key, _)| accepts(key)) {
                let (address, outbound) = (key.addr.into(), key.direction == OUTBOUND);
                listeners.push((Listener { netns, address, outbound }, socket));
            }
        }
        listeners
    }

    /// Tries once more to take in the pods of the predecessor. It goes on serving them while the
    /// world is not in force here. Only once: meanwhile neither agent hears what is new, and a pod
    /// can keep itself from being taken in.
    pub(super) async fn enrol_inherited(&mut self, world: &Snapshot) {
        let inherited: HashSet<IpAddr> =
            self.inherited.values().flatten().map(|(key, _)| key.addr.into()).collect();
        let is_served = |uid: &PodUid| {
            let pod = world.local_pod(uid);
            pod.is_some_and(|pod| pod.workload.addresses.iter().any(|it| inherited.contains(it)))
        };
        let failed = self.pods.all(Phase::failure).filter(|(uid, _)| is_served(uid));
        let Some(retry) = failed.map(|(_, (_, retry))| *retry).max() else { return };
        sleep_until(retry).await;
        self.enrol_wanted(world).await;
    }

    /// Drops the inherited listeners that were not needed: their pods are not in the mesh any more.
    pub fn disclaim_rest(&mut self) {
        self.inherited.clear();
    }

    /// Puts everything back as it was before a successor that is gone began to change it.
    pub fn take_back(&mut self) {
        self.follower.forget_written();
        // The successor may have announced something else: the next step announces again.
        self.announcement.send_if_modified(|said| {
            *said = None;
            false
        });
        let tables = self.mesh.kernel.tables();
        self.log_failure("look again", tables.reload());
        for (_, member) in self.pods.all(Phase::enrolled) {
            self.log_failure("take back", self.take_addresses(member));
            if let Listeners::Steered(steered) = &member.listeners {
                self.log_failure("take back", steered.again(&self.mesh));
            }
        }
        self.capture_dials_of(self.pods_that(Phase::enrolled));
        // The next step takes over what is there, and holds again the pods that the successor has
        // released.
        self.pods.end_guards(|_, guard| matches!(guard, Guard::Held(_)));
    }
}
