//! Finds the node's kubelet and its cgroup, by which the programs know its connections.
//!
//! A process's name proves nothing. But a process that is not below the pods' cgroup, is root and
//! has the node's network is the node's own program. Its name then says that it is the kubelet.

use std::{
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use crate::{pod_cgroups::start_ticks, preflight::as_process_1_sees_cgroups};

/// What the kernel calls a kubelet (`/proc/PID/comm`): kubeadm's and most others', rke2's and k0s'
/// too; then `MicroK8s`'; then k3s', which is one process with its kubelet.
const NAMES: [&str; 5] = ["kubelet", "kubelite", "k3s", "k3s-server", "k3s-agent"];

/// The node's kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kubelet {
    /// Its process.
    pub pid: u32,
    /// When it started, in clock ticks since boot: a process id may be given again.
    started: u64,
    /// Its cgroup's directory.
    pub cgroup: PathBuf,
    /// The number by which programs know that cgroup.
    pub id: u64,
}

/// Looks for it.
#[derive(Clone, Debug)]
pub struct Search {
    proc: PathBuf,
    /// Where cgroup v2 is mounted.
    mount: PathBuf,
    /// The cgroup above the pods.
    pods: PathBuf,
    known: Option<Kubelet>,
}

impl Search {
    /// A search on this node, where cgroup v2 is mounted at `mount` and all pods are below `pods`.
    pub fn new(mount: &Path, pods: &Path) -> Self {
        let (mount, pods) = (mount.to_owned(), pods.to_owned());
        Self { proc: PathBuf::from("/proc"), mount, pods, known: None }
    }

    /// Looks at the process that was found before, and at all others only if that one is gone.
    /// Blocks for milliseconds.
    pub fn look(&mut self) -> Option<Kubelet> {
        let search = self.clone();
        // `None`: the look failed, which says nothing.
        if let Some(found) = as_process_1_sees_cgroups(move || search.look_here()) {
            self.known = found;
        }
        self.known.clone()
    }

    fn look_here(&self) -> Option<Kubelet> {
        let same =
            |known: &Kubelet| self.read(known.pid).filter(|found| found.started == known.started);
        self.known.as_ref().and_then(same).or_else(|| self.find())
    }

    /// Of several kubelets, the one that has run longest.
    fn find(&self) -> Option<Kubelet> {
        let entries = fs::read_dir(&self.proc).ok()?.flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.filter_map(|pid| self.read(pid)).min_by_key(|found| (found.started, found.pid))
    }

    /// What there is to know of a process, if it is a kubelet.
    fn read(&self, pid: u32) -> Option<Kubelet> {
        let of = |pid: u32, file: &str| self.proc.join(pid.to_string()).join(file);
        let read = |file: &str| fs::read_to_string(of(pid, file)).ok();
        if !NAMES.contains(&read("comm")?.trim_end()) || effective_uid(&read("status")?)? != 0 {
            return None;
        }
        let netns = |pid: u32| fs::read_link(of(pid, "ns/net")).ok();
        if netns(pid)? != netns(1)? {
            return None;
        }
        let cgroups = read("cgroup")?;
        let path = Path::new(cgroups.lines().find_map(|line| line.strip_prefix("0::/"))?);
        let cgroup = self.mount.join(path);
        // A cgroup outside of what process 1 sees is that of no program of this node.
        let is_below = |dir: &Path| cgroup.starts_with(dir);
        if path.components().any(|part| part == Component::ParentDir) || is_below(&self.pods) {
            return None;
        }
        let id = fs::metadata(&cgroup).ok()?.ino();
        Some(Kubelet { pid, started: start_ticks(&read("stat")?)?, cgroup, id })
    }
}

/// Of `/proc/PID/status` (proc(5)): real, effective, saved, file system's.
fn effective_uid(status: &str) -> Option<u32> {
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    uids.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A node's /proc and cgroups.
    struct Node(tempfile::TempDir);

    impl Node {
        fn new() -> Self {
            let node = Self(tempfile::tempdir().unwrap());
            for cgroup in ["system.slice/kubelet.service", "kubepods/poda/c"] {
                fs::create_dir_all(node.0.path().join("cgroup").join(cgroup)).unwrap();
            }
            node.process(1, "systemd", 0, "node", "init.scope", 1);
            node
        }

        fn process(&self, pid: u32, comm: &str, uid: u32, net: &str, cgroup: &str, started: u64) {
            let dir = self.0.path().join("proc").join(pid.to_string());
            fs::create_dir_all(dir.join("ns")).unwrap();
            let stat = format!("{pid} ({comm}) S {}{started} 0", "0 ".repeat(18));
            for (file, text) in [
                ("comm", format!("{comm}\n")),
                ("status", format!("Name:\t{comm}\nUid:\t0\t{uid}\t0\t0\n")),
                ("cgroup", format!("4:memory:/x\n0::/{cgroup}\n")),
                ("stat", stat),
            ] {
                fs::write(dir.join(file), text).unwrap();
            }
            symlink(net, dir.join("ns/net")).unwrap();
        }

        fn search(&self) -> Search {
            let mount = self.0.path().join("cgroup");
            let proc = self.0.path().join("proc");
            Search { proc, pods: mount.join("kubepods"), mount, known: None }
        }

        fn found(&self) -> Option<u32> {
            self.search().look_here().map(|kubelet| kubelet.pid)
        }
    }

    const OWN: &str = "system.slice/kubelet.service";

    #[test]
    fn nobody_else_passes_for_the_kubelet() {
        let node = Node::new();
        node.process(10, "kubelet", 0, "node", "kubepods/poda/c", 2);
        node.process(11, "kubelet", 1000, "node", OWN, 2);
        node.process(12, "kubelet", 0, "pod", OWN, 2);
        node.process(13, "kubectl", 0, "node", OWN, 2);
        node.process(14, "kubelet", 0, "node", "../kubelet.service", 2);
        node.process(15, "kubelet", 0, "node", "gone.service (deleted)", 2);
        assert_eq!(node.found(), None);
        node.process(30, "kubelet", 0, "node", OWN, 9);
        node.process(31, "k3s-server", 0, "node", "", 8);
        assert_eq!(node.found(), Some(31), "the older one, in the root");
        let all = Search { pods: node.0.path().join("cgroup"), ..node.search() };
        assert_eq!(all.look_here(), None, "no process can be told from pods");
    }

    #[test]
    fn one_that_was_found_stays_while_it_lives() {
        let node = Node::new();
        node.process(30, "kubelet", 0, "node", OWN, 9);
        let mut search = node.search();
        search.known = search.look_here();
        let cgroup = node.0.path().join("cgroup").join(OWN);
        let id = fs::metadata(&cgroup).unwrap().ino();
        assert_eq!(search.known, Some(Kubelet { pid: 30, started: 9, cgroup, id }));
        node.process(20, "kubelet", 0, "node", "", 3);
        assert_eq!(search.look_here(), search.known);
        fs::remove_dir_all(node.0.path().join("proc/30")).unwrap();
        node.process(30, "kubelet", 0, "node", OWN, 12);
        assert_eq!(search.look_here().map(|kubelet| kubelet.pid), Some(20), "another process 30");
    }
}
