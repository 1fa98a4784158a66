//! A TLS session between two agents. It outlives the application connections that it carries, one
//! at a time.

use std::any::Any;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use rustls::CommonState;
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use super::channel::{Channel, Received};
use super::frame::{Accepted, Frame, Open, Refused};
use super::handshake::{self, Established};
use super::io::{last_words, poll_read, poll_write};
use super::reason::{HandshakeError, SessionError, StateError};
use crate::identity::{ClientTls, ServerTls, SpiffeId};

/// An authenticated TLS session. Dropping it cuts it off: the peer then sees the connection that it
/// carries truncated, never cleanly ended.
pub struct Session {
    /// The connection to the peer's agent.
    pub tcp: TcpStream,
    /// Its records. Boxed as the facts are: a session is moved from future to future, and each
    /// keeps room for it.
    pub channel: Box<Channel>,
    facts: Box<Facts>,
}

/// What the handshake has led to.
struct Facts {
    own: SpiffeId,
    peer: SpiffeId,
    info: TlsInfo,
    is_resumed: bool,
    /// The configuration that it was made with. Only its address is compared, which is no other's
    /// as long as this reference is there.
    made_with: Weak<dyn Any + Send + Sync>,
    /// The end of the life of the peer's certificate.
    peer_until: SystemTime,
}

/// What the two sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlsInfo {
    /// Always `TLSv1_3`; stated because people look for it.
    pub version: &'static str,
    /// The cipher suite, by its IANA name without `TLS_`… as rustls prints it.
    pub cipher: &'static str,
    /// The key exchange; `X25519MLKEM768` withstands a future quantum computer.
    pub key_exchange: &'static str,
}

impl Session {
    /// Makes a session over a connected socket. The client's last flight is held back so that OPEN
    /// and the first data can travel with it; [`Session::flush`] sends it alone.
    ///
    /// The server has not yet judged our certificate when this returns. If it refuses the
    /// certificate, the first receive returns the error.
    ///
    /// # Errors
    /// Which side did not accept the other and why, or that there was no TLS at all.
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn connect(
        tcp: TcpStream,
        tls: &ClientTls,
        deadline: Instant,
    ) -> Result<Self, HandshakeError> {
        tcp.set_nodelay(true).map_err(HandshakeError::Io)?;
        let established = Box::pin(handshake::connect(&tcp, tls, deadline)).await?;
        Ok(Self::new(tcp, tls.own(), made_with(&tls.config), established))
    }

    /// Makes a session over an accepted socket. The client is authenticated when this returns.
    ///
    /// # Errors
    /// As [`Session::connect`].
    ///
    /// # Cancel safety
    /// Dropping the future closes the socket.
    pub async fn accept(
        tcp: TcpStream,
        tls: &ServerTls,
        deadline: Instant,
    ) -> Result<Self, HandshakeError> {
        tcp.set_nodelay(true).map_err(HandshakeError::Io)?;
        let established = Box::pin(handshake::accept(&tcp, tls, deadline)).await?;
        Ok(Self::new(tcp, tls.own(), made_with(&tls.config), established))
    }

    fn new(
        tcp: TcpStream,
        own: &SpiffeId,
        made_with: Weak<dyn Any + Send + Sync>,
        established: Established,
    ) -> Self {
        let Established { channel, peer, peer_until, info, is_resumed } = established;
        let own = own.clone();
        let facts = Facts { own, peer, info, is_resumed, made_with, peer_until };
        Self { tcp, channel: Box::new(channel), facts: Box::new(facts) }
    }

    /// Our own identity in this session.
    pub fn own_identity(&self) -> &SpiffeId {
        &self.facts.own
    }

    /// The peer's identity, proved by its certificate.
    pub fn peer_identity(&self) -> &SpiffeId {
        &self.facts.peer
    }

    /// What was agreed on.
    pub fn tls(&self) -> TlsInfo {
        self.facts.info
    }

    /// Whether the handshake resumed an earlier one.
    pub fn is_resumed(&self) -> bool {
        self.facts.is_resumed
    }

    /// The socket below, for its addresses.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Memory that its buffers hold now, in bytes: none while it is idle, at most 300 KiB.
    pub fn memory_bytes(&self) -> usize {
        self.channel.memory_bytes()
    }

    /// Whether no connection is carried, so that the next OPEN may come.
    pub fn is_idle(&self) -> bool {
        self.channel.is_idle()
    }

    /// Whether a handshake of the client would show and expect the same now: the same certificate
    /// of ours under the same anchors, both sides' certificates in date, and the same peer.
    pub fn matches_client(&self, now: &ClientTls) -> bool {
        now.is_valid() && self.matches(&now.config)
    }

