//! Every way in which a connection between two agents can fail, each with a name.
//!
//! Three questions are answered for each: what to call it (`as_code`, stable, seen in flows, metrics
//! and logs), what to tell people (`Display`, with the likely cause), and whose fault it is
//! ([`Fault`]). docs/wire.md has the tables; a test holds them against this file.

mod refusal;
mod session;
mod tls;

pub use refusal::{Refusal, ResetCode};
pub use session::{HandshakeError, SessionError, StateError};
pub use tls::{JudgedBy, TlsReason};

/// Who has to act for a failure to go away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The other agent, or the network to it.
    Peer,
    /// Whoever runs the mesh: policy, certificates, clocks, versions.
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
