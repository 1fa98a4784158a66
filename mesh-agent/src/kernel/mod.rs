//! Loads, pins and attaches the programs; holds the maps as typed tables.
//!
//! Everything is pinned below `<pin-dir>/v<ABI>/` and outlives the agent: `maps/NAME`,
//! `links/PROGRAM` (on the cgroup of the pods), `pods/COOKIE` (the `sk_lookup` link of one network
//! namespace) and `held/CGROUP-PROGRAM`. A new agent finds the pins, swaps the programs behind the
//! links without a gap, and goes on with the maps as they are.
//!
//! What was pinned under another version, or with maps of another shape, is replaced. New maps are
//! filled; then the very links that run get the new programs and move to the new directory. So no
//! program ever runs twice, and none is missing.

mod cidrs;
mod events;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
mod guard;
mod kubelet;
mod layout;
mod log;
mod lookup;
mod pins;
mod programs;
mod questions;
mod reached;
mod shares;
mod tables;

pub use cidrs::CidrTable;
pub use events::{Refusal, Refusals};
pub use kubelet::KubeletDials;
pub use log::ProgramLog;
pub use pins::{Removed, cleanup, free_from_hold};
pub use programs::{Kernel, KernelError, ProgramFacts, Told};
pub use questions::{Packet, Question, Questions};
pub use reached::ReachedTable;
pub use shares::{Dials, Shares};
pub use tables::{Before, ListenerTable, Table, Tables};
