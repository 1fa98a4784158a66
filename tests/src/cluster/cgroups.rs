//! Cgroups in every hierarchy: a kubelet on a machine with version 1 wants its root in each
//! controller.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use crate::{cgroup::remove_empty, eventually};

/// How long killed processes may take to leave.
const END: Duration = Duration::from_mins(1);

/// A mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// `cgroup` or `cgroup2`.
    pub(super) kind: String,
    /// The options with which the same hierarchy is mounted again.
    pub(super) options: String,
}

/// All that are mounted.
pub(super) fn hierarchies() -> Result<Vec<Hierarchy>> {
    Ok(parse(&fs::read_to_string("/proc/self/mountinfo")?))
}

fn parse(mountinfo: &str) -> Vec<Hierarchy> {
    let mut all: Vec<Hierarchy> = mountinfo.lines().filter_map(parse_line).collect();
    all.dedup();
    all
}

/// `proc_pid_mountinfo(5)`: the fifth field is the mount point; after a lone `-` come the type, the
/// source and the options.
fn parse_line(line: &str) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut fields = file_system.split(' ');
    let kind = fields.next().filter(|kind| kind.starts_with("cgroup"))?.to_owned();
    let given = fields.nth(1)?;
    let is_ours = |option: &&str| {
        let general = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
        kind == "cgroup" && !general.contains(option) && !option.starts_with("release_agent=")
    };
    let mut options: Vec<&str> = given.split(',').filter(is_ours).collect();
    if options.iter().any(|option| option.starts_with("name=")) {
        // A hierarchy without a controller.
        options.insert(0, "none");
    }
    let options = options.join(",");
    Some(Hierarchy { mount: mount.split(' ').nth(4)?.into(), kind, options })
}

impl Hierarchy {
    fn is_v2(&self) -> bool {
        self.kind == "cgroup2"
    }
}

/// Makes `path` in every hierarchy, and `leaf` below it.
///
/// In version 2 `path` itself passes no controllers on yet: otherwise it would take no process, and
/// the process that makes it the root of a namespace must be in it.
pub(super) fn create(path: &Path, leaf: &str) -> Result<()> {
    for hierarchy in hierarchies()? {
        let mut dir = hierarchy.mount.clone();
        for name in path {
            // The host's own root is left as it is.
            if hierarchy.is_v2() && dir != hierarchy.mount {
                pass_controllers_on(&dir);
            }
            dir.push(name);
            create_one(&dir)?;
        }
        create_one(&dir.join(leaf))?;
    }
    Ok(())
}

fn create_one(dir: &Path) -> Result<()> {
    // A directory above may be there already, since the machines of a cluster share it. Its cpuset
    // is copied all the same.
    match fs::create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| dir.display().to_string())
        }
        _ => copy_cpuset(dir),
    }
}

/// The same directory in every hierarchy.
pub(super) fn dirs(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(hierarchies()?.into_iter().map(|hierarchy| hierarchy.mount.join(path)).collect())
}

/// Ends all processes below `path` and removes it from every hierarchy.
pub(super) fn remove(path: &Path) -> Result<()> {
    let hierarchies = hierarchies()?;
    for v2 in hierarchies.iter().filter(|hierarchy| hierarchy.is_v2()) {
        let kill = v2.mount.join(path).join("cgroup.kill");
        if kill.exists() {
            fs::write(&kill, "1").with_context(|| kill.display().to_string())?;
        }
    }
    for hierarchy in &hierarchies {
        let dir = hierarchy.mount.join(path);
        eventually(END, || if dir.exists() { remove_empty(&dir) } else { Ok(()) })?;
    }
    Ok(())
}

/// Passes the controllers that version 2 has here on to the cgroups below `dir`. A controller that
/// cannot be passed on is left out, as on any node.
fn pass_controllers_on(dir: &Path) {
    let controllers = fs::read_to_string(dir.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        drop(fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}")));
    }
}

/// A new cpuset of version 1 has neither processors nor memory, and takes no process.
fn copy_cpuset(dir: &Path) -> Result<()> {
    let parent = dir.parent().unwrap_or(dir);
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let (from, to) = (parent.join(name), dir.join(name));
        let is_empty = fs::read_to_string(&to).is_ok_and(|value| value.trim().is_empty());
        if is_empty && let Ok(value) = fs::read_to_string(&from) {
            fs::write(&to, value.trim()).with_context(|| to.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_read_with_what_mounts_them_again() {
        let mounts = "\
            26 25 0:24 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
            27 26 0:25 / /sys/fs/cgroup/cpu rw,relatime shared:3 - cgroup cgroup rw,cpu,cpuacct\n\
            28 26 0:26 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
            29 26 0:27 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n";
        let all = parse(mounts);
        let shown: Vec<_> = all.iter().map(|h| (&*h.kind, &*h.options)).collect();
        let wanted = [("cgroup", "cpu,cpuacct"), ("cgroup", "none,name=systemd"), ("cgroup2", "")];
        assert_eq!(shown, wanted);
        assert_eq!(all[2].mount, Path::new("/sys/fs/cgroup/unified"));
    }
}
