//! `cargo xtask lint`: format, long lines, clippy for the host, clippy for the kernel.
use std::ffi::OsString;
use std::process::Command as Process;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

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
        apart_from_the_host(&workspace, &mut gates);
        gates.run(HOST, || host(&workspace));
        Ok(gates.close())
    },
};

/// The gate's name, whichever way clippy runs.
pub(crate) const HOST: &str = "clippy for the host";

/// Every check of sources that compiles nothing for the host.
pub(crate) fn apart_from_the_host(workspace: &Workspace, gates: &mut Gates) {
    gates.run("format", || format(workspace));
    gates.run("long lines", || columns::check(workspace));
    gates.run("clippy for eBPF", || ebpf(workspace));
}

/// Lets clippy read the workspace's crates while this cargo compiles them. Such crates are compiled
/// apart from those of other builds: all of a run's cargos have to be told.
pub(crate) fn wrap_compiler(cargo: &mut Process, workspace: &Workspace) {
    let (name, value) = wrapper(workspace);
    cargo.env(name, value);
}

/// The same as a variable of the environment.
pub(crate) fn wrapper(workspace: &Workspace) -> (&'static str, OsString) {
    ("RUSTC_WORKSPACE_WRAPPER", workspace.root.join("xtask/rustc").into())
}

/// What the compiler and clippy complained about in one build.
#[derive(Default)]
pub(crate) struct Warnings {
    /// As they were shown.
    shown: Vec<String>,
    /// File, line, and lint.
    places: Vec<String>,
}

impl Warnings {
    /// Shows what one of cargo's messages says of a source, and keeps its place. A library that is
    /// also compiled for its tests says everything twice.
    pub(crate) fn hear(&mut self, message: &Value) {
        let diagnostic = &message["message"];
        let Some(rendered) = diagnostic["rendered"].as_str() else { return };
        let spans = diagnostic["spans"].as_array().map_or(&[][..], Vec::as_slice);
        let lint = diagnostic["code"]["code"].as_str();
        // "3 warnings emitted" has neither.
        if (spans.is_empty() && lint.is_none()) || self.shown.iter().any(|it| it == rendered) {
            return;
        }
        say::diagnostic(rendered);
        self.shown.push(rendered.to_owned());
        let place = spans.iter().find(|span| span["is_primary"] == true).map_or_else(
            || "no place".to_owned(),
            |span| format!("{}:{}", span["file_name"].as_str().unwrap_or("?"), span["line_start"]),
        );
        self.places.push(format!("{place} {}", lint.unwrap_or("no lint")));
    }

    /// Adds complaints that name their places.
    pub(crate) fn extend(&mut self, complaints: impl IntoIterator<Item = String>) {
        self.places.extend(complaints);
    }

    /// Whether there was nothing to complain about; says where.
    ///
    /// # Errors
    /// There was.
    pub(crate) fn none(&self) -> Result<()> {
        match self.places.len() {
            0 => Ok(()),
            count => bail!("{count} found, shown above:\n  {}", self.places.join("\n  ")),
        }
    }
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
    let toolchain =
        Toolchain::find().context("no toolchain for eBPF; `cargo xtask setup` finds one")?;
    process::run(&mut toolchain.clippy(workspace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_counts_once_and_names_its_place() {
        let mut warnings = Warnings::default();
        assert!(warnings.none().is_ok());
        let warning = serde_json::json!({"message": {
            "rendered": "", "level": "warning", "code": {"code": "clippy::redundant_else"},
            "spans": [{"is_primary": false, "file_name": "b.rs", "line_start": 1},
                {"is_primary": true, "file_name": "mesh-wire/src/frame.rs", "line_start": 7}],
        }});
        let summary = serde_json::json!({"message": {
            "rendered": "", "level": "warning", "code": null, "spans": [],
        }});
        for message in [&warning, &summary, &warning, &serde_json::json!({"reason": "x"})] {
            warnings.hear(message);
        }
        assert_eq!(warnings.places, ["mesh-wire/src/frame.rs:7 clippy::redundant_else"]);
        assert!(warnings.none().is_err());
    }
}
