//! An agent's own life: start, restart, hand-over, and what it tells of itself.

mod cli;
mod handover;
mod harness;
mod lifecycle;
mod metrics;
mod program_log;
mod regressions;
mod restarts;
mod sessions;
