//! A session without its socket: bytes in, frames out, and the other way round.

use std::io::IoSliceMut;
use std::ops::Range;

use super::frame::{Accepted, Frame, Open, Refused};
use super::inbox::Inbox;
use super::outbox::{MAX_RECORDS, Outbox};
use super::reason::{JudgedBy, ResetCode, SessionError, StateError, TlsReason};
use super::record::Content;
use super::state::{ConversationState, Role, Step};
use super::traffic::{Opened, Traffic, ours};

/// With more unwritten bytes than this, no new data is read from the application. Small frames may
/// wait together for their write; bulk data waits in its source.
pub(super) const SMALL_BACKLOG_BYTES: usize = 4096;
/// Records that may be sealed between two checks of the key's limit.
const KEY_MARGIN: u64 = MAX_RECORDS as u64 + 8;

/// Both directions of a session, without its socket.
pub struct Channel {
    pub(super) traffic: Traffic,
    inbox: Inbox,
    pub(super) outbox: Outbox,
    role: Role,
    state: ConversationState,
}

/// What the peer has sent.
#[derive(Debug)]
pub enum Received {
    Open(Open),
    Accepted(Accepted),
    Refused(Refused),
    /// At this place in the receive buffer, until the next [`Channel::spare`].
    Data(Range<usize>),
    Fin,
    Reset(ResetCode),
    /// `close_notify`, between two connections or instead of an answer to OPEN.
    Closed,
}

impl Channel {
    pub(super) fn new(traffic: Traffic, inbox: Inbox, outbox: Outbox, role: Role) -> Self {
        Self { traffic, inbox, outbox, role, state: ConversationState::Idle }
    }

    /// Whether no connection is carried, so that the next may begin.
    pub fn is_idle(&self) -> bool {
        self.state == ConversationState::Idle
    }

    /// Whether we opened a connection and have no answer yet.
    pub fn awaits_answer(&self) -> bool {
        self.role == Role::Client
            && matches!(self.state, ConversationState::Connection { accepted: false, .. })
    }

    /// The next thing the peer sent, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// The session is over; [`Channel::explain`] tells the peer.
    pub fn receive(&mut self) -> Result<Option<Received>, SessionError> {
        loop {
            let Some(record) = self.inbox.take_record().map_err(ours)? else {
                return Ok(None);
            };
            let base = record.start;
            let opened = self.traffic.open(record.bytes)?;
            let frame = match opened {
                Opened::Nothing => continue,
                // Our OPEN is not answered: it and the close may have crossed, and nothing was
                // carried out.
                Opened::CloseNotify if self.awaits_answer() => return Ok(Some(Received::Closed)),
                Opened::CloseNotify
                    if matches!(self.state, ConversationState::Connection { .. }) =>
                {
                    return Err(StateError::Close.into());
                }
                Opened::CloseNotify => return Ok(Some(Received::Closed)),
                Opened::Frame(range) => base + range.start..base + range.end,
            };
            let (step, received) = match Frame::decode(self.inbox.at(frame.clone()))? {
                Frame::Ignorable(_) => continue,
                Frame::Open(open) => (Step::Open, Received::Open(open)),
                Frame::Accepted(accepted) => (Step::Accepted, Received::Accepted(accepted)),
                Frame::Refused(refused) => (Step::Refused, Received::Refused(refused)),
                // The first byte is the frame's type.
                Frame::Data(_) => (Step::Data, Received::Data(frame.start + 1..frame.end)),
                Frame::Fin => (Step::Fin, Received::Fin),
                Frame::Reset(code) => (Step::Reset, Received::Reset(code)),
            };
            self.state = self.state.after(self.peer(), step)?;
            return Ok(Some(received));
        }
    }

    /// The bytes at a place that [`Received::Data`] named.
    pub fn data(&self, place: Range<usize>) -> &[u8] {
        self.inbox.at(place)
    }

    /// Whether bytes have been received that are not used yet.
    pub fn has_received(&self) -> bool {
        !self.inbox.unused().is_empty()
    }

    /// Room to receive into. Invalidates the places of data handed out before.
    pub fn spare(&mut self, records: usize) -> &mut [u8] {
        self.inbox.spare(records.clamp(1, MAX_RECORDS))
    }

