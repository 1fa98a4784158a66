//! The kernel's memory of the agent's sockets. A connection with one side that takes nothing fills
//! the buffers of four sockets. The kernel lets each buffer grow to megabytes while data flows
//! (`tcp_rmem`, `tcp_wmem`). TCP's memory on the whole machine is bounded (`tcp_mem`), so a few
//! hundred such connections would slow down every stream of the node.
//!
//! Unsent data is bounded for every socket ([`SEND_AHEAD`]). Received data is bounded until the
//! connection has carried something ([`YOUNG_BYTES`]). What a connection holds is measured while it
//! cannot go on, and counted against a budget that all pods share by the rule of `limits.rs`. If a
//! pod has used up its share, those of its connections that stand still get receive buffers of
//! [`NARROW_BYTES`]: beyond that the kernel takes nothing more in, and tells the sender so. The
//! pod's new connections begin with such buffers. Once a connection moves again and there is room,
//! or it holds nothing, the kernel chooses the size again as for any other socket.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use mesh_world::ObjectName;
use parking_lot::{Mutex, MutexGuard};
use socket2::SockRef;
use tokio::{
    net::TcpStream,
    time::{Instant, Sleep, sleep},
};

use super::{
    memory::{Lease, Store, Used},
    silence::Silence,
};
use crate::sys::sock;

/// What may wait unsent in a socket, in bytes: a write of eight records, so that the next one is
/// made while this one is sent. Data that is sent and not acknowledged comes on top; the peer's
/// window bounds it.
pub(super) const SEND_AHEAD: u32 = 128 * 1024;

/// The largest segment between an application and the agent, in bytes. With the kernel's own
/// overhead it is just below 8 KiB, to which the kernel rounds up. An application's send buffer
/// begins at 20 or 30 segments and grows by them. With loopback's own segments of 64 KiB that would
/// be 2.5 MiB at once. With those of an Ethernet, the kernel counts 60 % more than there is.
pub(super) const APP_MSS: u32 = 7 * 1024;

/// What all sockets of connections that cannot go on may hold, in bytes; less on a small machine.
const MAX_BUDGET_BYTES: usize = 256 * 1024 * 1024;
/// The budget is at most this part of `tcp_mem`'s pressure limit.
const PART_OF_PRESSURE: usize = 4;
/// Linux counts TCP's memory in pages; 4 KiB is the smallest page size.
const PAGE_BYTES: usize = 4096;

/// The receive buffers of a connection that has carried less than [`PROVEN_BYTES`], towards the
/// application and towards the peer. The kernel doubles them for its own overhead. The application
/// is on the same node, where a small window is as fast; it also limits how far the application's
/// own send buffer grows. At a round-trip time of 50 ms, the first megabyte from a peer takes 8
/// round trips, as it would with TCP's slow start.
const YOUNG_BYTES: [usize; 2] = [32 * 1024, 128 * 1024];
/// Until so many bytes have moved, the buffers stay as the kernel makes them: no larger than a
/// young connection's, since they grow only as they are read. Most connections carry less.
const NEW_BYTES: u64 = 16 * 1024;
/// The receive buffer from which the kernel goes on by itself.
const WIDE_BYTES: usize = 128 * 1024;
/// After this many bytes the kernel chooses the size.
const PROVEN_BYTES: u64 = 1024 * 1024;

/// The limit on unsent data, and the receive buffer, of a connection that stands still while its
/// pod has used up its share. The kernel doubles the latter.
const NARROW_BYTES: u32 = 16 * 1024;

/// How long a connection is blocked before it is measured. Also the time between two looks while
/// what it holds still grows: at 1 GB/s, 50 MB come meanwhile.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// The same for a connection that is not blocked: what it has sent may still wait in the kernel.
/// Longer, because most have nothing there.
const LOOK_AFTER_SENDING: Duration = Duration::from_millis(500);
/// The longest time between two looks at a connection that stands still. The time doubles from look
/// to look.
const LAST_LOOK: Duration = Duration::from_millis(1600);

