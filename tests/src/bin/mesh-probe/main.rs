//! - `mesh-probe in NETNS CGROUP PROGRAM…` runs a program as a pod would.
//! - `mesh-probe serve --listen ADDRESS --talk KIND …` and
//!   `mesh-probe dial --to ADDRESS --talk KIND …` make connections that are reported as JSON lines.
//!   All options: `tests/src/probe/spec.rs`.
//! - `mesh-probe health ADDRESS` is a gRPC server that is well.
#![expect(clippy::print_stdout, reason = "its reports are its output")]

mod dial;
mod health;
mod lines;
mod play;
mod race;
mod raw;
mod serve;
mod sys;
mod wire;

use std::{
    env, fs,
    fs::File,
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{self, Command},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sched::{CloneFlags, setns},
    sys::signal::SigSet,
};
use tests::probe::{Event, from_args};

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    match args.next().as_deref() {
        Some("in") => run_in(args),
        Some("serve") => serve::run(&from_args(args)?),
        Some("dial") => dial::run(&from_args(args)?),
        Some("health") => health::run(&args.next().context("no ADDRESS")?),
        Some("raw") => raw::run(&from_args(args)?),
        Some("race") => race::run(&from_args(args)?),
        _ => bail!(
            "usage: mesh-probe in NETNS CGROUP PROGRAM… | serve OPTIONS | dial OPTIONS | health ADDRESS | raw OPTIONS | race OPTIONS"
        ),
    }
}

/// Becomes the program, in the cgroup and the namespace: it makes no socket before it is there.
fn run_in(mut args: impl Iterator<Item = String>) -> Result<()> {
    let netns = PathBuf::from(args.next().context("no NETNS")?);
    let cgroup = PathBuf::from(args.next().context("no CGROUP")?);
    let program = args.next().context("no PROGRAM")?;
    let procs = cgroup.join("cgroup.procs");
    fs::write(&procs, process::id().to_string()).with_context(|| procs.display().to_string())?;
    let file = File::open(&netns).with_context(|| netns.display().to_string())?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    // The program that starts us may block signals to wait for them; ours must get its own.
    SigSet::all().thread_unblock()?;
    Err(Command::new(&program).args(args).exec()).with_context(|| program.clone())
}

/// Prints one line of the report.
fn emit(event: &Event) -> Result<()> {
    println!("{}", serde_json::to_string(event)?);
    Ok(())
}
