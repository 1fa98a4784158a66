//! Programs that are built from crates into `target/tools`, each at one version with the features
//! we use.
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::process;
use crate::say;
use crate::workspace::Workspace;

/// A program that `cargo install` makes.
pub(crate) struct CargoTool {
    /// Crate and program.
    pub(crate) name: &'static str,
    pub(crate) version: &'static str,
    /// The one feature it is built with, its defaults off; `None` for no feature at all.
    pub(crate) feature: Option<String>,
    /// Environment of its build.
    pub(crate) env: Vec<(&'static str, String)>,
    /// What setup says while one waits.
    pub(crate) about: &'static str,
}

/// cargo-deny, which checks licences, sources and banned crates. Advisories are off, and with them
/// every feature: they need a database from the network, and `cargo xtask test` is offline.
pub(crate) fn cargo_deny() -> CargoTool {
    let profile = [
        // It reads one lock file: without optimisation, 1.5 minutes of building and 0.6 s of
        // running; with it, 3.5 minutes and 0.2 s.
        ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "0"),
        ("CARGO_PROFILE_RELEASE_LTO", "off"),
        ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "256"),
    ];
    CargoTool {
        name: "cargo-deny",
        version: "0.20.2",
        feature: None,
        env: profile.map(|(name, value)| (name, value.to_owned())).to_vec(),
        about: "checks licences and sources of dependencies; about 2 minutes",
    }
}

impl CargoTool {
    pub(crate) fn program(&self, workspace: &Workspace) -> PathBuf {
        workspace.tools().join("bin").join(self.name)
    }

    /// Whether it is there, at our version and with our feature. Cargo records that in
    /// `.crates2.json`.
    pub(crate) fn is_installed(&self, workspace: &Workspace) -> bool {
        process::is_executable(&self.program(workspace))
            && fs::read_to_string(workspace.tools().join(".crates2.json"))
                .is_ok_and(|record| self.is_recorded(&record))
    }

    fn is_recorded(&self, record: &str) -> bool {
        let Some((_, entry)) = record.split_once(&format!("\"{} {} (", self.name, self.version))
        else {
            return false;
        };
        let features: Vec<_> =
            self.feature.iter().map(|feature| format!("\"{feature}\"")).collect();
        let wanted = format!("\"features\":[{}]", features.join(","));
        entry.split_inclusive('}').next().is_some_and(|entry| entry.contains(&wanted))
    }

    /// Builds and installs it.
    pub(crate) fn install(&self, workspace: &Workspace) -> Result<()> {
        say::progress(
            "setup",
            &format!("building {} {} ({})", self.name, self.version, self.about),
        );
        let tools = workspace.tools();
        let mut cargo = process::cargo(workspace);
        cargo.args([
            "install",
            "--quiet",
            self.name,
            "--version",
            self.version,
            "--locked",
            "--no-default-features",
        ]);
        if let Some(feature) = &self.feature {
            cargo.args(["--features", feature]);
        }
        cargo.arg("--root").arg(&tools);
        // A directory of its own: otherwise `cargo install` would build in one that it deletes when
        // interrupted.
        let build = tools.join("build").join(self.name);
        cargo
            .env("CARGO_TARGET_DIR", &build)
            .envs(self.env.iter().map(|(name, value)| (name, value)));
        process::run(&mut cargo).with_context(|| format!("{} could not be built", self.name))?;
        // It is never built again at this version, and takes hundreds of megabytes.
        fs::remove_dir_all(&build).with_context(|| format!("cannot remove {}", build.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = r#"{"installs":{"bpf-linker 0.13.0 (registry)":{"version_req":"=0.13.0","bins":["bpf-linker"],"features":["llvm-22"],"all_features":false},"cargo-deny 0.20.2 (registry)":{"bins":["cargo-deny"],"features":[]}}}"#;

    fn tool(name: &'static str, version: &'static str, feature: Option<&str>) -> CargoTool {
        CargoTool { name, version, feature: feature.map(str::to_owned), env: Vec::new(), about: "" }
    }

    #[test]
    fn another_version_or_feature_is_another_program() {
        assert!(tool("bpf-linker", "0.13.0", Some("llvm-22")).is_recorded(RECORD));
        assert!(!tool("bpf-linker", "0.13.0", Some("llvm-23")).is_recorded(RECORD));
        assert!(!tool("bpf-linker", "0.13.1", Some("llvm-22")).is_recorded(RECORD));
        assert!(tool("cargo-deny", "0.20.2", None).is_recorded(RECORD));
        assert!(
            !tool("bpf-linker", "0.13.0", None).is_recorded(RECORD),
            "features of the next entry are not ours"
        );
    }
}
