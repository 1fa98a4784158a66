//! The programs of tests that cargo builds.
use std::path::PathBuf;

use anyhow::Result;
use serde_json::Value;

use crate::process;
use crate::workspace::Workspace;

/// A compiled program of tests.
pub(crate) struct TestProgram {
    /// Its main file, relative to the work tree: `tests/tests/kernels.rs`.
    pub(crate) source: String,
    pub(crate) executable: PathBuf,
    /// Its package's directory, in which cargo starts it.
    pub(crate) package: PathBuf,
    /// Whether it has whole-system tests, and not a crate's unit tests.
    pub(crate) is_whole_system: bool,
}

impl TestProgram {
    /// What the command line calls it: `kernels`, or by its file if it is not in `tests/tests`.
    pub(crate) fn name(&self) -> &str {
        let name = self.source.strip_prefix("tests/tests/").and_then(|it| it.strip_suffix(".rs"));
        name.unwrap_or(&self.source)
    }
}

/// Builds all programs, of tests and others, in one go. One package at a time, dependencies would
/// get other features and be compiled again. Returns those of tests, in the order of their sources.
///
/// # Errors
/// Something could not be built.
pub(crate) fn build(workspace: &Workspace) -> Result<Vec<TestProgram>> {
    let mut cargo = process::cargo(workspace);
    cargo.args(["build", "--all-targets", "--message-format=json-render-diagnostics"]);
    let messages = process::read_aloud(&mut cargo)?;
    let mut programs: Vec<_> =
        messages.lines().filter_map(|message| test_program(message, workspace)).collect();
    programs.sort_by(|a, b| a.source.cmp(&b.source));
    Ok(programs)
}

/// The program of tests that one of cargo's messages tells of.
fn test_program(message: &str, workspace: &Workspace) -> Option<TestProgram> {
    let message: Value = serde_json::from_str(message).ok()?;
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
    fn programs_of_tests_are_found_among_cargos_messages() {
        let workspace = Workspace { root: "/w".into() };
        let found = |kind: &str, source: &str, tests: bool, executable: &str| {
            let message = format!(
                r#"{{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml",
                "target":{{"kind":["{kind}"],"src_path":"{source}"}},"profile":{{"test":{tests}}},
                "executable":{executable}}}"#
            );
            test_program(&message, &workspace)
        };
        let built = r#""/w/target/debug/deps/cli-1""#;
        let cli = found("test", "/w/tests/tests/cli.rs", true, built).unwrap();
        assert_eq!((cli.name(), cli.is_whole_system), ("cli", true));
        assert_eq!(cli.source, "tests/tests/cli.rs");
        assert_eq!(cli.executable, PathBuf::from("/w/target/debug/deps/cli-1"));
        assert_eq!(cli.package, PathBuf::from("/w/tests"));
        let lib = found("lib", "/w/tests/src/lib.rs", true, built).unwrap();
        assert_eq!((lib.name(), lib.is_whole_system), ("tests/src/lib.rs", false));
        assert!(found("bin", "/w/tests/src/bin/demo/main.rs", false, built).is_none());
        assert!(found("test", "/w/tests/tests/cli.rs", true, "null").is_none(), "checked only");
        assert!(test_program("a line that is no message", &workspace).is_none());
    }
}
