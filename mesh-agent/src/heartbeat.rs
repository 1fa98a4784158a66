//! Tells the kernel's programs that the agent is well. They refuse what they would steer to an agent that has not said so
//! lately: a dial that is refused can be tried again, one that hangs in a stuck agent's queue cannot.

use std::{sync::Arc, time::Duration};

use mesh_common::{decide::HEARTBEAT_STALE_NS, maps::NODE_HEARTBEAT};
use nix::time::{ClockId, clock_gettime};
use tokio::time::{MissedTickBehavior, interval};

use crate::kernel::{Kernel, KernelError};

/// Time between two beats.
const EVERY: Duration = Duration::from_millis(500);
const _: () = assert!(EVERY.as_nanos() * 10 == HEARTBEAT_STALE_NS as u128);

/// Says once that the agent is well.
///
/// # Errors
/// What the kernel said.
pub fn beat(kernel: &Kernel) -> Result<(), KernelError> {
    // The clock of `bpf_ktime_get_boot_ns`. One that cannot be read says nothing, and the programs then judge nothing.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    kernel.tables().set_node(NODE_HEARTBEAT, u64::try_from(now.as_nanos()).unwrap_or(u64::MAX))
}

/// Says it again and again, on the runtime that carries the connections: when that does not come round to it, the agent is
/// not well.
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
