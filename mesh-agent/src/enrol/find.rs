//! Where a pod's network namespace is: named by an annotation in file mode, in a cluster found by the pod's processes.

use std::{
    collections::BTreeSet, fs, net::IpAddr, os::unix::fs::MetadataExt as _, path::PathBuf,
    sync::Arc,
};

use tokio::sync::watch;

use super::EnrolError;
use crate::{
    netns::{Factory, Netns, own_addresses},
    pod_cgroups::{PodCgroups, processes_of},
    world::{LocalPod, PodUid},
};

/// How pods' network namespaces are found.
#[derive(Clone, Debug)]
pub enum Finder {
    /// By the annotation nodemesh.dev/netns.
    Named,
    /// By the processes in the pods' cgroups. The pod's address must be in the namespace: a process of the pod that is just
    /// being started, or one with privileges, may be in another.
    Processes(watch::Receiver<Arc<PodCgroups>>),
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
        let cgroups = Arc::clone(&cgroups.borrow());
        let (uid, addresses) = (&pod.workload.uid, &pod.workload.addresses);
        let mut seen = BTreeSet::new();
        for path in namespaces_of(uid, &cgroups) {
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
        Err(EnrolError::NoProcess { addresses: addresses.clone(), looked_at: seen.len() })
    }

    /// Whether an enrolled pod still has this namespace.
    pub fn is_still_there(&self, uid: &PodUid, netns: &Netns) -> bool {
        let Self::Processes(cgroups) = self else { return netns.still_there() };
        netns.still_there() || {
            // The process that led to it has ended, but perhaps not the others.
            let cgroups = Arc::clone(&cgroups.borrow());
            let mut others = namespaces_of(uid, &cgroups);
            others.any(|path| inode(&path) == Some(netns.inode()))
        }
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
fn namespaces_of(uid: &PodUid, cgroups: &PodCgroups) -> impl Iterator<Item = PathBuf> + use<> {
    processes_of(uid, cgroups).into_iter().map(|pid| PathBuf::from(format!("/proc/{pid}/ns/net")))
}

/// Device and inode of what a path leads to.
fn inode(path: &PathBuf) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Addresses for people.
pub(super) fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
