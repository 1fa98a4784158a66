//! The machine: what it is, and how much of it others used meanwhile.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};
use serde::Serialize;
use tests::Net;

/// What a report says of the machine.
#[derive(Debug, Serialize)]
pub(crate) struct Facts {
    kernel: String,
    cpu: String,
    pub(crate) cpus: usize,
    /// The share of all CPU time that programs outside the benchmark used, 0 to 1. A higher share
    /// means noisier figures.
    pub(crate) used_by_others: f64,
    /// The share that the hypervisor took away.
    pub(crate) stolen: f64,
}

/// CPU time in µs, over all CPUs: since the machine started, or of a while.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    total: u64,
    idle: u64,
    stolen: u64,
    ours: u64,
}

impl Usage {
    pub(crate) fn now(net: &Net) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        // proc_stat(5): user nice system idle iowait irq softirq steal, in hundredths of a second.
        let fields: Vec<u64> =
            line.split_whitespace().skip(1).take(8).map(str::parse).collect::<Result<_, _>>()?;
        let [.., idle, iowait, _, _, stolen] = fields[..] else {
            anyhow::bail!("/proc/stat begins with {line:?}");
        };
        let us = |hundredths: u64| hundredths * 10_000;
        let ours = cgroup_cpu_us(&net.tag().cgroup())?;
        let total = us(fields.iter().sum());
        Ok(Self { total, idle: us(idle + iowait), stolen: us(stolen), ours })
    }

    /// What was used from then until `later`.
    pub(crate) fn until(self, later: &Self) -> Self {
        Self {
            total: later.total.saturating_sub(self.total),
            idle: later.idle.saturating_sub(self.idle),
            stolen: later.stolen.saturating_sub(self.stolen),
            ours: later.ours.saturating_sub(self.ours),
        }
    }

    /// The share that was neither idle nor ours nor taken by the hypervisor.
    pub(crate) fn by_others(self) -> f64 {
        let Self { total, idle, stolen, ours } = self;
        share(total.saturating_sub(idle + stolen + ours), total)
    }
}

impl Facts {
    pub(crate) fn of_run(usage: Usage) -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let field = |name: &str| {
            info.lines().find(|line| line.starts_with(name))?.split_once(": ").map(|(_, v)| v)
        };
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cpu: field("model name").unwrap_or_default().to_owned(),
            cpus: info.lines().filter(|line| line.starts_with("processor")).count(),
            used_by_others: usage.by_others(),
            stolen: share(usage.stolen, usage.total),
        }
    }

    /// One line, for people.
    pub(crate) fn line(&self) -> String {
        let Self { kernel, cpu, cpus, used_by_others, stolen } = self;
        let (others, stolen) = (used_by_others * 100.0, stolen * 100.0);
        format!(
            "Linux {kernel}, {cpus} CPUs ({cpu}); meanwhile other programs used {others:.0} % of them, the hypervisor {stolen:.0} %"
        )
    }
}

/// CPU time that the processes of a cgroup (and below) have used, in µs.
pub(crate) fn cgroup_cpu_us(cgroup: &Path) -> Result<u64> {
    let file = cgroup.join("cpu.stat");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
    Ok(usage.with_context(|| format!("no usage_usec in {}", file.display()))?.trim().parse()?)
}

#[expect(clippy::cast_precision_loss, reason = "µs of one run are far below 2^52")]
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}
