//! What the agent needs of its host, checked before anything is changed, so that each lack has a
//! sentence of its own.

mod bpffs;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::sys;

/// The oldest kernel that the programs load on: the first whose `sockops` programs are told their
/// network namespace (`bpf_get_netns_cookie`, kernel commit fab60e29fcc6).
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// What is missing.
#[derive(Debug, Error)]
pub enum PreflightError {
    /// Not root.
    #[error(
        "mesh-agent must run as root (it runs as uid {uid}); it loads eBPF programs and enters pods' network namespaces"
    )]
    NotRoot {
        /// The uid that it runs as.
        uid: u32,
    },
    /// No raw sockets.
    #[error(
        "the agent may not make raw sockets: {0}; it needs CAP_NET_RAW to end the waiting of a connect(), which Nodemesh's manifest gives it: apply the manifest of this version"
    )]
    NoRawSockets(#[source] io::Error),
    /// The kernel is too old.
    #[error(
        "the kernel of this node is Linux {release}, and the mesh needs {}.{} or newer: an older one does not tell eBPF programs which pod's network namespace a connection belongs to; run a newer kernel on this node",
        OLDEST_KERNEL.0,
        OLDEST_KERNEL.1
    )]
    KernelTooOld {
        /// What the kernel says it is.
        release: String,
    },
    /// The kernel does not say which one it is.
    #[error("cannot ask the kernel for its release: {0}")]
    Release(#[source] io::Error),
    /// The mount table cannot be read.
    #[error("cannot read /proc/self/mountinfo: {0}; is /proc mounted?")]
    Mounts(#[source] io::Error),
    /// No cgroup v2.
    #[error(
        "no cgroup v2 file system is mounted; mount one (mount -t cgroup2 none /sys/fs/cgroup/unified) or boot with systemd.unified_cgroup_hierarchy=1"
    )]
    NoCgroup2,
    /// The cgroup given is not one.
    #[error(
        "--cgroup {path} is not a directory of cgroup v2; name the cgroup above the node's pods, such as {mount}/kubepods"
    )]
    NotACgroup {
        /// What was given.
        path: PathBuf,
        /// Where cgroup v2 is mounted.
        mount: PathBuf,
    },
    /// Everything on the node would be refused.
    #[error(
        "--unclassified refuse needs --cgroup, the cgroup above the pods alone: below the root of cgroup v2 it would refuse the node's own services"
    )]
    UnclassifiedAtRoot,
    /// The cluster could be cut off from its own API server.
    #[error(
        "--unclassified refuse cannot be used with --kubernetes: what a static pod is meant to be, only the API server can tell, and where that is a static pod itself, a new version of it would be refused its connections"
    )]
    UnclassifiedInCluster,
    /// The agent's own cgroup cannot be found.
    #[error("cannot find or make a cgroup for the agent alone: {0}")]
    OwnCgroup(#[source] io::Error),
    /// No bpffs.
    #[error("--pin-dir {path} is not on a bpffs; mount one with: mount -t bpf bpf /sys/fs/bpf")]
    NoBpffs {
        /// What was given.
        path: PathBuf,
    },
    /// No bpffs on a node of a cluster, and none could be mounted.
    #[error(
        "the node has no bpffs, and the agent cannot mount one at /sys/fs/bpf: {0}; mount it on the node with: mount -t bpf bpf /sys/fs/bpf"
    )]
    MountBpffs(#[source] io::Error),
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// The cgroup above the pods.
    pub pods_cgroup: PathBuf,
    /// Whether that is the root of cgroup v2, with all the node in it.
    pub pods_cgroup_is_root: bool,
    /// Where cgroup v2 is mounted.
    pub cgroup_mount: PathBuf,
    /// The cgroup that the agent is to run in.
    pub own_cgroup: OwnCgroup,
    /// The node's own network namespace.
    pub netns: &'static Path,
}

/// The cgroup by which the programs know the agent. Whatever dials from it is passed, so no other
/// process may be in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnCgroup {
    /// The agent is alone in it, as a container is.
    Given(PathBuf),
    /// The agent was started among others (a shell's children, or next to the pods) and must move
    /// here first.
    ToMake(PathBuf),
}

impl OwnCgroup {
    /// Moves the agent if it must be moved, and returns the id by which programs know the cgroup.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn enter(&self) -> Result<u64, PreflightError> {
        use std::os::unix::fs::MetadataExt as _;
        let enter = || match self {
            Self::Given(path) => Ok(fs::metadata(path)?.ino()),
            Self::ToMake(path) => {
                match fs::create_dir(path) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(error);
                    }
                    _ => {}
                }
                fs::write(path.join("cgroup.procs"), std::process::id().to_string())?;
                Ok(fs::metadata(path)?.ino())
            }
        };
        enter().map_err(PreflightError::OwnCgroup)
    }

    /// The cgroup that was made and has to be removed in the end.
    pub fn made(&self) -> Option<&Path> {
        match self {
            Self::Given(_) => None,
            Self::ToMake(path) => Some(path),
        }
    }
}

