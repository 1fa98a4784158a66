//! `mesh-probe`: our own client and server for questions that ordinary programs cannot answer, for
//! instance: what did `accept` say, how did the stream end, was every byte right? This module is
//! what its two sides share: arguments, reports, and the means to run it in a pod. The program
//! itself is in `src/bin/mesh-probe/`.

mod data;
mod race;
mod report;
mod script;
mod spec;

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, anyhow};

pub use data::{Digest, Noise};
pub use race::{MARKER, RaceLoad, RaceSpec, RaceTally, Target};
pub use report::{Conn, End, Event, Load, Took};
pub use script::{Ending, Order, Script};
pub(crate) use spec::to_args;
pub use spec::{DialSpec, Manner, RawSpec, ServeSpec, Talk, from_args};

use crate::exec::{Place, Process};

/// How long a probe may take to listen, or a single connection to be reported.
const SOON: Duration = Duration::from_secs(10);

/// A `mesh-probe serve` that runs.
#[derive(Debug)]
pub struct Server {
    process: Process,
    address: SocketAddr,
}

/// A `mesh-probe dial` that makes requests until it is told to stop.
#[derive(Debug)]
pub struct Client {
    process: Process,
}

/// Starts a server at a place, and waits until it listens.
pub fn serve(place: &Place, spec: &ServeSpec) -> Result<Server> {
    let mut process = place.spawn(argv("serve", &to_args(spec)?))?;
    let listening = |event| match event {
        Event::Listening(address) => Some(address),
        _ => None,
    };
    let address = process.wait_for("listening", SOON, |line| listening(event(line)?))?;
    Ok(Server { process, address })
}

/// Makes the connections and returns their reports.
pub fn dial_all(place: &Place, spec: &DialSpec) -> Result<Vec<Conn>> {
    // The probe ends by itself; this is for one that hangs.
    let limit = Duration::from_secs(spec.timeout_s) + SOON;
    let stdout = place.run_for(limit, argv("dial", &to_args(spec)?))?.success()?;
    Ok(conns(&stdout))
}

/// Makes one connection and returns its report.
pub fn dial(place: &Place, spec: &DialSpec) -> Result<Conn> {
    dial_all(place, spec)?.pop().context("the probe reported no connection")
}

/// Makes one connection without a TCP socket, and returns its report.
pub fn raw(place: &Place, spec: &RawSpec) -> Result<Conn> {
    let stdout = place.run(argv("raw", &to_args(spec)?))?.success()?;
    conns(&stdout).pop().context("the probe reported no connection")
}

/// Starts a client that makes requests until [`Client::finish`].
pub fn load(place: &Place, spec: &DialSpec) -> Result<Client> {
    Ok(Client { process: place.spawn(argv("dial", &to_args(spec)?))? })
}

impl Server {
    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The reports of the connections that have ended until now.
    pub fn conns(&self) -> Vec<Conn> {
        conns(&self.process.stdout())
    }

    /// Waits for the report of a connection that `wanted` accepts.
    pub fn wait_conn(&mut self, what: &str, wanted: impl Fn(&Conn) -> bool) -> Result<Conn> {
        let conn = |event| match event {
            Event::Conn(conn) if wanted(&conn) => Some(*conn),
            _ => None,
        };
        self.process.wait_for(what, SOON, |line| conn(event(line)?))
    }

    /// Waits until this many connections are reported, and returns all.
    pub fn wait_conns(&mut self, count: usize) -> Result<Vec<Conn>> {
        crate::eventually(SOON, || {
            let conns = self.conns();
            let enough = conns.len() >= count;
            enough
                .then_some(conns)
                .ok_or_else(|| anyhow!("fewer than {count} reports: {}", self.process.stdout()))
        })
    }

    /// What it read that was no request: TLS that reached an application, for instance.
    pub fn garbage(&self) -> Vec<String> {
        let garbage = |line| match event(line)? {
            Event::Garbage(what) => Some(what),
            _ => None,
        };
        self.process.stdout().lines().filter_map(garbage).collect()
    }

    /// Ends it.
    pub fn stop(self) -> Result<()> {
        self.process.stop().map(drop)
    }
}

impl Client {
    /// How many requests it has made, and how many have failed, until now.
    pub fn progress(&self) -> Load {
        let progress = |line| match event(line)? {
            Event::Progress(load) => Some(load),
            _ => None,
        };
        self.process.stdout().lines().rev().find_map(progress).unwrap_or_default()
    }

    /// Waits until `more` further requests have been answered.
    pub fn wait_more(&self, more: u64) -> Result<()> {
        let goal = self.progress().ok + more;
        crate::eventually(SOON, || {
            let now = self.progress();
            (now.ok >= goal)
                .then_some(())
                .ok_or_else(|| anyhow!("{now:?}, wanted {goal} requests answered"))
        })
    }

    /// Stops it and returns the result.
    pub fn finish(self) -> Result<Load> {
        let stdout = self.process.finish(SOON)?.success()?;
        let load = |line| match event(line)? {
            Event::Load(load) => Some(load),
            _ => None,
        };
        stdout.lines().find_map(load).with_context(|| format!("no result in {stdout}"))
    }
}

fn argv(command: &str, args: &[String]) -> Vec<String> {
    let program = crate::bin_dir().join("mesh-probe");
    let head = [program.to_string_lossy().into_owned(), command.to_owned()];
    head.into_iter().chain(args.iter().cloned()).collect()
}

fn event(line: &str) -> Option<Event> {
    serde_json::from_str(line).ok()
}

fn conns(stdout: &str) -> Vec<Conn> {
    let conn = |line| match event(line)? {
        Event::Conn(conn) => Some(*conn),
        _ => None,
    };
    stdout.lines().filter_map(conn).collect()
}
