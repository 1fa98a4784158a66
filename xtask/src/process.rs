//! Other programs: found, run to their end, and their failure told.
use std::ffi::OsString;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::build_ebpf;
use crate::workspace::Workspace;

/// Directories of programs that are not on every user's `PATH`: Debian's for administrators and for
/// containers' networks, and Go's own if it was installed as its makers say.
const ELSEWHERE: [&str; 5] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/cni", "/usr/local/go/bin"];

/// The cargo that runs us (rustup's choice is already made in it), in the work tree.
pub(crate) fn cargo(workspace: &Workspace) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.current_dir(&workspace.root);
    // An absolute path: build scripts run in the directory of their package.
    if let Some(object) = build_ebpf::given_object() {
        command.env(build_ebpf::GIVEN_OBJECT, object);
    } else {
        command.env_remove(build_ebpf::GIVEN_OBJECT);
    }
    command
}

/// The same command at a lower priority, so that it does not slow down what a user waits for.
pub(crate) fn at_low_priority(command: &Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(command.get_program()).args(command.get_args());
    if let Some(directory) = command.get_current_dir() {
        nice.current_dir(directory);
    }
    for (key, value) in command.get_envs() {
        match value {
            Some(value) => nice.env(key, value),
            None => nice.env_remove(key),
        };
    }
    nice
}

/// Runs to the end, its output on our terminal.
///
/// # Errors
/// It could not be started, or did not succeed; the message has its command line.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", line(command));
    }
    Ok(())
}

/// Runs to the end; its output is shown only if it fails.
pub(crate) fn run_quietly(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        let (out, err) = (output.stdout.trim_ascii_end(), output.stderr.trim_ascii_end());
        let said = String::from_utf8_lossy(&[out, b"\n", err].concat()).into_owned();
        bail!("`{}` ended with {}:\n{}", line(command), output.status, said.trim());
    }
    Ok(())
}

/// Runs to the end, silently, and returns what it printed on stdout; `None` if it could not be
/// started or failed.
pub(crate) fn read(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs to the end, its errors on our terminal, and returns what it printed on stdout.
///
/// # Errors
/// As [`run`].
pub(crate) fn read_showing_errors(command: &mut Command) -> Result<String> {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", line(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The file that `program` is, if it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(ELSEWHERE.iter().map(PathBuf::from));
    directories
        .into_iter()
        .map(|directory| directory.join(program))
        .find(|file| is_executable(file))
}

pub(crate) fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Whether we are root; the owner of `/proc/self` is our effective user (proc(5)).
pub(crate) fn is_root() -> bool {
    Path::new("/proc/self").metadata().is_ok_and(|meta| meta.uid() == 0)
}

/// The command as one would type it, for messages.
fn line(command: &Command) -> String {
    let mut words = vec![short(command.get_program().to_owned())];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}

/// A program's name without its directory.
fn short(program: OsString) -> String {
    let path = PathBuf::from(program);
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
