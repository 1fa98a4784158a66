//! The compiler for the eBPF programs. Stable Rust cannot build them by itself, since rustup has no
//! `core` for the kernel's target. Two toolchains can:
//!
//! - **Debian's** `rustc-web` with `libstd-rust-web-dev-bpf`, its prebuilt `core`, and bpf-linker
//!   built against the same LLVM. Preferred: `cargo xtask setup` can install all of it.
//! - **nightly** with `rust-src`, which builds `core` itself, and an installed bpf-linker.
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo_tools::CargoTool;
use crate::process;
use crate::workspace::Workspace;

/// Little-endian eBPF, which every machine that we know of runs.
pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// Debian's packages with the compiler; its linter too, 4 MB.
pub(crate) const DEBIAN_PACKAGES: &[&str] =
    &["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// Where those packages put rustc, `core` and the linter.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";
const DEBIAN_CLIPPY: &str = "/usr/bin/cargo-clippy";

/// The bpf-linker that works with LLVM 21 to 23, by its features.
pub(crate) const BPF_LINKER_VERSION: &str = "0.13.0";

/// What compiles the eBPF programs, all of it present.
pub(crate) enum Toolchain {
    Debian { linker: PathBuf },
    Nightly { linker: PathBuf },
}

impl Toolchain {
    /// The toolchain that is ready to use.
    pub(crate) fn find() -> Option<Self> {
        Self::debian().or_else(Self::nightly)
    }

    /// Whether Debian's packages are there; its linker is another matter.
    pub(crate) fn has_debians_compiler() -> bool {
        process::is_executable(Path::new(DEBIAN_CLIPPY)) && debian_llvm().is_some()
    }

    fn debian() -> Option<Self> {
        let linker = bpf_linker(debian_llvm()?);
        let ready = process::is_executable(Path::new(DEBIAN_CLIPPY)) && linker.is_installed();
        ready.then(|| Self::Debian { linker: linker.program() })
    }

    fn nightly() -> Option<Self> {
        process::find("rustup")?;
        let linker = process::find("bpf-linker")?;
        let sysroot = process::read(
            Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]),
        )?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
        core.is_dir().then_some(Self::Nightly { linker })
    }

    /// Which one it is, for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Debian { .. } => "Debian's rustc",
            Self::Nightly { .. } => "nightly",
        }
    }

    /// `cargo build` of mesh-ebpf, ready to run.
    pub(crate) fn build(&self, workspace: &Workspace) -> Command {
        self.cargo(workspace, "build")
    }

    /// `cargo clippy` of mesh-ebpf for the kernel's target, any warning an error.
    pub(crate) fn clippy(&self, workspace: &Workspace) -> Command {
        let mut command = self.cargo(workspace, "clippy");
        command.args(["--", "-D", "warnings"]);
        command
    }

    fn cargo(&self, workspace: &Workspace, subcommand: &str) -> Command {
        let (mut command, linker) = match self {
            Self::Debian { linker } => (debian_cargo(workspace, subcommand), linker),
            Self::Nightly { linker } => (nightly_cargo(workspace, subcommand), linker),
        };
        command.args(["--release", "--target", TARGET, "--package", "mesh-ebpf"]);
        command.env("CARGO_TARGET_DIR", workspace.ebpf_target_dir());
        command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker);
        command.env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", rust_flags());
        // Each of the first three would replace something above; the fourth has the libraries of
        // the toolchain that runs us, and the last would change the programs' bytes.
        for inherited in [
            "RUSTFLAGS",
            "CARGO_ENCODED_RUSTFLAGS",
            "CARGO_BUILD_TARGET",
            "LD_LIBRARY_PATH",
            "RUSTC_WORKSPACE_WRAPPER",
        ] {
            command.env_remove(inherited);
        }
        command
    }
}

/// The cargo that runs us, with Debian's rustc.
fn debian_cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = process::cargo(workspace);
    if subcommand == "clippy" {
        // By its own name: `cargo clippy` would find rustup's, which goes with another compiler.
        let cargo = command.get_program().to_owned();
        command = Command::new(DEBIAN_CLIPPY);
        command.current_dir(&workspace.root).env("CARGO", cargo);
    }
    // aya-ebpf 0.2 and the programs use `asm_experimental_arch`; no other crate may use unstable
    // features.
    let unstable = ("RUSTC_BOOTSTRAP", "aya_ebpf,mesh_ebpf");
    command.arg(subcommand).env("RUSTC", DEBIAN_RUSTC).env(unstable.0, unstable.1);
    command
}

/// Nightly's own cargo. It must not inherit the cargo and rustc that run us.
fn nightly_cargo(workspace: &Workspace, subcommand: &str) -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(&workspace.root);
    command.args(["run", "nightly", "cargo", subcommand, "-Z", "build-std=core"]);
    for inherited in ["CARGO", "RUSTC", "RUSTDOC", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(inherited);
    }
    command
}

/// The LLVM that Debian's rustc is built on, if that rustc has `core` for eBPF.
pub(crate) fn debian_llvm() -> Option<u32> {
    let prebuilt = fs::read_dir(DEBIAN_CORE).ok()?.flatten();
    prebuilt
        .map(|file| file.file_name())
        .find(|name| name.to_string_lossy().starts_with("libcore-"))?;
    llvm_major(&process::read(Command::new(DEBIAN_RUSTC).arg("-vV"))?)
}

/// bpf-linker must read the bitcode that rustc writes, so it is built against the same LLVM.
pub(crate) fn bpf_linker(llvm: u32) -> CargoTool {
    CargoTool {
        name: "bpf-linker",
        version: BPF_LINKER_VERSION,
        feature: Some(format!("llvm-{llvm}")),
        env: vec![("LLVM_PREFIX", llvm_prefix(llvm))],
        about: "links the eBPF programs; about a minute",
    }
}

/// Where Debian's `llvm-N-dev` is.
pub(crate) fn llvm_prefix(llvm: u32) -> String {
    format!("/usr/lib/llvm-{llvm}")
}

/// The major version in `rustc -vV`'s line `LLVM version: 22.1.8`.
fn llvm_major(versions: &str) -> Option<u32> {
    let version = versions.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// The kernel's own architecture decides the layout of `pt_regs` in aya-ebpf. The kernel wants BTF,
/// which the linker makes from debug information.
fn rust_flags() -> String {
    let arch = std::env::consts::ARCH;
    format!("--cfg=bpf_target_arch=\"{arch}\" -Cdebuginfo=2 -Clink-arg=--btf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llvm_is_read_from_rustcs_own_words() {
        let versions =
            "rustc 1.96.0 (x 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(llvm_major(versions), Some(22));
        assert_eq!(llvm_major("rustc 1.96.0"), None);
    }
}
