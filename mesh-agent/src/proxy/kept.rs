//! Sessions that have carried their connection and are kept for the next one: no dial, no
//! handshake, and OPEN travels with the first data.
//!
//! A session carries connections of the pod that it was made for, to the pod, port and identity
//! that it was made to, by the same way and with the same socket options. It is not used any more
//! once a handshake would not be the same: after a change of our certificate or of the anchors,
//! after either certificate's end, after a change of either pod's mode, or when the pod joins the
//! mesh anew. The peer's agent judges each OPEN as it would judge the first.
//!
//! Kept sessions are counted apart from open connections, and shared by the rule of `limits.rs`. So
//! they take the room of no connection, and of no other pod's sessions. One for which there is no
//! room is closed.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    num::NonZeroU16,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mesh_api::WirePort;
use mesh_common::maps::DialOptions;
use mesh_wire::identity::ClientTls;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::{
    Mesh,
    limits::{Account, Admitted},
    path::MeshedPeer,
    pod::Pod,
    upstream::Upstream,
};

/// How long a client's agent keeps a session that carries nothing. The server's agent waits longer,
/// so that as a rule only one side closes.
const IDLE_TIME: Duration = Duration::from_mins(1);
/// The same for the server's agent.
pub(super) const IDLE_TIME_OF_SERVER: Duration = Duration::from_secs(75);

/// How old a session may be when it begins to carry a connection, on either side. Bounds what no
/// other rule ends: keys, and the judgement of a certificate.
const MAX_AGE: Duration = Duration::from_mins(10);

/// A session that has been idle for longer is asked before data is sent on it: what was sent could
/// not be sent again if there is no answer.
const WARM_FOR: Duration = Duration::from_secs(1);

/// Sessions kept for one destination, at most. As many connections at once find one.
const MOST_PER_DESTINATION: usize = 128;

/// What a session may carry connections to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Purpose {
    /// The pod, its port, and what was known of it.
    pub(super) peer: MeshedPeer,
    /// The port that was dialled there.
    pub(super) by: WirePort,
    /// What the connection's socket has got.
    pub(super) options: DialOptions,
}

impl Purpose {
    /// The application's port, if the agents' port is dialled.
    pub(super) fn port_in_open(&self) -> Option<NonZeroU16> {
        let port = NonZeroU16::new(self.peer.target.port())?;
        (self.by == WirePort::Agents).then_some(port)
    }
}

/// A session to a peer's agent, on which OPEN is sealed, or which is idle.
pub(super) struct ToPeer {
    pub(super) upstream: Upstream,
    pub(super) purpose: Purpose,
}

/// Whether a session has carried connections before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// It has not.
    New,
    /// It has, a moment ago.
    Warm,
    /// It has, some time ago. The peer, or something on the way to it, may have forgotten it and
    /// not said so.
    Cold,
}

/// A pod's sessions to its peers that carry nothing.
#[derive(Default)]
pub(crate) struct KeptSessions {
    pool: Mutex<Pool>,
    account: Arc<Account>,
}

#[derive(Default)]
struct Pool {
    by_destination: HashMap<SocketAddr, Vec<Kept>>,
    count: usize,
    is_closed: bool,
}

/// A kept session.
struct Kept {
    to: Box<ToPeer>,
    idle_since: Instant,
    _room: Admitted,
}

impl Kept {
    fn is_good_for(&self, purpose: &Purpose) -> bool {
        self.to.purpose == *purpose
    }

    fn close(self) {
        self.to.upstream.session.close_at_once();
    }
}

/// An idle session for a connection of a pod, if there is one that would be made the same way now.
pub(super) fn take(
    mesh: &Mesh,
    pod: &Pod,
    purpose: &Purpose,
    tls: &ClientTls,
) -> Option<Box<ToPeer>> {
    loop {
        let mut kept = pod.kept.pool.lock().take(purpose)?;
        let Upstream { session, birth, reuse, .. } = &mut kept.to.upstream;
        let is_warm = kept.idle_since.elapsed() < WARM_FOR;
        *reuse = if is_warm { Reuse::Warm } else { Reuse::Cold };
        if pod.may_reuse(*birth) && session.matches_client(tls) && session.is_quiet() {
            return Some(kept.to);
        }
        mesh.metrics.sessions_stale.inc();
        kept.close();
    }
}