    /// Notes that `count` bytes have been received into the room.
    pub fn received(&mut self, count: usize) {
        self.inbox.received(count);
    }

    /// Seals a frame that is not data.
    pub fn send(&mut self, frame: &Frame<'_>) -> Result<(), SessionError> {
        let step = match frame {
            Frame::Open(_) => Step::Open,
            Frame::Accepted(_) => Step::Accepted,
            Frame::Refused(_) => Step::Refused,
            Frame::Data(_) => Step::Data,
            Frame::Fin => Step::Fin,
            Frame::Reset(_) => Step::Reset,
            Frame::Ignorable(_) => return Ok(()),
        };
        let next = self.state.after(self.role, step)?;
        self.settle()?;
        let mut bytes = Vec::with_capacity(128);
        frame.encode(&mut bytes);
        self.outbox.seal(&mut self.traffic, Content::Data, &bytes)?;
        self.state = next;
        Ok(())
    }

    /// Whether there is so little unwritten that application data may be read.
    pub fn takes_data(&self) -> bool {
        self.outbox.pending().len() <= SMALL_BACKLOG_BYTES
    }

    /// Room for application data, up to `records` records; seal it with [`Channel::send_data`].
    pub fn data_slices(
        &mut self,
        records: usize,
    ) -> Result<[IoSliceMut<'_>; MAX_RECORDS], SessionError> {
        self.settle()?;
        Ok(self.outbox.data_slices(records))
    }

    /// Seals the `count` bytes that were put into the slices, as DATA.
    pub fn send_data(&mut self, count: usize) -> Result<(), SessionError> {
        self.state = self.state.after(self.role, Step::Data)?;
        self.outbox.seal_data(&mut self.traffic, count)
    }

    /// Seals a KeyUpdate if the peer asked for one or the key has protected enough.
    pub fn settle(&mut self) -> Result<(), SessionError> {
        if self.traffic.wants_update(KEY_MARGIN) && self.takes_data() {
            self.update_keys(false)?;
        }
        Ok(())
    }

    /// Seals a KeyUpdate. With `ask`, the peer has to change its key as well.
    pub(super) fn update_keys(&mut self, ask: bool) -> Result<(), SessionError> {
        let message = Traffic::update_message(ask);
        self.outbox.seal(&mut self.traffic, Content::Handshake, &message)?;
        self.traffic.updated()
    }

    /// Sealed bytes that wait to be written.
    pub fn pending(&self) -> &[u8] {
        self.outbox.pending()
    }

    /// Notes that `count` bytes have been written.
    pub fn written(&mut self, count: usize) {
        self.outbox.written(count);
    }

    /// Seals the alert that tells the peer why we end the session, if we end it.
    pub fn explain(&mut self, error: &SessionError) {
        let reason = match error {
            SessionError::Tls { reason, judged_by: JudgedBy::Us } => *reason,
            SessionError::Frame(_) => TlsReason::MalformedMessage,
            SessionError::State(_) => TlsReason::UnexpectedMessage,
            SessionError::Tls { judged_by: JudgedBy::Peer, .. }
            | SessionError::Closed
            | SessionError::Truncated
            | SessionError::Refused(_)
            | SessionError::TimedOut
            | SessionError::Silent
            | SessionError::Io(_) => return,
        };
        self.alert(2, reason.alert());
    }

    /// Seals `close_notify`: we shall send nothing more.
    pub fn close(&mut self) {
        self.alert(1, 0);
        self.state = ConversationState::Over;
    }

    /// How much memory the buffers hold now.
    pub fn memory_bytes(&self) -> usize {
        self.inbox.capacity() + self.outbox.capacity()
    }

    /// Gives the receive buffer back if it is empty, and returns whether it was. Invalidates the
    /// places of data handed out before.
    pub fn release_inbox(&mut self) -> bool {
        self.inbox.release()
    }

    /// Gives the send buffer back if it is empty, and returns whether it was.
    pub fn release_outbox(&mut self) -> bool {
        self.outbox.release()
    }

    fn alert(&mut self, level: u8, description: u8) {
        // If even this cannot be sealed, the peer sees the session cut off instead.
        self.outbox.seal(&mut self.traffic, Content::Alert, &[level, description]).ok();
    }

    fn peer(&self) -> Role {
        match self.role {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        }
    }
}
