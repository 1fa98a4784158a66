//! Programs that are built from crates, each at one version with the features we use. They are in
//! the cache.
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::cache;
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
    /// Where it is, or would be. Its version and feature are in the path.
    pub(crate) fn program(&self) -> PathBuf {
        cache::directory(&self.root()).join("bin").join(self.name)
    }

    pub(crate) fn is_installed(&self) -> bool {
        process::is_executable(&self.program())
    }

    /// The directory in the cache.
    fn root(&self) -> String {
        let feature = self.feature.iter().map(|feature| format!("-{feature}"));
        [format!("{}-{}", self.name, self.version)].into_iter().chain(feature).collect()
    }

    /// Builds and installs it, or waits until another process has.
    pub(crate) fn install(&self, workspace: &Workspace) -> Result<()> {
        let root = cache::locked(&self.root())?;
        if self.is_installed() {
            return Ok(());
        }
        say::progress(
            "setup",
            &format!("building {} {} ({})", self.name, self.version, self.about),
        );
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
        cargo.arg("--root").arg(&root.path);
        // A directory of its own: otherwise `cargo install` would build in one that it deletes when
        // interrupted.
        let build = root.path.join("build");
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

    fn tool(version: &'static str, feature: Option<&str>) -> CargoTool {
        let feature = feature.map(str::to_owned);
        CargoTool { name: "bpf-linker", version, feature, env: Vec::new(), about: "" }
    }

    #[test]
    fn another_version_or_feature_is_another_program() {
        let program = tool("0.13.0", Some("llvm-22")).program();
        assert!(program.ends_with("nodemesh/bpf-linker-0.13.0-llvm-22/bin/bpf-linker"));
        for other in [tool("0.13.0", Some("llvm-23")), tool("0.13.1", Some("llvm-22"))] {
            assert_ne!(other.program(), program);
        }
        assert_ne!(tool("0.13.0", None).program(), program);
    }
}