/// Checks the host. The bpffs of a cluster's node is the only missing thing that it provides
/// itself.
///
/// # Errors
/// See [`PreflightError`].
pub fn check(node: &str, pin_dir: &Path, cgroup: Option<&Path>) -> Result<Host, PreflightError> {
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return Err(PreflightError::NotRoot { uid: uid.as_raw() });
    }
    let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
    raw.map_err(PreflightError::NoRawSockets)?;
    let release = sys::uname::release().map_err(PreflightError::Release)?;
    if is_too_old(&release) {
        return Err(PreflightError::KernelTooOld { release });
    }
    let around = Container::around();
    let mut mounts = Mounts::read()?;
    if mounts.kind_of(pin_dir) != Some("bpf") && around.is_some() {
        bpffs::mount_on_node().map_err(PreflightError::MountBpffs)?;
        mounts = Mounts::read()?;
    }
    if mounts.kind_of(pin_dir) != Some("bpf") {
        return Err(PreflightError::NoBpffs { path: pin_dir.to_owned() });
    }
    let mount = match &around {
        Some(around) => around.mount.clone(),
        None => mounts.first("cgroup2").ok_or(PreflightError::NoCgroup2)?.to_owned(),
    };
    let pods_cgroup = match (cgroup, &around) {
        (Some(given), _) => given.to_owned(),
        (None, Some(around)) => around.pods.clone(),
        (None, None) => mount.clone(),
    };
    if !is_cgroup2(&pods_cgroup) {
        return Err(PreflightError::NotACgroup { path: pods_cgroup, mount });
    }
    // An agent that is a pod has a namespace of its own, and process 1 the node's; any other agent
    // runs in the node's.
    let netns = Path::new(if around.is_some() { "/proc/1/ns/net" } else { "/proc/self/ns/net" });
    let own_cgroup = match around {
        // A container's cgroup is its alone, and a process that `exec`s into it is the agent's.
        Some(around) => OwnCgroup::Given(around.own),
        None => own_cgroup(&mount, node).map_err(PreflightError::OwnCgroup)?,
    };
    let pods_cgroup_is_root = pods_cgroup == mount;
    Ok(Host { pods_cgroup_is_root, pods_cgroup, cgroup_mount: mount, own_cgroup, netns })
}

fn is_cgroup2(path: &Path) -> bool {
    let is = nix::sys::statfs::statfs(path)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC);
    is && path.join("cgroup.procs").exists()
}

/// The container that the agent runs in, as a pod of its node with `hostPID`. The container sees
/// only its own cgroups. Process 1 of the node sees them all, and /proc leads to what that sees.
struct Container {
    /// Where cgroup v2 is mounted.
    mount: PathBuf,
    /// The cgroup above the node's pods.
    pods: PathBuf,
    /// The container's own.
    own: PathBuf,
}

impl Container {
    /// `None` if the agent is no pod of a kubelet.
    fn around() -> Option<Self> {
        let mounts = fs::read_to_string("/proc/1/mountinfo").ok()?;
        let mount = Mounts::parse(&mounts).first("cgroup2")?.to_owned();
        let mount = Path::new("/proc/1/root").join(mount.strip_prefix("/").ok()?);
        let own = own_cgroup_as_process_1_sees_it()?;
        let pods = pods_cgroup_of(&own)?;
        Some(Self { pods: mount.join(pods), own: mount.join(&own), mount })
    }
}

/// The agent's cgroup, without the leading `/`. In a container with a cgroup namespace of its own,
/// /proc/self/cgroup says `/`.
fn own_cgroup_as_process_1_sees_it() -> Option<PathBuf> {
    let look = || {
        let lines = fs::read_to_string("/proc/thread-self/cgroup").ok()?;
        lines.lines().find_map(|line| line.strip_prefix("0::/").map(PathBuf::from))
    };
    as_process_1_sees_cgroups(look).flatten()
}

/// Runs `look` where all cgroups of the node are seen, and named by their whole path.
pub(crate) fn as_process_1_sees_cgroups<T: Send + 'static>(
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    // A thread that ends afterwards: no other thread may be moved. None can be started where a pod
    // has used up all.
    let thread = std::thread::Builder::new().spawn(|| {
        let theirs = fs::File::open("/proc/1/ns/cgroup").ok()?;
        nix::sched::setns(theirs, nix::sched::CloneFlags::CLONE_NEWCGROUP).ok()?;
        Some(look())
    });
    thread.ok()?.join().ok()?
}

/// The part of a pod's cgroup that is above all pods: up to `kubepods` of the cgroupfs driver, or
/// `kubepods.slice` (in a node made of a container `kubelet-kubepods.slice`) of the systemd driver.
fn pods_cgroup_of(own: &Path) -> Option<PathBuf> {
    let is_above = |part: &std::ffi::OsStr| {
        part.to_str().is_some_and(|part| part == "kubepods" || part.ends_with("kubepods.slice"))
    };
    let above = own.iter().position(is_above)?;
    Some(own.iter().take(above + 1).collect())
}

