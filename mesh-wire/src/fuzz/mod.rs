//! Fuzz targets: what the other side of a connection may send.
#![allow(clippy::panic, reason = "a target tells a defect by panicking")]

mod agents;
mod frames;
mod handshake;
mod hello;
mod model;
mod records;

use fuzz_input::Target;

/// Every target.
pub const TARGETS: &[Target] = &[
    ("frames", frames::frames),
    ("handshake", handshake::handshake),
    ("hello", hello::hello),
    ("records", records::records),
];

#[cfg(test)]
mod tests {
    #[test]
    fn every_committed_input_passes() {
        fuzz_input::replay(super::TARGETS);
    }
}
