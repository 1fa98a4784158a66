//! `cargo xtask lint`: format, long lines, clippy for the host, clippy for the kernel.

use anyhow::{Context as _, Result};

use crate::args::{Args, Command};
use crate::build_ebpf;
use crate::columns;
use crate::gates::Gates;
use crate::needs::Purpose;
use crate::process;
use crate::say;
use crate::setup;
use crate::toolchain::Toolchain;
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "lint",
    about: "Checks the format, and lints the host's code and the eBPF programs; any warning is an error.",
    details: "The two are linted apart: mesh-ebpf has a panic handler of its own, which no host build can have.",
    options: &[],
    operands: None,
    run: |_: &Args| {
        let workspace = Workspace::here();
        setup::ensure(&workspace, Purpose::Build)?;
        let mut gates = Gates::of("lint");
        all(&workspace, &mut gates);
        Ok(gates.close())
    },
};

/// Every check of sources that runs nothing of them.
pub(crate) fn all(workspace: &Workspace, gates: &mut Gates) {
    gates.run("format", || format(workspace));
    gates.run("long lines", || columns::check(workspace));
    gates.run("clippy for the host", || host(workspace));
    gates.run("clippy for eBPF", || ebpf(workspace));
}

fn format(workspace: &Workspace) -> Result<()> {
    process::run(process::cargo(workspace).args(["fmt", "--all", "--check"]))
        .context("`cargo fmt --all` puts it right")
}

fn host(workspace: &Workspace) -> Result<()> {
    process::run(process::cargo(workspace).args([
        "clippy",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

fn ebpf(workspace: &Workspace) -> Result<()> {
    if build_ebpf::given_object().is_some() {
        say::progress(
            "lint",
            "not linting mesh-ebpf: with MESH_EBPF_OBJECT there may be no compiler for it",
        );
        return Ok(());
    }
    let toolchain = Toolchain::find(workspace)
        .context("no toolchain for eBPF; `cargo xtask setup` finds one")?;
    process::run(&mut toolchain.clippy(workspace))
}