/// Keeps a session that has carried its connection; closes it if there is no room.
pub(super) fn keep(mesh: &Mesh, pod: &Pod, to: Box<ToPeer>) {
    match mesh.kept_outbound.admit(&pod.kept.account, None) {
        Ok(room) => {
            let kept = Kept { to, idle_since: Instant::now(), _room: room };
            match pod.kept.put(kept) {
                Ok(is_first) if is_first => pod.busy.notify_one(),
                Ok(_) => {}
                Err(refused) => {
                    mesh.metrics.sessions_not_kept.inc();
                    refused.close();
                }
            }
        }
        Err(_reached) => to.upstream.session.close_at_once(),
    }
}

impl KeptSessions {
    /// Returns whether it is the first one; gives it back if there is no room.
    fn put(&self, kept: Kept) -> Result<bool, Kept> {
        let mut pool = self.pool.lock();
        let is_first = pool.count == 0;
        pool.put(kept).map(|()| is_first)
    }

    /// Closes all.
    fn clear(&self) {
        let mut pool = self.pool.lock();
        let all = std::mem::take(&mut pool.by_destination);
        pool.count = 0;
        drop(pool);
        all.into_values().flatten().for_each(Kept::close);
    }

    /// Closes all, and every one that comes later.
    pub(super) fn close(&self) {
        self.pool.lock().is_closed = true;
        self.clear();
    }

    /// Closes sessions that have been idle for too long or have ended. Returns whether any is left.
    pub(super) fn sweep(&self) -> bool {
        let is_over = |kept: &mut Kept| {
            kept.idle_since.elapsed() >= IDLE_TIME || !kept.to.upstream.session.is_quiet()
        };
        let destinations: Vec<_> = self.pool.lock().by_destination.keys().copied().collect();
        for destination in destinations {
            // One by one: each session costs a system call under the lock.
            let over = self.pool.lock().take_if(destination, is_over);
            over.into_iter().for_each(Kept::close);
        }
        self.pool.lock().count > 0
    }
}

/// Closes the sessions that a pod has kept for a destination. One of them has not answered, and the
/// others may have been forgotten in the same way.
pub(super) fn forget(pod: &Pod, purpose: &Purpose) {
    let all = pod.kept.pool.lock().take_if(purpose.peer.target, |_| true);
    all.into_iter().for_each(Kept::close);
}

impl Pool {
    fn take_if(
        &mut self,
        destination: SocketAddr,
        is_wanted: impl FnMut(&mut Kept) -> bool,
    ) -> Vec<Kept> {
        let Entry::Occupied(mut all) = self.by_destination.entry(destination) else {
            return Vec::new();
        };
        let taken: Vec<_> = all.get_mut().extract_if(.., is_wanted).collect();
        if all.get().is_empty() {
            all.remove();
        }
        self.count -= taken.len();
        taken
    }

    /// The one that was used last: the others may be idle for so long that they are closed.
    fn take(&mut self, purpose: &Purpose) -> Option<Kept> {
        let all = self.by_destination.get_mut(&purpose.peer.target)?;
        let at = all.iter().rposition(|kept| kept.is_good_for(purpose))?;
        let taken = all.remove(at);
        self.count -= 1;
        Some(taken)
    }

    fn put(&mut self, kept: Kept) -> Result<(), Kept> {
        if self.is_closed {
            return Err(kept);
        }
        let all = self.by_destination.entry(kept.to.purpose.peer.target).or_default();
        if all.len() >= MOST_PER_DESTINATION {
            return Err(kept);
        }
        all.push(kept);
        self.count += 1;
        Ok(())
    }
}

/// When a session was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    at: Instant,
    /// How often the pod's sessions had been given up before.
    epoch: u64,
}

impl Pod {
    /// The birth of a session whose handshake begins now.
    pub(super) fn birth(&self) -> Birth {
        Birth { at: Instant::now(), epoch: self.epoch.load(Ordering::Acquire) }
    }

    /// Whether a session may begin to carry a connection of the pod.
    pub(super) fn may_reuse(&self, birth: Birth) -> bool {
        birth.epoch == self.epoch.load(Ordering::Acquire) && birth.at.elapsed() < MAX_AGE
    }

    /// From now on, no connection is carried by a session that was made before.
    pub(crate) fn give_up_sessions(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.kept.clear();
    }
}
