//! The command line: one file per command, and the only place that prints.
#![expect(clippy::print_stderr, reason = "this is where output is made")]

mod ca;
mod cleanup;
mod flows;
mod log;
mod manifest;
mod reader;
mod ready;
mod reset;
mod run;
mod status;
mod table;
mod untaint;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::bail;
use clap::{Parser, Subcommand, ValueEnum};
use mesh_api::{Request, Response};
use mesh_wire::identity::{SpiffeIdError, TrustDomain};
use mesh_world::check_subdomain;

use crate::admin::Answers;

/// Where the running agent keeps its socket, lock and notes.
const RUNTIME_DIR: &str = "/run/nodemesh";
/// Where programs and maps are pinned.
const PIN_DIR: &str = "/sys/fs/bpf/nodemesh";

/// Nodemesh's node agent: mutual TLS between pods without sidecars, and the tools to see what it
/// does.
#[derive(Debug, Parser)]
#[command(name = "mesh-agent", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent of a node
    Run(Box<run::Run>),
    /// Show the connections that the agent carried or the kernel refused
    Flows(flows::Flows),
    /// Show the agent, its pods and what is wrong
    Status(status::Status),
    // Its help is in reset.rs; a text here would replace it.
    Reset(reset::Reset),
    /// Say whether the agent is ready: in charge, and knowing the world
    Ready(ready::Ready),
    /// Print the Kubernetes objects of an installation
    Manifest(manifest::Print),
    /// Take away all that a stopped agent left: links, maps, settings, its announcement
    Cleanup(cleanup::Cleanup),
    /// Take the start-up taint off nodes whose agent is ready
    Untaint(untaint::Untaint),
    /// The certificate authority whose key every agent has
    #[command(subcommand)]
    Ca(ca::Ca),
    /// Print the version
    Version,
}

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// For people
    #[default]
    Table,
    /// For programs: one JSON object per line
    Json,
}

/// Which agent to ask.
#[derive(Clone, Debug, clap::Args)]
struct Asked {
    /// The agent's runtime directory
    #[arg(long, env = "NODEMESH_RUNTIME_DIR", default_value = RUNTIME_DIR, value_name = "DIR")]
    runtime_dir: PathBuf,
}

impl Asked {
    /// How the agent is.
    fn status(&self) -> anyhow::Result<Box<mesh_api::Status>> {
        match Answers::to(&Request::Status, &self.runtime_dir)?.receive()? {
            Some(Response::Status(status)) => Ok(status),
            _ => bail!("the agent closed without an answer; it may be stopping"),
        }
    }
}

/// Arguments that are right one by one, and wrong together.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// The exit code of clap, too.
const WRONG_ARGUMENTS: u8 = 2;

/// The program: parses, runs, and says in one line what went wrong. 0: done; 1: failed; 2: the
/// arguments are wrong.
pub fn main() -> ExitCode {
    match execute(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        // The reader has closed the pipe: `mesh-agent flows | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                let cause = cause.to_string();
                if !error.to_string().contains(&cause) {
                    eprintln!("  because: {cause}");
                }
            }
            if error.is::<Usage>() { ExitCode::from(WRONG_ARGUMENTS) } else { ExitCode::FAILURE }
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(run) => run.execute(),
        Command::Flows(flows) => flows.execute(),
        Command::Status(status) => status.execute(),
        Command::Reset(reset) => reset.execute(),
        Command::Ready(ready) => ready.execute(),
        Command::Manifest(manifest) => manifest.execute(),
        Command::Cleanup(cleanup) => cleanup.execute(),
        Command::Untaint(untaint) => untaint.execute(),
        Command::Ca(ca) => ca.execute(),
        Command::Version => print_line(&format!("mesh-agent {}", env!("CARGO_PKG_VERSION"))),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|error: SpiffeIdError| error.to_string())
}

/// The name of a Kubernetes object.
fn object_name(text: &str) -> Result<String, String> {
    check_subdomain(text).map(|()| text.to_owned())
}

/// One line on standard output. Unlike with `println!`, a closed pipe is an error and not a panic.
fn print_line(line: &str) -> anyhow::Result<()> {
    writeln!(io::stdout().lock(), "{line}")?;
    Ok(())
}
