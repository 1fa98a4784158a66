//! Tells the kernel's programs that the agent is well. They refuse what they would steer to an
//! agent that has not said so lately. A dial that is refused can be tried again; one that hangs in
//! a stuck agent's queue cannot.

use std::{sync::Arc, time::Duration};

use mesh_common::{decide::HEARTBEAT_STALE_NS, maps::NODE_HEARTBEAT};
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    kernel::{Kernel, KernelError},
    sys::clock::boot_ns,
};

/// Time between two beats.
const EVERY: Duration = Duration::from_millis(500);
const _: () = assert!(EVERY.as_nanos() * 10 == HEARTBEAT_STALE_NS as u128);

/// Says once that the agent is well.
///
/// # Errors
/// What the kernel said.
pub fn beat(kernel: &Kernel) -> Result<(), KernelError> {
    // If the clock cannot be read, 0 is written, by which the programs judge nothing.
    kernel.tables().set_node(NODE_HEARTBEAT, boot_ns().unwrap_or(0))
}

/// Says it again and again, on the runtime that carries the connections. If the runtime does not
/// come round to it, the agent is not well.
pub async fn keep(kernel: Arc<Kernel>) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        if let Err(error) = beat(&kernel) {
            tracing::error!(%error, "cannot tell the programs that the agent is well; they will refuse new connections");
        }
    }
}
