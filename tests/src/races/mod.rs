//! The three races, under seeded schedules. Pods join and leave, agents are killed and come back,
//! and every node learns it after a delay of its own. Meanwhile applications of both kinds dial
//! each other all the time.
//!
//! A *lane* ([`stage`]) is a network with two nodes and some pods that plays one schedule
//! ([`schedule`]) after another. A courier ([`courier`]) carries the news, and a watch ([`watch`])
//! listens on every link of both nodes. Several lanes run at once, since most of the time is
//! waiting.

mod courier;
mod lanes;
mod schedule;
mod stage;
mod watch;

pub use lanes::{Plan, run};
