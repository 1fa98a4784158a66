//! What a source says.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use mesh_api::{KnowledgeFacts, KnowledgeSource};
use mesh_world::{Objects, Origin};

use super::error::SourceError;

/// All that is known of the world's objects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What is wrong with some of them, by file or object. Their earlier content stays in force.
    pub errors: Vec<SourceError>,
    /// Whether the objects are all there are: nothing is wrong, and everything has been read.
    pub complete: bool,
    /// How old the objects are.
    pub knowledge: Knowledge,
    /// Rises by one with every state that differs from the one before; the first is 1.
    pub revision: u64,
}

/// How old what is known is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Knowledge {
    /// Nothing is known yet.
    #[default]
    Nothing,
    /// An earlier agent of this node wrote it down, and knew it to be true then. The source itself
    /// has not answered yet.
    Kept(Timestamp),
    /// The source has said it, and has not answered since then.
    Since(Timestamp),
    /// It is what the source says.
    Current,
}

impl SourceState {
    /// Tells of an object whether it cannot be read as it is now, so that its earlier content is in
    /// force.
    pub fn is_unreadable(&self) -> impl Fn(&Origin) -> bool + '_ {
        let wrong: HashSet<&str> = self.errors.iter().map(|error| &*error.file).collect();
        move |origin| match origin.file() {
            Some(file) => wrong.contains(&**file),
            None => !wrong.is_empty() && wrong.contains(&*origin.to_string()),
        }
    }
}

impl Knowledge {
    /// The same with its age, to report now.
    pub fn facts(self, now: Timestamp) -> KnowledgeFacts {
        let (from, as_of) = match self {
            Self::Nothing => (KnowledgeSource::Nobody, None),
            Self::Kept(as_of) => (KnowledgeSource::Disk, Some(as_of)),
            Self::Since(as_of) => (KnowledgeSource::Source, Some(as_of)),
            Self::Current => (KnowledgeSource::Source, None),
        };
        let age_s = as_of.map_or(0, |as_of| now.duration_since(as_of).as_secs());
        KnowledgeFacts { from, as_of, age_s: u64::try_from(age_s).unwrap_or(0) }
    }

    /// The worse of two parts.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Nothing, _) | (_, Self::Nothing) => Self::Nothing,
            (Self::Kept(one), Self::Kept(other)) => Self::Kept(one.min(other)),
            (kept @ Self::Kept(_), _) | (_, kept @ Self::Kept(_)) => kept,
            (Self::Since(one), Self::Since(other)) => Self::Since(one.min(other)),
            (since @ Self::Since(_), _) | (_, since @ Self::Since(_)) => since,
            (Self::Current, Self::Current) => Self::Current,
        }
    }

    /// Whether the source itself has said it.
    pub fn is_told(self) -> bool {
        matches!(self, Self::Since(_) | Self::Current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worse_of_two_is_the_older_and_what_was_told_is_better_than_what_was_kept() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let sorted = [
            Knowledge::Nothing,
            Knowledge::Kept(at(1)),
            Knowledge::Kept(at(2)),
            Knowledge::Since(at(1)),
            Knowledge::Since(at(2)),
            Knowledge::Current,
        ];
        for (i, worse) in sorted.iter().enumerate() {
            for better in sorted.iter().skip(i) {
                assert_eq!(worse.worse(*better), *worse);
                assert_eq!(better.worse(*worse), *worse);
            }
        }
    }
}
