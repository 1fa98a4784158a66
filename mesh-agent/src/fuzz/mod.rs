//! Everything that is fuzzed: all code that reads bytes which others have written.
//!
//! A target is a function that panics when its input shows a defect. So each checks more than "does
//! not crash": a second, naive reading of the specification, a round trip, or a bound. Package
//! `fuzz` runs them under libFuzzer (`cargo xtask fuzz`); the test below replays the committed
//! inputs. Targets stand in the rooms that they test.
#![allow(clippy::panic, reason = "a target tells a defect by panicking")]

mod admin;
mod input;

pub(crate) use input::Input;

use crate::{kernel, source, wire};

/// A target: a name, which is also the name of its directory of inputs, and the function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("admin", admin::admin),
    ("announcements", source::fuzz::announcements),
    ("events", kernel::fuzz::events),
    ("frames", wire::fuzz::frames),
    ("handshake", wire::fuzz::handshake),
    ("hello", wire::fuzz::hello),
    ("names", source::fuzz::names),
    ("objects", source::fuzz::objects),
    ("records", wire::fuzz::records),
];

/// The target of that name.
pub fn target(name: &str) -> Option<Target> {
    TARGETS.iter().find(|(known, _)| *known == name).copied()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn corpus() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus")
    }

    #[test]
    fn every_committed_input_passes() {
        for (name, target) in TARGETS {
            let inputs: Vec<_> = fs::read_dir(corpus().join(name)).unwrap().collect();
            assert!(!inputs.is_empty(), "{name} has no inputs");
            for input in inputs {
                let path = input.unwrap().path();
                let bytes = fs::read(&path).unwrap();
                let outcome = std::panic::catch_unwind(|| target(&bytes));
                assert!(outcome.is_ok(), "{} breaks target {name}", path.display());
            }
        }
    }

    #[test]
    fn every_directory_of_inputs_has_its_target() {
        let directories: BTreeSet<_> = fs::read_dir(corpus())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(directories, targets);
    }
}
