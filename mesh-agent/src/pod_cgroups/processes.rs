//! The processes of a pod.

use std::{
    fs,
    path::{Path, PathBuf},
};

use mesh_world::PodUid;

use super::{PodCgroup, PodCgroups, name};

/// Where processes are listed.
const PROC: &str = "/proc";

/// The ids of a pod's processes, the oldest first: that is the sandbox's own, where the runtime
/// starts one. They are found by the pod's cgroup. Where pods have no cgroups of their own in
/// cgroup v2, they are found by what each process says of its cgroups, v1 included.
pub fn processes_of(uid: &PodUid, cgroups: &PodCgroups) -> Vec<u32> {
    let mut pids = match cgroups.get(uid) {
        Some(cgroup) => processes_below(cgroup),
        None => listed().filter(|pid| is_of(*pid, uid)).collect(),
    };
    pids.sort_by_cached_key(|pid| (started(*pid), *pid));
    pids
}

/// The ids of the processes in a pod's cgroup, in no order.
pub fn processes_below(cgroup: &PodCgroup) -> Vec<u32> {
    let mut pids = Vec::new();
    below(&cgroup.path, &mut pids);
    pids
}

/// A cgroup that vanishes meanwhile has no processes any more.
fn below(cgroup: &Path, pids: &mut Vec<u32>) {
    let processes = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.extend(
        processes.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0),
    );
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            below(&entry.path(), pids);
        }
    }
}

fn listed() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir(PROC).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn is_of(pid: u32, uid: &PodUid) -> bool {
    let cgroups = fs::read_to_string(file(pid, "cgroup")).unwrap_or_default();
    cgroups.lines().any(|line| says(line, uid))
}

/// Whether a line of /proc/PID/cgroup (`0::/kubepods/besteffort/podUID/CONTAINER`) names a pod's
/// cgroup.
fn says(line: &str, uid: &PodUid) -> bool {
    line.split('/').any(|directory| name::pod_uid(directory).as_ref() == Some(uid))
}

/// When a process started, in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)). The
/// highest number for a process that is gone.
fn started(pid: u32) -> u64 {
    let stat = fs::read_to_string(file(pid, "stat")).unwrap_or_default();
    start_ticks(&stat).unwrap_or(u64::MAX)
}

/// The same out of that file.
pub(crate) fn start_ticks(stat: &str) -> Option<u64> {
    // The second field is the program's name in brackets, with anything in it.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_whitespace().nth(19)?.parse().ok()
}

fn file(pid: u32, name: &str) -> PathBuf {
    Path::new(PROC).join(pid.to_string()).join(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_names_a_pods_cgroup_with_either_driver_and_version() {
        let uid = PodUid::parse("0a1b2c3d-0000-4000-8000-00000000000f").unwrap();
        for line in [
            "0::/kubepods/burstable/pod0a1b2c3d-0000-4000-8000-00000000000f/c1",
            "4:memory:/node1/kubepods/pod0a1b2c3d-0000-4000-8000-00000000000f/c1",
            "1:name=systemd:/kubepods.slice/kubepods-pod0a1b2c3d_0000_4000_8000_00000000000f.slice/cri-containerd-c1.scope",
        ] {
            assert!(says(line, &uid), "{line}");
        }
        assert!(!says("0::/kubepods/burstable/pod0a1b2c3d-0000-4000-8000-000000000010/c1", &uid));
        assert!(!says("0::/", &uid));
    }

    #[test]
    fn the_age_of_a_process_is_known() {
        let own = std::process::id();
        assert!(started(1) <= started(own) && started(own) < u64::MAX);
        assert_eq!(started(u32::MAX), u64::MAX);
        assert!(listed().any(|pid| pid == own));
    }
}
