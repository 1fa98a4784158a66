//! `cargo xtask cluster`: a real Kubernetes of two nodes on this machine. Its programs are built
//! here; the program `cluster` of package `tests` brings it up.
mod build;
pub(crate) mod go;

use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};

use crate::args::{Args, Command, Opt};
use crate::build::{self as host, Profile};
use crate::needs::Purpose;
use crate::setup;
use crate::workspace::Workspace;

pub(crate) use build::build;

pub(crate) const COMMAND: Command = Command {
    name: "cluster",
    about: "A real Kubernetes of two nodes on this machine: up, demo, down, and more.",
    details: "\
  up            builds what is missing, brings the cluster up, and says how to use it
  demo          the same, then applies the mesh, labels a namespace, and tells what it observed; it stays up
  load ARCHIVE  gives both nodes the images of an archive, e.g. of `cargo xtask image`
  down          takes it down, also one that has crashed or was half made
  status        what of it runs; fails if it is not all
  build         only builds its programs: etcd, Kubernetes and CoreDNS, into ~/.cache/nodemesh, to which
                target/cluster/bin leads

The programs are built from the Go modules in tests/cluster: 8 minutes on two cores the first time
on a machine. A node is made of namespaces: it has its own processes, mounts, cgroups and network. Needs root.",
    options: &[Opt { flag: "--name", values: &["NAME"], about: "which cluster; there may be several (dev)" }],
    operands: Some("up|demo|load ARCHIVE|down|status|build"),
    run,
};

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let words: Vec<&str> = args.operands.iter().map(String::as_str).collect();
    match words[..] {
        ["build"] => {
            setup::ensure(&workspace, Purpose::Cluster)?;
            build(&workspace, &AtomicBool::new(false))?;
            Ok(ExitCode::SUCCESS)
        }
        ["up" | "demo"] => {
            setup::ensure(&workspace, Purpose::Cluster)?;
            build(&workspace, &AtomicBool::new(false))?;
            host::everything(&workspace, Profile::Dev)?;
            ask(&workspace, args)
        }
        // These need a cluster that is there, so nothing is built, unless the program that does
        // them has gone.
        ["down" | "status"] | ["load", _] => {
            if host::program(&workspace, Profile::Dev, "cluster").is_err() {
                setup::ensure(&workspace, Purpose::Build)?;
                host::everything(&workspace, Profile::Dev)?;
            }
            ask(&workspace, args)
        }
        _ => bail!(
            "one of up, demo, load ARCHIVE, down, status and build; see `cargo xtask cluster --help`"
        ),
    }
}

/// Lets the tests' program do it.
fn ask(workspace: &Workspace, args: &Args) -> Result<ExitCode> {
    use std::os::unix::process::CommandExt as _;

    let mut program = host::program(workspace, Profile::Dev, "cluster")?;
    program.args(&args.operands).args(args.value("--name"));
    // In our place, so that its exit code and the terminal's signals are its own.
    Err(anyhow::Error::from(program.exec()).context("the program `cluster` cannot be started"))
}
