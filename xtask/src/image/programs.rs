//! Programs in an image: stripped if they are ours, and with what they need to run and to be passed
//! on.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::libraries;
use super::packages;
use super::tree::{self, Tree};
use crate::process;

/// A program of the host, and where it will lie in an image.
pub(super) struct Program<'a> {
    from: &'a Path,
    to: &'static str,
    ours: bool,
}

impl<'a> Program<'a> {
    /// One that Cargo has built.
    pub(super) fn ours(from: &'a Path, to: &'static str) -> Self {
        Self { from, to, ours: true }
    }

    /// One that a package has.
    pub(super) fn of_a_package(from: &'a Path, to: &'static str) -> Self {
        Self { from, to, ours: false }
    }
}

/// Adds programs, their libraries, and the licences of the packages that those are from.
pub(super) fn add(tree: &mut Tree, programs: &[Program<'_>]) -> Result<()> {
    for program in programs {
        let from = program.from;
        ensure!(process::is_executable(from), "there is no program {}", from.display());
        let content = if program.ours { stripped(from)? } else { tree::read(from)? };
        tree.program(Path::new(program.to), content);
    }
    let files: Vec<_> = programs.iter().map(|program| program.from).collect();
    let libraries = libraries::of(&files)?;
    for file in &libraries {
        tree.program(file, tree::read(file)?);
    }
    let packaged = programs.iter().filter(|program| !program.ours).map(|program| program.from);
    packages::add(tree, packaged.chain(libraries.iter().map(PathBuf::as_path)))
}

/// A program without symbols and debug information, which are most of it.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    // Beside it, and with our number: another xtask may be doing the same.
    let copy = program.with_extension(format!("stripped-{}", std::process::id()));
    let mut strip = Command::new("strip");
    process::run_quietly(strip.arg("-o").arg(&copy).arg(program))
        .context("strip is in binutils, which every C compiler needs")?;
    let content = tree::read(&copy);
    fs::remove_file(&copy).with_context(|| format!("cannot remove {}", copy.display()))?;
    content
}
