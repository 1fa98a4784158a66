//! Connections of a pod that predate its mesh membership or strict mode.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Mode;

/// A pod's connections that predate its mesh membership or strict mode: the mesh would carry or
/// refuse them if they were made now. Also the form in which `mesh-agent status -o json` prints
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextFacts {
    /// How many.
    pub count: usize,
    /// Some of them, the oldest first.
    pub oldest: Vec<PlaintextConnection>,
}

impl PlaintextFacts {
    /// The sentence about a strict pod with such connections.
    pub fn problem(&self, pod: &str, mode: Option<Mode>) -> Option<String> {
        if self.count == 0 || mode != Some(Mode::Strict) {
            return None;
        }
        let shown = self.oldest.iter().map(|it| format!("{} → {}", it.client, it.server));
        let others = match self.count.saturating_sub(self.oldest.len()) {
            0 => String::new(),
            unnamed => format!(" and {unnamed} more"),
        };
        Some(format!(
            "pod {pod} is strict, and {} of its connections are older than that and go on in plaintext: {}{others}; they end by themselves, or by: mesh-agent reset {pod}",
            self.count,
            shown.collect::<Vec<_>>().join(", ")
        ))
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlaintextConnection {
    /// The address that dialled.
    pub client: SocketAddr,
    /// The address that was dialled.
    pub server: SocketAddr,
    /// When this agent saw it first; the connection is older.
    pub seen: Timestamp,
}

/// What became of a pod's connections. Also the form in which `mesh-agent reset -o json` prints it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetReport {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// Whether nothing was done.
    pub dry_run: bool,
    /// How many there are.
    pub found: usize,
    /// How many were reset, or had ended by themselves meanwhile.
    pub reset: usize,
    /// Up to a thousand of them, up to a thousand more that could not be reset, and what became of
    /// each.
    pub connections: Vec<ResetConnection>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResetConnection {
    /// The connection.
    #[serde(flatten)]
    pub connection: PlaintextConnection,
    /// Why it could not be reset.
    pub error: Option<String>,
}
