//! Every way in which a connection between two agents can fail, each with a name.
//!
//! Each has three properties: its name (`as_code`, stable, seen in flows, metrics and logs), a text
//! for people (`Display`, with the likely cause), and the party at fault ([`Fault`]). docs/wire.md
//! has the tables; a test compares them with this file.

mod refusal;
mod session;
mod tls;

pub use refusal::{Refusal, ResetCode};
pub use session::{HandshakeError, SessionError, StateError};
pub use tls::{JudgedBy, TlsReason};

/// The party that has to act for a failure to go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The other agent, or the network to it.
    Peer,
    /// The operator of the mesh: policy, certificates, clocks, versions.
    Configuration,
    /// This agent.
    Us,
    /// One of the two applications.
    Application,
}

impl Fault {
    /// Stable code, for metrics and flows.
    pub const fn as_code(self) -> &'static str {
        match self {
            Self::Peer => "peer",
            Self::Configuration => "configuration",
            Self::Us => "us",
            Self::Application => "application",
        }
    }
}

#[cfg(test)]
mod tests;
