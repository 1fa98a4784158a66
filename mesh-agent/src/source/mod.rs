//! Where the world comes from.
//!
//! A source delivers [`mesh_world::Objects`] and announcements over `tokio::sync::watch`
//! channels, each value complete in itself. A slow reader misses intermediate states and nothing
//! else. `file.rs` and `file_announcer.rs` do this for directories, with one watching mechanism
//! (`directory.rs`), `kubernetes/` for an API server. What either says is written down (`keep.rs`,
//! `kept.rs`) for the node's next agent, which may not be able to read the source (`earlier.rs`).

mod announce;
mod directory;
mod document;
mod earlier;
mod error;
mod file;
mod file_announcer;
#[cfg(test)]
mod file_announcer_tests;
#[cfg(test)]
mod file_tests;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod json;
mod keep;
mod kept;
#[cfg(test)]
mod kept_tests;
mod kinds;
mod kubernetes;
mod last_good;
mod merge;
#[cfg(test)]
mod merge_tests;
mod state;
#[cfg(test)]
mod testing;
mod tree;

pub use announce::{AnnounceError, AnnouncementState, Announcer};
pub use earlier::Earlier;
pub use error::{OpenError, SourceError};
pub use file::FileSource;
pub use file_announcer::{FileAnnouncerTask, announcement_file, file_announcer, withdraw_in_file};
pub(crate) use json::read;
pub use keep::Keep;
pub use kept::{KeptFile, forget_kept};
pub(crate) use kinds::{KINDS, kind_named};
pub(crate) use kubernetes::{AWAY, ApiObject, Repeats, events, of_watch, settled};
pub use kubernetes::{
    CA_NOTICE, CA_NOTICE_KEY, Installation, KubeAnnouncerTask, KubeSource, NodePodsTask, Question,
    api_server, kube_announcer, listed, mesh_node_crd, sentence,
};
pub use state::{Knowledge, SourceState};
