//! `cargo xtask build`: everything, in the order in which it needs each other.
use std::process::{Command as Process, ExitCode};

use anyhow::{Result, bail};

use crate::args::{Args, Command};
use crate::build_ebpf;
use crate::needs::Purpose;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "build",
    about: "Compiles the eBPF programs, then everything that runs on the host.",
    details: "The programs land in target/debug; `cargo xtask bench` makes the ones in target/release.",
    options: &[],
    operands: None,
    run: |_: &Args| {
        let workspace = Workspace::here();
        setup::ensure(&workspace, Purpose::Build)?;
        everything(&workspace, Profile::Dev)?;
        Ok(ExitCode::SUCCESS)
    },
};

/// Which of the workspace's profiles to build with; Cargo.toml says what each is for.
#[derive(Clone, Copy)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// Where its programs are, in the target directory.
    pub(crate) fn directory(self) -> &'static str {
        match self {
            Self::Dev => "debug",
            Self::Release => "release",
        }
    }
}

/// The eBPF programs, then all default members at once. Built one by one, dependencies would get
/// other features and be compiled again.
pub(crate) fn everything(workspace: &Workspace, profile: Profile) -> Result<()> {
    build_ebpf::build(workspace)?;
    let mut cargo = process::cargo(workspace);
    cargo.arg("build");
    if let Profile::Release = profile {
        cargo.arg("--release");
    }
    process::run(&mut cargo)
}

/// The program `name` of package `tests`, as [`everything`] has built it.
pub(crate) fn program(workspace: &Workspace, profile: Profile, name: &str) -> Result<Process> {
    let file = workspace.programs(profile.directory()).join(name);
    if !process::is_executable(&file) {
        bail!("package tests has no program `{name}`: there is no {}", file.display());
    }
    let mut program = Process::new(file);
    program.current_dir(&workspace.root);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Package, version and features of all that is built.
    fn features(workspace: &Workspace, edges: &str) -> BTreeSet<String> {
        let format = ["--prefix", "none", "--format", "{p} {f}", "--offline", "--edges", edges];
        let tree = process::read_showing_errors(process::cargo(workspace).arg("tree").args(format));
        tree.unwrap().lines().map(|line| line.trim_end_matches(" (*)").to_owned()).collect()
    }

    #[test]
    fn programs_and_tests_are_built_with_the_same_features() {
        let workspace = Workspace::here();
        let programs = features(&workspace, "normal,build");
        let tests = features(&workspace, "normal,build,dev");
        // A package that only tests use is compiled once.
        let package =
            |line: &String| line.split(' ').take(2).map(str::to_owned).collect::<Vec<_>>();
        let both: BTreeSet<_> = programs.iter().map(package).collect();
        let other: Vec<_> =
            tests.difference(&programs).filter(|line| both.contains(&package(line))).collect();
        assert!(
            programs.len() > 100 && other.is_empty(),
            "compiled twice, and all above it: {other:?}; tests/Cargo.toml says what to do"
        );
    }
}
