//! Carries bytes between an application and its peer, and the way in which they end.
//!
//! The rules, both ways: the end of a stream is passed on as an end, after everything before it. A
//! reset is passed on as a reset, after everything before it. Any other failure reaches the
//! application as a reset, never as a clean end.
//!
//! One task per connection polls both directions in turn. It uses no memory while nothing is on its
//! way, otherwise one record per direction, and eight for a busy stream (two times 130 KiB). What
//! the receiver does not take stays with the sender.
//!
//! Limits. (1) While an application does not read, everything that its peer sends after the data
//! waits behind it, including a reset, as in a TCP receive queue. (2) If one side has failed and
//! the other takes nothing, the data in between is given up after [`GRACE`], so that the failure
//! overtakes it. (3) A reset discards what the application's kernel had no room for, as TCP does.

mod app;
mod appetite;
mod byte_counts;
mod down;
mod drive;
mod end;
mod plain;
mod up;

use std::task::{Context, Poll};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

pub use app::AppStream;
pub use byte_counts::ByteCounts;
pub use end::{End, RelaySide};
pub use plain::{relay_plain, relay_plain_held};

use down::Down;
use drive::{Dead, Directions, drive};
use mesh_wire::{Accepted, Channel, Frame, ResetCode, Session, SessionError, io::last_words};
use up::Up;

use crate::proxy::memory::Lease;
use crate::proxy::socket_memory::Meter;

/// How long one side may take nothing after the other has failed.
pub const GRACE: Duration = Duration::from_secs(1);

/// How long ACCEPTED is held back, so that it can leave with the application's first data.
const ANSWER_HELD_FOR: Duration = Duration::from_millis(1);

/// What a connection may take, and when the peer must have answered.
#[derive(Default)]
pub struct CarryOptions<'a> {
    /// The peer must have answered our OPEN by then. `None`: only TCP's own limits.
    pub answer_by: Option<Instant>,
    /// What it may take beyond its first records. `None`: as much as it wants.
    pub memory: Option<Memory>,
    /// How the application's first data is sent.
    pub first: FirstData,
    /// Called with whether the peer has accepted the connection: if not, *before* the application's
    /// is reset.
    pub accepted: Option<&'a (dyn Fn(bool) + Send + Sync)>,
}

/// What is known of the application's first data when a session begins to carry it.
#[derive(Debug, Default)]
pub enum FirstData {
    /// Nothing. The session has carried no connection before.
    #[default]
    Unread,
    /// Nothing. The session has carried others, and may be closed before it answers OPEN: what is
    /// sent until then, at most a record, is remembered.
    Remembered,
    /// Nothing. The session has carried others, and has been idle for a while: nothing is sent
    /// until it answers OPEN.
    HeldBack,
    /// What was sent on a session that was closed instead of answering OPEN.
    Again(Vec<u8>),
}

/// The source of a connection's memory.
#[derive(Debug)]
pub struct Memory {
    /// Room for each direction when it is busy, to the peer and from it.
    pub records: [Lease; 2],
    /// Measures what its sockets hold in the kernel.
    pub sockets: Box<Meter>,
}

impl Memory {
    /// Takes it apart into the leases of both directions and the meter.
    fn split(memory: Option<Self>) -> ([Option<Lease>; 2], Option<Box<Meter>>) {
        match memory {
            Some(Self { records, sockets }) => (records.map(Some), Some(sockets)),
            None => ([None, None], None),
        }
    }
}

/// How a connection was carried.
#[derive(Debug)]
pub struct Carried {
    /// The session, if it is idle and can carry the next connection.
    pub session: Option<Session>,
    /// How it ended.
    pub end: End,
    /// What the peer has said in its answer, if it has answered.
    pub accepted: Option<Accepted>,
    /// The application's connection and what it has sent, if the peer has not carried out OPEN and
    /// another session may carry the connection.
    pub again: Option<(AppStream, Vec<u8>)>,
}

/// Carries one connection between `app` and the peer of `session`. OPEN has been sent on it (and
/// perhaps not yet answered), or received and accepted.
///
/// # Cancel safety
/// Dropping the future resets the application and cuts the session off.
pub async fn carry(
    mut session: Session,
    app: AppStream,
    counters: &ByteCounts,
    options: CarryOptions<'_>,
) -> Carried {
    let CarryOptions { answer_by, memory, first, accepted: tell } = options;
    let ([room_up, room_down], meter) = Memory::split(memory);
    let mut relay = Relay::new(&mut session, &app, counters);
    relay.tell = tell;
    relay.up.appetite.feed_from(room_up);
    relay.down.appetite.feed_from(room_down);
    let begun = relay.up_begin(first);
    let deadline = match answer_by {
        // The server's side. A client that has sent data already does not wait for ACCEPTED.
        None if relay.channel.has_received() => {
            relay.up.holds_answer = true;
            Some(Instant::now() + ANSWER_HELD_FOR)
        }
        answer_by => answer_by,
    };
    let sockets = [relay.app, relay.tcp];
    let end = match begun {
        Ok(()) => drive(&mut relay, sockets, counters, meter, deadline).await,
        Err(end) => end,
    };
    let (accepted, unanswered) = (relay.down.accepted.take(), relay.up.unanswered.take());
    let has_reset = relay.up.reset_code().is_some();
    let (mut idle, mut again) = (None, None);
    match (&end, unanswered) {
        (End::Finished { .. }, _) => {
            app.finish();
            session.channel.release_inbox();
            session.channel.release_outbox();
            idle = Some(session);
        }
        (end, Some(sent)) if !has_reset && may_begin_again(end, &sent) => {
            again = Some((app, sent));
        }
        (failed, _) => {
            let is_accepted =
                !matches!(failed, End::Refused(_)) && !session.channel.awaits_answer();
            if let Some(tell) = tell.filter(|_| !is_accepted) {
                tell(false);
            }
            drop(app); // a reset, before anything else
            Box::pin(leave(session, failed)).await;
        }
    }
    Carried { session: idle, end, accepted, again }
}

