//! Passing the node on to another agent, and taking it back.

use std::{net::IpAddr, sync::Arc};

use mesh_api::Listener;
use mesh_common::maps::OUTBOUND;
use mesh_world::Snapshot;
use tokio::net::TcpListener;

use super::{Enroller, Listeners, tables::is_strict};

impl Enroller {
    /// Whether a pod is leaving: an agent that hands over waits until it has left.
    pub fn is_anyone_leaving(&self) -> bool {
        !self.leaving.is_empty()
    }

    /// The listeners of all pods.
    pub fn listeners(&self) -> Vec<(Listener, Arc<TcpListener>)> {
        let mut listeners = Vec::new();
        for enrolled in self.pods.values() {
            let Listeners::Steered(steered) = &enrolled.listeners else { continue };
            let netns = enrolled.pod.netns.cookie();
            for (key, socket) in steered.sockets() {
                let (address, outbound) = (key.addr.into(), key.direction == OUTBOUND);
                listeners.push((Listener { netns, address, outbound }, socket));
            }
        }
        listeners
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
        for enrolled in self.pods.values() {
            self.log_failure("take back", self.take_addresses(enrolled));
            if let Listeners::Steered(steered) = &enrolled.listeners {
                self.log_failure("take back", steered.again(&self.mesh));
            }
        }
        for enrolled in self.pods.values_mut() {
            enrolled.captured = false;
        }
        self.capture_dials();
        // The next step takes over what is there, and holds again the pods that the successor has
        // released.
        self.held.clear();
    }

    /// Finds the strict pods that another agent has enrolled and that its pinned programs keep
    /// closed. They need not be held until this agent has enrolled them: holding would drop the
    /// connections that arrive meanwhile.
    pub(super) async fn look_for_closed(&mut self, world: &Snapshot) {
        let attached = self.mesh.kernel.attached_pods().unwrap_or_default();
        for pod in world.local_pods().iter().filter(|pod| pod.workload.membership.means_strict()) {
            let Ok(netns) = self.finder.find(&self.mesh.factory, pod).await else { continue };
            let (tables, cookie) = (self.mesh.kernel.tables(), netns.cookie());
            let closed = |address: &IpAddr| {
                let entry = tables.local.get(&(*address).into());
                entry.is_some_and(|entry| entry.netns == cookie && is_strict(entry.flags))
            };
            if attached.contains(&cookie)
                && tables.enrolled.contains(&cookie)
                && !pod.workload.addresses.is_empty()
                && pod.workload.addresses.iter().all(closed)
            {
                self.closed_before.insert(pod.workload.uid.clone());
            }
        }
    }
}
