//! What all sessions with peers' agents have in common: their time limit and what can go wrong.

use std::time::Duration;

use mesh_api::{Fault, Reason};
use mesh_wire::{HandshakeError, SessionError, identity::tls::TlsConfigError};

use super::dial::DialError;

/// How long a TLS handshake with a peer may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the agent could not speak with a peer's agent.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// It was not reached. It listens at the application's address.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The pod has no certificate to show.
    #[error(transparent)]
    Config(#[from] TlsConfigError),
    /// It has another identity than expected, or is not an agent.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The session ended early.
    #[error(transparent)]
    Session(#[from] SessionError),
}

impl PeerError {
    /// Its code, sentence and the rest.
    pub(super) fn reason(&self) -> Reason {
        match self {
            Self::Dial(error) => error.reason(),
            Self::Config(_) => Reason::NoCertificate,
            Self::Handshake(error) => error.reason(),
            Self::Session(error) => error.reason(),
        }
    }

    /// The party at fault.
    pub(super) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Dial(_) | Self::Config(_) => self.reason().fault(),
            Self::Handshake(error) => error.fault(),
            Self::Session(error) => error.fault(),
        }
    }
}