    /// As [`Session::matches_client`], for the side that accepted.
    pub fn matches_server(&self, now: &ServerTls) -> bool {
        now.is_valid() && self.matches(&now.config)
    }

    fn matches<C>(&self, config: &Arc<C>) -> bool {
        std::ptr::addr_eq(self.facts.made_with.as_ptr(), Arc::as_ptr(config))
            && SystemTime::now() < self.facts.peer_until
    }

    /// Whether nothing has come on an idle session: an end is the only thing that may. Asks the
    /// kernel and waits for nothing.
    pub fn is_quiet(&self) -> bool {
        let nothing = SockRef::from(&self.tcp).peek(&mut [MaybeUninit::uninit()]);
        let is_quiet = nothing.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        is_quiet && !self.channel.has_received() && self.channel.pending().is_empty()
    }

    /// Seals OPEN, to be written with what follows or by [`Session::flush`]. Wait for the answer
    /// with [`Session::recv_accepted`], or leave that to the relay, which carries the first data
    /// without waiting.
    ///
    /// # Errors
    /// A connection is being carried, or we are the server.
    pub fn send_open(&mut self, open: &Open) -> Result<(), SessionError> {
        self.channel.send(&Frame::Open(open.clone()))
    }

    /// Seals ACCEPTED, to be written with what follows or by [`Session::flush`].
    ///
    /// # Errors
    /// There is no OPEN to answer.
    pub fn send_accepted(&mut self, accepted: &Accepted) -> Result<(), SessionError> {
        self.channel.send(&Frame::Accepted(accepted.clone()))
    }

    /// Refuses the connection that OPEN asked for, and ends the session.
    ///
    /// # Errors
    /// There is no OPEN to answer. It is no error if the peer does not hear.
    ///
    /// # Cancel safety
    /// Dropping the future may cut the words short; the peer then sees the session truncated.
    pub async fn refuse(mut self, refused: Refused) -> Result<(), SessionError> {
        self.channel.send(&Frame::Refused(refused))?;
        self.channel.close();
        last_words(&self.tcp, self.channel.pending()).await;
        Ok(())
    }

    /// Waits for the next connection on this session.
    ///
    /// # Errors
    /// [`SessionError::Closed`] when the peer closes an idle session; otherwise what broke it.
    ///
    /// # Cancel safety
    /// Safe: nothing received is lost.
    pub async fn recv_open(&mut self, deadline: Instant) -> Result<Open, SessionError> {
        match self.recv(deadline).await? {
            Received::Open(open) => Ok(open),
            other => Err(self.unexpected(&other).await),
        }
    }

    /// Waits for the answer to our OPEN.
    ///
    /// # Errors
    /// [`SessionError::Refused`] with the peer's reason; the session is then over.
    ///
    /// # Cancel safety
    /// Safe: nothing received is lost.
    pub async fn recv_accepted(&mut self, deadline: Instant) -> Result<Accepted, SessionError> {
        match self.recv(deadline).await? {
            Received::Accepted(accepted) => Ok(accepted),
            Received::Refused(refused) => Err(SessionError::Refused(refused)),
            other => Err(self.unexpected(&other).await),
        }
    }

    /// Writes everything sealed so far.
    ///
    /// # Errors
    /// The connection failed; the peer's alert, if it has left one.
    ///
    /// # Cancel safety
    /// Safe: what is unwritten stays for the next call.
    pub async fn flush(&mut self) -> Result<(), SessionError> {
        if let Err(error) = self.write_pending().await {
            return Err(self.last_heard(SessionError::Io(error)).await);
        }
        Ok(())
    }

    /// Waits until an idle session ends, for any reason that [`SessionError`] has. A pool asks with
    /// [`Session::is_quiet`].
    ///
    /// # Cancel safety
    /// Safe: the session can be used afterwards.
    pub async fn ended(&mut self) -> SessionError {
        match self.next().await {
            Ok(Received::Closed) => SessionError::Closed,
            Ok(other) => self.unexpected(&other).await,
            Err(error) => error,
        }
    }

    /// Closes an idle session properly.
    ///
    /// # Cancel safety
    /// Dropping the future cuts it off instead.
    pub async fn close(mut self) {
        self.channel.close();
        last_words(&self.tcp, self.channel.pending()).await;
    }

    /// Closes an idle session of the client's side without a wait. Nothing can be on its way from
    /// the server that a reset would destroy.
    pub fn close_at_once(mut self) {
        self.channel.close();
        // If it is not written, the server finds the end without it.
        self.tcp.try_write(self.channel.pending()).ok();
    }

