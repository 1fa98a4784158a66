//! How busy this machine's processors are. The figure says how many tests to run at once: tests
//! that wait can share a processor, tests that compute cannot.
use std::fs;

use anyhow::{Context as _, Result};

/// Processor time since the machine started, in the kernel's ticks.
#[derive(Clone, Copy)]
pub(crate) struct Used {
    busy: u64,
    all: u64,
}

/// The time used since the machine started.
///
/// # Errors
/// /proc/stat cannot be read.
pub(crate) fn used() -> Result<Used> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    parse(&stat).context("/proc/stat does not begin with the sum of all processors")
}

/// The first line of `proc_stat(5)`: user, nice, system, idle, iowait, irq, softirq, steal, guest
/// and `guest_nice`. The last two are left out: user and nice contain them.
fn parse(stat: &str) -> Option<Used> {
    let sum = stat.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = sum.split_whitespace().take(8).map_while(|it| it.parse().ok()).collect();
    let all = ticks.iter().sum();
    Some(Used { busy: all - ticks.get(3)? - ticks.get(4)?, all })
}

impl Used {
    /// The share of the time since then that was used, in percent.
    pub(crate) fn since(self, then: Self) -> u64 {
        let all = self.all.saturating_sub(then.all).max(1);
        self.busy.saturating_sub(then.busy) * 100 / all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_and_waiting_for_a_disk_are_not_busy() {
        let at = |line: &str| parse(line).unwrap();
        let before = at("cpu  10 0 10 100 20 0 0 0 5 0\ncpu0 1 1 1 1\n");
        let now = at("cpu  20 5 20 150 40 1 1 3 9 0\n");
        assert_eq!(now.since(before), 30);
        assert!(parse("intr 1").is_none());
    }
}
