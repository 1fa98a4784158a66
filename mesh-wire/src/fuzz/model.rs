//! What one side of a session must make of what it receives: a second reading of docs/wire.md
//! (states) and RFC 8446 (§4.6, §5 and §6), as plain as can be.

use crate::frame::{Frame, kind};
use crate::state::Role;
use crate::{TlsReason, frame};

/// The required result of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// This frame.
    Frame(Vec<u8>),
    /// The session is closed.
    Closed,
    /// Nothing that is shown.
    Nothing,
    /// The session ends with this code.
    Fails(&'static str),
    /// The record was damaged: from here on only an error may come.
    Damaged,
}

/// The state of a session, seen from outside.
pub(super) struct Model {
    listener: Role,
    open: bool,
    accepted: bool,
    client_fin: bool,
    server_fin: bool,
    over: bool,
    partial: Vec<u8>,
    tickets: u32,
    updates: u32,
    /// The listener has been asked for new keys of its own.
    pub(super) owes_update: bool,
}

impl Model {
    pub(super) fn new(listener: Role) -> Self {
        Self {
            listener,
            open: false,
            accepted: false,
            client_fin: false,
            server_fin: false,
            over: false,
            partial: Vec::new(),
            tickets: 0,
            updates: 0,
            owes_update: false,
        }
    }

    /// Whether `by` may send a frame of that kind now. If so, the frame counts as sent.
    pub(super) fn says(&mut self, by: Role, frame: u8) -> bool {
        let client = by == Role::Client;
        let may = match frame {
            _ if self.over => false,
            kind::OPEN => client && !self.open,
            _ if !self.open => false,
            kind::ACCEPTED | kind::REFUSED => !client && !self.accepted,
            kind::DATA | kind::FIN if client => !self.client_fin,
            kind::DATA | kind::FIN => self.accepted && !self.server_fin,
            kind::RESET => true,
            _ => false,
        };
        if !may {
            return false;
        }
        match frame {
            kind::OPEN => self.open = true,
            kind::ACCEPTED => self.accepted = true,
            kind::FIN if client => self.client_fin = true,
            kind::FIN => self.server_fin = true,
            kind::REFUSED | kind::RESET => self.over = true,
            _ => {}
        }
        if self.client_fin && self.server_fin {
            (self.open, self.accepted, self.client_fin, self.server_fin) = Default::default();
        }
        true
    }

    /// What the listener makes of a record, and whether the speaker's keys change behind it.
    pub(super) fn hears(&mut self, inner_type: u8, body: &[u8], padding: usize) -> (Heard, bool) {
        if body.len() + padding > 16_384 {
            return (Heard::Fails("oversized_record"), false);
        }
        let unexpected = (Heard::Fails("unexpected_message"), false);
        match inner_type {
            21 | 23 if !self.partial.is_empty() => unexpected,
            21 => (self.hears_alert(body), false),
            22 => self.hears_messages(body),
            23 => {
                self.updates = 0;
                (self.hears_frame(body), false)
            }
            _ => unexpected,
        }
    }

    fn hears_frame(&mut self, body: &[u8]) -> Heard {
        let speaker = match self.listener {
            Role::Client => Role::Server,
            Role::Server => Role::Client,
        };
        match Frame::decode(body) {
            Err(_) => Heard::Fails("malformed_frame"),
            Ok(Frame::Ignorable(_)) => Heard::Nothing,
            Ok(_) if self.says(speaker, body.first().copied().unwrap_or_default()) => {
                Heard::Frame(body.to_vec())
            }
            Ok(_) => Heard::Fails("unexpected_frame"),
        }
    }

    fn hears_alert(&mut self, body: &[u8]) -> Heard {
        let unanswered = self.listener == Role::Client && !self.accepted;
        match body {
            [_, 0] if self.open && !self.over && !unanswered => Heard::Fails("unexpected_frame"),
            [_, 0] => Heard::Closed,
            [_, 90] => Heard::Nothing,
            [_, number] => Heard::Fails(TlsReason::from_alert(*number).reason().code()),
            _ => Heard::Fails("malformed_message"),
        }
    }

    fn hears_messages(&mut self, body: &[u8]) -> (Heard, bool) {
        let unexpected = (Heard::Fails("unexpected_message"), false);
        if body.is_empty() {
            return unexpected;
        }
        self.partial.extend_from_slice(body);
        let bytes = std::mem::take(&mut self.partial);
        let mut rest = bytes.as_slice();
        while let &[kind, a, b, c, ref after @ ..] = rest {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > 8 * 1024 {
                return (Heard::Fails("malformed_message"), false);
            }
            let Some((message, after)) = after.split_at_checked(length) else {
                break;
            };
            match (kind, message) {
                (24, [0 | 1]) if !after.is_empty() => return unexpected,
                (24, [ask]) if *ask < 2 => {
                    self.updates += 1;
                    self.owes_update |= *ask == 1;
                    return if self.updates > 32 { unexpected } else { (Heard::Nothing, true) };
                }
                (24, _) => return (Heard::Fails("illegal_parameter"), false),
                (4, _) if self.listener == Role::Client && self.tickets < 16 => self.tickets += 1,
                _ => return unexpected,
            }
            rest = after;
        }
        self.partial = rest.to_vec();
        (Heard::Nothing, false)
    }
}

/// The largest payload, as docs/wire.md says it.
pub(super) const MAX_DATA_BYTES: usize = frame::MAX_PAYLOAD_BYTES;
