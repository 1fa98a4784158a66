//! What a source says.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::error::SourceError;
use crate::world::{Objects, Origin};

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