/// A connection stands still if less than this part of what it holds has moved since the last look:
/// what it holds would take a fifth of a second to go, or longer.
const SLOW_PART: u64 = 4;

/// How long `status` shows a pod after it was last seen to have used up its share.
const SHOWN_FOR: Duration = Duration::from_secs(5);

/// The budget of all pods, and the pods that have used up their share.
pub(super) struct SocketMemory {
    store: Store,
    budget: usize,
    over: Mutex<BTreeMap<String, (usize, Instant)>>,
}

impl Default for SocketMemory {
    fn default() -> Self {
        let budget = budget(&fs::read_to_string("/proc/sys/net/ipv4/tcp_mem").unwrap_or_default());
        Self { store: Store::of(budget), budget, over: Mutex::default() }
    }
}

/// The second of the three numbers of `tcp_mem` is where pressure begins (tcp(7)).
fn budget(tcp_mem: &str) -> usize {
    let pages = tcp_mem.split_whitespace().nth(1).and_then(|pages| pages.parse::<usize>().ok());
    let part = pages.map(|pages| pages.saturating_mul(PAGE_BYTES) / PART_OF_PRESSURE);
    part.map_or(MAX_BUDGET_BYTES, |part| part.min(MAX_BUDGET_BYTES))
}

impl SocketMemory {
    /// What connections that cannot go on hold now, and may hold, in bytes.
    pub(super) fn usage(&self) -> (usize, usize) {
        (self.budget.saturating_sub(self.store.free()), self.budget)
    }

    /// Notes that a pod has used up its share, and how much it holds.
    fn note(&self, pod: &ObjectName, bytes: usize) {
        self.lock().insert(pod.to_string(), (bytes, Instant::now()));
    }

    /// The pods that had used up their share a moment ago, and how many bytes each holds.
    pub(super) fn over(&self) -> Vec<(String, usize)> {
        let mut over = self.lock();
        over.retain(|_, (_, seen)| seen.elapsed() < SHOWN_FOR);
        over.iter().map(|(pod, (bytes, _))| (pod.clone(), *bytes)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, (usize, Instant)>> {
        self.over.lock()
    }
}

/// Measures the sockets of one connection, and narrows them if it must. Notices a peer that
/// acknowledges nothing any more.
pub struct Meter {
    memory: Arc<SocketMemory>,
    silence: Silence,
    pod: ObjectName,
    lease: Lease,
    /// When to look next; `None` while nothing can wait in the sockets.
    next: Option<Pin<Box<Sleep>>>,
    pause: Duration,
    /// Bytes that had moved at the last look, and at the last poll.
    moved: [u64; 2],
    width: Width,
}

/// The size of its sockets' buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    /// As the kernel made them.
    New,
    /// Bounded until the connection has carried something.
    Young,
    /// Small.
    Narrow,
    /// The kernel chooses.
    Wide,
}

impl Meter {
    /// A meter for one connection of a pod.
    pub(super) fn new(
        memory: &Arc<SocketMemory>,
        pod: &ObjectName,
        used: &Used,
        silence: Silence,
    ) -> Self {
        Self {
            memory: Arc::clone(memory),
            silence,
            pod: pod.clone(),
            lease: memory.store.lease(used),
            next: None,
            pause: FIRST_LOOK,
            moved: [0; 2],
            width: Width::New,
        }
    }

    /// The peer has answered, and has said this of its kernel: see [`Silence::answered`].
    pub(super) fn answered(&mut self, acknowledges_drops: bool) {
        self.silence.answered(acknowledges_drops);
    }

