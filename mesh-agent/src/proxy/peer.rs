//! What can go wrong between us and a peer's agent, whether an application's connection is brought to it or a question.

use super::dial::DialError;
use crate::{
    identity::tls::TlsConfigError,
    wire::{HandshakeError, SessionError},
};

/// Why a peer's agent could not be spoken with.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// It was not reached: it listens in the place of the application.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// The pod has no certificate to show.
    #[error(transparent)]
    Config(#[from] TlsConfigError),
    /// It is not who it should be, or not an agent.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The session ended before its time.
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
