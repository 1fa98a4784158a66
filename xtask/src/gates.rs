//! Gates: checks that run one after the other or beside each other. Each runs to its end, even if
//! others fail.
use std::process::ExitCode;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

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
    /// No gates yet; `command` is the command that runs them, for messages.
    pub(crate) fn of(command: &'static str) -> Self {
        Self { command, done: Vec::new() }
    }

    /// Runs one gate, and says how it went and how long it took. Returns whether it passed.
    pub(crate) fn run(&mut self, name: &'static str, check: impl FnOnce() -> Result<()>) -> bool {
        say::progress(self.command, &format!("{name} ..."));
        self.settle(name, Outcome::of(check))
    }

    /// Begins a gate that runs beside those that come next, until [`Gates::end`].
    pub(crate) fn begin<'scope>(
        &self,
        scope: &'scope Scope<'scope, '_>,
        name: &'static str,
        check: impl FnOnce() -> Result<()> + Send + 'scope,
    ) -> Beside<'scope> {
        say::progress(self.command, &format!("{name} ... (beside what follows)"));
        Beside { name, check: scope.spawn(|| Outcome::of(check)) }
    }

    /// Waits for a gate that was begun. Says the same as [`Gates::run`]; the time is that of the
    /// check itself.
    pub(crate) fn end(&mut self, gate: Beside) -> bool {
        if !gate.check.is_finished() {
            say::progress(self.command, &format!("{} ... (to its end)", gate.name));
        }
        let outcome = gate.check.join().unwrap_or_else(|_| Outcome {
            took: Duration::ZERO,
            result: Err(anyhow!("the check itself broke")),
        });
        self.settle(gate.name, outcome)
    }

    fn settle(&mut self, name: &'static str, outcome: Outcome) -> bool {
        let gate = Gate { name, took: outcome.took, passed: outcome.result.is_ok() };
        match outcome.result {
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

/// A gate that runs beside others.
#[must_use = "its outcome counts only once it has been ended"]
pub(crate) struct Beside<'scope> {
    name: &'static str,
    check: ScopedJoinHandle<'scope, Outcome>,
}

/// What became of a check.
struct Outcome {
    took: Duration,
    result: Result<()>,
}

impl Outcome {
    fn of(check: impl FnOnce() -> Result<()>) -> Self {
        let start = Instant::now();
        let result = check();
        Self { took: start.elapsed(), result }
    }
}

impl Gate {
    fn line(&self) -> String {
        let word = if self.passed { "ok" } else { "FAILED" };
        format!("{:<24} {word:<6} {:7.1} s", self.name, self.took.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn a_gate_beside_others_counts_as_any_other() {
        for (beside, passed) in [(true, true), (false, false)] {
            let mut gates = Gates::of("test");
            thread::scope(|scope| {
                let (asked, told) = std::sync::mpsc::channel();
                let begun = gates.begin(scope, "beside", move || {
                    told.recv()?; // Only the gate that follows lets it end.
                    if beside { Ok(()) } else { Err(anyhow!("as planned")) }
                });
                assert!(gates.run("meanwhile", || Ok(asked.send(())?)));
                assert_eq!(gates.end(begun), passed);
            });
            assert_eq!(gates.done.len(), 2);
            assert_eq!(gates.close() == ExitCode::SUCCESS, passed);
        }
    }

    #[test]
    fn a_check_that_panics_has_not_passed() {
        let mut gates = Gates::of("test");
        thread::scope(|scope| {
            let begun = gates.begin(scope, "broken", || panic!("as planned"));
            assert!(!gates.end(begun));
        });
    }
}
