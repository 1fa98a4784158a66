//! `cargo xtask cluster`: a real Kubernetes of two nodes on this machine. Its programs are built here; what brings it up is the
//! program `cluster` of package `tests`.
mod build;
pub(crate) mod go;

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::{Args, Command, Opt};
use crate::build::{self as host, Profile};
use crate::needs::Purpose;
use crate::setup;
use crate::workspace::Workspace;

pub(crate) use build::build;

pub(crate) const COMMAND: Command = Command {
    name: "cluster",
    about: "A real Kubernetes of two nodes on this machine: up, down, status; build makes its programs.",
    details: "\
  up        builds what is missing, brings the cluster up, and says how to use it
  down      takes it down, also one that has crashed or was half made
  status    what of it runs; fails if it is not all
  build     only builds its programs: etcd, Kubernetes and CoreDNS, into target/cluster

The programs are built from the Go modules in tests/cluster: 8 minutes on two cores the first time. A node
is made of namespaces: it has its own processes, mounts, cgroups and network. Needs root.",
    options: &[Opt { flag: "--name", values: &["NAME"], about: "which cluster; there may be several (dev)" }],
    operands: Some("up|down|status|build"),
    run,
};

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let [what] = &args.operands[..] else {
        bail!("one of up, down, status and build; see `cargo xtask cluster --help`");
    };
    match what.as_str() {
        "build" => {
            setup::ensure(&workspace, Purpose::Cluster)?;
            build(&workspace)?;
            Ok(ExitCode::SUCCESS)
        }
        "up" => {
            setup::ensure(&workspace, Purpose::Cluster)?;
            build(&workspace)?;
            host::everything(&workspace, Profile::Dev)?;
            ask(&workspace, what, args)
        }
        // Nothing is built to take something away, unless what does it has gone.
        "down" | "status" => {
            if host::program(&workspace, Profile::Dev, "cluster").is_err() {
                setup::ensure(&workspace, Purpose::Build)?;
                host::everything(&workspace, Profile::Dev)?;
            }
            ask(&workspace, what, args)
        }
        other => bail!("`{other}`? It is up, down, status or build"),
    }
}

/// Lets the tests' program do it.
fn ask(workspace: &Workspace, what: &str, args: &Args) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;

    let mut program = host::program(workspace, Profile::Dev, "cluster")?;
    program.arg(what).args(args.value("--name"));
    // In our place, so that its exit code and the terminal's signals are its own.
    Err(anyhow::Error::from(program.exec()).context("the program `cluster` cannot be started"))
}
