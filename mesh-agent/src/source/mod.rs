//! Where the world comes from.
//!
//! A source delivers [`crate::world::Objects`] and announcements over `tokio::sync::watch`
//! channels, each value complete in itself; a reader that is slow misses intermediate states and
//! nothing else. `file.rs` and `announce.rs` do this for directories, with one watching mechanism
//! (`directory.rs`); Kubernetes will do it through the same types and the [`Announcer`] interface.

mod announce;
mod directory;
mod document;
mod error;
mod file;
mod file_announcer;
#[cfg(test)]
mod file_announcer_tests;
#[cfg(test)]
mod file_tests;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod last_good;
mod merge;
#[cfg(test)]
mod merge_tests;
#[cfg(test)]
mod testing;
mod tree;

pub use announce::{AnnounceError, AnnouncementState, Announcer, BoxFuture};
pub use error::{OpenError, SourceError};
pub use file::{FileSource, SourceState};
pub use file_announcer::{FileAnnouncer, FileAnnouncerTask};
