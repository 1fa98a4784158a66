//! A real Kubernetes of two nodes, for people: `cluster up | demo | down | status [NAME]`,
//! `cluster load ARCHIVE [NAME]`.
//!
//! `boot` and `init` are for the library, which starts this program as the first process of a node.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "telling is what it is for")]

mod demo;

use std::{env, path::Path, process::ExitCode};

use anyhow::{Context as _, Result, bail};
use tests::cluster::{self, Cluster, machine};

/// The default name of a cluster.
const NAME: &str = "dev";

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["up"] => up(NAME),
        ["up", name] => up(name),
        ["demo"] => show(NAME),
        ["demo", name] => show(name),
        ["load", archive] => load(archive, NAME),
        ["load", archive, name] => load(archive, name),
        ["down"] => down(NAME),
        ["down", name] => down(name),
        ["status"] => return status(NAME),
        ["status", name] => return status(name),
        ["boot", spec] => machine::boot(spec),
        ["init", spec] => machine::init(spec),
        _ => Err(anyhow::anyhow!(
            "usage: cluster up | demo | down | status [NAME], or cluster load ARCHIVE [NAME]"
        )),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("cluster: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn up(name: &str) -> Result<()> {
    if let Some(cluster) = Cluster::existing(name)?
        && cluster.programs().iter().all(|(_, _, runs)| *runs)
    {
        println!("The cluster {name} is up.");
        tell(&cluster, name);
        return Ok(());
    }
    let mut cluster = Cluster::up(name)?;
    cluster.keep();
    tell(&cluster, name);
    Ok(())
}

/// The demo, in a cluster that is there or is made.
fn show(name: &str) -> Result<()> {
    up(name)?;
    demo::tell(&existing(name)?)?;
    println!(
        "\nAll of this was observed in this run. It goes on running; `cargo xtask cluster down --name {name}` ends it."
    );
    Ok(())
}

/// Gives an image to both nodes.
fn load(archive: &str, name: &str) -> Result<()> {
    existing(name)?.import_image(Path::new(archive)).with_context(|| archive.to_owned())?;
    println!("Both nodes of the cluster {name} have the images of {archive}.");
    Ok(())
}

fn existing(name: &str) -> Result<Cluster> {
    Cluster::existing(name)?.with_context(|| {
        format!("there is no cluster {name}; `cargo xtask cluster up --name {name}` makes it")
    })
}

/// How to use it.
fn tell(cluster: &Cluster, name: &str) {
    let node = cluster.node(1);
    println!(
        "
To use it:
   export KUBECONFIG={}
   {} get nodes
   image of pods (imagePullPolicy: Never): {}
   on a node: nsenter --target {} --all PROGRAM
   with the mesh in it: cargo xtask cluster demo --name {name}; by hand: docs/install.md
To end it:
   cargo xtask cluster down --name {name}",
        cluster.kubeconfig().display(),
        cluster::kubectl().display(),
        cluster::BUSYBOX,
        node.init().unwrap_or_default(),
    );
}

fn down(name: &str) -> Result<()> {
    if !cluster::names().iter().any(|known| known == name) {
        println!("There is no cluster {name}.");
        return Ok(());
    }
    cluster::remove(name)?;
    println!("The cluster {name} is gone: its programs, namespaces, cgroups, link and files.");
    Ok(())
}

/// Success if it is up.
fn status(name: &str) -> ExitCode {
    match told_status(name) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("cluster: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn told_status(name: &str) -> Result<bool> {
    let Some(cluster) = Cluster::existing(name)? else {
        let others = cluster::names();
        if others.is_empty() {
            println!("There is no cluster {name}.");
        } else {
            println!("There is no cluster {name}; there are: {}", others.join(", "));
        }
        return Ok(false);
    };
    let programs = cluster.programs();
    for (machine, program, runs) in &programs {
        println!("{machine:<8} {program:<24} {}", if *runs { "runs" } else { "DOES NOT RUN" });
    }
    if programs.iter().any(|(_, _, runs)| !runs) {
        bail!("the cluster {name} is not up; `cargo xtask cluster down --name {name}` removes it");
    }
    println!("\n{}", cluster.kubectl(["get", "nodes", "-o", "wide"]).context("the API server")?);
    tell(&cluster, name);
    Ok(true)
}
