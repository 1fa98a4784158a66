//! What can go wrong between us and a peer's agent, for an application's connection and for a path
//! probe.

use mesh_wire::{HandshakeError, SessionError, identity::tls::TlsConfigError};

use super::dial::DialError;

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
    /// Stable `snake_case` code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Dial(error) => error.code(),
            Self::Config(_) => "no_certificate",
            Self::Handshake(error) => error.as_code(),
            Self::Session(error) => error.as_code(),
        }
    }
}
