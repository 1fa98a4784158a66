//! A virtual machine that boots a kernel, runs the tests and powers off; and what it said, judged.
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::debian::Kernel;
use super::image::Image;
use crate::say;
use crate::tally::Tally;
use crate::test::is_about_nothing;

/// The machine. Without KVM, which would have to be there and hangs on some hosts.
const MACHINE: &str =
    "-accel tcg,thread=multi -smp 2 -m 2048 -nodefaults -no-user-config -display none -no-reboot";

/// Its processor: `la57=off` saves a level of page tables.
const CPU: &str = "max,la57=off";

/// Without the instruction cmpxchg16b. QEMU 7.2 leaves garbage in the flags after it, at worst the
/// bit of virtual 8086 mode: seen as a double fault in 6.12's `kmem_cache_alloc`. Kernels do
/// without it if the processor lacks it.
const CPU_WITHOUT_CX16: &str = "max,la57=off,cx16=off";

/// The kernel's command line: warnings go to the first serial line, and a panic ends the machine at
/// once.
const APPEND: &str = "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on";

/// Stands before what init.sh says itself.
const GUEST: &str = "guest: ";

/// How much of the console is shown of a machine that failed.
const TAIL_LINES: usize = 30;

/// What is to be run.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) image: &'a Image,
    /// Parts of tests' paths, with spaces between; none for all tests.
    pub(super) filters: &'a str,
    /// Whether its processor has cmpxchg16b.
    pub(super) cx16: bool,
    pub(super) limit: Duration,
}

/// Boots the guest and counts its tests; it is ended at its limit.
///
/// # Errors
/// A test failed, none ran, or the machine did not come to its end; then with the console's last
/// lines.
pub(super) fn run(guest: &Guest<'_>, tally: &mut Tally) -> Result<()> {
    let directory = &guest.kernel.directory;
    let (initrd, console) = (directory.join("initrd"), directory.join("console.log"));
    guest.image.write(guest.kernel, guest.filters, &initrd)?;
    // Emptied, so that it is not that of the run before if the machine does not even begin to
    // write.
    File::create(&console)?;
    let outcome = boot(guest, &initrd, &console, tally);
    fs::remove_file(&initrd)?;
    outcome.with_context(|| format!("{}\nall of it: {}", tail(&console), console.display()))
}

fn boot(guest: &Guest<'_>, initrd: &Path, console: &Path, tally: &mut Tally) -> Result<()> {
    // coreutils' timeout, so that the machine ends in time whatever becomes of us.
    let mut machine = Command::new("timeout");
    machine.args(["--foreground", "--kill-after=5", &guest.limit.as_secs().to_string()]);
    machine.arg("qemu-system-x86_64").args(MACHINE.split(' '));
    machine.args(["-cpu", if guest.cx16 { CPU } else { CPU_WITHOUT_CX16 }, "-append", APPEND]);
    machine.arg("-kernel").arg(guest.kernel.image()).arg("-initrd").arg(initrd);
    machine.arg("-serial").arg(format!("file:{}", console.display()));
    machine.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut machine = machine.spawn().context("cannot start qemu-system-x86_64")?;
    let output = machine.stdout.take().context("a machine without an output")?;
    let mut said = File::create(guest.kernel.directory.join("tests.log"))?;
    let mut story = Story::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what the guest prints")?;
        let line = String::from_utf8_lossy(&line);
        writeln!(said, "{line}")?;
        tally.line(&line);
        story.line(&line);
        if !is_about_nothing(&line) {
            say::out(&line);
        }
    }
    let status = machine.wait().context("the machine got lost")?;
    if status.code() == Some(124) {
        bail!("it was still running after {} s, and was ended", guest.limit.as_secs());
    }
    ensure!(status.success(), "QEMU ended with {status}");
    story.judge(&guest.image.tests)
}

/// What the guest has said of itself.
#[derive(Default)]
struct Story {
    /// The programs that have ended, with their exit codes.
    ended: Vec<(String, String)>,
    done: bool,
    tests: Tally,
}

impl Story {
    fn line(&mut self, line: &str) {
        self.tests.line(line);
        if let Some(said) = line.strip_prefix(GUEST) {
            if let Some((name, code)) = said.split_once(" ended with ") {
                self.ended.push((name.to_owned(), code.to_owned()));
            }
            self.done |= said.starts_with("done ");
        }
    }

    fn judge(&self, programs: &[String]) -> Result<()> {
        let bad: Vec<_> = self.ended.iter().filter(|(_, code)| code != "0").collect();
        if let Some((name, code)) = bad.first() {
            bail!("{name} ended with {code}");
        }
        let ended: Vec<_> = self.ended.iter().map(|(name, _)| name).collect();
        ensure!(
            self.done && ended.iter().copied().eq(programs),
            "the machine has ended before its time; only these programs came to their end: {ended:?}"
        );
        ensure!(self.tests.passed > 0, "no test ran");
        Ok(())
    }
}

/// The console's last lines.
fn tail(console: &Path) -> String {
    let text = fs::read(console).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    if lines.is_empty() {
        return "the kernel's console is empty".to_owned();
    }
    let tail = &lines[lines.len().saturating_sub(TAIL_LINES)..];
    format!("the kernel's console ended so:\n{}", tail.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(output: &str) -> Result<()> {
        let mut story = Story::default();
        output.lines().for_each(|line| story.line(line));
        story.judge(&["kernels-1".to_owned(), "programs-2".to_owned()])
    }

    const PASSED: &str =
        "test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";

    #[test]
    fn only_a_guest_that_ran_all_to_their_good_end_has_passed() {
        let both = "guest: kernels-1 ended with 0\nguest: programs-2 ended with 0\n";
        let done = "guest: done after 9.1 s\n";
        judged(&format!("{PASSED}\n{both}{done}")).unwrap();
        for (output, why) in [
            (format!("{PASSED}\n{both}"), "before its time"),
            (format!("{PASSED}\nguest: kernels-1 ended with 0\n{done}"), "before its time"),
            (
                format!("{PASSED}\nguest: kernels-1 ended with 101\n{done}"),
                "kernels-1 ended with 101",
            ),
            (format!("{both}{done}"), "no test ran"),
            (String::new(), "before its time"),
        ] {
            let error = judged(&output).unwrap_err().to_string();
            assert!(error.contains(why), "{output:?}: {error}");
        }
    }
}
