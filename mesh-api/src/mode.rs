//! Permissive or strict.

use std::fmt;

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
