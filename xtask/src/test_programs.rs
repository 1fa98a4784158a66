//! The programs of tests that cargo builds, and what the compiler or clippy says meanwhile.
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::lint::{self, Warnings};
use crate::process;
use crate::workspace::Workspace;

/// A compiled program of tests.
pub(crate) struct TestProgram {
    /// Its main file, relative to the work tree: `tests/tests/trust/main.rs`.
    pub(crate) source: String,
    pub(crate) executable: PathBuf,
    /// Its package's directory, in which cargo starts it.
    pub(crate) package: PathBuf,
    /// Whether it has whole-system tests, and not a crate's unit tests.
    pub(crate) is_whole_system: bool,
}

impl TestProgram {
    /// What the command line calls it: `trust`, or by its file if it is not in `tests/tests`.
    pub(crate) fn name(&self) -> &str {
        let name = self.source.strip_prefix("tests/tests/").and_then(|it| it.strip_suffix(".rs"));
        name.map_or(&self.source, |name| name.strip_suffix("/main").unwrap_or(name))
    }
}

/// Builds all programs, of tests and others, in one go. One package at a time, dependencies would
/// get other features and be compiled again. Returns those of tests, in the order of their sources.
///
/// With `warnings`, clippy reads what is compiled, and they are added to.
///
/// # Errors
/// Something could not be built.
pub(crate) fn build(
    workspace: &Workspace,
    warnings: Option<&mut Warnings>,
) -> Result<Vec<TestProgram>> {
    let mut cargo = process::cargo(workspace);
    let terminal = std::io::stderr().is_terminal();
    let format = if terminal { "json-diagnostic-rendered-ansi" } else { "json" };
    // What does not depend on a crate that is broken is built, and linted, too.
    cargo.args(["build", "--all-targets", "--keep-going", "--message-format", format]);
    let linted = warnings.is_some();
    let mut unasked = Warnings::default();
    let warnings = match warnings {
        Some(warnings) => {
            lint::wrap_compiler(&mut cargo, workspace);
            warnings
        }
        None => &mut unasked,
    };
    let mut child = cargo.stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let output = child.stdout.take().context("cargo has no output")?;
    let mut programs = Vec::new();
    let mut not_linted = NotLinted::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read what cargo prints")?;
        let Ok(message) = serde_json::from_str(&line) else { continue };
        warnings.hear(&message);
        not_linted.hear(&message, workspace);
        programs.extend(test_program(&message, workspace));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    if !status.success() {
        bail!("`cargo build --all-targets` ended with {status}");
    }
    if linted {
        warnings.extend(not_linted.sources());
    }
    programs.sort_by(|a, b| a.source.cmp(&b.source));
    Ok(programs)
}

/// The crates that clippy has not read: it reads those that are compiled for their tests
/// (`xtask/rustc`).
#[derive(Default)]
struct NotLinted {
    /// Their main files, and whether they were compiled for tests.
    crates: BTreeMap<String, bool>,
}

impl NotLinted {
    fn hear(&mut self, message: &Value, workspace: &Workspace) {
        let Some(source) = message["target"]["src_path"].as_str() else { return };
        let is_ours = message["reason"] == "compiler-artifact"
            && message["package_id"].as_str().is_some_and(|id| id.starts_with("path+file://"))
            && Path::new(source).starts_with(&workspace.root);
        if is_ours && message["target"]["kind"][0] != "custom-build" {
            let is_tests = message["profile"]["test"] == true;
            *self.crates.entry(source.to_owned()).or_default() |= is_tests;
        }
    }

    fn sources(&self) -> impl Iterator<Item = String> {
        let not = self.crates.iter().filter(|(_, is_tests)| !**is_tests);
        not.map(|(source, _)| {
            format!("{source}: no tests of it are compiled, so clippy does not read it")
        })
    }
}

/// The program of tests that one of cargo's messages tells of.
fn test_program(message: &Value, workspace: &Workspace) -> Option<TestProgram> {
    let is_tests = message["profile"]["test"] == true;
    let executable = message["executable"].as_str().filter(|_| is_tests)?.into();
    let source = message["target"]["src_path"].as_str()?;
    let source = source.strip_prefix(workspace.root.to_str()?)?.trim_start_matches('/');
    let package = PathBuf::from(message["manifest_path"].as_str()?).parent()?.to_owned();
    let is_whole_system = message["target"]["kind"][0] == "test";
    Some(TestProgram { source: source.to_owned(), executable, package, is_whole_system })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_is_not_compiled_for_its_tests_is_not_linted() {
        let workspace = Workspace { root: "/w".into() };
        let mut not_linted = NotLinted::default();
        let mut left_after = |source: &str, kind: &str, tests: bool| {
            let message = serde_json::json!({
                "reason": "compiler-artifact", "package_id": "path+file:///w#0.1.0",
                "target": {"kind": [kind], "src_path": source}, "profile": {"test": tests},
            });
            not_linted.hear(&message, &workspace);
            not_linted.sources().count()
        };
        assert_eq!(left_after("/w2/src/lib.rs", "lib", false), 0);
        assert_eq!(left_after("/w/build.rs", "custom-build", false), 0);
        assert_eq!(left_after("/w/src/lib.rs", "lib", false), 1);
        assert_eq!(left_after("/w/src/lib.rs", "lib", true), 0);
        assert_eq!(left_after("/w/src/main.rs", "bin", false), 1);
    }

    #[test]
    fn programs_of_tests_are_found_among_cargos_messages() {
        let workspace = Workspace { root: "/w".into() };
        let found = |kind: &str, source: &str, tests: bool, executable: &str| {
            let message = format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml",
                "target":{{"kind":["{kind}"],"src_path":"{source}"}},"profile":{{"test":{tests}}},
                "executable":{executable}}}"#
            );
            test_program(&serde_json::from_str(&message).unwrap(), &workspace)
        };
        let built = r#""/w/target/debug/deps/trust-1""#;
        let trust = found("test", "/w/tests/tests/trust/main.rs", true, built).unwrap();
        assert_eq!((trust.name(), trust.is_whole_system), ("trust", true));
        assert_eq!(trust.source, "tests/tests/trust/main.rs");
        assert_eq!(trust.executable, PathBuf::from("/w/target/debug/deps/trust-1"));
        assert_eq!(trust.package, PathBuf::from("/w/tests"));
        let kernels = found("test", "/w/tests/tests/kernels.rs", true, built).unwrap();
        assert_eq!(kernels.name(), "kernels");
        let lib = found("lib", "/w/tests/src/lib.rs", true, built).unwrap();
        assert_eq!((lib.name(), lib.is_whole_system), ("tests/src/lib.rs", false));
        assert!(found("bin", "/w/tests/src/bin/demo/main.rs", false, built).is_none());
        assert!(found("test", "/w/tests/tests/kernels.rs", true, "null").is_none(), "checked only");
    }
}
