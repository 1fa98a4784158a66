//! A session's keys in both directions, and the TLS messages that come between the data: key
//! updates, tickets, alerts (RFC 8446 §4.6 and §6).

use std::ops::Range;

use rustls::client::ClientConnectionData;
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, SupportedCipherSuite};

use super::identity::tickets::MAX_TICKET_BYTES;
use super::reason::{JudgedBy, SessionError, TlsReason};
use super::record::{Content, Opener, Sealer};

/// As rustls and BoringSSL: more key updates than this without data in between are an attack.
const MAX_UPDATES_WITHOUT_DATA: u32 = 32;
/// A peer that sends more tickets than this in a session is not one of our agents.
const MAX_TICKETS: u32 = 16;
/// A handshake message after the handshake is at most this long (a ticket; RFC 8446 §4.6.1).
const MAX_MESSAGE_BYTES: usize = 8 * 1024;

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;

/// rustls' half of a session: it derives the next keys.
pub(super) enum KeySchedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

impl KeySchedule {
    fn next_send(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_tx_secret(),
            Self::Server(kernel) => kernel.update_tx_secret(),
        }
    }

    fn next_receive(&mut self) -> Result<(u64, ConnectionTrafficSecrets), rustls::Error> {
        match self {
            Self::Client(kernel) => kernel.update_rx_secret(),
            Self::Server(kernel) => kernel.update_rx_secret(),
        }
    }

    pub(super) fn suite(&self) -> SupportedCipherSuite {
        match self {
            Self::Client(kernel) => kernel.negotiated_cipher_suite(),
            Self::Server(kernel) => kernel.negotiated_cipher_suite(),
        }
    }
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// One frame, at this place in the record.
    Frame(Range<usize>),
    /// A TLS message that carries no frame (KeyUpdate, ticket, `user_canceled`).
    Nothing,
    /// The peer closes the session properly.
    CloseNotify,
}

pub(super) struct Traffic {
    kernel: KeySchedule,
    pub(super) sealer: Sealer,
    opener: Opener,
    /// Records that one key may protect (RFC 8446 §5.5).
    pub(super) limit: u64,
    update_owed: bool,
    updates_without_data: u32,
    tickets: u32,
    partial_message: Vec<u8>,
}

impl Traffic {
    #[allow(irrefutable_let_patterns, reason = "refutable where TLS 1.2 is there")]
    pub(super) fn new(kernel: KeySchedule, secrets: ExtractedSecrets) -> Result<Self, TlsReason> {
        // TLS 1.2 is there if another crate enables it in rustls; no configuration of ours does.
        let SupportedCipherSuite::Tls13(suite) = kernel.suite() else {
            return Err(TlsReason::TlsVersion);
        };
        let limit = suite.common.confidentiality_limit;
        Ok(Self {
            kernel,
            sealer: Sealer::new(secrets.tx, limit)?,
            opener: Opener::new(secrets.rx)?,
            limit,
            update_owed: false,
            updates_without_data: 0,
            tickets: 0,
            partial_message: Vec::new(),
        })
    }

