//! Cgroups (version 2): made and removed by path.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::eventually;

/// Where the cgroup2 hierarchy is mounted: not at /sys/fs/cgroup on a machine with both versions.
///
/// # Panics
/// If it is not mounted: nothing can be tested then.
pub fn mount() -> PathBuf {
    static MOUNT: OnceLock<PathBuf> = OnceLock::new();
    MOUNT.get_or_init(|| find_mount().expect("no cgroup2 mount in /proc/self/mountinfo")).clone()
}

fn find_mount() -> Option<PathBuf> {
    // proc_pid_mountinfo(5): field 5 is the mount point; the file system's type follows a lone `-`.
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    Some(PathBuf::from(line.split(' ').nth(4)?))
}

/// Ends all processes in the tree (`cgroup.kill`) and removes it. A tree that is not there is fine.
pub fn remove_tree(root: &Path) -> Result<()> {
    if !root.exists() {
        return Ok(());
    }
    fs::write(root.join("cgroup.kill"), "1")
        .with_context(|| format!("{}/cgroup.kill", root.display()))?;
    eventually(Duration::from_secs(5), || remove_empty(root))
}

/// Processes leave a cgroup only while they die, which takes a moment after they were told to.
pub(crate) fn remove_empty(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            remove_empty(&entry.path())?;
        }
    }
    let removed = fs::remove_dir(dir);
    ensure!(!dir.exists(), "cgroup {} stays: {removed:?}", dir.display());
    Ok(())
}
