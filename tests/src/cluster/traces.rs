//! What there is of a cluster on the machine: to see that nothing is left.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;

use super::{
    cgroups, link,
    plan::{CONTROL, Plan, cgroup_of},
};
use crate::netns;

/// A process, told apart from a later one with its number by the time of its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Process {
    pid: u32,
    start: String,
}

/// Namespaces, mounts, cgroups, links and files with the cluster's name, and the processes in its
/// cgroups.
pub(super) fn of(plan: &Plan) -> Result<Vec<String>> {
    let prefix = plan.netns("");
    let mut all: Vec<String> =
        netns::names().into_iter().filter(|name| name.starts_with(&prefix)).collect();
    let dir = plan.dir();
    let here = dir.display().to_string();
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let ours = |mount: &&str| mount.contains(&here) || mount.contains(&prefix);
    all.extend(mounts.lines().filter(ours).map(str::to_owned));
    let cgroups = cgroups::dirs(Path::new(&cgroup_of(plan.name())))?;
    all.extend(cgroups.iter().filter(|dir| dir.exists()).map(|dir| dir.display().to_string()));
    if link::host_link_exists(plan) {
        all.push(plan.host_link());
    }
    if dir.exists() {
        all.push(here);
    }
    all.extend(processes(plan)?.iter().map(|process| format!("process {}", process.pid)));
    Ok(all)
}

/// All processes of all machines and their pods.
pub(super) fn processes(plan: &Plan) -> Result<Vec<Process>> {
    let root = plan.cgroup(CONTROL);
    let mut pids = Vec::new();
    for dir in cgroups::dirs(root.parent().unwrap_or(&root))? {
        collect(&dir, &mut pids);
    }
    pids.sort_unstable();
    pids.dedup();
    let known = |pid: u32| Some(Process { pid, start: start(pid)? });
    Ok(pids.into_iter().filter_map(known).collect())
}

/// Those of them that still live.
pub(super) fn alive(processes: &[Process]) -> Vec<String> {
    let alive =
        processes.iter().filter(|process| start(process.pid).as_ref() == Some(&process.start));
    alive.map(|process| format!("process {} lives on", process.pid)).collect()
}

fn collect(dir: &PathBuf, pids: &mut Vec<u32>) {
    let procs = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(procs.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), pids);
        }
    }
}

/// The 22nd field of `proc_pid_stat(5)`; the second one, in parentheses, may have spaces.
fn start(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(stat.rsplit_once(") ")?.1.split(' ').nth(19)?.to_owned())
}
