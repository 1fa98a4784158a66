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
mod counters;
mod down;
mod end;
mod plain;
mod up;

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

pub use app::AppStream;
pub use counters::Counters;
pub use end::{End, Party};
pub use plain::{relay_plain, relay_plain_held};

use down::Down;
use mesh_wire::{Accepted, Channel, Frame, Refused, ResetCode, Session, io::last_words};
use up::Up;

use crate::proxy::memory::Lease;
use crate::proxy::socket_memory::Meter;

/// How long one side may take nothing after the other has failed.
pub const GRACE: Duration = Duration::from_secs(1);

/// What may end a connection from outside, and when the peer must have answered.
#[derive(Default)]
pub struct CarryOptions<'a> {
    /// The peer must have answered our OPEN by then. `None`: only TCP's own limits.
    pub answer_by: Option<Instant>,
    /// What it may take beyond its first records. `None`: as much as it wants.
    pub memory: Option<Memory>,
    /// Once it holds a code, the application gets a reset, and the peer's agent gets the code.
    pub stop: Option<watch::Receiver<Option<ResetCode>>>,
    /// Called with the peer's refusal *before* the application's connection is reset.
    pub refused: Option<&'a (dyn Fn(&Refused) + Send + Sync)>,
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
    /// The peer's answer to our OPEN, if it came while the connection was carried.
    pub accepted: Option<Accepted>,
}

/// Carries one connection between `app` and the peer of `session`. OPEN has been sent on it (and
/// perhaps not yet answered), or received and accepted.
///
/// # Cancel safety
/// Dropping the future resets the application and cuts the session off.
pub async fn carry(
    mut session: Session,
    app: AppStream,
    counters: &Counters,
    options: CarryOptions<'_>,
) -> Carried {
    let tell_refused = options.refused;
    let mut relay = Relay {
        tcp: &session.tcp,
        channel: &mut session.channel,
        app: app.tcp(),
        counters,
        up: Up::default(),
        down: Down::default(),
        accepted: None,
        first_fin: None,
        app_failed: false,
        peer_failed: false,
    };
    let end = relay.run(options).await;
    let accepted = relay.accepted.take();
    let session = match &end {
        End::Finished { .. } => {
            app.finish();
            session.channel.release_inbox();
            session.channel.release_outbox();
            Some(session)
        }
        failed => {
            if let (End::Refused(refused), Some(tell)) = (failed, tell_refused) {
                tell(refused);
            }
            drop(app); // a reset, before anything else
            leave(session, failed).await;
            None
        }
    };
    Carried { session, end, accepted }
}

