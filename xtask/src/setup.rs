//! `cargo xtask setup`: what is missing, found and installed.
use std::fs;
use std::path::Path;
use std::process::{Command as Process, ExitCode};

use anyhow::{Context as _, Result, bail};

use crate::apt;
use crate::args::{Args, Command, Opt};
use crate::build_ebpf;
use crate::cargo_tools::{self, CargoTool};
use crate::cluster::go;
use crate::needs::{PROGRAMS, Purpose};
use crate::process;
use crate::say;
use crate::toolchain::{self, Toolchain};
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "setup",
    about: "Finds or installs what build, demo and tests need, and says what it installs.",
    details: "\
Every other command does this by itself. It installs with apt-get (root on Debian only) and with cargo
into ~/.cache/nodemesh; elsewhere it says what to install. It changes nothing when nothing is missing.

Environment:
  MESH_EBPF_OBJECT=FILE    use this eBPF object; no compiler for eBPF is looked for",
    options: &[Opt { flag: "--for", values: Purpose::NAMES, about: "what to prepare for; each includes those before it (test)" }],
    operands: None,
    run,
};

fn run(args: &Args) -> Result<ExitCode> {
    let purpose = args.value("--for").map_or(Purpose::Test, Purpose::named);
    ensure(&Workspace::here(), purpose)?;
    say::progress("setup", "nothing is missing");
    Ok(ExitCode::SUCCESS)
}

/// Makes sure that everything for `purpose` is there. Silent, and a tenth of a second, when it is.
pub(crate) fn ensure(workspace: &Workspace, purpose: Purpose) -> Result<()> {
    ensure_toolchain(workspace)?;
    ensure_programs(purpose)?;
    if purpose >= Purpose::Demo {
        ensure_bpffs()?;
    }
    if purpose >= Purpose::Cluster {
        go::find(workspace)?;
    }
    if purpose >= Purpose::Test {
        ensure_tool(workspace, &cargo_tools::cargo_deny())?;
    }
    Ok(())
}

fn ensure_toolchain(workspace: &Workspace) -> Result<()> {
    if build_ebpf::given_object().is_some() || Toolchain::find().is_some() {
        return Ok(());
    }
    if !Toolchain::has_debians_compiler() {
        install_compiler()?;
    }
    let llvm = toolchain::debian_llvm()
        .context("Debian's rustc does not say which LLVM it is built on")?;
    ensure_linker(workspace, llvm)
}

fn install_compiler() -> Result<()> {
    let packages = toolchain::DEBIAN_PACKAGES;
    if let Err(why_not) = apt::usable() {
        bail!("no toolchain for eBPF, and {why_not}.\n{TOOLCHAIN_BY_HAND}");
    }
    apt::update()?;
    let packages_line = packages.join(" ");
    if !apt::knows(packages) {
        bail!("no toolchain for eBPF, and no such packages: {packages_line}.\n{TOOLCHAIN_BY_HAND}");
    }
    let what = "the compiler for eBPF; 120 MB to fetch";
    say::progress("setup", &format!("installing {packages_line} ({what})"));
    apt::install(packages)
}

fn ensure_linker(workspace: &Workspace, llvm: u32) -> Result<()> {
    let linker = toolchain::bpf_linker(llvm);
    if linker.is_installed() {
        return Ok(());
    }
    let package = format!("llvm-{llvm}-dev");
    if !Path::new(&toolchain::llvm_prefix(llvm)).join("bin/llvm-config").exists() {
        if let Err(why_not) = apt::usable() {
            bail!("bpf-linker is built with {package}, which is missing, and {why_not}");
        }
        apt::update()?;
        let what = "to build bpf-linker with; 90 MB to fetch";
        say::progress("setup", &format!("installing {package} ({what})"));
        apt::install(&[&package])?;
    }
    linker.install(workspace)
}

const TOOLCHAIN_BY_HAND: &str = "\
Install one of these, then run the command again:
  1. As root on Debian 12: `cargo xtask setup` installs rustc-web, libstd-rust-web-dev-bpf,
     rust-web-clippy, and bpf-linker built with llvm-22-dev.
  2. Anywhere: `rustup toolchain install nightly --component rust-src,clippy`, and a bpf-linker on PATH for
     nightly's LLVM (`rustup run nightly rustc -vV` names it), e.g.
     `cargo install bpf-linker --version 0.13.0 --locked --no-default-features --features llvm-22`
     with LLVM_PREFIX=/usr/lib/llvm-22.
Or take an eBPF object built elsewhere: MESH_EBPF_OBJECT=FILE.";

fn ensure_programs(purpose: Purpose) -> Result<()> {
    let needed = PROGRAMS.iter().filter(|program| program.purpose <= purpose);
    let missing: Vec<_> = needed.filter(|program| !is_there(program.name)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<_> = missing.iter().map(|program| program.package).collect();
    if let Err(why_not) = apt::usable() {
        let names: Vec<_> =
            missing.iter().map(|program| format!("{} ({})", program.name, program.why)).collect();
        bail!(
            "programs are missing, and {why_not}: {}.\nInstall them; on Debian: apt-get install --no-install-recommends {}",
            names.join(", "),
            packages.join(" ")
        );
    }
    for program in &missing {
        say::progress(
            "setup",
            &format!("installing {} ({}: {})", program.package, program.name, program.why),
        );
    }
    apt::update()?;
    apt::install(&packages)
}

/// Whether a program is where it is looked for, or a file where it should be.
fn is_there(name: &str) -> bool {
    let file = Path::new(name);
    if file.is_absolute() { file.exists() } else { process::find(name).is_some() }
}

fn ensure_tool(workspace: &Workspace, tool: &CargoTool) -> Result<()> {
    if tool.is_installed() { Ok(()) } else { tool.install(workspace) }
}

/// Where the agent pins its programs.
const BPFFS: &str = "/sys/fs/bpf";

fn ensure_bpffs() -> Result<()> {
    let mounts =
        fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    if is_mounted(&mounts, BPFFS, "bpf") {
        return Ok(());
    }
    if !process::is_root() {
        bail!("no bpffs at {BPFFS}, and only root can mount it: mount -t bpf bpf {BPFFS}");
    }
    say::progress("setup", &format!("mounting bpffs at {BPFFS}"));
    process::run(Process::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
}

/// Whether `mounts`, in the form of `proc_mounts(5)`, has a file system of `kind` at `point`.
fn is_mounted(mounts: &str, point: &str, kind: &str) -> bool {
    mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(point) && fields.next() == Some(kind)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_its_point_and_its_kind() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\nbpf /sys/fs/bpf bpf rw,mode=700 0 0\n";
        assert!(is_mounted(mounts, "/sys/fs/bpf", "bpf"));
        assert!(!is_mounted(mounts, "/sys/fs/cgroup", "bpf"));
        assert!(!is_mounted(mounts, "/sys/fs", "bpf"));
    }
}
