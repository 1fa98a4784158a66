//! Waiting for a state, with a deadline that says what was missing.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// The first pause between two questions. Most states are there at the second one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);
/// The pause is one part in this many of the time waited so far. It grows because a question often
/// starts a program: tests that only wait would take the processors from those that work.
const LATER_BY: u32 = 8;

/// Calls `state` until it is `Ok`, and returns that. At the deadline the last error is the
/// failure's cause.
pub fn eventually<T>(deadline: Duration, state: impl FnMut() -> Result<T>) -> Result<T> {
    let pause = |waited: Duration| (waited / LATER_BY).clamp(FIRST_PAUSE, LONGEST_PAUSE);
    ask(deadline, pause, state)
}

/// As [`eventually`], with short pauses only: for a state that is asked for without starting a
/// program.
pub fn promptly<T>(deadline: Duration, state: impl FnMut() -> Result<T>) -> Result<T> {
    ask(deadline, |_| FIRST_PAUSE, state)
}

fn ask<T>(
    deadline: Duration,
    pause: impl Fn(Duration) -> Duration,
    mut state: impl FnMut() -> Result<T>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        match state() {
            Ok(value) => return Ok(value),
            Err(last) if start.elapsed() >= deadline => {
                return Err(last).with_context(|| format!("still so after {deadline:?}"));
            }
            Err(_) => std::thread::sleep(pause(start.elapsed())),
        }
    }
}

/// Waits until `is` returns `true`. `what` names the state that was missing if it never does.
pub fn wait_until(deadline: Duration, what: &str, is: impl Fn() -> bool) -> Result<()> {
    promptly(deadline, || {
        ensure!(is(), "not so: {what}");
        Ok(())
    })
}
