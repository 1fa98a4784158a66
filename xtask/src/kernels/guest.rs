//! A virtual machine that boots a kernel, runs the tests and powers off. Its output decides whether
//! they passed.
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

/// The machine. It does without KVM, which not every host has, and which hangs on some.
const MACHINE: &str =
    "-accel tcg,thread=multi -smp 2 -m 2048 -nodefaults -no-user-config -display none -no-reboot";

/// The machine's processor. `la57=off` saves a level of page tables.
const CPU: &str = "max,la57=off";

/// The same processor without the instruction cmpxchg16b. After it, QEMU 7.2 leaves garbage in the
/// flags, at worst the bit of virtual 8086 mode: Linux 6.12 was seen to double-fault in
/// `kmem_cache_alloc`. A kernel does without the instruction if the processor lacks it.
const CPU_WITHOUT_CX16: &str = "max,la57=off,cx16=off";

/// The kernel's command line. Warnings go to the first serial line, and a panic ends the machine at
/// once.
const APPEND: &str = "console=ttyS0 loglevel=5 panic=-1 random.trust_cpu=on";

/// The prefix of the lines that init.sh prints itself.
const GUEST: &str = "guest: ";

/// How many of the console's last lines are shown when a machine fails.
const TAIL_LINES: usize = 30;

/// A kernel to boot, and the tests to run on it.
pub(super) struct Guest<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) image: &'a Image,
    /// Parts of tests' paths, with spaces between; none for all tests.
    pub(super) filters: &'a str,
    /// Whether its processor has cmpxchg16b.
    pub(super) cx16: bool,
    /// The machine is ended after this time.
    pub(super) limit: Duration,
}

/// Boots the guest and counts its tests.
///
/// # Errors
/// A test failed, no test ran, or the machine did not power off by itself within its limit. The
/// error shows the console's last lines.
pub(super) fn run(guest: &Guest<'_>, tally: &mut Tally) -> Result<()> {
    let directory = &guest.kernel.directory;
    let (initrd, console) = (directory.join("initrd"), directory.join("console.log"));
    guest.image.write(guest.kernel, guest.filters, &initrd)?;
    // Emptied first: if the machine writes nothing, an earlier run's console must not be shown.
    File::create(&console)?;
    let outcome = boot(guest, &initrd, &console, tally);
    fs::remove_file(&initrd)?;
    outcome.with_context(|| format!("{}\nthe whole console: {}", tail(&console), console.display()))
}

fn boot(guest: &Guest<'_>, initrd: &Path, console: &Path, tally: &mut Tally) -> Result<()> {
    // coreutils' `timeout` ends the machine in time even if this process is killed.
    let mut machine = Command::new("timeout");
    machine.args(["--foreground", "--kill-after=5", &guest.limit.as_secs().to_string()]);
    machine.arg("qemu-system-x86_64").args(MACHINE.split(' '));
    machine.args(["-cpu", if guest.cx16 { CPU } else { CPU_WITHOUT_CX16 }, "-append", APPEND]);
    machine.arg("-kernel").arg(guest.kernel.image()).arg("-initrd").arg(initrd);
    machine.arg("-serial").arg(format!("file:{}", console.display()));
    machine.args(["-serial", "stdio"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut machine = machine.spawn().context("cannot start qemu-system-x86_64")?;
    let output = machine.stdout.take().context("the machine has no output")?;
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
    let status = machine.wait().context("cannot wait for the machine")?;
    if status.code() == Some(124) {
        bail!("it was still running after {} s, and was ended", guest.limit.as_secs());
    }
    ensure!(status.success(), "QEMU ended with {status}");
    story.judge(&guest.image.tests)
}

/// What the guest has reported about itself.
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
            "the machine ended too early; only these programs had ended: {ended:?}"
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
    format!("the end of the kernel's console:\n{}", tail.join("\n"))
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
            (format!("{PASSED}\n{both}"), "too early"),
            (format!("{PASSED}\nguest: kernels-1 ended with 0\n{done}"), "too early"),
            (
                format!("{PASSED}\nguest: kernels-1 ended with 101\n{done}"),
                "kernels-1 ended with 101",
            ),
            (format!("{both}{done}"), "no test ran"),
            (String::new(), "too early"),
        ] {
            let error = judged(&output).unwrap_err().to_string();
            assert!(error.contains(why), "{output:?}: {error}");
        }
    }
}
