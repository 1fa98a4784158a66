//! The party at fault.

use serde::{Deserialize, Serialize};

/// The party that has to act for a failure to go away, seen from the agent that reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// One of the two applications, or its pod.
    Application,
    /// The operator: labels and other objects, policy, certificates, clocks, versions.
    Configuration,
    /// The other agent, or the network to it.
    Peer,
    /// What the agent runs on: the node, its kernel and kubelet, or the API server.
    Platform,
    /// The agent that reports it.
    Us,
}

impl Fault {
    /// All of them.
    pub const ALL: &'static [Self] =
        &[Self::Application, Self::Configuration, Self::Peer, Self::Platform, Self::Us];

    /// Stable `snake_case` code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Application => "application",
            Self::Configuration => "configuration",
            Self::Peer => "peer",
            Self::Platform => "platform",
            Self::Us => "us",
        }
    }

    /// The same party, seen from the other agent.
    #[must_use]
    pub const fn seen_by_peer(self) -> Self {
        match self {
            Self::Us => Self::Peer,
            Self::Peer => Self::Us,
            Self::Application | Self::Configuration | Self::Platform => self,
        }
    }
}

/// A party in a table of codes; `none` stands for no fault.
macro_rules! party {
    (none) => {
        None
    };
    ($fault:ident) => {
        Some($crate::Fault::$fault)
    };
}
pub(super) use party;
