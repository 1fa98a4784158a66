//! The record of each connection that reached the agent or was refused, and the queries on the
//! records.
//!
//! A record begins when the connection is accepted and is completed when it ends. The newest
//! finished records are kept in memory; followers get each one as it is finished. A follower that
//! is too slow loses records and is told how many. Alike connections that failed without carrying a
//! byte are folded into one record (`fold.rs`). A record is stored as codes and shared names, and
//! becomes text when it is printed (`record.rs`).

mod ended;
mod fold;
mod kept;
mod record;
mod store;

pub use ended::Ended;
pub use record::{Party, Record, Security};
pub use store::{Flow, FlowFollower, FlowStore, Followed, RefusedConnection};
