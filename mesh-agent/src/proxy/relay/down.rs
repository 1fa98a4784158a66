//! From the peer to the application: opens records in the receive buffer and writes their data from
//! there.

use std::array;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::task::{Context, Poll};

use mesh_wire::{
    Accepted, Received, SessionError, StateError,
    io::{poll_read, poll_write_vectored, shutdown_write},
    session::cut_off,
};

use super::appetite::Appetite;
use super::{End, Progress, Relay, RelaySide};

/// Records written at once, at most: small ones are gathered, too.
const MAX_SLICES: usize = 64;

/// The state of this direction.
#[derive(Debug, Default)]
pub(super) struct Down {
    /// Data opened and not yet written, by its place in the receive buffer.
    pub(super) ready: VecDeque<Range<usize>>,
    pub(super) appetite: Appetite,
    /// What the peer has said in its answer.
    pub(super) accepted: Option<Accepted>,
    /// … and that it has not been passed on to the meter yet.
    pub(super) is_new_answer: bool,
    /// FIN has come.
    fin: bool,
    /// … and has been passed on, after all data.
    shut: bool,
    /// The application's socket takes nothing more, and why.
    app_error: Option<io::ErrorKind>,
    /// How the connection ends once everything before it is written.
    failure: Option<End>,
    pub(super) moved: bool,
}

impl Down {
    pub(super) fn is_ended(&self) -> bool {
        self.shut && self.ready.is_empty()
    }

    /// Whether it is known how the connection ends, although data before that is still being
    /// written.
    pub(super) fn is_ending(&self) -> bool {
        self.failure.is_some()
    }

    pub(super) fn app_error(&self) -> Option<io::ErrorKind> {
        self.app_error
    }

    /// How it ends if nothing more is awaited.
    pub(super) fn failure(&mut self) -> End {
        self.failure.take().unwrap_or(End::PeerFailed(SessionError::Truncated))
    }

    fn advance(&mut self, mut count: usize) {
        while count > 0
            && let Some(first) = self.ready.front_mut()
        {
            let taken = count.min(first.len());
            first.start += taken;
            count -= taken;
            if first.start >= first.end {
                self.ready.pop_front();
            }
        }
    }
}

impl Relay<'_> {
    /// Writes to the application once, or else opens records or receives once.
    pub(super) fn step_down(&mut self, cx: &mut Context<'_>) -> Progress {
        let mut moved = false;
        if !self.down.ready.is_empty() {
            moved = self.write_app(cx);
            if !self.down.ready.is_empty() {
                self.down.moved |= moved;
                return Ok(moved);
            }
        }
        if let Some(end) = self.down.failure.take() {
            return Err(end);
        }
        if self.down.fin && !self.down.shut {
            // If that is the end of the connection, closing the socket says so.
            let is_last = self.up.is_ended() && self.channel.pending().is_empty();
            if !is_last && let Err(error) = shutdown_write(self.app) {
                self.down.app_error.get_or_insert(error.kind());
            }
            self.down.shut = true;
            moved = true;
        }
        // Both sides have ended: what comes now is not of this connection.
        if self.channel.is_idle() && !self.up.is_broken() {
            self.down.moved |= moved;
            return Ok(moved);
        }
        // More is received only when everything received so far has been used, its end included.
        moved |= self.open_records() || self.read_peer(cx);
        self.down.moved |= moved;
        Ok(moved)
    }

    fn write_app(&mut self, cx: &mut Context<'_>) -> bool {
        if self.down.app_error.is_some() {
            self.down.ready.clear();
            return true;
        }
        let mut places = self.down.ready.iter();
        let slices: [IoSlice<'_>; MAX_SLICES] = array::from_fn(|_| {
            IoSlice::new(places.next().map_or(&[], |place| self.channel.data(place.clone())))
        });
        let used = slices.get(..self.down.ready.len()).unwrap_or(&slices);
        // An end that came with the last data leaves with it; not if the connection may be reset
        // instead, which would overtake what the kernel holds back.
        let fits = self.down.ready.len() <= MAX_SLICES;
        let is_last = self.down.fin && fits && !self.up.is_broken();
        match poll_write_vectored(self.app, cx, used, is_last) {
            Poll::Pending => return false,
            Poll::Ready(Ok(count)) => {
                self.down.advance(count);
                self.counters.add_from_peer(count);
            }
            Poll::Ready(Err(error)) => {
                self.down.app_error = Some(error.kind());
                self.down.ready.clear();
            }
        }
        true
    }

    /// Opens received records, up to what one write takes or the end of this direction.
    fn open_records(&mut self) -> bool {
        let mut moved = false;
        while self.down.ready.len() < MAX_SLICES && self.down.failure.is_none() {
            let is_asked_again = self.up.unanswered.is_some() && self.channel.awaits_answer();
            let failure = match self.channel.receive() {
                Ok(None) => break,
                Ok(Some(Received::Data(place))) => {
                    self.up.note_received(place.len());
                    self.down.ready.push_back(place);
                    None
                }
                Ok(Some(Received::Fin)) => {
                    self.down.fin = true;
                    self.first_fin.get_or_insert(RelaySide::Peer);
                    return true; // first everything before it is written
                }
                Ok(Some(Received::Accepted(accepted))) => {
                    (self.down.accepted, self.down.is_new_answer) = (Some(accepted), true);
                    self.up.unanswered = None;
                    if let Some(tell) = self.tell {
                        tell(true);
                    }
                    None
                }
                // Of the connection before this one, which had ended for us: ours was not read.
                Ok(Some(Received::Reset(_))) if is_asked_again => {
                    Some(End::PeerFailed(SessionError::Closed))
                }
                Ok(Some(Received::Reset(code))) => Some(End::ResetByPeer(code)),
                Ok(Some(Received::Refused(refused))) => Some(End::Refused(refused)),
                Ok(Some(Received::Closed)) => Some(End::PeerFailed(SessionError::Closed)),
                Ok(Some(Received::Open(_))) => {
                    Some(End::PeerFailed(SessionError::State(StateError::Open)))
                }
                Err(error) => Some(End::PeerFailed(error)),
            };
            self.down.failure = failure;
            moved = true;
        }
        moved
    }

    fn read_peer(&mut self, cx: &mut Context<'_>) -> bool {
        let room = self.channel.spare(self.down.appetite.records());
        let size = room.len();
        match poll_read(self.tcp, cx, room) {
            Poll::Pending => return false,
            Poll::Ready(Ok(0)) => {
                self.down.failure = Some(End::PeerFailed(SessionError::Truncated));
            }
            Poll::Ready(Ok(count)) => {
                self.channel.received(count);
                self.down.appetite.fed(count, size);
            }
            Poll::Ready(Err(error)) => {
                self.down.failure = Some(End::PeerFailed(cut_off(error)));
            }
        }
        true
    }
}
