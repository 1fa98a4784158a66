//! What every relay does, TLS or plaintext: it notices dead sockets, ends in time, and measures
//! what the kernel holds.

use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::{ByteCounts, End, GRACE, RelaySide};
use crate::proxy::socket_memory::Meter;

/// Which sockets have an error, even if it has not been read yet.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Dead {
    pub(super) app: bool,
    pub(super) peer: bool,
}

/// The two directions of a connection, from the application to the peer (up) and back (down).
pub(super) trait Directions {
    /// Moves what can be moved, each direction in turn, until both wait or the connection ends.
    fn poll(&mut self, cx: &mut Context<'_>, dead: Dead) -> Poll<End>;

    /// Whether something waits to be written.
    fn is_blocked(&self) -> bool;

    /// Whether up and down have moved anything since the last call.
    fn take_moved(&mut self) -> [bool; 2];

    /// The side that is known to be dead. The other side gets only [`GRACE`] to take the rest.
    fn failed(&self, dead: Dead) -> Option<RelaySide>;

    /// Ends a connection after `failed` has failed, because the other side did not take the rest in
    /// time.
    fn give_up(&mut self, failed: RelaySide) -> End;

    /// Ends a connection whose peer acknowledges nothing any more.
    fn peer_is_silent(&mut self) -> End;

    /// Whether the deadline counts: an answer is awaited, or ours is held back.
    fn has_deadline(&self) -> bool {
        false
    }

    /// It has not happened in time. Returns how the connection ends, if it ends.
    fn deadline_is_over(&mut self) -> Option<End> {
        None
    }

    /// What the peer has said of its kernel ([`mesh_wire::Accepted::acknowledges_drops`]), once.
    fn take_said(&mut self) -> Option<bool> {
        None
    }
}

/// Carries a connection to its end. `sockets` are the application's and the peer's; `deadline` is
/// that of [`Directions::has_deadline`].
pub(super) async fn drive(
    directions: &mut impl Directions,
    sockets: [&TcpStream; 2],
    counters: &ByteCounts,
    mut meter: Option<Box<Meter>>,
    deadline: Option<Instant>,
) -> End {
    // Errors are noticed even while a socket is not read because its data has nowhere to go.
    let mut app_error = pin!(sockets[0].ready(Interest::ERROR));
    let mut peer_error = pin!(sockets[1].ready(Interest::ERROR));
    let mut deadline = pin!(sleep_until(deadline.unwrap_or_else(far_future)));
    let mut grace = pin!(sleep_until(far_future()));
    let mut grace_runs = false;
    let mut dead = Dead::default();
    let end = poll_fn(|cx| {
        dead.app = dead.app || app_error.as_mut().poll(cx).is_ready();
        dead.peer = dead.peer || peer_error.as_mut().poll(cx).is_ready();
        if let Poll::Ready(end) = directions.poll(cx, dead) {
            return Poll::Ready(end);
        }
        if directions.has_deadline() && deadline.as_mut().poll(cx).is_ready() {
            if let Some(end) = directions.deadline_is_over() {
                return Poll::Ready(end);
            }
            if let Poll::Ready(end) = directions.poll(cx, dead) {
                return Poll::Ready(end);
            }
        }
        if let Some(meter) = &mut meter {
            if let Some(acknowledges_drops) = directions.take_said() {
                meter.answered(acknowledges_drops);
            }
            if meter.poll(cx, sockets, directions.is_blocked(), counters.sum()).is_ready() {
                return Poll::Ready(directions.peer_is_silent());
            }
        }
        let [up, down] = directions.take_moved();
        if let Some(failed) = directions.failed(dead) {
            // The direction that leads away from the failure has to make progress.
            let goes_on = if failed == RelaySide::App { up } else { down };
            if goes_on || !grace_runs {
                grace.as_mut().reset(Instant::now() + GRACE);
                grace_runs = true;
            }
            if grace.as_mut().poll(cx).is_ready() {
                return Poll::Ready(directions.give_up(failed));
            }
        }
        Poll::Pending
    })
    .await;
    if let (Some(meter), End::Finished { .. }) = (&mut meter, &end) {
        meter.leave(sockets[1]);
    }
    end
}

/// Practically never, and safe to add to.
fn far_future() -> Instant {
    Instant::now() + Duration::from_hours(24 * 365)
}