/// Whether another session may carry a connection whose OPEN was not answered, and with which this
/// was sent.
fn may_begin_again(end: &End, sent: &[u8]) -> bool {
    match end {
        // OPEN was not carried out.
        End::PeerFailed(SessionError::Closed) => true,
        // It may have been, but no byte can come twice.
        End::PeerFailed(_) | End::NotAnswered => sent.is_empty(),
        _ => false,
    }
}

/// Tells the peer why the session ends, unless it knows.
async fn leave(mut session: Session, end: &End) {
    match end {
        End::NotAnswered => {
            session.channel.send(&Frame::Reset(ResetCode::NotAnswered)).ok();
            session.channel.close();
        }
        End::ResetByApp(_) | End::ResetByPeer(_) | End::Refused(_) => session.channel.close(),
        End::CutOff(_) | End::PeerFailed(SessionError::Silent) => {
            // Overtakes the data that the peer does not take.
            session.tcp.set_zero_linger().ok();
            return;
        }
        End::PeerFailed(error) => session.channel.explain(error),
        // `LateClientHello` only happens without a session.
        End::Finished { .. } | End::LateClientHello => return,
    }
    if !session.channel.pending().is_empty() {
        last_words(&session.tcp, session.channel.pending()).await;
    }
}

struct Relay<'a> {
    tcp: &'a TcpStream,
    channel: &'a mut Channel,
    app: &'a TcpStream,
    counters: &'a ByteCounts,
    /// Told whether the peer has accepted the connection.
    tell: Option<&'a (dyn Fn(bool) + Send + Sync)>,
    up: Up,
    down: Down,
    first_fin: Option<RelaySide>,
    dead: Dead,
}

/// Whether a step has moved anything. If none has, both directions wait for their sockets.
type Progress = Result<bool, End>;

impl Directions for Relay<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, dead: Dead) -> Poll<End> {
        self.dead = dead;
        loop {
            let moved = self.step_up(cx).and_then(|up| Ok(up | self.step_down(cx)?));
            match moved {
                Err(end) => return Poll::Ready(end),
                Ok(_) if self.is_finished() => {
                    let first = self.first_fin.unwrap_or(RelaySide::App);
                    return Poll::Ready(End::Finished { first });
                }
                Ok(true) => {}
                Ok(false) => {
                    self.rest();
                    return Poll::Pending;
                }
            }
        }
    }

    fn is_blocked(&self) -> bool {
        !self.down.ready.is_empty() || !self.channel.pending().is_empty()
    }

    fn take_moved(&mut self) -> [bool; 2] {
        [&mut self.up.moved, &mut self.down.moved].map(std::mem::take)
    }

    fn failed(&self, dead: Dead) -> Option<RelaySide> {
        if dead.app || self.down.app_error().is_some() || self.up.reset_code().is_some() {
            Some(RelaySide::App)
        } else if dead.peer || self.up.is_broken() {
            Some(RelaySide::Peer)
        } else {
            None
        }
    }

    fn give_up(&mut self, failed: RelaySide) -> End {
        match failed {
            _ if self.down.is_ending() => self.down.failure(),
            RelaySide::App => {
                End::CutOff(self.up.reset_code().unwrap_or(ResetCode::ApplicationReset))
            }
            RelaySide::Peer => self.down.failure(),
        }
    }

    fn peer_is_silent(&mut self) -> End {
        End::PeerFailed(SessionError::Silent)
    }

    fn has_deadline(&self) -> bool {
        self.up.holds_answer || self.channel.awaits_answer()
    }

    fn deadline_is_over(&mut self) -> Option<End> {
        if std::mem::take(&mut self.up.holds_answer) { None } else { Some(End::NotAnswered) }
    }

    fn take_said(&mut self) -> Option<bool> {
        let is_new = std::mem::take(&mut self.down.is_new_answer);
        self.down.accepted.as_ref().filter(|_| is_new).map(|it| it.acknowledges_drops)
    }
}

impl<'a> Relay<'a> {
    fn new(session: &'a mut Session, app: &'a AppStream, counters: &'a ByteCounts) -> Self {
        Self {
            tcp: &session.tcp,
            channel: &mut session.channel,
            app: app.tcp(),
            counters,
            tell: None,
            up: Up::default(),
            down: Down::default(),
            first_fin: None,
            dead: Dead::default(),
        }
    }

    /// Nothing moves for now: empty buffers go back for other connections.
    fn rest(&mut self) {
        if self.down.ready.is_empty() && self.channel.release_inbox() {
            self.down.appetite.rest();
        }
        if self.channel.release_outbox() {
            self.up.appetite.rest();
        }
    }

    fn is_finished(&self) -> bool {
        let is_written = self.channel.pending().is_empty() && !self.up.is_broken();
        self.up.is_ended() && self.down.is_ended() && is_written
    }
}

#[cfg(test)]
#[expect(clippy::large_futures, reason = "both ends of a connection in one future")]
mod tests;
