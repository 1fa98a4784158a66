//! From the application to the peer: reads into the gaps of records, seals them there and writes
//! them.

use std::io;
use std::task::{Context, Poll};

use mesh_wire::{
    Frame, ResetCode,
    frame::DATA_BYTES,
    io::{poll_read, poll_read_vectored, poll_write},
};

use super::appetite::Appetite;
use super::end::reset_code;
use super::{End, FirstData, Progress, Relay, RelaySide};

/// A client that has sent more is not waiting for an answer to it, as a rule.
const REQUEST_BYTES: usize = 4096;

/// The state of this direction.
#[derive(Debug, Default)]
pub(super) struct Up {
    pub(super) appetite: Appetite,
    /// What was sent, as long as it may have to be sent again.
    pub(super) unanswered: Option<Vec<u8>>,
    /// How much that may become.
    may_be_unanswered: usize,
    /// ACCEPTED is sealed and waits for what follows.
    pub(super) holds_answer: bool,
    /// Bytes of the peer, while that counts.
    received: usize,
    /// The last read has emptied the application's socket.
    is_drained: bool,
    /// FIN has been sealed.
    fin: bool,
    /// RESET has been sealed; once it is written, the connection is over.
    reset: Option<ResetCode>,
    /// The peer's socket takes nothing more.
    broken: bool,
    pub(super) moved: bool,
}

impl Up {
    pub(super) fn is_ended(&self) -> bool {
        self.fin && self.reset.is_none()
    }

    /// Whether the peer's socket takes nothing more.
    pub(super) fn is_broken(&self) -> bool {
        self.broken
    }

    /// The peer has sent so much. One that sends more than a request may wait for ACCEPTED.
    pub(super) fn note_received(&mut self, count: usize) {
        self.received = self.received.saturating_add(count);
        if self.received > REQUEST_BYTES {
            self.holds_answer = false;
        }
    }

    pub(super) fn reset_code(&self) -> Option<ResetCode> {
        self.reset
    }
}

impl Relay<'_> {
    /// Begins with the application's first data.
    pub(super) fn up_begin(&mut self, first: FirstData) -> Result<(), End> {
        match first {
            FirstData::Unread => {}
            FirstData::Remembered => {
                self.up.unanswered = Some(Vec::new());
                self.up.may_be_unanswered = DATA_BYTES;
            }
            FirstData::HeldBack => self.up.unanswered = Some(Vec::new()),
            FirstData::Again(data) if data.is_empty() => {}
            FirstData::Again(data) => {
                self.channel.send(&Frame::Data(&data)).map_err(End::PeerFailed)?;
            }
        }
        Ok(())
    }

    /// Reads from the application once, and its end if that came with the data; writes to the peer
    /// once.
    pub(super) fn step_up(&mut self, cx: &mut Context<'_>) -> Progress {
        self.channel.settle().map_err(End::PeerFailed)?;
        let mut moved = false;
        // After REFUSED or RESET from the peer nothing more may be sent. What it sent before that
        // is still on its way to the application.
        if self.up.reset.is_none() && !self.up.broken && !self.down.is_ending() {
            if !self.up.fin && self.channel.takes_data() {
                moved |= self.read_app(cx)?;
                // An end that came with the last data leaves with it.
                if self.up.is_drained && self.channel.takes_data() {
                    self.read_app(cx)?;
                }
            }
            let is_over = self.channel.is_idle(); // for the peer, too
            if self.up.fin && self.up.reset.is_none() && !self.down.is_ended() && !is_over {
                self.reset_after_fin()?;
            }
        }
        moved |= self.write_peer(cx)?;
        self.up.moved |= moved;
        Ok(moved)
    }

    fn read_app(&mut self, cx: &mut Context<'_>) -> Progress {
        self.up.is_drained = false;
        if self.app.poll_read_ready(cx).is_pending() {
            return Ok(false);
        }
        let unanswered = &mut self.up.unanswered;
        let remembered = unanswered.as_ref().map_or(0, Vec::len);
        if unanswered.is_some() && remembered >= self.up.may_be_unanswered {
            return Ok(false); // until OPEN is answered
        }
        let records = if unanswered.is_some() { 1 } else { self.up.appetite.records() };
        let mut slices = self.channel.data_slices(records).map_err(End::PeerFailed)?;
        let mut room: usize = slices.iter().map(|slice| slice.len()).sum();
        let outcome = match (unanswered, slices.first_mut()) {
            (Some(sent), Some(only)) => {
                room = room.min(self.up.may_be_unanswered - remembered);
                let read = poll_read(self.app, cx, only.get_mut(..room).unwrap_or_default());
                if let Poll::Ready(Ok(count)) = read {
                    sent.extend_from_slice(only.get(..count).unwrap_or_default());
                }
                read
            }
            (None, Some(only)) if records == 1 => poll_read(self.app, cx, only),
            _ => poll_read_vectored(self.app, cx, &mut slices),
        };
        if outcome.is_ready() {
            self.up.holds_answer = false;
        }
        match outcome {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(0)) => match self.down.app_error() {
                // A write has met the reset and consumed the error: this is no end of stream.
                Some(error) if error != io::ErrorKind::BrokenPipe => {
                    self.reset(reset_code(error))?;
                }
                _ => {
                    self.channel.send(&Frame::Fin).map_err(End::PeerFailed)?;
                    self.up.fin = true;
                    self.first_fin.get_or_insert(RelaySide::App);
                }
            },
            Poll::Ready(Ok(count)) => {
                self.channel.send_data(count).map_err(End::PeerFailed)?;
                self.counters.add_to_peer(count);
                self.up.is_drained = count < room;
                self.up.appetite.fed(count, room);
            }
            Poll::Ready(Err(error)) => self.reset(reset_code(error.kind()))?,
        }
        Ok(true)
    }

    /// Passes on a reset that came after the application had properly ended its direction.
    fn reset_after_fin(&mut self) -> Result<(), End> {
        if let Some(error) = self.down.app_error() {
            self.reset(reset_code(error))
        } else if self.dead.app {
            let error = self.app.take_error().ok().flatten();
            self.reset(reset_code(error.map_or(io::ErrorKind::BrokenPipe, |e| e.kind())))
        } else {
            Ok(())
        }
    }

    fn reset(&mut self, code: ResetCode) -> Result<(), End> {
        self.channel.send(&Frame::Reset(code)).map_err(End::PeerFailed)?;
        self.up.reset = Some(code);
        self.up.holds_answer = false;
        Ok(())
    }

    fn write_peer(&mut self, cx: &mut Context<'_>) -> Progress {
        let mut moved = false;
        if !self.channel.pending().is_empty() && !self.up.holds_answer {
            match poll_write(self.tcp, cx, self.channel.pending()) {
                Poll::Pending => {}
                Poll::Ready(Ok(count)) => {
                    self.channel.written(count);
                    moved = true;
                }
                Poll::Ready(Err(_)) => {
                    // What the peer sent before, perhaps the reason, is read first.
                    self.up.broken = true;
                    self.channel.written(usize::MAX);
                    moved = true;
                }
            }
        }
        match self.up.reset {
            Some(code) if self.channel.pending().is_empty() => Err(End::ResetByApp(code)),
            _ => Ok(moved),
        }
    }
}
