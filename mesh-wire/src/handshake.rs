//! The TLS handshake over a socket, up to the moment when rustls hands over the keys.
//!
//! rustls is shown one record at a time, so that it never touches the frames behind the handshake:
//! they stay in our buffer, sealed, for our own record layer.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::UnbufferedClientConnection;
use rustls::kernel::KernelConnection;
use rustls::pki_types::{ServerName, UnixTime};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{CommonState, ExtractedSecrets, HandshakeKind};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::channel::Channel;
use super::inbox::Inbox;
use super::io::{last_words, poll_read, poll_write};
use super::outbox::Outbox;
use super::reason::{HandshakeError, JudgedBy, TlsReason};
use super::record::{self, Content};
use super::session::TlsInfo;
use super::state::Role;
use super::traffic::{KeySchedule, Traffic};
use crate::identity::SpiffeId;
use crate::identity::tls::{ALPN, ClientTls, ServerTls};
use crate::identity::verifier::{PeerRejection, PeerVerifier, Purpose, observed, presented};

#[cfg(any(test, feature = "fuzz"))]
pub(super) mod memory;

/// Records that the receive buffer may hold while a handshake message is put together.
const HANDSHAKE_RECORDS: usize = 5;
/// How many bytes of a peer that does not speak TLS are shown.
const SHOWN_BYTES: usize = 8;
/// First bytes of a record that may begin a handshake: handshake, and alert (from a server).
const FIRST_BYTES: [u8; 2] = [22, 21];

/// What a handshake leads to.
pub(super) struct Established {
    pub(super) channel: Channel,
    pub(super) peer: SpiffeId,
    /// The end of the life of the peer's certificate.
    pub(super) peer_until: SystemTime,
    pub(super) info: TlsInfo,
    /// By a ticket of an earlier handshake.
    pub(super) is_resumed: bool,
}

/// Connects. The client's last flight stays in the outbox, so that OPEN and the first data can go
/// with it.
pub(super) async fn connect(
    tcp: &TcpStream,
    tls: &ClientTls,
    deadline: Instant,
) -> Result<Established, HandshakeError> {
    let address = tcp.peer_addr().map_err(HandshakeError::Io)?.ip();
    // Tickets are kept under this name. It is not sent, and the verifier does not look at it.
    let name = tls.node.clone().unwrap_or(ServerName::IpAddress(address.into()));
    let conn = UnbufferedClientConnection::new(Arc::clone(&tls.config), name)
        .map_err(|error| judged_by_us(&error, None))?;
    Handshake::new(Tls::Client(conn), &tls.verifier).run(tcp, deadline).await
}

/// Accepts. The ticket for the client's next handshake stays in the outbox, so that it can go with
/// ACCEPTED.
pub(super) async fn accept(
    tcp: &TcpStream,
    tls: &ServerTls,
    deadline: Instant,
) -> Result<Established, HandshakeError> {
    let conn = UnbufferedServerConnection::new(Arc::clone(&tls.config))
        .map_err(|error| judged_by_us(&error, None))?;
    Handshake::new(Tls::Server(conn), &tls.verifier).run(tcp, deadline).await
}

enum Tls {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// What rustls wants next.
enum Wants {
    /// To be called again with the same bytes.
    Again,
    /// The next record.
    Record,
    /// Nothing more: the handshake is done.
    Nothing,
}

struct Handshake {
    tls: Tls,
    verifier: Arc<PeerVerifier>,
    inbox: Inbox,
    outbox: Outbox,
    /// How many of the received bytes rustls has been shown.
    shown: usize,
    /// rustls has worked on them and wants the next record.
    wants_record: bool,
    write_error: Option<io::Error>,
}

/// A handshake that has ended well, but does not lead to a session.
struct Unfit {
    error: HandshakeError,
    /// The alert that tells the peer.
    last: Outbox,
}

impl From<HandshakeError> for Unfit {
    fn from(error: HandshakeError) -> Self {
        Self { error, last: Outbox::default() }
    }
}

impl Handshake {
    fn new(tls: Tls, verifier: &Arc<PeerVerifier>) -> Self {
        let verifier = Arc::clone(verifier);
        let (inbox, outbox) = (Inbox::default(), Outbox::default());
        Self { tls, verifier, inbox, outbox, shown: 0, wants_record: false, write_error: None }
    }

    async fn run(
        mut self,
        tcp: &TcpStream,
        deadline: Instant,
    ) -> Result<Established, HandshakeError> {
        let outcome = timeout_at(deadline, self.drive(tcp)).await;
        let outcome = match outcome {
            Ok(Ok(())) => return self.hand_over(tcp).await,
            Ok(Err(error)) => error,
            Err(_elapsed) => return Err(HandshakeError::TimedOut),
        };
        if matches!(outcome, HandshakeError::Tls { judged_by: JudgedBy::Us, .. }) {
            self.collect_alert();
            last_words(tcp, self.outbox.pending()).await;
        }
        Err(outcome)
    }

