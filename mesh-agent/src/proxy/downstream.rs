//! The one way in for a peer's agent: TLS, then OPEN.

use mesh_wire::{Open, Session, identity::TlsConfigs};
use tokio::{net::TcpStream, time::Instant};

use super::{
    dial,
    peer::{HANDSHAKE_TIMEOUT, PeerError},
    pod::Pod,
    turns::{TurnOwner, Turns},
};

/// What it takes to accept.
#[derive(Clone, Copy)]
pub(super) struct Acceptor<'a> {
    /// The pods' certificates.
    pub(super) tls: &'a TlsConfigs,
    /// Whose handshake is worked on next.
    pub(super) turns: &'a Turns,
}

impl Acceptor<'_> {
    /// Accepts a peer's agent for a pod, and waits for what it asks for. `authenticated` is called
    /// once the peer is known.
    ///
    /// # Errors
    /// [`PeerError::Config`]: the connection has been reset. [`PeerError::Handshake`]: the peer is
    /// not known. [`PeerError::Session`]: it is known, and has asked for nothing.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub(super) async fn accept(
        self,
        pod: &Pod,
        claim: TurnOwner,
        stream: TcpStream,
        authenticated: impl FnOnce(&Session),
    ) -> Result<(Session, Open), PeerError> {
        let tls = match self.tls.server(&pod.identity) {
            Ok(tls) => tls,
            Err(error) => {
                dial::reset(stream);
                return Err(error.into());
            }
        };
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let accepted = self.turns.run(claim, Session::accept(stream, &tls, deadline)).await;
        drop(tls); // it would keep the private key in memory for as long as the connection is open
        let mut session = accepted?;
        authenticated(&session);
        let open = session.recv_open(deadline).await?;
        Ok((session, open))
    }
}
