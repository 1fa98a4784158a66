//! Each node gets half of the CPUs, as if it were a machine of its own. Otherwise the scheduler
//! sometimes puts both pods on one CPU: a round trip without the mesh then takes 9 µs instead of 60
//! µs, and the ratio only says which of the two happened.

use anyhow::{Context as _, Result};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};

/// The calling thread.
const SELF: Pid = Pid::from_raw(0);

/// Which CPUs the programs of each node get.
#[derive(Debug)]
pub(crate) struct Pins(Option<[CpuSet; 2]>);

impl Pins {
    /// Half of ours for each node; all for both on a machine with one.
    pub(crate) fn halves() -> Result<Self> {
        let ours = sched_getaffinity(SELF)?;
        let all: Vec<usize> =
            (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu).unwrap_or(false)).collect();
        let (first, second) = all.split_at(all.len() / 2);
        if first.is_empty() {
            return Ok(Self::none());
        }
        Ok(Self(Some([set(first)?, set(second)?])))
    }

    /// All for both.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Starts programs of a node (0 or 1). They inherit its CPUs, and so do the programs that they
    /// start.
    pub(crate) fn on<T>(&self, node: usize, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let Some(cpus) = self.0.as_ref().and_then(|halves| halves.get(node)) else {
            return start();
        };
        let ours = sched_getaffinity(SELF)?;
        sched_setaffinity(SELF, cpus).context("choosing CPUs")?;
        let started = start();
        sched_setaffinity(SELF, &ours).context("giving CPUs back")?;
        started
    }
}

fn set(cpus: &[usize]) -> Result<CpuSet> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    Ok(set)
}
