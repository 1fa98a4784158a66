//! Everything a test makes carries its tag, so that it can be found and removed by name.
//!
//! | what | name |
//! |---|---|
//! | network namespaces | `nm-<tag>-<node or pod>` |
//! | cgroups | `<cgroup2>/nodemesh-<tag>/…` |
//! | pins | `/sys/fs/bpf/nodemesh-<tag>/<node>` |
//! | files: objects, sockets, logs, captures | `/tmp/nodemesh-<tag>/…` |
//!
//! A tag is `<pid>-<n>` of the test process, or `demo`. Interfaces live in the namespaces and need
//! no tag.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use crate::{cgroup, eventually, netns};

/// Where pinned eBPF objects live.
pub const BPFFS: &str = "/sys/fs/bpf";

/// The name that one test's things share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Tag(String);

impl Tag {
    /// A tag that no other test of this machine has.
    pub fn unique() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        Self(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// A tag that is the same in every run, for what shall outlive the process.
    pub fn fixed(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The name of a network namespace with this tag.
    pub fn netns(&self, what: &str) -> String {
        format!("nm-{self}-{what}")
    }

    /// The directory of this test's cgroups.
    pub fn cgroup(&self) -> PathBuf {
        cgroup::mount().join(format!("nodemesh-{self}"))
    }

    /// The directory of this test's pins, in bpffs.
    pub fn pins(&self) -> PathBuf {
        Path::new(BPFFS).join(format!("nodemesh-{self}"))
    }

    /// The directory of this test's files.
    pub fn dir(&self) -> PathBuf {
        std::env::temp_dir().join(format!("nodemesh-{self}"))
    }

    /// Ends every process that this test started, and removes everything it made. Names what could
    /// not be removed.
    pub fn remove_all(&self) -> Result<()> {
        let processes = cgroup::remove_tree(&self.cgroup());
        let namespaces = netns::remove(&self.namespaces());
        let pins = eventually(Duration::from_secs(2), || remove_dir(&self.pins()));
        let files = remove_dir(&self.dir());
        processes.and(namespaces).and(pins).and(files).with_context(|| format!("removing {self}"))
    }

    /// What is still there of this test, by name; empty when all is gone.
    pub fn leftovers(&self) -> Vec<String> {
        let dirs = [self.cgroup(), self.pins(), self.dir()];
        let dirs = dirs.iter().filter(|d| d.exists()).map(|d| d.display().to_string());
        dirs.chain(self.namespaces()).collect()
    }

    fn namespaces(&self) -> Vec<String> {
        let prefix = self.netns("");
        netns::names().into_iter().filter(|n| n.starts_with(&prefix)).collect()
    }

    /// The process that has made it, unless the tag is a fixed one.
    fn pid(&self) -> Option<u32> {
        self.0.split_once('-')?.0.parse().ok()
    }
}

impl Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Removes what killed tests have left behind: things with the tag of a process that has ended.
pub fn sweep() {
    for tag in tags() {
        let dead = tag.pid().is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if dead && let Err(e) = tag.remove_all() {
            eprintln!("sweep: {e:#}");
        }
    }
}

/// All tags of which something is there.
fn tags() -> BTreeSet<Tag> {
    let dirs = [cgroup::mount(), PathBuf::from(BPFFS), std::env::temp_dir()];
    let dirs = dirs.iter().flat_map(|d| names_in(d)).filter_map(|name| {
        let tag = name.strip_prefix("nodemesh-")?;
        Some(Tag::fixed(tag))
    });
    let namespaces = netns::names().into_iter().filter_map(|name| {
        let mut parts = name.strip_prefix("nm-")?.splitn(3, '-');
        Some(Tag(format!("{}-{}", parts.next()?, parts.next()?)))
    });
    dirs.chain(namespaces).filter(|tag| tag.pid().is_some()).collect()
}

fn names_in(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

fn remove_dir(dir: &Path) -> Result<()> {
    // bpffs lets go of an object only when it is unlinked, so an error of one entry must not hide
    // the others.
    let _gone_or_reported_below = fs::remove_dir_all(dir);
    ensure!(!dir.exists(), "{} could not be removed", dir.display());
    Ok(())
}
