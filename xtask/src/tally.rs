//! What the tests said, summed up over all test programs.

/// How a test says that it cannot run here: a line with this, then its name and the reason. It is
/// written past libtest's capture (`writeln!(std::io::stdout(), …)`), which otherwise shows only
/// what failing tests print.
const SKIP: &str = "skip: ";

/// Numbers of tests, from libtest's lines `test result: …`.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) ignored: u32,
    /// The tests that said they cannot run here, each with its reason; libtest counts them as
    /// passed.
    pub(crate) skipped: Vec<String>,
}

impl Tally {
    /// Takes one line of a test program's output.
    pub(crate) fn line(&mut self, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            self.passed += count(counts, "passed");
            self.failed += count(counts, "failed");
            self.ignored += count(counts, "ignored");
        } else if let Some((before, reason)) = line.split_once(SKIP)
            // With one thread libtest has already begun the line: `test name ... `.
            && (before.is_empty() || before.ends_with("... "))
        {
            self.skipped.push(reason.to_owned());
        }
    }

    /// The line that closes a run; CI reads it.
    pub(crate) fn summary(&self) -> String {
        format!("{} passed, {} failed", self.passed, self.failed)
    }

    /// Tests that were there but did not run.
    pub(crate) fn not_run(&self) -> usize {
        self.skipped.len() + self.ignored as usize
    }
}

/// The number before `what` in `ok. 3 passed; 0 failed; …`.
fn count(counts: &str, what: &str) -> u32 {
    let words: Vec<_> = counts.split([' ', ';', '.']).filter(|word| !word.is_empty()).collect();
    let number =
        words.windows(2).find(|pair| pair[1] == what).and_then(|pair| pair[0].parse().ok());
    number.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(output: &str) -> Tally {
        let mut tally = Tally::default();
        output.lines().for_each(|line| tally.line(line));
        tally
    }

    #[test]
    fn results_of_all_programs_are_added() {
        let tally = tally(
            "running 3 tests\n\
             test args::tests::one ... ok\n\
             test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished in 0.00s\n\
             test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.25s\n",
        );
        assert_eq!(tally, Tally { passed: 13, failed: 2, ignored: 1, skipped: Vec::new() });
        assert_eq!(tally.summary(), "13 passed, 2 failed");
    }

    #[test]
    fn skips_are_counted_whatever_the_number_of_threads() {
        let tally = tally(
            "skip: capture::marker: no tcpdump\n\
             test dial::v6 ... skip: dial::v6: no IPv6 in this kernel\n\
             the word skip: elsewhere is no skip\n\
             test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s\n",
        );
        assert_eq!(
            tally.skipped,
            ["capture::marker: no tcpdump", "dial::v6: no IPv6 in this kernel"]
        );
        assert_eq!(tally.not_run(), 3);
    }

    #[test]
    fn nothing_run_is_nothing_passed() {
        assert_eq!(tally("").summary(), "0 passed, 0 failed");
    }
}
