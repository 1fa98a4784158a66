//! Checks that run one after the other, each to its end, whatever became of the others.
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::say;

/// The gates that were run, in order.
pub(crate) struct Gates {
    command: &'static str,
    done: Vec<Gate>,
}

struct Gate {
    name: &'static str,
    took: Duration,
    passed: bool,
}

impl Gates {
    /// No gates yet; `command` is who runs them, for messages.
    pub(crate) fn of(command: &'static str) -> Self {
        Self { command, done: Vec::new() }
    }

    /// Runs one gate, and says how it went and how long it took; whether it passed.
    pub(crate) fn run(&mut self, name: &'static str, check: impl FnOnce() -> Result<()>) -> bool {
        say::progress(self.command, &format!("{name} ..."));
        let start = Instant::now();
        let outcome = check();
        let gate = Gate { name, took: start.elapsed(), passed: outcome.is_ok() };
        match outcome {
            Ok(()) => say::progress(self.command, &gate.line()),
            Err(why) => say::progress(self.command, &format!("{}: {why:#}", gate.line())),
        }
        let passed = gate.passed;
        self.done.push(gate);
        passed
    }

    /// All gates again, one line each, and the exit code that they make together.
    pub(crate) fn close(self) -> ExitCode {
        for gate in &self.done {
            say::progress(self.command, &gate.line());
        }
        if self.done.iter().all(|gate| gate.passed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

impl Gate {
    fn line(&self) -> String {
        let word = if self.passed { "ok" } else { "FAILED" };
        format!("{:<24} {word:<6} {:7.1} s", self.name, self.took.as_secs_f64())
    }
}
