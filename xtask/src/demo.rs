//! `cargo xtask demo`: the main job on real traffic. The demo itself is the program `demo` of
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
    name: "demo",
    about: "Sets up, builds, and shows two pods talking mutual TLS on real traffic.",
    details: "\
Two nodes and five pods out of network namespaces, two agents, and real programs in the pods. Needs root.
Exits non-zero if anything that it tells turns out not to be so.",
    options: &[Opt { flag: "--keep", values: &[], about: "leave all running at the end, and say how to stop it" }],
    operands: Some("[-- ARGUMENT...]"),
    run,
};

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    setup::ensure(&workspace, Purpose::Demo)?;
    build::everything(&workspace, Profile::Dev)?;
    let mut demo = build::program(&workspace, Profile::Dev, "demo")?;
    if args.has("--keep") {
        demo.arg("--keep");
    }
    demo.args(&args.operands);
    // In our place, so that its exit code and the terminal's signals are its own.
    Err(demo.exec()).context("the demo cannot be started")
}
