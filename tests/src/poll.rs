//! Waiting for a state, with a deadline that says what was missing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How often a state is asked for again. Short: most states are there at the second question.
const PAUSE: Duration = Duration::from_millis(10);

/// Calls `state` until it is `Ok`, and returns that. At the deadline the last error is the
/// failure's cause.
pub fn eventually<T>(deadline: Duration, mut state: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match state() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= deadline => {
                return Err(last).with_context(|| format!("still so after {deadline:?}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// Waits until `is` says so; `what` is what is missing if it never does.
pub fn wait_until(deadline: Duration, what: &str, is: impl Fn() -> bool) -> Result<()> {
    eventually(deadline, || {
        ensure!(is(), "not so: {what}");
        Ok(())
    })
}
