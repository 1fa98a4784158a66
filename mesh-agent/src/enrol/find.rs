//! Where a pod's network namespace is: named by an annotation in file mode, in a cluster found by the pod's processes.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use super::{Cgroups, EnrolError};
use crate::{
    netns::{Factory, Netns, is_mounted, own_addresses},
    pod_cgroups::{processes_below, processes_of},
    world::{LocalPod, PodUid},
};

/// Namespaces that are no pod's: the node's, in which a process of a pod that is just being started still is, and the agent's.
const NO_PODS: [&str; 2] = ["/proc/1/ns/net", "/proc/self/ns/net"];

/// How pods' network namespaces are found.
#[derive(Clone, Debug)]
pub enum Finder {
    /// By the annotation nodemesh.dev/netns.
    Named,
    /// By the processes in the pods' cgroups. The pod's address must be in the namespace: a process of the pod that is just
    /// being started, or one with privileges, may be in another.
    Processes(Cgroups),
}

impl Finder {
    /// Opens a pod's network namespace.
    ///
    /// # Errors
    /// There is none, or it cannot be used.
    pub async fn find(&self, factory: &Factory, pod: &LocalPod) -> Result<Netns, EnrolError> {
        let Self::Processes(cgroups) = self else {
            let path = pod.netns.as_ref().ok_or(EnrolError::NoNetns)?.path();
            return Ok(Netns::open(factory, path).await?);
        };
        let (uid, addresses) = (&pod.workload.uid, &pod.workload.addresses);
        let mut seen: BTreeSet<_> =
            NO_PODS.into_iter().filter_map(|path| inode(Path::new(path))).collect();
        let excluded = seen.len();
        for path in namespaces_of(uid, cgroups) {
            // Without an address (hostNetwork) there is none that is its own.
            if addresses.is_empty() || !inode(&path).is_some_and(|inode| seen.insert(inode)) {
                continue;
            }
            let Ok(netns) = Netns::open(factory, &path).await else { continue }; // the process has ended
            let Ok(Ok(found)) = netns.run(factory, own_addresses).await else { continue };
            if addresses.iter().all(|address| found.contains(address)) {
                return Ok(netns);
            }
        }
        let looked_at = seen.len() - excluded;
        Err(EnrolError::NoProcess { addresses: addresses.clone(), looked_at })
    }

    /// The addresses in the namespace of a pod that has a single process, its sandbox's: no program of the pod's own runs, so
    /// that they are the network plugin's.
    pub(super) async fn see_sandbox(
        &self,
        factory: &Factory,
        uid: &PodUid,
    ) -> Option<BTreeSet<IpAddr>> {
        let Self::Processes(cgroups) = self else { return None };
        // Not by reading all of /proc, many times a second.
        let only_process = || match *cgroups.now().get(uid).map(processes_below)?.as_slice() {
            [only] => Some(only),
            _ => None,
        };
        let process = only_process()?;
        let path = namespace_of(process);
        let of_nobody =
            NO_PODS.into_iter().any(|no_pods| inode(Path::new(no_pods)) == inode(&path));
        if of_nobody {
            return None;
        }
        let netns = Netns::open(factory, &path).await.ok()?;
        let found = netns.run(factory, own_addresses).await.ok()?.ok()?;
        // Also after it was looked at.
        (only_process()? == process && inode(&path) == Some(netns.inode())).then_some(found)
    }

    /// The one namespace of a pod's processes that is among those asked for, by its cookie, and the addresses in it.
    pub(super) async fn see_one_of(
        &self,
        factory: &Factory,
        uid: &PodUid,
        is_asked_for: impl Fn(u64) -> bool,
    ) -> Option<(u64, BTreeSet<IpAddr>)> {
        let Self::Processes(cgroups) = self else { return None };
        let mut seen: BTreeSet<_> =
            NO_PODS.into_iter().filter_map(|path| inode(Path::new(path))).collect();
        let mut only: Option<Netns> = None;
        for process in cgroups.now().get(uid).map(processes_below)? {
            let path = namespace_of(process);
            if !inode(&path).is_some_and(|inode| seen.insert(inode)) {
                continue;
            }
            let Ok(netns) = Netns::open(factory, &path).await else { continue }; // the process has ended
            if is_asked_for(netns.cookie()) && only.replace(netns).is_some() {
                return None;
            }
        }
        let only = only?;
        let addresses = only.run(factory, own_addresses).await.ok()?.ok()?;
        Some((only.cookie(), addresses))
    }

    /// Whether an enrolled pod still has this namespace.
    pub fn is_still_there(&self, uid: &PodUid, netns: &Netns) -> bool {
        let Self::Processes(cgroups) = self else { return netns.still_there() };
        if netns.still_there() {
            return true;
        }
        // The process that led to it has ended, but perhaps not the others.
        let mut others = namespaces_of(uid, cgroups).filter_map(|path| inode(&path)).peekable();
        if others.peek().is_none() {
            // A sandbox without a process of its own is there between two containers: the runtime keeps it by a mount.
            return is_mounted(netns.inode());
        }
        others.any(|other| other == netns.inode())
    }

    /// Whether the pod says that its namespace is another one than this.
    pub fn is_elsewhere(&self, pod: &LocalPod, netns: &Netns) -> bool {
        match self {
            Self::Named => pod.netns.as_ref().is_none_or(|named| named.path() != netns.path()),
            Self::Processes(_) => false,
        }
    }
}

/// The namespaces of a pod's processes, the oldest process's first.
fn namespaces_of(uid: &PodUid, cgroups: &Cgroups) -> impl Iterator<Item = PathBuf> + use<> {
    processes_of(uid, &cgroups.now()).into_iter().map(namespace_of)
}

fn namespace_of(pid: u32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/ns/net"))
}

/// Device and inode of what a path leads to.
fn inode(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Addresses for people.
pub(super) fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
