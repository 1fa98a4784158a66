//! The Go compiler, new enough for the module of the cluster's programs.
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// A version: `go1.26.8` and `1.26.0` both have two or three numbers.
type Version = [u32; 3];

/// A Go that builds the module.
pub(crate) struct Go {
    pub(crate) program: PathBuf,
    /// As it says itself, for the record of what was built with it.
    pub(crate) version: String,
}

/// The Go that is installed.
///
/// # Errors
/// There is none, or it is too old; the message says what to do.
pub(crate) fn find(workspace: &Workspace) -> Result<Go> {
    let module = workspace.cluster_module().join("go.mod");
    let module =
        fs::read_to_string(&module).with_context(|| format!("cannot read {}", module.display()))?;
    let wanted = wanted(&module).context("tests/cluster/go.mod does not say which Go it needs")?;
    let shown = wanted.map(|number| number.to_string()).join(".");
    let by_hand = format!(
        "The tests' Kubernetes is built with Go {shown} or newer. Install it as https://go.dev/doc/install says, into /usr/local/go \
         or anywhere on PATH, then run the command again."
    );
    let Some(program) = process::find("go") else {
        bail!("there is no Go.\n{by_hand}");
    };
    // Asked where no go.mod can make it fetch another Go.
    let version = process::read(Command::new(&program).args(["env", "GOVERSION"]).current_dir("/"))
        .with_context(|| format!("{} does not say its version.\n{by_hand}", program.display()))?;
    let version = version.trim().to_owned();
    match parse(version.trim_start_matches("go")) {
        Some(found) if found >= wanted => Ok(Go { program, version }),
        _ => bail!("{} is {version}, which is too old.\n{by_hand}", program.display()),
    }
}

/// The version in the module's line `go 1.26.0`.
fn wanted(module: &str) -> Option<Version> {
    parse(module.lines().find_map(|line| line.strip_prefix("go "))?)
}

/// `1.26`, `1.26.8`, `1.27rc1`, `1.26.8-X:something`.
fn parse(version: &str) -> Option<Version> {
    let plain = version.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut numbers = plain.split('.').map(str::parse);
    let major = numbers.next()?.ok()?;
    let mut more = || numbers.next().map_or(Some(0), Result::ok);
    Some([major, more()?, more()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse("1.26.8"), Some([1, 26, 8]));
        assert_eq!(parse("1.27rc1"), Some([1, 27, 0]));
        assert_eq!(parse("1.26.8-X:boringcrypto"), Some([1, 26, 8]));
        assert!(parse("1.9") < parse("1.26"));
        assert_eq!(parse("devel"), None);
    }

    #[test]
    fn the_module_says_which_go_it_needs() {
        assert_eq!(wanted("module x\n\ngo 1.26.0\n\nrequire y v1.0.0\n"), Some([1, 26, 0]));
        assert_eq!(wanted("module x\n"), None);
    }
}
