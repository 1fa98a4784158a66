//! How a connection ended, and which side ended it.

use std::io;

use mesh_api::{Fault, Reason};
use mesh_wire::{Refused, ResetCode, SessionError};

/// One of the two sides of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RelaySide {
    /// The application on our node.
    App,
    /// The other side, through its agent.
    Peer,
}

impl RelaySide {
    /// Stable code, for flows.
    pub const fn as_code(self) -> &'static str {
        match self {
            Self::App => "application",
            Self::Peer => "peer",
        }
    }
}

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// Both directions were closed; everything was delivered.
    #[error("closed, first by the {}", .first.as_code())]
    Finished {
        /// The side that closed its direction first.
        first: RelaySide,
    },
    /// Our application reset its connection; the peer has been told.
    #[error("reset on this side: {0}")]
    ResetByApp(ResetCode),
    /// Our application reset its connection while the peer took nothing; the session was cut off.
    #[error("reset on this side while the peer took no data, so the session was cut off: {0}")]
    CutOff(ResetCode),
    /// The peer's side reset it.
    #[error("reset by the peer: {0}")]
    ResetByPeer(ResetCode),
    /// The peer's agent refused it.
    #[error("refused by the peer: {}", .0.reason)]
    Refused(Refused),
    /// The peer's agent did not answer our OPEN in time.
    #[error("the peer's agent did not answer in time")]
    NotAnswered,
    /// The session ended or broke while it carried the connection.
    #[error("{0}")]
    PeerFailed(SessionError),
    /// The client seemed to wait for the server's first bytes, and then turned out to be an agent.
    #[error(
        "an agent's ClientHello came after the server had sent data; the connection is reset, since the ClientHello is not for the application. Likely cause: a segment was lost on the way, or the peer's agent gets too little CPU"
    )]
    LateClientHello,
}

impl RelaySide {
    fn other(self) -> Self {
        match self {
            Self::App => Self::Peer,
            Self::Peer => Self::App,
        }
    }
}

impl End {
    /// The same connection's end as the peer's application sees it.
    #[must_use]
    pub fn from_the_other_side(self) -> Self {
        match self {
            Self::Finished { first } => Self::Finished { first: first.other() },
            Self::ResetByApp(code) => Self::ResetByPeer(code),
            Self::ResetByPeer(code) => Self::ResetByApp(code),
            other => other,
        }
    }

    /// The reason: its code, and what else is known of it.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Finished { .. } => Reason::Closed,
            Self::ResetByApp(code) | Self::ResetByPeer(code) => code.reason(),
            Self::CutOff(_) => Reason::ResetCutOff,
            Self::Refused(refused) => refused.reason.reason(),
            Self::NotAnswered => Reason::NotAnswered,
            Self::LateClientHello => Reason::LateClientHello,
            Self::PeerFailed(error) => error.reason(),
        }
    }

    /// The party at fault, if there is a fault.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::ResetByPeer(code) => code.fault_at_receiver(),
            Self::Refused(refused) => refused.reason.fault_at_client(),
            Self::PeerFailed(error) => error.fault(),
            own => own.reason().fault(),
        }
    }
}

/// The code for an error of the application's socket.
pub(super) fn reset_code(kind: io::ErrorKind) -> ResetCode {
    match kind {
        io::ErrorKind::ConnectionReset
        | io::ErrorKind::ConnectionAborted
        | io::ErrorKind::BrokenPipe => ResetCode::ApplicationReset,
        io::ErrorKind::TimedOut => ResetCode::ApplicationTimedOut,
        _ => ResetCode::ApplicationFailed,
    }
}
