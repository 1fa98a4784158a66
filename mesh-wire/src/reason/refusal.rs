//! Reasons that cross the wire as numbers: in REFUSED and in RESET. Numbers are never reused.

use std::fmt;

use super::Fault;

/// Why the destination's agent does not take a connection (REFUSED).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// A policy forbids it, or none allows it; the text names the rule.
    PolicyDenied,
    /// The destination pod is not (or no longer) in the mesh on that node.
    NotEnrolled,
    /// The original destination is not this pod's.
    WrongDestination,
    /// What OPEN says of its source does not fit the certificate or the address it came from.
    SourceMismatch,
    /// Nothing listens on the port.
    ApplicationRefused,
    /// The application's address cannot be reached on its own node.
    ApplicationUnreachable,
    /// The application did not accept in time.
    ApplicationTimedOut,
    /// The agent is leaving; another connection will be served.
    Draining,
    /// The agent carries as many connections as it may.
    Overloaded,
    /// The agent failed while it set up the connection.
    AgentFailure,
    /// A reason that only a newer agent knows.
    Newer(u16),
}

impl Refusal {
    /// Every reason with a number of its own.
    pub const ALL: [Self; 10] = [
        Self::PolicyDenied,
        Self::NotEnrolled,
        Self::WrongDestination,
        Self::SourceMismatch,
        Self::ApplicationRefused,
        Self::ApplicationUnreachable,
        Self::ApplicationTimedOut,
        Self::Draining,
        Self::Overloaded,
        Self::AgentFailure,
    ];

    /// The number in REFUSED.
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::PolicyDenied => 1,
            Self::NotEnrolled => 2,
            Self::WrongDestination => 3,
            Self::SourceMismatch => 4,
            Self::ApplicationRefused => 5,
            Self::ApplicationUnreachable => 6,
            Self::ApplicationTimedOut => 7,
            Self::Draining => 8,
            Self::Overloaded => 9,
            Self::AgentFailure => 10,
            Self::Newer(code) => code,
        }
    }

    /// The reason of a number.
    pub fn from_wire(code: u16) -> Self {
        Self::ALL.into_iter().find(|r| r.to_wire() == code).unwrap_or(Self::Newer(code))
    }

    /// Stable code, for metrics and flows.
    pub const fn as_code(self) -> &'static str {
        match self {
            Self::PolicyDenied => "policy_denied",
            Self::NotEnrolled => "destination_not_enrolled",
            Self::WrongDestination => "wrong_destination",
            Self::SourceMismatch => "source_mismatch",
            Self::ApplicationRefused => "application_refused",
            Self::ApplicationUnreachable => "application_unreachable",
            Self::ApplicationTimedOut => "application_timed_out",
            Self::Draining => "agent_draining",
            Self::Overloaded => "agent_overloaded",
            Self::AgentFailure => "agent_failure",
            Self::Newer(_) => "refused_for_newer_reason",
        }
    }

    /// The party at fault, seen from the refusing side.
    pub const fn fault(self) -> Fault {
        match self {
            Self::PolicyDenied => Fault::Configuration,
            Self::NotEnrolled | Self::WrongDestination | Self::SourceMismatch | Self::Newer(_) => {
                Fault::Peer
            }
            Self::ApplicationRefused | Self::ApplicationUnreachable | Self::ApplicationTimedOut => {
                Fault::Application
            }
            Self::Draining | Self::Overloaded | Self::AgentFailure => Fault::Us,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::PolicyDenied => "a policy of the destination does not allow this connection",
            Self::NotEnrolled => {
                "the destination pod is not in the mesh on its node; it may just have left"
            }
            Self::WrongDestination => {
                "the destination's node does not have that address; the pod may have been replaced"
            }
            Self::SourceMismatch => {
                "what the source says of itself does not fit its certificate or address"
            }
            Self::ApplicationRefused => "nothing listens on that port of the destination pod",
            Self::ApplicationUnreachable => {
                "the destination pod's own address cannot be reached inside it"
            }
            Self::ApplicationTimedOut => {
                "the application did not accept in time; its accept queue may be full"
            }
            Self::Draining => "the destination's agent is being replaced or stopped; try again",
            Self::Overloaded => "the destination's agent carries as many connections as it may",
            Self::AgentFailure => "the destination's agent failed to set up the connection",
            Self::Newer(code) => {
                return write!(f, "refused for reason {code}, which only a newer agent knows");
            }
        })
    }
}

/// Why a connection is broken off (RESET).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetCode {
    /// The application reset its connection, or closed it with data unread.
    ApplicationReset,
    /// The application's connection timed out (TCP user timeout or keep-alive).
    ApplicationTimedOut,
    /// The application's connection failed in another way.
    ApplicationFailed,
    /// The agent is stopping and waited long enough.
    AgentStopping,
    /// The agent ended it: the policy has changed, or the certificate's account has left.
    NoLongerAllowed,
    /// OPEN was not answered in time.
    NotAnswered,
    /// A code that only a newer agent knows.
    Newer(u16),
}

impl ResetCode {
    /// Every code with a number of its own.
    pub const ALL: [Self; 6] = [
        Self::ApplicationReset,
        Self::ApplicationTimedOut,
        Self::ApplicationFailed,
        Self::AgentStopping,
        Self::NoLongerAllowed,
        Self::NotAnswered,
    ];

    /// The number in RESET.
    pub const fn to_wire(self) -> u16 {
        match self {
            Self::ApplicationReset => 1,
            Self::ApplicationTimedOut => 2,
            Self::ApplicationFailed => 3,
            Self::AgentStopping => 4,
            Self::NoLongerAllowed => 5,
            Self::NotAnswered => 6,
            Self::Newer(code) => code,
        }
    }

    /// The code of a number.
    pub fn from_wire(code: u16) -> Self {
        Self::ALL.into_iter().find(|r| r.to_wire() == code).unwrap_or(Self::Newer(code))
    }

    /// Stable code, for metrics and flows.
    pub const fn as_code(self) -> &'static str {
        match self {
            Self::ApplicationReset => "application_reset",
            Self::ApplicationTimedOut => "application_connection_timed_out",
            Self::ApplicationFailed => "application_connection_failed",
            Self::AgentStopping => "agent_stopping",
            Self::NoLongerAllowed => "no_longer_allowed",
            Self::NotAnswered => "not_answered",
            Self::Newer(_) => "reset_for_newer_reason",
        }
    }

    /// The party at fault, seen from the resetting side.
    pub const fn fault(self) -> Fault {
        match self {
            Self::ApplicationReset | Self::ApplicationTimedOut | Self::ApplicationFailed => {
                Fault::Application
            }
            Self::AgentStopping => Fault::Us,
            Self::NoLongerAllowed => Fault::Configuration,
            Self::NotAnswered | Self::Newer(_) => Fault::Peer,
        }
    }
}

impl fmt::Display for ResetCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApplicationReset => {
                "the application reset its connection, or closed it without reading everything"
            }
            Self::ApplicationTimedOut => "the application's connection timed out",
            Self::ApplicationFailed => "the application's connection failed",
            Self::AgentStopping => "the agent stopped before the connection had ended",
            Self::NoLongerAllowed => "policy or membership changed, and the connection was ended",
            Self::NotAnswered => "the destination's agent did not answer in time",
            Self::Newer(code) => {
                return write!(f, "reset for reason {code}, which only a newer agent knows");
            }
        })
    }
}
