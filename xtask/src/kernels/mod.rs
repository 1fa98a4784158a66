//! `cargo xtask test --kernels`: the agent and its tests inside other kernels, in QEMU without KVM.
mod cpio;
mod debian;
mod guest;
mod image;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::build_ebpf;
use crate::gates::Gates;
use crate::needs::Purpose;
use crate::say;
use crate::setup;
use crate::tally::Tally;
use crate::test_programs::{self, TestProgram};
use crate::workspace::Workspace;

use guest::Guest;
use image::Image;

/// A kernel to test on.
struct Row {
    /// What the command line calls it.
    version: &'static str,
    /// What the closing lines call it.
    title: &'static str,
    /// The suite of Debian that has it.
    suite: &'static str,
    /// The mesh does not run there, and has to say so.
    too_old: bool,
    /// It needs cmpxchg16b: without it, 7.1 and newer have no memory for a socket's storage
    /// (`kmalloc_nolock` in mm/slub.c), and the mesh refuses what it would redirect.
    cx16: bool,
}

const KERNELS: [Row; 4] = [
    // The floor is 5.15, which Debian never had; the version just below it must be refused with a
    // sentence.
    Row { version: "5.10", title: "Linux 5.10", suite: "bullseye", too_old: true, cx16: false },
    Row { version: "6.1", title: "Linux 6.1", suite: "bookworm", too_old: false, cx16: false },
    Row {
        version: "6.12",
        title: "Linux 6.12",
        suite: "bookworm-backports",
        too_old: false,
        cx16: false,
    },
    Row {
        version: "newest",
        title: "newest Linux",
        suite: "trixie-backports",
        too_old: false,
        cx16: true,
    },
];

/// The tests that run in every kernel if nothing else is asked for: the story, and the verifier
/// with its counts.
const STORY: &str = "tests/tests/kernels.rs";
const VERIFIER: &str = "mesh-agent/tests/programs.rs";

/// All that runs in a kernel on which the mesh does not run: the part of the story's path that says
/// so.
const TOO_OLD: &str = "too_old";

/// How long one kernel may take from power on to power off. It takes 20 s where nothing else runs.
const LIMIT: Duration = Duration::from_mins(4);

/// The same for tests that were asked for by name, which may be all of them.
const LIMIT_BY_NAME: Duration = Duration::from_hours(1);

/// Tests every kernel that `operands` names, or all. Operands that are no versions name tests, as
/// for `cargo test`.
pub(crate) fn test(workspace: &Workspace, operands: &[String]) -> Result<ExitCode> {
    let (versions, names): (Vec<_>, Vec<_>) =
        operands.iter().partition(|word| KERNELS.iter().any(|kernel| kernel.version == **word));
    if let Some(wrong) = names.iter().find(|name| is_version(name)) {
        let known: Vec<_> = KERNELS.iter().map(|kernel| kernel.version).collect();
        bail!("no kernel {wrong}; there are: {}", known.join(", "));
    }
    setup::ensure(workspace, Purpose::Kernels)?;

    let mut gates = Gates::of("test");
    let mut tally = Tally::default();
    let mut tests = Vec::new();
    let built = gates.run("build for eBPF", || build_ebpf::build(workspace))
        && gates.run("build for the host", || {
            tests = test_programs::build(workspace, None)?;
            Ok(())
        });
    let mut image = None;
    let packed = built
        && gates.run("programs for the guest", || {
            image = Some(Image::of(workspace, &chosen(&tests, &names))?);
            Ok(())
        });
    if let (true, Some(image)) = (packed, &image) {
        // Tests that were asked for by name cannot pass where the mesh does not run.
        let by_default = |row: &Row| versions.is_empty() && (names.is_empty() || !row.too_old);
        let by_name = |row: &Row| versions.iter().any(|version| **version == row.version);
        for row in KERNELS.iter().filter(|row| by_default(row) || by_name(row)) {
            gates.run(row.title, || check(workspace, row, image, &names, &mut tally));
        }
    }
    let code = gates.close();
    say::out(&tally.summary());
    Ok(code)
}

/// Whether a word is meant to be a kernel.
fn is_version(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit())
}

/// Boots a kernel, runs the tests, and counts them.
fn check(
    workspace: &Workspace,
    row: &Row,
    image: &Image,
    names: &[&String],
    tally: &mut Tally,
) -> Result<()> {
    let failed = tally.failed;
    let outcome = boot(workspace, row, image, names, tally);
    if outcome.is_err() && tally.failed == failed {
        // A run that did not come to its end has passed nothing.
        tally.failed += 1;
    }
    outcome
}

fn boot(
    workspace: &Workspace,
    row: &Row,
    image: &Image,
    names: &[&String],
    tally: &mut Tally,
) -> Result<()> {
    let kernel = debian::kernel(&workspace.kernels().join(row.version), row.suite)?;
    let names: Vec<_> = names.iter().map(|name| name.as_str()).collect();
    let filters = if row.too_old { TOO_OLD.to_owned() } else { names.join(" ") };
    let limit = if names.is_empty() { LIMIT } else { LIMIT_BY_NAME };
    let guest = Guest { kernel: &kernel, image, filters: &filters, cx16: row.cx16, limit };
    guest::run(&guest, tally)
}

/// The test programs to take along: for tests by name all, since any may have them.
fn chosen<'a>(tests: &'a [TestProgram], names: &[&String]) -> Vec<&'a TestProgram> {
    let is_wanted =
        |test: &&TestProgram| !names.is_empty() || [STORY, VERIFIER].contains(&&*test.source);
    tests.iter().filter(|test| test.is_whole_system).filter(is_wanted).collect()
}
