//! One test: its own [`Net`], and the whole story on the terminal if it fails.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use anyhow::Result;

use crate::Net;

/// Runs `story` on a [`Net`] of its own. If it fails, what agents and programs have said is printed
/// first.
///
/// # Panics
/// If the story fails or panics, or if something that it made could not be removed.
pub fn scenario(name: &str, story: impl FnOnce(&Net) -> Result<()>) {
    let net = Net::new(name).unwrap_or_else(|e| panic!("{name}: no network to test on: {e:#}"));
    let outcome = catch_unwind(AssertUnwindSafe(|| story(&net)));
    if !matches!(outcome, Ok(Ok(()))) {
        net.print_logs();
    }
    let removed = net.remove();
    match outcome {
        Err(panic) => resume_unwind(panic),
        Ok(Err(e)) => panic!("{name}: {e:#}"),
        Ok(Ok(())) => removed.unwrap_or_else(|e| panic!("{name}: {e:#}")),
    }
}