    pub(super) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), SessionError> {
        self.sealer.seal(record, content).map_err(ours)
    }

    /// Whether a KeyUpdate of ours must go out before `records` more are sealed.
    pub(super) fn wants_update(&self, records: u64) -> bool {
        self.update_owed || self.sealer.remaining() <= records
    }

    /// The KeyUpdate message to seal with the old keys; then call [`Traffic::updated`].
    pub(super) const fn update_message(ask: bool) -> [u8; 5] {
        [KEY_UPDATE, 0, 0, 1, ask as u8]
    }

    /// The KeyUpdate is sealed: what follows is under the next keys.
    pub(super) fn updated(&mut self) -> Result<(), SessionError> {
        let next = self.kernel.next_send().map_err(|_error| ours(TlsReason::TlsInternal))?;
        self.sealer = Sealer::new(next, self.limit).map_err(ours)?;
        self.update_owed = false;
        Ok(())
    }

    /// Opens one record in place and deals with what is TLS' own.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<Opened, SessionError> {
        let (content, range) = self.opener.open(record).map_err(ours)?;
        let body = record.get(range.clone()).unwrap_or_default();
        if content != Content::Handshake && !self.partial_message.is_empty() {
            return Err(ours(TlsReason::UnexpectedMessage)); // RFC 8446 §5.1: not interleaved
        }
        match content {
            Content::Data => {
                self.updates_without_data = 0;
                Ok(Opened::Frame(range))
            }
            Content::Alert => match body {
                [_, CLOSE_NOTIFY] => Ok(Opened::CloseNotify),
                [_, USER_CANCELED] => Ok(Opened::Nothing), // close_notify follows
                &[_, alert] => Err(SessionError::Tls {
                    reason: TlsReason::from_alert(alert),
                    judged_by: JudgedBy::Peer,
                }),
                _ => Err(ours(TlsReason::MalformedMessage)),
            },
            Content::Handshake if body.is_empty() => Err(ours(TlsReason::UnexpectedMessage)),
            Content::Handshake => {
                self.messages(body)?;
                Ok(Opened::Nothing)
            }
        }
    }

    /// Handshake messages after the handshake: several per record, or one over several records.
    fn messages(&mut self, bytes: &[u8]) -> Result<(), SessionError> {
        self.partial_message.extend_from_slice(bytes);
        loop {
            let Some((&[kind, a, b, c], rest)) = self.partial_message.split_first_chunk::<4>()
            else {
                return Ok(());
            };
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            if length > MAX_MESSAGE_BYTES {
                return Err(ours(TlsReason::MalformedMessage));
            }
            let Some((body, after)) = rest.split_at_checked(length) else {
                return Ok(());
            };
            let (ask, after) = (body.first().copied(), after.to_vec());
            match kind {
                NEW_SESSION_TICKET => self.take_ticket(length)?,
                KEY_UPDATE if length != 1 || ask > Some(1) => {
                    return Err(ours(TlsReason::IllegalParameter));
                }
                // The keys change with this record: nothing may follow in it (RFC 8446 §5.1).
                KEY_UPDATE if !after.is_empty() => {
                    return Err(ours(TlsReason::UnexpectedMessage));
                }
                KEY_UPDATE => self.peer_updated(ask == Some(1))?,
                _ => return Err(ours(TlsReason::UnexpectedMessage)),
            }
            self.partial_message = after;
        }
    }

    /// The first message of the buffer is a ticket of so many bytes. Without one that can be used,
    /// the next handshake is a full one.
    fn take_ticket(&mut self, length: usize) -> Result<(), SessionError> {
        let KeySchedule::Client(kernel) = &mut self.kernel else {
            return Err(ours(TlsReason::UnexpectedMessage));
        };
        if self.tickets >= MAX_TICKETS {
            return Err(ours(TlsReason::UnexpectedMessage));
        }
        self.tickets += 1;
        if length <= MAX_TICKET_BYTES
            && let Some(ticket) = self.partial_message.get(4..4 + length)
        {
            kernel.handle_new_session_ticket(ticket).ok();
        }
        Ok(())
    }

    fn peer_updated(&mut self, ask: bool) -> Result<(), SessionError> {
        self.updates_without_data += 1;
        if self.updates_without_data > MAX_UPDATES_WITHOUT_DATA {
            return Err(ours(TlsReason::UnexpectedMessage));
        }
        let next = self.kernel.next_receive().map_err(|_error| ours(TlsReason::TlsInternal))?;
        self.opener = Opener::new(next).map_err(ours)?;
        self.update_owed |= ask;
        Ok(())
    }
}

pub(super) fn ours(reason: TlsReason) -> SessionError {
    SessionError::Tls { reason, judged_by: JudgedBy::Us }
}
