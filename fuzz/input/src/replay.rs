//! Replays the committed inputs, as a test of the crate that has the targets.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;

use crate::Target;

/// Runs every committed input of these targets.
///
/// # Panics
/// A target breaks on one of its inputs, or has none.
pub fn replay(targets: &[Target]) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../corpus");
    for (name, target) in targets {
        let inputs: Vec<_> = fs::read_dir(corpus.join(name)).into_iter().flatten().collect();
        assert!(!inputs.is_empty(), "{name} has no inputs");
        for input in inputs {
            let path = input.unwrap().path();
            let bytes = fs::read(&path).unwrap();
            let outcome = catch_unwind(|| target(&bytes));
            assert!(outcome.is_ok(), "{} breaks target {name}", path.display());
        }
    }
}