/// Whether a kernel of this release is older than [`OLDEST_KERNEL`]. A kernel that numbers itself
/// otherwise may try: loading the programs tells.
fn is_too_old(release: &str) -> bool {
    sys::uname::version(release).is_some_and(|version| version < OLDEST_KERNEL)
}

/// The agent's cgroup if it is alone there, or the cgroup that has to be made.
fn own_cgroup(mount: &Path, node: &str) -> io::Result<OwnCgroup> {
    let lines = fs::read_to_string("/proc/self/cgroup")?;
    let path = lines.lines().find_map(|line| line.strip_prefix("0::/")).ok_or_else(|| {
        io::Error::new(io::ErrorKind::NotFound, "/proc/self/cgroup has no line for cgroup v2")
    })?;
    let here = mount.join(path);
    let processes = fs::read_to_string(here.join("cgroup.procs"))?;
    let alone = processes.lines().eq([std::process::id().to_string()]);
    Ok(if alone && here != mount {
        OwnCgroup::Given(here)
    } else {
        OwnCgroup::ToMake(mount.join(format!("nodemesh-{node}")))
    })
}

/// Mount points and their file systems, as /proc/self/mountinfo lists them (proc(5)).
struct Mounts(Vec<(PathBuf, String)>);

impl Mounts {
    /// Those that the agent sees.
    fn read() -> Result<Self, PreflightError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(PreflightError::Mounts)?;
        Ok(Self::parse(&mounts))
    }

    fn parse(mountinfo: &str) -> Self {
        let parse = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let point = before.split(' ').nth(4)?.replace("\\040", " ");
            Some((PathBuf::from(point), after.split(' ').next()?.to_owned()))
        };
        Self(mountinfo.lines().filter_map(parse).collect())
    }

    fn first(&self, kind: &str) -> Option<&Path> {
        self.0.iter().find(|(_, found)| found == kind).map(|(point, _)| point.as_path())
    }

    /// The file system of a path, which need not exist yet. Of several mounts at one point the last
    /// counts.
    fn kind_of(&self, path: &Path) -> Option<&str> {
        let longest = |(point, _): &&(PathBuf, String)| point.as_os_str().len();
        self.0
            .iter()
            .filter(|(point, _)| path.starts_with(point))
            .max_by_key(longest)
            .map(|(_, kind)| kind.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
24 1 254:0 / / rw,relatime - ext4 /dev/vda rw
28 24 0:25 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
29 28 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
30 28 0:27 / /sys/fs/cgroup/unified rw,relatime shared:4 - cgroup2 cgroup2 rw
31 24 0:28 / /sys/fs/bpf rw,relatime - bpf bpf rw
32 24 0:29 / /mnt/with\\040space rw - tmpfs tmpfs rw
";

    #[test]
    fn kernels_are_told_apart_by_their_release() {
        for old in ["5.10.0-32-cloud-amd64", "5.14.21", "4.19.0", "2.6.78-fc", "5.9"] {
            assert!(is_too_old(old), "{old}");
        }
        for new in ["5.15.0-91-generic", "5.15-rc1", "6.1.0", "6.12.95+deb12", "10.0", "custom"] {
            assert!(!is_too_old(new), "{new}");
        }
    }

    #[test]
    fn the_cgroup_above_all_pods_is_seen_from_any_of_them() {
        let above = |own: &str| pods_cgroup_of(Path::new(own));
        let is = |path: &str| Some(PathBuf::from(path));
        assert_eq!(above("kubepods/besteffort/podu/c"), is("kubepods"));
        assert_eq!(above("node1/kubepods/podu/c"), is("node1/kubepods"));
        let slices =
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podu.slice/c.scope";
        assert_eq!(above(slices), is("kubepods.slice"));
        let nested = "kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-podu.slice/c.scope";
        assert_eq!(above(nested), is("kubelet.slice/kubelet-kubepods.slice"));
        assert_eq!(above("user.slice/session-1.scope"), None);
        assert_eq!(above(""), None);
    }

    #[test]
    fn a_hybrid_host_is_understood() {
        let mounts = Mounts::parse(HYBRID);
        assert_eq!(mounts.first("cgroup2"), Some(Path::new("/sys/fs/cgroup/unified")));
        assert_eq!(mounts.kind_of(Path::new("/sys/fs/cgroup/unified/kubepods")), Some("cgroup2"));
        assert_eq!(mounts.kind_of(Path::new("/sys/fs/cgroup/cpu/kubepods")), Some("cgroup"));
        assert_eq!(mounts.kind_of(Path::new("/sys/fs/bpf/nodemesh")), Some("bpf"));
        assert_eq!(mounts.kind_of(Path::new("/sys/fs/bpfoo")), Some("ext4"));
        assert_eq!(mounts.kind_of(Path::new("/mnt/with space/x")), Some("tmpfs"));
    }
}