/// Tells the peer why the session ends, unless it knows.
async fn leave(mut session: Session, end: &End) {
    match end {
        End::Stopped(code) => {
            session.channel.send(&Frame::Reset(*code)).ok();
            session.channel.close();
        }
        End::NotAnswered => {
            session.channel.send(&Frame::Reset(ResetCode::NotAnswered)).ok();
            session.channel.close();
        }
        End::PeerFailed(error) => session.channel.explain(error),
        End::ResetByApp(_) | End::ResetByPeer(_) | End::Refused(_) => session.channel.close(),
        End::CutOff(_) => {
            // Overtakes the data that the peer does not take.
            session.tcp.set_zero_linger().ok();
            return;
        }
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
    counters: &'a Counters,
    up: Up,
    down: Down,
    accepted: Option<Accepted>,
    first_fin: Option<Party>,
    /// The application's socket has an error, read or not.
    app_failed: bool,
    /// The peer's socket has an error, read or not.
    peer_failed: bool,
}

/// Whether a step has moved anything. If none has, both directions wait for their sockets.
type Progress = Result<bool, End>;

impl Relay<'_> {
    async fn run(&mut self, options: CarryOptions<'_>) -> End {
        let CarryOptions { answer_by, memory, stop, refused: _ } = options;
        let ([up, down], mut meter) = Memory::split(memory);
        self.up.appetite.feed_from(up);
        self.down.appetite.feed_from(down);
        let (tcp, app) = (self.tcp, self.app);
        // Errors are noticed even while a socket is not read because its data has nowhere to go.
        let mut app_error = pin!(app.ready(Interest::ERROR));
        let mut peer_error = pin!(tcp.ready(Interest::ERROR));
        let mut stopped = pin!(stopped(stop));
        let mut answer = pin!(tokio::time::sleep_until(answer_by.unwrap_or_else(far_future)));
        let mut grace = pin!(tokio::time::sleep_until(far_future()));
        let mut grace_runs = false;
        poll_fn(|cx| {
            if let Poll::Ready(code) = stopped.as_mut().poll(cx) {
                return Poll::Ready(End::Stopped(code));
            }
            if !self.app_failed && app_error.as_mut().poll(cx).is_ready() {
                self.app_failed = true;
            }
            if !self.peer_failed && peer_error.as_mut().poll(cx).is_ready() {
                self.peer_failed = true;
            }
            if let Poll::Ready(end) = self.poll(cx) {
                return Poll::Ready(end);
            }
            if let Some(meter) = &mut meter {
                meter.poll(cx, [app, tcp], self.is_blocked(), self.counters.sum());
            }
            let moved = [&mut self.up.moved, &mut self.down.moved].map(std::mem::take);
            if self.channel.awaits_answer() && answer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(End::NotAnswered);
            }
            if let Some(failed) = self.failed() {
                // The direction that leads away from the failure has to make progress.
                let [up, down] = moved;
                let goes_on = if failed == Party::App { up } else { down };
                if goes_on || !grace_runs {
                    grace.as_mut().reset(Instant::now() + GRACE);
                    grace_runs = true;
                }
                if grace.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(self.give_up(failed));
                }
            }
            Poll::Pending
        })
        .await
    }

    /// Moves what can be moved, each direction in turn.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let moved = self.step_up(cx).and_then(|up| Ok(up | self.step_down(cx)?));
            match moved {
                Err(end) => return Poll::Ready(end),
                Ok(_) if self.is_finished() => {
                    let first = self.first_fin.unwrap_or(Party::App);
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

    /// Nothing moves for now: empty buffers go back for other connections.
    fn rest(&mut self) {
        if self.down.ready.is_empty() && self.channel.release_inbox() {
            self.down.appetite.rest();
        }
        if self.channel.release_outbox() {
            self.up.appetite.rest();
        }
    }

    /// Whether something waits to be written.
    fn is_blocked(&self) -> bool {
        !self.down.ready.is_empty() || !self.channel.pending().is_empty()
    }

    fn is_finished(&self) -> bool {
        self.up.is_ended() && self.down.is_ended() && self.channel.pending().is_empty()
    }

    /// The side that is known to be dead. The other side gets only [`GRACE`] to take the rest.
    fn failed(&self) -> Option<Party> {
        if self.app_failed || self.down.app_error().is_some() || self.up.reset_code().is_some() {
            Some(Party::App)
        } else if self.peer_failed || self.up.is_broken() {
            Some(Party::Peer)
        } else {
            None
        }
    }

    /// Ends the connection because the rest was not taken in time.
    fn give_up(&mut self, failed: Party) -> End {
        match failed {
            _ if self.down.is_ending() => self.down.failure(),
            Party::App => End::CutOff(self.up.reset_code().unwrap_or(ResetCode::ApplicationReset)),
            Party::Peer => self.down.failure(),
        }
    }
}

/// Resolves once there is a code; never, if the sender is gone without one.
async fn stopped(stop: Option<watch::Receiver<Option<ResetCode>>>) -> ResetCode {
    if let Some(mut stop) = stop
        && let Ok(code) = stop.wait_for(Option::is_some).await
        && let Some(code) = *code
    {
        return code;
    }
    std::future::pending().await
}

/// Practically never, and safe to add to.
fn far_future() -> Instant {
    Instant::now() + Duration::from_hours(24 * 365)
}

#[cfg(test)]
#[expect(clippy::large_futures, reason = "both ends of a connection in one future")]
mod tests;
