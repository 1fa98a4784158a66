//! The cluster's programs, as `cargo xtask cluster build` makes them.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Those that are built here; containerd and the network plugins are the system's.
const BUILT: [&str; 8] = [
    "coredns",
    "etcd",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-proxy",
    "kube-scheduler",
    "kubectl",
    "kubelet",
];

/// Those that packages have.
const INSTALLED: [&str; 7] = [
    "/bin/busybox",
    "/usr/bin/containerd",
    "/usr/lib/cni/bridge",
    "/usr/lib/cni/host-local",
    "/usr/lib/cni/portmap",
    "/usr/sbin/nft",
    "/usr/sbin/runc",
];

/// Where they are.
pub(super) fn dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster/bin")
}

/// The client.
pub fn kubectl() -> PathBuf {
    let file = dir().join("kubectl");
    file.canonicalize().unwrap_or(file)
}

/// That all are there.
pub(super) fn check() -> Result<()> {
    let dir = dir();
    let built = BUILT.iter().map(|name| dir.join(name));
    let missing: Vec<String> = built
        .chain(INSTALLED.iter().map(PathBuf::from))
        .filter(|file| !file.exists())
        .map(|file| file.display().to_string())
        .collect();
    ensure!(
        missing.is_empty(),
        "programs of the cluster are missing, `cargo xtask cluster build` makes them: {}",
        missing.join(", ")
    );
    Ok(())
}
