//! What a failure means for its connection: which side failed, whether another try is safe, and
//! what the application is told.
//!
//! Every error on the way to a peer leads to one [`Failed`]. From that follows whether another
//! endpoint is tried, and the error of a `connect()` that waits.

use std::io;

use mesh_common::errno;
use mesh_wire::{Refusal, SessionError};

use super::{dial::DialError, peer::PeerError};

/// The side that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// This agent, its node, or what it was told. It would fail the same way again.
    Us,
    /// The client has ended its connection. Nothing is left to be carried.
    Client,
    /// The peer, or the network on the way to it.
    Peer {
        /// Whether the connection may be brought to another endpoint.
        retry: Retry,
        /// The errno that the network would have given.
        errno: u32,
    },
}

/// Whether the same may be tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retry {
    /// No. The application may have seen a part of it, or the failure took as long as a client
    /// waits, or it is not the endpoint's.
    No,
    /// Yes: it is known at once that this endpoint does not take the connection, and no application
    /// has seen anything of it.
    Yes,
}

impl Failed {
    /// The peer failed, in a way for which the network has no word but "refused".
    pub(super) const fn peer(retry: Retry) -> Self {
        Self::network(retry, errno::ECONNREFUSED)
    }

    /// As if the network had answered with an errno.
    pub(super) const fn network(retry: Retry, errno: u32) -> Self {
        Self::Peer { retry, errno }
    }

    /// Whether the same may be tried again.
    pub(super) const fn retry(self) -> Retry {
        match self {
            Self::Us | Self::Client => Retry::No,
            Self::Peer { retry, .. } => retry,
        }
    }

    /// What a `connect()` that waits for it returns, from [`mod@errno`].
    pub(super) const fn errno(self) -> u32 {
        match self {
            Self::Us | Self::Client => errno::ECONNREFUSED,
            Self::Peer { errno, .. } => errno,
        }
    }
}

impl From<&DialError> for Failed {
    fn from(error: &DialError) -> Self {
        match error {
            DialError::Refused { .. } | DialError::Elsewhere { .. } => {
                Self::network(Retry::Yes, errno::ECONNREFUSED)
            }
            DialError::TimedOut { .. } => Self::network(Retry::No, errno::ETIMEDOUT),
            DialError::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::NetworkUnreachable => Self::network(Retry::No, errno::ENETUNREACH),
                _ => Self::network(Retry::No, errno::EHOSTUNREACH),
            },
            DialError::NoSourcePort { .. }
            | DialError::NoAddress { .. }
            | DialError::Socket(_)
            | DialError::Netns(_)
            | DialError::Leg(_) => Self::Us,
        }
    }
}

impl From<&PeerError> for Failed {
    fn from(error: &PeerError) -> Self {
        match error {
            PeerError::Dial(error) => Self::from(error),
            PeerError::Config(_) => Self::Us,
            PeerError::Session(SessionError::Refused(refused)) => refused.reason.into(),
            PeerError::Handshake(_) | PeerError::Session(_) => Self::peer(Retry::No),
        }
    }
}

/// A peer's agent that refuses has brought nothing to an application.
impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::ApplicationRefused => Self::network(Retry::Yes, errno::ECONNREFUSED),
            Refusal::ApplicationUnreachable => Self::network(Retry::No, errno::EHOSTUNREACH),
            Refusal::ApplicationTimedOut => Self::network(Retry::No, errno::ETIMEDOUT),
            Refusal::NotEnrolled
            | Refusal::WrongDestination
            | Refusal::Draining
            | Refusal::Overloaded
            | Refusal::AgentFailure => Self::peer(Retry::Yes),
            Refusal::PolicyDenied | Refusal::SourceMismatch | Refusal::Newer(_) => {
                Self::peer(Retry::No)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_wire::HandshakeError;

    use super::*;

    fn refused() -> DialError {
        DialError::Refused { to: ([10, 0, 2, 1], 80).into() }
    }

    fn unreachable(kind: io::ErrorKind) -> DialError {
        DialError::Unreachable { to: ([10, 0, 2, 1], 80).into(), source: kind.into() }
    }

    /// Another endpoint is tried where that costs no wait and nothing was seen.
    #[test]
    fn only_what_was_refused_at_once_is_tried_elsewhere() {
        let timed_out = DialError::TimedOut { to: ([10, 0, 2, 1], 80).into() };
        for (failed, retry) in [
            (Failed::from(&refused()), Retry::Yes),
            (Failed::from(&PeerError::Dial(refused())), Retry::Yes),
            (Failed::from(&timed_out), Retry::No),
            (Failed::from(&unreachable(io::ErrorKind::HostUnreachable)), Retry::No),
            (Failed::from(&DialError::Socket(io::ErrorKind::Other.into())), Retry::No),
            (Failed::from(&PeerError::Handshake(HandshakeError::PeerClosed)), Retry::No),
            (Failed::from(&PeerError::Session(SessionError::Truncated)), Retry::No),
            (Failed::from(&PeerError::Session(SessionError::Closed)), Retry::No),
            (Failed::from(Refusal::Draining), Retry::Yes),
            (Failed::from(Refusal::PolicyDenied), Retry::No),
            (Failed::Us, Retry::No),
            (Failed::Client, Retry::No),
        ] {
            assert_eq!(failed.retry(), retry, "{failed:?}");
        }
    }

    #[test]
    fn the_application_is_told_what_the_network_would_say() {
        for (failed, expected) in [
            (Failed::from(&refused()), errno::ECONNREFUSED),
            (Failed::from(&PeerError::Dial(refused())), errno::ECONNREFUSED),
            (Failed::from(&unreachable(io::ErrorKind::NetworkUnreachable)), errno::ENETUNREACH),
            (Failed::from(&unreachable(io::ErrorKind::Other)), errno::EHOSTUNREACH),
            (Failed::from(Refusal::ApplicationTimedOut), errno::ETIMEDOUT),
            (Failed::from(Refusal::Draining), errno::ECONNREFUSED),
            (Failed::from(&PeerError::Handshake(HandshakeError::TimedOut)), errno::ECONNREFUSED),
            (Failed::from(&DialError::Leg(io::ErrorKind::Other.into())), errno::ECONNREFUSED),
        ] {
            assert_eq!(failed.errno(), expected, "{failed:?}");
        }
    }
}
