//! The fuzz targets of this crate: all code here that reads bytes which others have written.
#![allow(clippy::panic, reason = "a target reports a defect by panicking")]

mod admin;

use fuzz_input::Target;

use crate::{kernel, source};

/// Every target.
pub const TARGETS: &[Target] = &[
    ("admin", admin::admin),
    ("announcements", source::fuzz::announcements),
    ("events", kernel::fuzz::events),
    ("names", source::fuzz::names),
    ("objects", source::fuzz::objects),
];

#[cfg(test)]
mod tests {
    #[test]
    fn every_committed_input_passes() {
        fuzz_input::replay(super::TARGETS);
    }
}
