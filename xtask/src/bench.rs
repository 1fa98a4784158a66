//! `cargo xtask bench`: the mesh against no mesh. The benchmark itself is the program `bench` of
//! package `tests`.
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::args::{Args, Command, Opt};
use crate::build::{self, Profile};
use crate::needs::Purpose;
use crate::setup;
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "bench",
    about: "Sets up, builds what users run, and measures it against no mesh.",
    details: "\
Both are measured by turns in one run, since a machine's speed drifts more between runs than a mesh costs.
Needs root. The first build takes some minutes more than `cargo xtask build`: it is the release profile.",
    options: &[Opt { flag: "--quick", values: &[], about: "four figures, in about a minute" }],
    operands: Some("[-- ARGUMENT...]"),
    run,
};

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    setup::ensure(&workspace, Purpose::Demo)?;
    build::everything(&workspace, Profile::Release)?;
    let mut bench = build::program(&workspace, Profile::Release, "bench")?;
    if args.has("--quick") {
        bench.arg("--quick");
    }
    bench.args(&args.operands);
    // In our place, so that its exit code and the terminal's signals are its own.
    Err(bench.exec()).context("the benchmark cannot be started")
}