    async fn drive(&mut self, tcp: &TcpStream) -> Result<(), HandshakeError> {
        while !self.progress()? {
            self.flush(tcp).await;
            self.receive(tcp).await?;
        }
        Ok(())
    }

    /// Goes as far as the received bytes allow. Returns whether the handshake is done.
    fn progress(&mut self) -> Result<bool, HandshakeError> {
        loop {
            if self.wants_record && !self.show_next_record()? {
                return Ok(false);
            }
            self.wants_record = false;
            match self.step()? {
                Wants::Again => {}
                Wants::Nothing => return Ok(true),
                Wants::Record => self.wants_record = true,
            }
        }
    }

    /// Lets rustls work on the bytes shown so far.
    fn step(&mut self) -> Result<Wants, HandshakeError> {
        let Self { tls, inbox, outbox, shown, .. } = self;
        let window = inbox.window(*shown);
        let ((discard, wants), rejection) = observed(|| match tls {
            Tls::Client(conn) => advance(conn.process_tls_records(window), outbox),
            Tls::Server(conn) => advance(conn.process_tls_records(window), outbox),
        });
        inbox.consume(discard);
        *shown = shown.saturating_sub(discard);
        wants.map_err(|error| judged_by_us(&error, rejection))
    }

    /// Shows rustls one more record. `false` if it has not wholly arrived.
    fn show_next_record(&mut self) -> Result<bool, HandshakeError> {
        let unused = self.inbox.unused();
        if let Some(first) = unused.first()
            && self.shown == 0
            && !self.has_begun()
            && !FIRST_BYTES.contains(first)
        {
            let first = unused.iter().copied().take(SHOWN_BYTES).collect();
            return Err(HandshakeError::NotTls { first });
        }
        let rest = unused.get(self.shown..).unwrap_or_default();
        let arrived = match record::length(rest) {
            Ok(Some(length)) if length <= rest.len() => length,
            Ok(_) => return Ok(false),
            // rustls finds the same fault and sends the alert for it.
            Err(_oversized) => rest.len(),
        };
        self.shown += arrived;
        Ok(true)
    }

    /// Whether rustls has understood anything of the peer.
    fn has_begun(&self) -> bool {
        self.common().protocol_version().is_some()
    }

    /// Writes what rustls wants to send. An error is kept until the peer's last words are read,
    /// because an alert that explains it may be waiting.
    async fn flush(&mut self, tcp: &TcpStream) {
        while !self.outbox.pending().is_empty() {
            let pending = self.outbox.pending();
            match poll_fn(|cx| poll_write(tcp, cx, pending)).await {
                Ok(count) => self.outbox.written(count),
                Err(error) => {
                    self.write_error = Some(error);
                    self.outbox.written(usize::MAX);
                }
            }
        }
    }

    /// Room for more bytes of the peer.
    fn room(&mut self) -> Result<&mut [u8], HandshakeError> {
        let records = if self.inbox.spare(1).is_empty() { HANDSHAKE_RECORDS } else { 1 };
        let room = self.inbox.spare(records);
        if room.is_empty() {
            let error = rustls::Error::PeerSentOversizedRecord;
            return Err(judged_by_us(&error, None));
        }
        Ok(room)
    }

    async fn receive(&mut self, tcp: &TcpStream) -> Result<(), HandshakeError> {
        let room = self.room()?;
        match poll_fn(|cx| poll_read(tcp, cx, room)).await {
            Ok(0) => match self.write_error.take() {
                Some(error) => Err(HandshakeError::Io(error)),
                None => Err(HandshakeError::PeerClosed),
            },
            Ok(count) => {
                self.inbox.received(count);
                Ok(())
            }
            Err(error) => Err(HandshakeError::Io(self.write_error.take().unwrap_or(error))),
        }
    }

    /// Collects the alert that tells the peer of an error. After an error, rustls gives the alert
    /// out before it looks at any byte. It must not look: judging the bytes again, it would panic
    /// (found by `no_changed_byte_is_accepted`, rustls 0.23.46).
    fn collect_alert(&mut self) {
        while self.common().wants_write() && matches!(self.step(), Ok(Wants::Again)) {}
    }

    /// Begins the session, or writes why there is none.
    async fn hand_over(self, tcp: &TcpStream) -> Result<Established, HandshakeError> {
        match self.take_keys() {
            Ok(established) => Ok(established),
            Err(Unfit { error, last }) => {
                if !last.pending().is_empty() {
                    last_words(tcp, last.pending()).await;
                }
                Err(error)
            }
        }
    }