    /// Call it whenever nothing moves for now. `sockets`: the application's and the peer's.
    /// `is_blocked`: something cannot be written. `moved`: bytes until now. Ready once the peer is
    /// taken for dead.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        sockets: [&TcpStream; 2],
        is_blocked: bool,
        moved: u64,
    ) -> Poll<()> {
        match self.width {
            Width::New if self.lease.is_over() => self.set(Width::Narrow, sockets),
            Width::New if moved >= NEW_BYTES => self.set(Width::Young, sockets),
            Width::Young if moved >= PROVEN_BYTES => self.set(Width::Wide, sockets),
            _ => {}
        }
        let [at_look, at_poll] = &mut self.moved;
        let has_moved = std::mem::replace(at_poll, moved) != moved;
        if self.next.is_none() {
            if !is_blocked && !has_moved {
                return Poll::Pending;
            }
            *at_look = moved;
            self.pause = if is_blocked { FIRST_LOOK } else { LOOK_AFTER_SENDING };
        }
        let pause = self.pause;
        let mut next = self.next.take().unwrap_or_else(|| Box::pin(sleep(pause)));
        while next.as_mut().poll(cx).is_ready() {
            if !self.look(sockets, is_blocked, moved) {
                self.silence.end();
                return Poll::Pending;
            }
            if self.silence.is_over(sockets[1]) {
                return Poll::Ready(());
            }
            next.as_mut().reset(Instant::now() + self.pause);
        }
        self.next = Some(next);
        Poll::Pending
    }

    /// The connection has ended well, and its socket to the peer may carry another one.
    pub(super) fn leave(&mut self, peer: &TcpStream) {
        if self.width == Width::Narrow
            && let Err(error) = Width::Wide.of(peer, WIDE_BYTES)
        {
            tracing::debug!(%error, "the size of a socket's buffers");
        }
    }

    /// Measures once. Returns whether to look again.
    fn look(&mut self, sockets: [&TcpStream; 2], is_blocked: bool, moved: u64) -> bool {
        // A socket that cannot be measured is dead, or about to be.
        let held = sockets.map(|socket| sock::memory(socket).unwrap_or(0)).iter().sum();
        let [at_look, _] = &mut self.moved;
        let went = moved.wrapping_sub(std::mem::replace(at_look, moved));
        let is_slow = went < held as u64 / SLOW_PART;
        let grows = held > self.lease.has();
        self.lease.set(held);
        if held == 0 && !is_blocked {
            if self.width == Width::Narrow {
                self.set(Width::Wide, sockets);
            }
            return false;
        }
        let is_over = self.lease.is_over();
        if is_over {
            self.memory.note(&self.pod, self.lease.used());
        }
        match (is_slow, is_over) {
            (true, true) if self.width != Width::Narrow => self.set(Width::Narrow, sockets),
            (false, false) if self.width == Width::Narrow => self.set(Width::Wide, sockets),
            _ => {}
        }
        let rests = is_slow && !grows;
        self.pause = if rests { (self.pause * 2).min(LAST_LOOK) } else { FIRST_LOOK };
        true
    }

    fn set(&mut self, width: Width, sockets: [&TcpStream; 2]) {
        self.width = width;
        for (socket, young_bytes) in sockets.into_iter().zip(YOUNG_BYTES) {
            if let Err(error) = width.of(socket, young_bytes) {
                // The socket is dead, or about to be.
                tracing::debug!(%error, "the size of a socket's buffers");
            }
        }
    }
}

impl Width {
    /// Sets the buffers of a socket. Only after the handshake, which settles how large a window can
    /// ever become.
    fn of(self, socket: &TcpStream, young_bytes: usize) -> io::Result<()> {
        let options = SockRef::from(socket);
        match self {
            Self::New => Ok(()),
            Self::Young => options.set_recv_buffer_size(young_bytes),
            Self::Narrow => {
                options.set_tcp_notsent_lowat(NARROW_BYTES)?;
                options.set_recv_buffer_size(NARROW_BYTES as usize)
            }
            Self::Wide => {
                options.set_tcp_notsent_lowat(SEND_AHEAD)?;
                options.set_recv_buffer_size(WIDE_BYTES)?;
                sock::let_buffers_grow(socket)
            }
        }
    }
}

impl fmt::Debug for Meter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Meter").field("lease", &self.lease).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_a_part_of_what_tcp_may_have() {
        assert_eq!(budget("10 40000 100\n"), 40_000 / 4 * 4096);
        assert_eq!(budget("287898\t383867\t575796\n"), MAX_BUDGET_BYTES);
        assert_eq!(budget("?"), MAX_BUDGET_BYTES);
    }
}
