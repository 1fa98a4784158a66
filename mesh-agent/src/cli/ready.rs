//! `mesh-agent ready`.

use std::fs;

use anyhow::bail;
use clap::Args;
use mesh_api::KnowledgeSource;

use super::{Asked, print_line};

/// Say whether this container's agent is in charge of its node and knows the world, from the API
/// server or from an earlier agent's notes. Exits with 0 if so, for a readiness probe.
#[derive(Debug, Args)]
pub(super) struct Ready {
    #[command(flatten)]
    asked: Asked,
}

impl Ready {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let status = self.asked.status()?;
        // During an update the old and the new agent share a runtime directory, and one of them
        // answers.
        if cgroup("self") != cgroup(&status.pid.to_string()) {
            bail!("another agent is in charge of {} (pid {})", status.node, status.pid);
        }
        if status.draining {
            bail!("the agent is draining");
        }
        if !status.ready {
            bail!("the agent is starting");
        }
        match (status.knowledge.from, status.knowledge.as_of) {
            (KnowledgeSource::Disk, Some(as_of)) => print_line(&format!(
                "ready, with what an earlier agent knew at {as_of:.0}: the API server has not answered yet"
            )),
            _ => print_line("ready"),
        }
    }
}

fn cgroup(process: &str) -> Option<String> {
    let lines = fs::read_to_string(format!("/proc/{process}/cgroup")).ok()?;
    lines.lines().find(|line| line.starts_with("0::")).map(str::to_owned)
}