    /// Takes the keys from rustls and checks what rustls does not.
    fn take_keys(mut self) -> Result<Established, Unfit> {
        let internal = |detail: &str| tls_error(TlsReason::TlsInternal, detail.to_owned());
        if self.shown > 0 {
            return Err(Unfit::from(tls_error(
                TlsReason::UnexpectedMessage,
                "bytes after the end of the handshake in the same record".to_owned(),
            )));
        }
        let (role, purpose_of_peer) = match self.tls {
            Tls::Client(_) => (Role::Client, Purpose::Server),
            Tls::Server(_) => (Role::Server, Purpose::Client),
        };
        let has_alpn = self.common().alpn_protocol() == Some(ALPN);
        let is_resumed = self.common().handshake_kind() == Some(HandshakeKind::Resumed);
        let peer = match self.common().peer_certificates() {
            // A ticket says who the peer was: its certificate may have ended since.
            Some([leaf, others @ ..]) if is_resumed => self
                .verifier
                .verify(leaf, others, UnixTime::now(), purpose_of_peer)
                .and_then(|_id| presented(leaf)),
            Some([leaf, ..]) => presented(leaf),
            Some([]) | None => return Err(Unfit::from(internal("no peer certificate"))),
        };
        let info = TlsInfo::of(self.common());
        let (secrets, kernel) = self.tls.into_kernel().map_err(|e| judged_by_us(&e, None))?;
        let mut traffic = Traffic::new(kernel, secrets)
            .map_err(|reason| tls_error(reason, "the keys could not be taken over".to_owned()))?;
        let info = info.ok_or_else(|| internal("no parameters"))?;
        let (reason, detail) = match peer {
            Ok((peer, peer_until)) if has_alpn => {
                let channel = Channel::new(traffic, self.inbox, self.outbox, role);
                return Ok(Established { channel, peer, peer_until, info, is_resumed });
            }
            // rustls accepts a client that offers no protocol at all.
            Ok(_) => (TlsReason::NoAlpn, String::new()),
            Err(rejection) => (TlsReason::from(&rejection), rejection.to_string()),
        };
        self.outbox.seal(&mut traffic, Content::Alert, &[2, reason.alert()]).ok();
        Err(Unfit { error: tls_error(reason, detail), last: self.outbox })
    }

    fn common(&self) -> &CommonState {
        match &self.tls {
            Tls::Client(conn) => conn,
            Tls::Server(conn) => conn,
        }
    }
}

impl Tls {
    fn into_kernel(self) -> Result<(ExtractedSecrets, KeySchedule), rustls::Error> {
        fn wrap<D>(
            (secrets, kernel): (ExtractedSecrets, KernelConnection<D>),
            side: impl FnOnce(KernelConnection<D>) -> KeySchedule,
        ) -> (ExtractedSecrets, KeySchedule) {
            (secrets, side(kernel))
        }
        match self {
            Self::Client(c) => Ok(wrap(c.dangerous_into_kernel_connection()?, KeySchedule::Client)),
            Self::Server(c) => Ok(wrap(c.dangerous_into_kernel_connection()?, KeySchedule::Server)),
        }
    }
}

/// Moves what rustls has made into the outbox and returns how to go on.
fn advance<D>(
    status: UnbufferedStatus<'_, '_, D>,
    outbox: &mut Outbox,
) -> (usize, Result<Wants, rustls::Error>) {
    let UnbufferedStatus { discard, state } = status;
    let wants = match state {
        Err(error) => Err(error),
        Ok(ConnectionState::EncodeTlsData(mut message)) => {
            let size = match message.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => size.required_size,
                Ok(_) | Err(EncodeError::AlreadyEncoded) => 0,
            };
            match message.encode(outbox.append(size)) {
                Ok(written) => outbox.take_back(size.saturating_sub(written)),
                Err(_insufficient) => outbox.take_back(size),
            }
            Ok(Wants::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done(); // it is in the outbox, in order
            Ok(Wants::Again)
        }
        Ok(ConnectionState::BlockedHandshake) => Ok(Wants::Record),
        Ok(ConnectionState::WriteTraffic(_)) => Ok(Wants::Nothing),
        // We show one record at a time, stop at the last one of the handshake, and never offer
        // 0-RTT.
        Ok(_) => Err(rustls::Error::HandshakeNotComplete),
    };
    (discard, wants)
}

/// An error that rustls found, or the alert it received, as a reason.
fn judged_by_us(error: &rustls::Error, rejection: Option<PeerRejection>) -> HandshakeError {
    let judged_by = match error {
        rustls::Error::AlertReceived(_) => JudgedBy::Peer,
        _ => JudgedBy::Us,
    };
    match rejection {
        Some(rejection) => tls_error(TlsReason::from(&rejection), rejection.to_string()),
        None => HandshakeError::Tls {
            reason: TlsReason::of_error(error),
            judged_by,
            detail: if judged_by == JudgedBy::Us { error.to_string() } else { String::new() },
        },
    }
}

fn tls_error(reason: TlsReason, detail: String) -> HandshakeError {
    HandshakeError::Tls { reason, judged_by: JudgedBy::Us, detail }
}
