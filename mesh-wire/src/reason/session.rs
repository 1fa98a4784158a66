//! The errors of [`Session`](crate::Session): before it exists, and during its life.

use std::io;

use mesh_api::{Fault, Reason};

use super::{JudgedBy, TlsReason};
use crate::frame::{FrameError, Refused};

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// One of the two sides did not accept the other.
    #[error("{} refused TLS: {reason}{}", judge(*.judged_by), colon(.detail))]
    Tls {
        /// Why.
        reason: TlsReason,
        /// Which side found it.
        judged_by: JudgedBy,
        /// What only the judging side knows; empty if the peer judged.
        detail: String,
    },
    /// The first bytes are no TLS: the other side is not an agent.
    #[error(
        "the peer does not speak TLS (it began with {first:02x?}); no agent of the mesh, or its agent is gone and the application answered"
    )]
    NotTls {
        /// The first bytes, at most eight.
        first: Vec<u8>,
    },
    /// The peer did not finish in time.
    #[error("{}", Reason::HandshakeTimedOut.sentence())]
    TimedOut,
    /// The peer closed the connection in the middle.
    #[error("{}", Reason::ClosedInHandshake.sentence())]
    PeerClosed,
    /// The connection failed in the middle.
    #[error("the connection failed during the handshake: {0}")]
    Io(#[source] io::Error),
}

impl HandshakeError {
    /// Its code, sentence and the rest.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Tls { reason, .. } => reason.reason(),
            Self::NotTls { .. } => Reason::NotTls,
            Self::TimedOut => Reason::HandshakeTimedOut,
            Self::PeerClosed => Reason::ClosedInHandshake,
            Self::Io(_) => Reason::ConnectionFailedInHandshake,
        }
    }

    /// The party at fault.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Tls { reason, judged_by, .. } => reason.fault(*judged_by),
            other => other.reason().fault(),
        }
    }
}

/// Why a session ended, or could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The peer ended it properly (`close_notify`) between two connections.
    #[error("{}", Reason::SessionClosed.sentence())]
    Closed,
    /// It ended without being closed: the peer's agent died, or something on the path cut it.
    #[error("{}", Reason::SessionTruncated.sentence())]
    Truncated,
    /// A TLS alert, or a record that TLS does not allow.
    #[error("{} ended the session: {reason}", judge(*.judged_by))]
    Tls {
        /// Why.
        reason: TlsReason,
        /// Which side found it.
        judged_by: JudgedBy,
    },
    /// A record that is not a frame.
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    /// A frame that may not come now.
    #[error("the peer broke the protocol: {0}")]
    State(#[from] StateError),
    /// The connection was refused.
    #[error("refused: {}{}", .0.reason, colon(&.0.text))]
    Refused(Refused),
    /// The peer did not answer in time.
    #[error("{}", Reason::SessionTimedOut.sentence())]
    TimedOut,
    /// Nothing comes from the peer's node any more, not even what TCP itself sends.
    #[error("{}", Reason::PeerSilent.sentence())]
    Silent,
    /// The connection below failed.
    #[error("the connection to the peer failed: {0}")]
    Io(#[source] io::Error),
}

impl SessionError {
    /// Its code, sentence and the rest.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Closed => Reason::SessionClosed,
            Self::Truncated => Reason::SessionTruncated,
            Self::Tls { reason, .. } => reason.reason(),
            Self::Frame(_) => Reason::MalformedFrame,
            Self::State(_) => Reason::UnexpectedFrame,
            Self::Refused(refused) => refused.reason.reason(),
            Self::TimedOut => Reason::SessionTimedOut,
            Self::Silent => Reason::PeerSilent,
            Self::Io(_) => Reason::SessionConnectionFailed,
        }
    }

    /// Whether the peer could not read what we sent. In answer to OPEN it means that the peer's
    /// agent is older than one of OPEN's fields.
    pub fn is_not_understood(&self) -> bool {
        let reason = TlsReason::MalformedMessage;
        matches!(self, Self::Tls { reason: said, judged_by: JudgedBy::Peer } if *said == reason)
    }

    /// The party at fault.
    pub fn fault(&self) -> Option<Fault> {
        match self {
            Self::Tls { reason, judged_by } => reason.fault(*judged_by),
            Self::Refused(refused) => refused.reason.fault_at_client(),
            other => other.reason().fault(),
        }
    }
}

/// A frame or record at a time when it may not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// OPEN while a connection is carried, or from the side that accepted the session.
    #[error("OPEN when no connection may begin")]
    Open,
    /// ACCEPTED or REFUSED without an OPEN of ours, or twice.
    #[error("an answer to no OPEN")]
    Answer,
    /// DATA without a connection, before ACCEPTED, or after FIN.
    #[error("DATA when none may come")]
    Data,
    /// FIN without a connection, before ACCEPTED, or twice.
    #[error("FIN when none may come")]
    Fin,
    /// RESET without a connection.
    #[error("RESET when there is no connection")]
    Reset,
    /// `close_notify` while a connection is carried.
    #[error("close_notify in the middle of a connection")]
    Close,
}

fn judge(judged_by: JudgedBy) -> &'static str {
    match judged_by {
        JudgedBy::Us => "we",
        JudgedBy::Peer => "the peer",
    }
}

fn colon(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(": {detail}") }
}
