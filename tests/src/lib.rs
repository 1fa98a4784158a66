//! Whole-system tests: a machine of our own out of network namespaces, real agents, real programs.
//!
//! A test is a [`scenario`]: it gets a [`Net`], gives it nodes and pods, runs programs *inside* the
//! pods ([`exec`]), asks them socket-level questions ([`probe`]), listens on the link between the
//! nodes ([`capture`]), tells the agents about the pods as Kubernetes would ([`objects`]) and
//! drives the agents through their command line ([`agent`]). Everything a test makes carries the
//! test's own tag and is removed when the test ends, however it ends; what a killed test left
//! behind is removed by the next one ([`tag`]).
//!
//! Tests wait for states, never for time: see [`poll`].
#![expect(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "test support: a panic is how it fails, the terminal is where it says why"
)]

pub mod agent;
pub mod attack;
pub mod capture;
pub mod certs;
pub mod cgroup;
pub mod cluster;
pub mod exec;
pub mod flow;
pub mod kernel;
pub mod masquerade;
pub mod memory;
pub mod netns;
pub mod objects;
pub mod pair;
pub mod poll;
pub mod probe;
pub mod programs;
pub mod races;
mod scenario;
pub mod successor;
pub mod tag;
pub mod tell;
pub mod topology;

pub use pair::{MESH_PORT, Neighbours, PORT, Pair, SHOP};
pub use poll::{eventually, promptly, wait_until};
pub use scenario::scenario;
pub use topology::{Net, Node, Pod, PodSpec};

use std::path::PathBuf;

/// Whether tests are to run in their long form: `cargo xtask test --long`.
pub fn is_long() -> bool {
    std::env::var_os("NODEMESH_LONG").is_some()
}

/// Where cargo puts programs: the directory of the running one, without cargo's `deps`.
///
/// # Panics
/// If the running program has no path, which Linux does not do.
pub fn bin_dir() -> PathBuf {
    let mut dir = std::env::current_exe().expect("current_exe");
    dir.pop();
    if dir.ends_with("deps") {
        dir.pop();
    }
    dir
}
