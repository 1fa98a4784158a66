//! Targets: what the other side of a connection may send.
#![allow(clippy::panic, reason = "a target tells a defect by panicking")]

mod agents;
mod frames;
mod handshake;
mod hello;
mod model;
mod records;

pub(crate) use frames::frames;
pub(crate) use handshake::handshake;
pub(crate) use hello::hello;
pub(crate) use records::records;
