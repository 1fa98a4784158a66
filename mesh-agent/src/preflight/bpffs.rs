//! Mounts the BPF file system on a node that has none: systemd does so, other inits may not.

use std::fs::File;
use std::{io, thread};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

/// Where it belongs (Documentation/bpf of the kernel), and where systemd mounts it.
const PLACE: &str = "/sys/fs/bpf";

/// Mounts it as process 1 sees the node, unless it is there. From then on a container sees it if
/// its `/sys/fs/bpf` is the node's, with `mountPropagation: HostToContainer`. It stays, as
/// systemd's does.
///
/// # Errors
/// What the kernel said. It needs `CAP_SYS_ADMIN`, and `CAP_SYS_CHROOT` to enter the mount
/// namespace.
pub(super) fn mount_on_node() -> io::Result<()> {
    let enter_and_mount = || -> io::Result<()> {
        let node = File::open("/proc/1/ns/mnt")?;
        // A thread that shares its root with others may not enter another mount namespace.
        unshare(CloneFlags::CLONE_FS)?;
        setns(node, CloneFlags::CLONE_NEWNS)?;
        if statfs(PLACE)?.filesystem_type() == BPF_FS_MAGIC {
            return Ok(()); // another agent was quicker
        }
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        Ok(mount(Some("bpf"), PLACE, Some("bpf"), flags, Some("mode=700"))?)
    };
    // A thread that ends afterwards: no other thread may be moved.
    let thread = thread::Builder::new().spawn(enter_and_mount)?;
    thread.join().unwrap_or_else(|_panic| Err(io::ErrorKind::Other.into()))
}
