//! What the race tests' load is told and what it tells. `mesh-probe race` runs in each pod, as
//! server and client at once.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{argv, event, report::Event, spec};
use crate::exec::{Place, Process};

/// Is in everything that the load says, so that plaintext can be found on a link.
pub const MARKER: &str = "NMRACE";

/// `mesh-probe race`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaceSpec {
    /// The name that its servers give.
    pub name: String,
    /// The port of the server whose clients speak first.
    pub client_first: u16,
    /// The port of the server that speaks first itself.
    pub server_first: u16,
    /// The [`Target`]s to dial, separated by commas.
    pub targets: String,
    /// The mean pause between two connections of a worker; there is one worker per target.
    pub pause_ms: u64,
    /// How long a connection may take altogether; longer is a hang.
    pub deadline_s: u64,
}

/// One worker's destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The name that the server there gives.
    pub name: String,
    /// Its address.
    pub to: SocketAddr,
    /// Whether it speaks first.
    pub server_first: bool,
    /// Whether to dial from a source port of the mesh's range, as other systems and SNAT do.
    pub from_range: bool,
}

/// What has happened until now.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaceTally {
    /// Connections that were answered rightly, by worker.
    pub ok: Vec<u64>,
    /// Of these, how many took longer than a second.
    pub late: u64,
    /// Connections that ended cleanly without an answer, by how.
    pub refused: u64,
    /// By a reset.
    pub reset: u64,
    /// By EPERM.
    pub denied: u64,
    /// By another error of `connect`.
    pub other: u64,
    /// The longest time that any connection took.
    pub longest_ms: u64,
    /// Connections that the servers accepted.
    pub accepted: u64,
    /// Of these, how many ended before a request had come.
    pub unasked: u64,
    /// What must not happen: hangs, wrong bytes, clean ends in the middle.
    pub violations: u64,
}

impl RaceTally {
    /// All connections that were made.
    pub fn connections(&self) -> u64 {
        self.ok.iter().sum::<u64>() + self.refused + self.reset + self.denied + self.other
    }
}

impl Target {
    /// As an argument has it.
    pub fn to_text(&self) -> String {
        let kind = if self.server_first { "server-first" } else { "client-first" };
        let from = if self.from_range { "range" } else { "any" };
        format!("{}/{}/{kind}/{from}", self.name, self.to)
    }

    /// What [`Self::to_text`] has made.
    pub fn parse(text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let [name, to, kind, from] = parts[..] else { anyhow::bail!("{text:?} is no target") };
        Ok(Self {
            name: name.to_owned(),
            to: to.parse().with_context(|| format!("{text:?}"))?,
            server_first: kind == "server-first",
            from_range: from == "range",
        })
    }
}

/// A load that runs.
#[derive(Debug)]
pub struct RaceLoad {
    process: Process,
    name: String,
    /// In the order of its workers.
    pub targets: Vec<Target>,
}

impl RaceLoad {
    /// Starts it.
    pub fn start(place: &Place, spec: &RaceSpec, targets: Vec<Target>) -> Result<Self> {
        let texts: Vec<String> = targets.iter().map(Target::to_text).collect();
        let spec = RaceSpec { targets: texts.join(","), ..spec.clone() };
        let process = place.spawn(argv("race", &spec::to_args(&spec)?))?;
        Ok(Self { process, name: spec.name, targets })
    }

    /// Its pod.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What has happened until now.
    pub fn tally(&self) -> RaceTally {
        let tally = |line| match event(line)? {
            Event::Race(tally) => Some(*tally),
            _ => None,
        };
        self.process.stdout().lines().rev().find_map(tally).unwrap_or_default()
    }

    /// What must not happen and has happened, in words.
    pub fn violations(&self) -> Vec<String> {
        let violation = |line| match event(line)? {
            Event::Violation(what) => Some(what),
            _ => None,
        };
        self.process.stdout().lines().filter_map(violation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_survives_the_command_line() {
        let to = "[fd00:244:1::a]:8081".parse().unwrap();
        let target = Target { name: "a1".to_owned(), to, server_first: true, from_range: false };
        assert_eq!(Target::parse(&target.to_text()).unwrap(), target);
    }
}
