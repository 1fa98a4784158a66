//! How a machine begins: [`boot`] leaves the host's namespaces, and [`init`] is the first process
//! in the new ones.

use std::{
    env,
    fs::{self, File},
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, Signal},
        wait::{WaitPidFlag, waitpid},
    },
};

use super::{Spec, mounts};

/// What the init says when everything is in its place.
const READY: &str = "ready";

/// Makes the namespaces of the machine that a file describes and starts its init. Prints the init's
/// process id, as the host sees it.
pub fn boot(file: &str) -> Result<()> {
    let spec: Spec = serde_json::from_str(&fs::read_to_string(file)?)?;
    for cgroup in &spec.cgroups {
        let procs = cgroup.join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| procs.display().to_string())?;
    }
    setns(File::open(&spec.netns)?, CloneFlags::CLONE_NEWNET)?;
    // The cgroups that we are in now are the roots of those that the machine sees.
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .context("new namespaces")?;
    let mut init = Command::new(env::current_exe()?)
        .args(["init", file])
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("the init")?;
    let mut said = String::new();
    let stdout = init.stdout.take().context("no output")?;
    BufReader::new(stdout).read_line(&mut said)?;
    ensure!(said.trim() == READY, "the init ended: {}", init.wait()?);
    writeln!(std::io::stdout(), "{}", init.id())?;
    Ok(())
}

/// The machine's first process: mounts what belongs to the machine, and then reaps orphaned
/// processes.
pub fn init(file: &str) -> Result<()> {
    let spec: Spec = serde_json::from_str(&fs::read_to_string(file)?)?;
    mounts::make(&spec)?;
    fs::write("/proc/sys/kernel/hostname", &spec.name)?;
    let mut children = SigSet::empty();
    children.add(Signal::SIGCHLD);
    children.thread_block()?;
    writeln!(std::io::stdout(), "{READY}")?;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(status) if status.pid().is_some() => {}
                Ok(_) | Err(Errno::ECHILD) => break,
                Err(e) => return Err(e.into()),
            }
        }
        children.wait()?;
    }
}
