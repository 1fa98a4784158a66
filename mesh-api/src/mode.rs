//! How closed a pod is: what it takes from outside the mesh, and what goes without TLS on its own
//! node.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// Whether a pod also takes what does not come through the mesh.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Plaintext from outside the mesh is accepted.
    #[default]
    Permissive,
    /// Only mTLS from the mesh is accepted.
    Strict,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Permissive => "permissive",
            Self::Strict => "strict",
        })
    }
}

/// How connections between two pods of one node go. Of two, the greater is the stricter.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// Through the node's agent once and without TLS. The kernel knows who dials.
    Local,
    /// As between two nodes: mutual TLS.
    #[default]
    Tls,
}

impl fmt::Display for SameNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Tls => "tls",
        })
    }
}

/// The text is none of the values.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("write tls or local")]
pub struct NotSameNode;

impl FromStr for SameNode {
    type Err = NotSameNode;

    fn from_str(text: &str) -> Result<Self, NotSameNode> {
        match text {
            "local" => Ok(Self::Local),
            "tls" => Ok(Self::Tls),
            _ => Err(NotSameNode),
        }
    }
}
