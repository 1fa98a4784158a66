//! `cargo xtask build-ebpf`: the programs that mesh-agent loads, at `target/bpf/mesh-ebpf`.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use crate::args::{Args, Command};
use crate::needs::Purpose;
use crate::process;
use crate::say;
use crate::setup;
use crate::toolchain::{TARGET, Toolchain};
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "build-ebpf",
    about: "Compiles the eBPF programs to target/bpf/mesh-ebpf, which mesh-agent embeds.",
    details: "\
Always optimised: the kernel's verifier refuses what an unoptimised build looks like. The file is
written only when it changes, so that mesh-agent is not built again for nothing.

Environment:
  MESH_EBPF_OBJECT=FILE    use this eBPF object instead; nothing is compiled",
    options: &[],
    operands: None,
    run: |_: &Args| {
        let workspace = Workspace::here();
        setup::ensure(&workspace, Purpose::Build)?;
        build(&workspace)?;
        Ok(ExitCode::SUCCESS)
    },
};

/// Names an eBPF object to use instead of a compiled one. mesh-agent's build script reads the same
/// variable.
pub(crate) const GIVEN_OBJECT: &str = "MESH_EBPF_OBJECT";

/// The eBPF object that the user wants instead of a compiled one, as an absolute path.
pub(crate) fn given_object() -> Option<PathBuf> {
    let given = std::env::var_os(GIVEN_OBJECT).filter(|path| !path.is_empty())?;
    std::path::absolute(given).ok()
}

/// Compiles the programs, unless an object was given or nothing has changed.
pub(crate) fn build(workspace: &Workspace) -> Result<()> {
    if let Some(object) = given_object() {
        if !object.is_file() {
            bail!("{GIVEN_OBJECT}={} is no file", object.display());
        }
        say::progress("build-ebpf", &format!("taking {} as it is", object.display()));
        return Ok(());
    }
    let toolchain =
        Toolchain::find().context("no toolchain for eBPF; `cargo xtask setup` finds one")?;
    process::run(toolchain.build(workspace).arg("--quiet"))
        .with_context(|| format!("mesh-ebpf does not compile with {}", toolchain.name()))?;
    let built = workspace.ebpf_target_dir().join(TARGET).join("release/mesh-ebpf");
    let object = workspace.ebpf_object();
    if copy_if_changed(&built, &object)? {
        say::progress("build-ebpf", &format!("{} is new", object.display()));
    }
    Ok(())
}

/// Makes `to` the same as `from`, in one step for its readers. Returns whether that changed it.
fn copy_if_changed(from: &Path, to: &Path) -> Result<bool> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == bytes) {
        return Ok(false);
    }
    let directory = to.parent().context("an object without a directory")?;
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let draft = to.with_extension(format!("new-{}", std::process::id()));
    fs::write(&draft, bytes).with_context(|| format!("cannot write {}", draft.display()))?;
    fs::rename(&draft, to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_are_not_written_again() {
        let directory = std::env::temp_dir().join(format!("xtask-{}-copy", std::process::id()));
        let (from, to) = (directory.join("from"), directory.join("to/object"));
        fs::create_dir_all(&directory).unwrap();
        fs::write(&from, "one").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        let written = to.metadata().unwrap().modified().unwrap();
        assert!(!copy_if_changed(&from, &to).unwrap());
        assert_eq!(to.metadata().unwrap().modified().unwrap(), written);
        fs::write(&from, "two").unwrap();
        assert!(copy_if_changed(&from, &to).unwrap());
        assert_eq!(fs::read_to_string(&to).unwrap(), "two");
        fs::remove_dir_all(&directory).unwrap();
    }
}