    async fn recv(&mut self, deadline: Instant) -> Result<Received, SessionError> {
        timeout_at(deadline, self.next()).await.unwrap_or(Err(SessionError::TimedOut))
    }

    /// The next thing that the peer sends. Writes what we have sealed first.
    pub async fn next(&mut self) -> Result<Received, SessionError> {
        let mut written = None;
        loop {
            // First, what is here already: the answer then leaves together with what is sealed.
            match self.channel.receive() {
                Ok(Some(received)) => return Ok(received),
                Ok(None) => {}
                Err(error) => {
                    self.explain(&error).await;
                    return Err(error);
                }
            }
            if written.is_none() {
                written = Some(self.write_pending().await);
            }
            let read = poll_fn(|cx| {
                let read = poll_read(&self.tcp, cx, self.channel.spare(1));
                if read.is_pending() {
                    self.channel.release_inbox(); // it may be long
                }
                read
            });
            let read = read.await;
            let write_error = written.as_mut().and_then(|it| std::mem::replace(it, Ok(())).err());
            let count = match (read, write_error) {
                (Ok(0), error) => {
                    return Err(error.map_or(SessionError::Truncated, SessionError::Io));
                }
                (Ok(count), _) => count,
                (Err(error), write_error) => return Err(cut_off(write_error.unwrap_or(error))),
            };
            self.channel.received(count);
        }
    }

    async fn write_pending(&mut self) -> io::Result<()> {
        if self.channel.pending().is_empty() {
            self.channel.settle().ok(); // a key update owed; what cannot be sealed fails later
        }
        while !self.channel.pending().is_empty() {
            let pending = self.channel.pending();
            let count = poll_fn(|cx| poll_write(&self.tcp, cx, pending)).await?;
            self.channel.written(count);
        }
        Ok(())
    }

    /// After a failed write: the alert that explains it, if the peer has sent one.
    async fn last_heard(&mut self, write_error: SessionError) -> SessionError {
        let read = async {
            loop {
                if let Err(error @ SessionError::Tls { .. }) = self.channel.receive() {
                    return Some(error);
                }
                let room = self.channel.spare(1);
                match poll_fn(|cx| poll_read(&self.tcp, cx, room)).await {
                    Ok(0) | Err(_) => return None,
                    Ok(count) => self.channel.received(count),
                }
            }
        };
        let limit = Instant::now() + std::time::Duration::from_millis(200);
        timeout_at(limit, read).await.ok().flatten().unwrap_or(write_error)
    }

    /// Handles a frame that may come, but not here: the caller awaited another one.
    async fn unexpected(&mut self, received: &Received) -> SessionError {
        let error = match received {
            Received::Closed => return SessionError::Closed,
            Received::Open(_) => StateError::Open,
            Received::Accepted(_) | Received::Refused(_) => StateError::Answer,
            Received::Data(_) => StateError::Data,
            Received::Fin => StateError::Fin,
            Received::Reset(_) => StateError::Reset,
        };
        let error = SessionError::from(error);
        self.explain(&error).await;
        error
    }

    /// Tells the peer why we end the session, unless it knows.
    async fn explain(&mut self, error: &SessionError) {
        self.channel.explain(error);
        if !self.channel.pending().is_empty() {
            last_words(&self.tcp, self.channel.pending()).await;
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("own", &self.facts.own)
            .field("peer", &self.facts.peer)
            .field("idle", &self.is_idle())
            .finish_non_exhaustive()
    }
}

impl TlsInfo {
    /// What a finished handshake has agreed on.
    pub(super) fn of(state: &CommonState) -> Option<Self> {
        Some(Self {
            version: state.protocol_version()?.as_str()?,
            cipher: state.negotiated_cipher_suite()?.suite().as_str()?,
            key_exchange: state.negotiated_key_exchange_group()?.name().as_str()?,
        })
    }
}

fn made_with<C: Any + Send + Sync>(config: &Arc<C>) -> Weak<dyn Any + Send + Sync> {
    let made_with: Weak<C> = Arc::downgrade(config);
    made_with
}

/// Turns a failed read into an error. A reset means that the peer's agent died or something on the
/// path cut the session; our own network did not fail. If nothing came from the peer's host for too
/// long, the kernel says that, or what a router had said of the host.
pub fn cut_off(error: io::Error) -> SessionError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => SessionError::Truncated,
        io::ErrorKind::TimedOut
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable => SessionError::Silent,
        _ => SessionError::Io(error),
    }
}
