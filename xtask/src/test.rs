//! `cargo xtask test`: every gate that a change must pass, or the tests of some names.
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};

use crate::args::{Args, Command, Opt};
use crate::build_ebpf;
use crate::cargo_tools;
use crate::cluster;
use crate::fuzz;
use crate::gates::Gates;
use crate::kernels;
use crate::lint::{self, Warnings};
use crate::needs::Purpose;
use crate::process;
use crate::runner::{self, Chosen, Which};
use crate::say;
use crate::setup;
use crate::tally::Tally;
use crate::test_programs;
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "test",
    about: "Sets up, and passes every gate: format, lints, all tests, fuzzing, licences. With names, only those tests.",
    details: "\
NAME is part of a test's path, as for `cargo test`: `cargo xtask test getpeername`. The whole-system tests
need root. One of them that fails is run again, alone. If it passes then, it counts as passed and is listed
as flaky. More than two flaky tests fail the run. The last line is `N passed, N failed`, summed over all test
programs.

With --kernels, tests run inside other kernels, in QEMU: 5.10 (too old, and told so), 6.1, 6.12 and newest,
or those of them that are named: `cargo xtask test --kernels 6.1`. The kernels are Debian's; their
consoles and what the tests said are kept in target/kernels. With NAMEs too, those whole-system tests:
`cargo xtask test --kernels 6.1 newest strict`.

Environment:
  MESH_EBPF_OBJECT=FILE    test with this eBPF object; mesh-ebpf is neither compiled nor linted
  RUST_TEST_THREADS=N      how many whole-system tests run at once (4)",
    options: &[
        Opt { flag: "--no-lint", values: &[], about: "only build and run the tests" },
        Opt { flag: "--long", values: &[], about: "the long form of tests: all schedules of the races, more connections" },
        Opt { flag: "--kernels", values: &[], about: "test on other kernels instead" },
    ],
    operands: Some("[VERSION...] [NAME...]"),
    run,
};

/// How many whole-system tests run at once, while two of them have a Kubernetes and wait for it
/// most of the time; without those, two run (`runner.rs`). Four keep two processors busy (98 %),
/// and none failed for want of time.
const AT_ONCE: usize = 4;

/// How many tests may be skipped or ignored before the run counts as failed. CI has all that tests
/// need, so more means that something is not tested any more.
const MAX_NOT_RUN: usize = 3;

