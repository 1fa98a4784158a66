//! What a source says.

use std::sync::Arc;

use super::error::SourceError;
use crate::world::Objects;

/// All that is known of the world's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What is wrong with some of them, by file or object; what they said before stays in force.
    pub errors: Vec<SourceError>,
    /// Whether what is not among the objects is not there: nothing is wrong, and all has been read.
    pub complete: bool,
    /// Rises by one with every state that differs from the one before; the first is 1.
    pub revision: u64,
}
