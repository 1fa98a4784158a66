//! Source ports of the agent's dials to peers: which of the 4,536 are free for one pod, destination
//! and port.
//!
//! A TCP port can serve many destinations at once, so every destination has all of them to itself.
//! The agent knows which one is free and does not probe: an explicit bind that collides costs a
//! system call each time (213 µs against 63 µs on average).

use std::{
    collections::HashMap,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    time::Duration,
};

use mesh_common::ports::{LEG_COUNT, MESH_COUNT, MESH_FIRST};
use parking_lot::Mutex;
use tokio::{
    sync::Notify,
    time::{Instant, timeout_at},
};

const WORDS: usize = (MESH_COUNT as usize).div_ceil(64);

/// The source ports of one pod.
#[derive(Clone, Default)]
pub(crate) struct SourcePorts {
    destinations: Arc<Mutex<HashMap<SocketAddr, InUse>>>,
    /// Notified whenever a port becomes free at a destination that had none.
    freed: Arc<Notify>,
}

/// A source port that is ours as long as this lives.
pub(crate) struct PortLease {
    ports: SourcePorts,
    destination: SocketAddr,
    /// The port.
    pub(crate) port: u16,
}

struct InUse {
    bits: Box<[u64; WORDS]>,
    count: u16,
    /// Where the search goes on, so that a port rests as long as possible before it is used again.
    next: u16,
    /// How many there are.
    all: u16,
}

impl SourcePorts {
    /// A free port for a leg to an application, or `None` if all are in use.
    pub(crate) fn lease_for_leg(&self, application: SocketAddr) -> Option<PortLease> {
        self.lease(application, LEG_COUNT)
    }

    /// A free port for a destination, among the first `all`, or `None` if they are all in use.
    fn lease(&self, destination: SocketAddr, all: u16) -> Option<PortLease> {
        let mut destinations = self.destinations.lock();
        let used = destinations.entry(destination).or_insert_with(|| InUse {
            bits: Box::new([0; WORDS]),
            count: 0,
            next: anywhere(all), // a previous agent may still have connections
            all,
        });
        let offset = used.take()?;
        Some(PortLease { ports: self.clone(), destination, port: MESH_FIRST + offset })
    }
}

impl SourcePorts {
    /// A free port for a destination. If all are in use, waits at most `patience` for one.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn wait(&self, to: SocketAddr, patience: Duration) -> Option<PortLease> {
        let deadline = Instant::now() + patience;
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable(); // a port may be given back between the look and the wait
            if let Some(lease) = self.lease(to, MESH_COUNT) {
                return Some(lease);
            }
            timeout_at(deadline, freed).await.ok()?;
        }
    }
}

impl PortLease {
    /// Gives back a port that another socket has bound, and continues the search elsewhere. An
    /// agent that has handed over to this one, or that this one has replaced, may hold many ports
    /// in a row.
    pub(crate) fn give_up(self) {
        let mut destinations = self.ports.destinations.lock();
        if let Some(used) = destinations.get_mut(&self.destination) {
            used.next = anywhere(used.all);
        }
    }
}

fn anywhere(all: u16) -> u16 {
    (RandomState::new().hash_one(()) % u64::from(all)) as u16
}

impl InUse {
    fn take(&mut self) -> Option<u16> {
        if self.count == self.all {
            return None;
        }
        for step in 0..self.all {
            let offset = (self.next + step) % self.all;
            let (word, bit) = (usize::from(offset / 64), offset % 64);
            let word = self.bits.get_mut(word)?;
            if *word & (1 << bit) == 0 {
                *word |= 1 << bit;
                self.count += 1;
                self.next = (offset + 1) % self.all;
                return Some(offset);
            }
        }
        None
    }
}

impl Drop for PortLease {
    fn drop(&mut self) {
        let mut destinations = self.ports.destinations.lock();
        let Some(used) = destinations.get_mut(&self.destination) else {
            return;
        };
        let had_none = used.count == used.all;
        let offset = self.port - MESH_FIRST;
        if let Some(word) = used.bits.get_mut(usize::from(offset / 64)) {
            *word &= !(1 << (offset % 64));
            used.count -= 1;
        }
        if used.count == 0 && destinations.len() > KEPT_IDLE {
            destinations.remove(&self.destination);
        }
        if had_none {
            self.ports.freed.notify_waiters();
        }
    }
}

/// Destinations that a pod may keep on its list without an open connection. Forgetting one only
/// means that its search begins somewhere else.
const KEPT_IDLE: usize = 64;

#[cfg(test)]
mod tests {
    use mesh_common::ports::BOUND_FIRST;

    use super::*;

    fn to(port: u16) -> SocketAddr {
        ([10, 0, 0, 1], port).into()
    }

    #[test]
    fn a_destination_has_all_ports_and_each_only_once() {
        let ports = SourcePorts::default();
        let leases: Vec<_> = std::iter::from_fn(|| ports.lease(to(80), MESH_COUNT)).collect();
        assert_eq!(leases.len(), usize::from(MESH_COUNT));
        let distinct: std::collections::BTreeSet<_> =
            leases.iter().map(|lease| lease.port).collect();
        assert_eq!(distinct.len(), leases.len());
        assert_eq!((distinct.first(), distinct.last()), (Some(&MESH_FIRST), Some(&u16::MAX)));
        assert!(ports.lease(to(81), MESH_COUNT).is_some(), "another destination has its own");
        let legs: Vec<_> = std::iter::from_fn(|| ports.lease_for_leg(to(82))).collect();
        assert!(
            legs.iter().all(|leg| leg.port < BOUND_FIRST) && legs.len() == usize::from(LEG_COUNT)
        );
        drop(leases);
        assert!(ports.lease(to(80), MESH_COUNT).is_some());
    }

    #[tokio::test]
    async fn who_finds_none_free_waits_a_while() {
        let ports = SourcePorts::default();
        let mut leases: Vec<_> = std::iter::from_fn(|| ports.lease(to(80), MESH_COUNT)).collect();
        assert!(ports.wait(to(80), Duration::from_millis(10)).await.is_none());
        let patience = Duration::from_mins(1);
        let (one, another, ()) =
            tokio::join!(ports.wait(to(80), patience), ports.wait(to(80), patience), async {
                leases.pop();
                tokio::task::yield_now().await;
                leases.pop();
            });
        assert!(one.is_some() && another.is_some());
    }

    #[test]
    fn ports_that_somebody_else_has_are_left_behind() {
        let ports = SourcePorts::default();
        let others = |port: u16| port < MESH_FIRST + MESH_COUNT / 2;
        for _ in 0..100 {
            let free = (0..64).find_map(|_| {
                let lease = ports.lease(to(80), MESH_COUNT).unwrap();
                if others(lease.port) {
                    lease.give_up();
                    return None;
                }
                Some(lease)
            });
            assert!(free.is_some(), "64 in a row, of which half are free");
        }
    }

    #[test]
    fn a_returned_port_rests_while_others_are_free() {
        let ports = SourcePorts::default();
        let first = ports.lease(to(80), MESH_COUNT).unwrap().port;
        let second = ports.lease(to(80), MESH_COUNT).unwrap().port;
        assert_ne!(first, second);
    }
}
