//! Passing the node on to another agent, and taking it back.

use std::sync::Arc;

use mesh_common::maps::OUTBOUND;
use tokio::net::TcpListener;

use super::{Enroller, Listeners};
use crate::handover::Listener;

impl Enroller {
    /// Whether a pod is leaving: whoever hands over waits until it has left.
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

    /// Gives up what was inherited and not needed: pods that are not in the mesh any more.
    pub fn disclaim_rest(&mut self) {
        self.inherited.clear();
    }

    /// Makes everything as it was before an heir that is gone began to change it.
    pub fn take_back(&self) {
        let tables = self.mesh.kernel.tables();
        self.log_failure("look again", tables.reload());
        for enrolled in self.pods.values() {
            self.log_failure("take back", self.take_addresses(enrolled));
            if let Listeners::Steered(steered) = &enrolled.listeners {
                self.log_failure("take back", steered.again(&self.mesh));
            }
            let _tried_again_by_the_next_step = self.capture_dials_of(&enrolled.pod);
        }
    }
}
