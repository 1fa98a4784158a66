//! Clients in other languages (`tests/programs`), compiled where they are needed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

/// JDBC's driver for `PostgreSQL`.
const DRIVER: &str = "/usr/share/java/postgresql.jar";

fn source(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("programs").join(file)
}

/// Compiles the clients in Java into a directory. Returns the class path with which `java` runs
/// them.
pub(crate) fn java(dir: &Path) -> Result<String> {
    let classes = dir.join("classes");
    let files = ["Client.java", "Jdbc.java"].map(source);
    let compile = Command::new("javac").arg("-d").arg(&classes).args(files).output();
    let compile = compile.context("javac (package default-jdk-headless)")?;
    ensure!(compile.status.success(), "{}", String::from_utf8_lossy(&compile.stderr));
    Ok(format!("{}:{DRIVER}", classes.display()))
}

/// Compiles the client in Go into a directory. Returns the program.
pub(crate) fn go(dir: &Path) -> Result<String> {
    let program = dir.join("go-client");
    let mut compile = Command::new("go");
    compile.args(["build", "-o"]).arg(&program).arg(source("client.go"));
    // Without cgo it resolves names by itself. A single file needs no module.
    let compile = compile.env("CGO_ENABLED", "0").env("GO111MODULE", "off").output();
    let compile = compile.context("go, as `cargo xtask setup` wants it")?;
    ensure!(compile.status.success(), "{}", String::from_utf8_lossy(&compile.stderr));
    Ok(program.to_string_lossy().into_owned())
}
