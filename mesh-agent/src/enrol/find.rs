//! Where a pod's network namespace is. In file mode an annotation names it; in a cluster it is
//! found by the pod's processes.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use mesh_world::{LocalPod, PodUid};

use super::{Cgroups, EnrolError};
use crate::{
    netns::{Factory, Netns, is_mounted, own_addresses},
    pod_cgroups::{processes_below, processes_of},
};

/// Namespaces that belong to no pod: the node's and the agent's. A process of a pod that is just
/// being started is still in the node's.
const NO_PODS: [&str; 2] = ["/proc/1/ns/net", "/proc/self/ns/net"];

/// How pods' network namespaces are found.
#[derive(Clone, Debug)]
pub enum Finder {
    /// By the annotation nodemesh.dev/netns.
    Named,
    /// By the processes in the pods' cgroups. The pod's address must be in the namespace: a process
    /// that is just being started, or one with privileges, may be in another.
    Processes(Cgroups),
}

impl Finder {
    /// Opens a pod's network namespace.
    ///
    /// # Errors
    /// The pod has no namespace, or it cannot be used.
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
            // Each namespace is looked at once. A pod without an address uses the node's network
            // (hostNetwork): none is its own.
            if addresses.is_empty() || !inode(&path).is_some_and(|inode| seen.insert(inode)) {
                continue;
            }
            // The process may have ended.
            let Ok(netns) = Netns::open(factory, &path).await else { continue };
            let Ok(Ok(found)) = netns.run(factory, own_addresses).await else { continue };
            if addresses.iter().all(|address| found.contains(address)) {
                return Ok(netns);
            }
        }
        let looked_at = seen.len() - excluded;
        Err(EnrolError::NoProcess { addresses: addresses.clone(), looked_at })
    }

    /// The addresses in the namespace of a pod that has a single process, its sandbox's. No program
    /// of the pod itself runs yet, so the addresses are the network plugin's.
    pub(super) async fn see_sandbox(
        &self,
        factory: &Factory,
        uid: &PodUid,
    ) -> Option<BTreeSet<IpAddr>> {
        let Self::Processes(cgroups) = self else { return None };
        // By the pod's cgroup alone: this runs many times a second, too often to read all of /proc.
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
        // Process and namespace must be the same after the look.
        (only_process()? == process && inode(&path) == Some(netns.inode())).then_some(found)
    }

    /// Of the namespaces of a pod's processes, looks for the one whose cookie is asked for. Returns
    /// the cookie and the addresses in the namespace; `None` if there is no such namespace, or more
    /// than one.
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
            // The process may have ended.
            let Ok(netns) = Netns::open(factory, &path).await else { continue };
            if is_asked_for(netns.cookie()) && only.replace(netns).is_some() {
                return None;
            }
        }
        let only = only?;
        let addresses = only.run(factory, own_addresses).await.ok()?.ok()?;
        Some((only.cookie(), addresses))
    }

    /// The only namespace of a pod, and the addresses in it; `None` if there is none yet, or more
    /// than one.
    pub(super) async fn see_only(
        &self,
        factory: &Factory,
        pod: &LocalPod,
    ) -> Option<(u64, BTreeSet<IpAddr>)> {
        if let Self::Processes(_) = self {
            return self.see_one_of(factory, &pod.workload.uid, |_| true).await;
        }
        let netns = Netns::open(factory, pod.netns.as_ref()?.path()).await.ok()?;
        let addresses = netns.run(factory, own_addresses).await.ok()?.ok()?;
        Some((netns.cookie(), addresses))
    }

    /// Whether an enrolled pod still has this namespace.
    pub fn is_still_there(&self, uid: &PodUid, netns: &Netns) -> bool {
        let Self::Processes(cgroups) = self else { return netns.still_there() };
        if netns.still_there() {
            return true;
        }
        // The process that led to it has ended; others of the pod may still run.
        let mut others = namespaces_of(uid, cgroups).filter_map(|path| inode(&path)).peekable();
        if others.peek().is_none() {
            // Between two containers a sandbox may have no process of its own; the runtime then
            // keeps its namespace by a mount.
            return is_mounted(netns.inode());
        }
        others.any(|other| other == netns.inode())
    }

    /// Whether the pod's annotation does not name this namespace; never so in a cluster.
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
