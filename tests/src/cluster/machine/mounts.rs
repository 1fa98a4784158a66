//! What a machine has for itself in its file system.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::{PROGRAMS, SYSTEM, Spec};
use crate::cluster::cgroups;

/// Directories that are the machine's own. The last one covers where they all come from.
pub(super) const OWN: [&str; 4] = ["etc", "opt", "var/log", "var/lib"];

/// Where the machine mounts something else than what the host has there.
const COVERED: [&str; 4] = ["/proc", "/sys", "/run", "/dev/shm"];

/// Where Debian has the network plugins, and where a node has them.
const CNI_PLUGINS: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];

/// Kernel settings without a namespace. A kubelet wants these values and would write them. It finds
/// them there, and the host keeps its own (`setupKernelTunables` in
/// `pkg/kubelet/cm/container_manager_linux.go`).
const SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Writes the files that stand for [`SETTINGS`].
pub(super) fn prepare_settings(dir: &Path) -> Result<()> {
    for (name, value) in SETTINGS {
        let file = setting(dir, name);
        fs::create_dir_all(file.parent().unwrap_or(dir))?;
        fs::write(file, format!("{value}\n"))?;
    }
    Ok(())
}

fn setting(dir: &Path, name: &str) -> PathBuf {
    dir.join("settings").join(name)
}

/// Mounts everything. We are the first process of the new namespaces.
pub(super) fn make(spec: &Spec) -> Result<()> {
    let hierarchies = cgroups::hierarchies()?;
    let root = spec.dir.join("root");
    // From here on nothing reaches the host.
    flag("/", MsFlags::MS_PRIVATE)?;
    detach()?;
    fresh("proc", "/proc", "")?;
    for (name, _) in SETTINGS {
        let at = Path::new("/proc/sys").join(name);
        if at.exists() {
            bind(&setting(&spec.dir, name), &at)?;
        }
    }

    // A new sysfs has the network devices of our namespace. It covers everything that was mounted
    // below the old one.
    fresh("sysfs", "/sys", "")?;
    fresh("bpf", "/sys/fs/bpf", "mode=0700")?;
    let base = Path::new("/sys/fs/cgroup");
    if hierarchies.iter().all(|hierarchy| hierarchy.mount != base) {
        fresh("tmpfs", base, "mode=0755")?;
    }
    for hierarchy in &hierarchies {
        fs::create_dir_all(&hierarchy.mount)?;
        fresh(&hierarchy.kind, &hierarchy.mount, &hierarchy.options)?;
        // The root of the machine's hierarchy stays empty; otherwise version 2 passes no
        // controllers on to its pods.
        let procs = hierarchy.mount.join(SYSTEM).join("cgroup.procs");
        fs::write(&procs, "0").with_context(|| procs.display().to_string())?;
    }

    fresh("tmpfs", "/run", "mode=0755")?;
    fresh("tmpfs", "/dev/shm", "mode=1777")?;
    fs::create_dir_all("/run/lock")?;
    for (from, to) in
        [(spec.programs.as_path(), PROGRAMS), (CNI_PLUGINS[0].as_ref(), CNI_PLUGINS[1])]
    {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(&to)?;
        bind(from, &to)?;
    }
    for own in OWN {
        bind(&root.join(own), &Path::new("/").join(own))?;
    }
    // Mounts for pods' volumes have to reach the containers, as on a machine that was booted by
    // systemd.
    flag("/", MsFlags::MS_SHARED)
}

/// Unmounts all that will be covered: network namespaces that are mounted below `/run` would live
/// as long as we do.
fn detach() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let points: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for point in points.iter().rev() {
        if COVERED.iter().any(|covered| Path::new(point).starts_with(covered)) {
            // Some have gone with what they were mounted upon.
            let _gone_already = umount2(*point, MntFlags::MNT_DETACH);
        }
    }
    Ok(())
}

fn fresh(kind: &str, at: impl AsRef<Path>, options: &str) -> Result<()> {
    let at = at.as_ref();
    mount(Some(kind), at, Some(kind), MsFlags::empty(), Some(options))
        .with_context(|| format!("mounting {kind} at {}", at.display()))
}

fn bind(from: &Path, to: &Path) -> Result<()> {
    mount(Some(from), to, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("mounting {} at {}", from.display(), to.display()))
}

fn flag(at: &str, flag: MsFlags) -> Result<()> {
    mount(None::<&str>, at, None::<&str>, flag | MsFlags::MS_REC, None::<&str>)
        .with_context(|| format!("{flag:?} at {at}"))
}
