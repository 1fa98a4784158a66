//! Nodemesh's node agent: takes pods into the mesh, carries their connections over mutual TLS, and
//! can say what happened to each. ARCHITECTURE.md shows the rooms and which may use which.

pub mod admin;
pub mod ca_secret;
pub mod cli;
pub mod client_key;
pub mod daemon;
pub mod enrol;
pub mod flows;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
pub mod handover;
pub mod heartbeat;
pub mod kernel;
pub mod kubelet;
pub mod lock;
pub mod manifest;
pub mod metrics;
pub mod netns;
pub mod notices;
pub mod pod_cgroups;
pub mod preflight;
pub mod proxy;
pub mod source;
pub mod start_taint;
mod sys;
pub mod tasks;
mod watchdog;
