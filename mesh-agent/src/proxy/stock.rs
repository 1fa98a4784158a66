//! Sockets made ahead for connections to an application inside its pod. To make one inside the
//! pod's network namespace takes another thread, and a connection would wait for both threads to
//! wake up.
//!
//! A pod that accepts nothing has none. Each time none is ready, or more had to be made a moment
//! ago, there are more next time. After a while without a connection there are none again.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use socket2::{Domain, Socket};
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::dial;
use crate::netns::{Factory, Netns};

/// Sockets of one address family that a pod has ready at first, and at most.
const READY: [usize; 2] = [4, 32];

/// Sockets that all pods of the node have ready, at most. Beyond that each connection makes its
/// own.
pub(super) const READY_ON_NODE: usize = 512;

/// If more have to be made sooner than this after the last time, they are made in larger numbers:
/// the other thread takes the CPU from the connections each time.
const SOON: Duration = Duration::from_millis(20);

/// After so long without a connection the sockets are closed.
const UNUSED_FOR: Duration = Duration::from_secs(5);

static ROOM: Semaphore = Semaphore::const_new(READY_ON_NODE);

/// A pod's sockets that are ready, by address family.
#[derive(Default)]
pub(crate) struct Stock {
    v4: Arc<Mutex<Family>>,
    v6: Arc<Mutex<Family>>,
}

#[derive(Default)]
struct Family {
    ready: Vec<Ready>,
    /// How many there are to be.
    wanted: usize,
    /// Whether more are being made.
    is_filling: bool,
    last_asked: Option<Instant>,
    last_filled: Option<Instant>,
    is_closed: bool,
}

struct Ready {
    socket: Socket,
    _room: SemaphorePermit<'static>,
}

impl Stock {
    /// A socket, if one is ready. Has more made if few are left; `busy` is told when the first are.
    pub(super) fn take(
        &self,
        domain: Domain,
        netns: &Netns,
        factory: &Factory,
        busy: &Notify,
    ) -> Option<Socket> {
        let shared = if domain == Domain::IPV4 { &self.v4 } else { &self.v6 };
        let mut family = shared.lock();
        if family.is_closed {
            return None;
        }
        let taken = family.ready.pop();
        if family.last_asked.replace(Instant::now()).is_none() {
            busy.notify_one();
        }
        let is_low = family.ready.len() * 2 <= family.wanted && !family.is_filling;
        let is_soon = is_low && family.last_filled.is_some_and(|at| at.elapsed() < SOON);
        if taken.is_none() || is_soon {
            let [first, most] = READY;
            family.wanted = (family.wanted * 2).clamp(first, most);
        }
        if is_low {
            family.is_filling = true;
            family.last_filled = Some(Instant::now());
            let family = Arc::clone(shared);
            netns.run_later(factory, move |entered| fill(&family, domain, entered));
        }
        taken.map(|ready| ready.socket)
    }

    /// Closes sockets for which no connection has come for a while. Returns whether any is left.
    pub(super) fn sweep(&self) -> bool {
        let swept = [&self.v4, &self.v6].map(|family| {
            let mut family = family.lock();
            if family.last_asked.is_some_and(|at| at.elapsed() >= UNUSED_FOR) {
                family.empty();
            }
            family.last_asked.is_some()
        });
        swept.contains(&true)
    }

    /// Closes all, and those that are being made.
    pub(super) fn close(&self) {
        for family in [&self.v4, &self.v6] {
            let mut family = family.lock();
            family.is_closed = true;
            family.empty();
        }
    }
}

impl Family {
    fn empty(&mut self) {
        self.ready.clear();
        (self.wanted, self.last_asked) = (0, None);
    }
}

/// Makes sockets until there are enough; on a thread that has entered the pod's namespace.
fn fill(family: &Mutex<Family>, domain: Domain, has_entered: bool) {
    loop {
        let made = if has_entered {
            let room = ROOM.try_acquire().ok();
            room.and_then(|room| Some((dial::make_leg(domain).ok()?, room)))
        } else {
            None // connections find out why
        };
        let mut family = family.lock();
        let Some((socket, room)) =
            made.filter(|_| !family.is_closed && family.ready.len() < family.wanted)
        else {
            family.is_filling = false;
            return;
        };
        family.ready.push(Ready { socket, _room: room });
    }
}
