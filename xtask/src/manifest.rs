//! `cargo xtask manifest`: daemonset.yaml, as mesh-agent prints it.
use std::fs;
use std::process::{Command as Process, ExitCode};

use anyhow::{Context as _, Result};

use crate::args::{Args, Command};
use crate::build::{self, Profile};
use crate::needs::Purpose;
use crate::process;
use crate::say;
use crate::setup;
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "manifest",
    about: "Writes daemonset.yaml, which `kubectl apply -f` installs, out of mesh-agent/src/manifest.",
    details: "A test fails when the file is not what this writes. For other values: `mesh-agent manifest --help`.",
    options: &[],
    operands: None,
    run: |_: &Args| {
        let workspace = Workspace::here();
        setup::ensure(&workspace, Purpose::Build)?;
        build::everything(&workspace, Profile::Dev)?;
        write(&workspace)?;
        Ok(ExitCode::SUCCESS)
    },
};

fn write(workspace: &Workspace) -> Result<()> {
    let agent = workspace.programs(Profile::Dev.directory()).join("mesh-agent");
    let yaml = process::read_showing_errors(Process::new(agent).arg("manifest"))?;
    let file = workspace.root.join("daemonset.yaml");
    fs::write(&file, yaml).with_context(|| format!("cannot write {}", file.display()))?;
    say::progress("manifest", &format!("wrote {}", file.display()));
    Ok(())
}