/// How many tests a whole run has at least. There were 735 when this was written. It is below
/// that by less than a test program or a module has that could get lost unseen: one that is not
/// built any more, that no file names, or that the runner passes over. Raise it as tests come.
const LEAST_RUN: u32 = 740;

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let names = &args.operands;
    if args.has("--kernels") {
        return kernels::test(&workspace, names);
    }
    let at_once = std::env::var(runner::THREADS).ok().map(|number| number.parse());
    let at_once = at_once.transpose().context("RUST_TEST_THREADS is no number")?;
    let at_once: usize = at_once.unwrap_or(AT_ONCE).max(1);
    let everything = names.is_empty();
    let lint = everything && !args.has("--no-lint");
    let purpose = match (lint, everything) {
        (true, _) => Purpose::Test,
        (false, true) => Purpose::Cluster,
        (false, false) => Purpose::Demo,
    };

    let mut gates = Gates::of("test");
    let mut tally = Tally::default();
    let not_wanted = AtomicBool::new(false);
    thread::scope(|scope| {
        // It takes what setup, which mostly fetches and unpacks, and compilers of crates leave of
        // the processors.
        let cluster = everything.then(|| {
            let build = || cluster::build(&workspace, &not_wanted);
            gates.begin(scope, "build for the cluster", build)
        });
        if let Err(why) = setup::ensure(&workspace, purpose) {
            not_wanted.store(true, Ordering::Relaxed);
            return Err(why);
        }
        // An image's list and the licences' check read every crate of the lock file, also of those
        // that are not built here, and some tests have no network.
        gates.run("crates of the lock file", || {
            process::run(process::cargo(&workspace).args(["fetch", "--quiet"]))
        });
        if lint {
            lint::apart_from_the_host(&workspace, &mut gates);
            gates.run("licences and sources", || deny(&workspace));
        }
        // Tests of an agent that does not match the sources would prove nothing.
        let mut warnings = lint.then(Warnings::default);
        let mut programs = Vec::new();
        let built = gates.run("build for eBPF", || build_ebpf::build(&workspace))
            && gates.run("build for the host", || {
                programs = test_programs::build(&workspace, warnings.as_mut())?;
                Ok(())
            });
        if let Some(warnings) = &warnings {
            gates.run(lint::HOST, || {
                warnings.none()?;
                ensure!(built, "not all was compiled, so not all was read");
                Ok(())
            });
        }
        let can_fuzz =
            built && lint && gates.run("build for fuzzing", || fuzz::build(Workspace::here()));
        if !cluster.is_none_or(|cluster| gates.end(cluster)) || !built {
            return Ok(());
        }
        let chosen = Chosen { names, at_once, long: args.has("--long"), linted: lint };
        let (programs, mut flaky) = (&programs, Vec::new());
        gates.run("unit tests", || runner::unit_tests(&workspace, programs, &chosen, &mut tally));
        // It takes what those tests leave of the processors that wait.
        let fuzz = can_fuzz.then(|| gates.begin(scope, "fuzz", || fuzz::gate(Workspace::here())));
        let mut whole_system = |gates: &mut Gates, name, which| {
            gates.run(name, || {
                let told = (&mut tally, &mut flaky);
                runner::whole_system_tests(&workspace, programs, &chosen, which, told)
            })
        };
        whole_system(&mut gates, "whole-system tests", Which::Ordinary);
        if let Some(fuzz) = fuzz {
            gates.end(fuzz);
        }
        whole_system(&mut gates, "tests that measure", Which::Measuring);
        gates.run("few flaky tests", || runner::judge(&chosen, &tally, &flaky));
        if everything {
            gates.run("few tests skipped", || few_skipped(&tally));
            gates.run("all tests there", || enough_run(&tally));
        }
        Ok(())
    })?;
    let code = gates.close();
    say::out(&tally.summary());
    Ok(code)
}

/// Banned crates, licences and sources, by deny.toml.
fn deny(workspace: &Workspace) -> Result<()> {
    let mut deny = std::process::Command::new(cargo_tools::cargo_deny().program());
    deny.current_dir(&workspace.root);
    deny.args(["--offline", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    process::run(&mut deny)
}

/// What libtest prints for a program without a test of that name. There are a dozen of them.
pub(crate) fn is_about_nothing(line: &str) -> bool {
    let nothing = ["running 0 tests", "test result: ok. 0 passed; 0 failed; 0 ignored;"];
    line.is_empty() || nothing.iter().any(|start| line.starts_with(start))
}

fn few_skipped(tally: &Tally) -> Result<()> {
    if tally.not_run() > MAX_NOT_RUN {
        bail!(
            "{} tests were skipped or ignored, {MAX_NOT_RUN} may be: {}",
            tally.not_run(),
            tally.skipped.join("; ")
        );
    }
    Ok(())
}

/// This is for whole runs: with names, fewer tests are chosen.
fn enough_run(tally: &Tally) -> Result<()> {
    let run = tally.passed + tally.failed;
    if run < LEAST_RUN {
        bail!("{run} tests ran, {LEAST_RUN} must at least: find those that are missing");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_with_too_few_tests_fails() {
        let of = |passed, failed| Tally { passed, failed, ..Tally::default() };
        assert!(enough_run(&of(LEAST_RUN - 1, 0)).is_err());
        assert!(enough_run(&of(LEAST_RUN - 1, 1)).is_ok());
        assert!(enough_run(&of(0, 0)).is_err());
    }
}
