//! Where things are pinned, and how all of it is removed.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The layout below a pin directory.
#[derive(Clone, Debug)]
pub(super) struct PinDir {
    root: PathBuf,
}

impl PinDir {
    /// Makes the directories.
    pub(super) fn create(pin_dir: &Path) -> io::Result<Self> {
        let root = pin_dir.join(format!("v{}", mesh_common::ABI));
        for part in ["maps", "links", "pods", "held"] {
            fs::create_dir_all(root.join(part))?;
        }
        Ok(Self { root })
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.root.join("links").join(program)
    }

    /// Named after the namespace's cookie: unlike UIDs it never holds a dot, which bpffs refuses, and like the pins
    /// themselves it lives no longer than this boot.
    pub(super) fn pod(&self, netns: u64) -> PathBuf {
        self.root.join("pods").join(netns.to_string())
    }

    /// A program that holds a cgroup, which is named by its id.
    pub(super) fn held(&self, cgroup: u64, program: &str) -> PathBuf {
        self.root.join("held").join(format!("{cgroup}-{program}"))
    }

    /// The cgroups that are held, perhaps by some of the programs only.
    pub(super) fn held_ids(&self) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.root.join("held"))? {
            let name = entry?.file_name();
            let id = name.to_str().and_then(|name| name.split_once('-')?.0.parse().ok());
            ids.extend(id.filter(|id| !ids.contains(id)));
        }
        Ok(ids)
    }

    /// The namespaces that have a pinned link.
    pub(super) fn pods(&self) -> io::Result<Vec<u64>> {
        let mut cookies = Vec::new();
        for entry in fs::read_dir(self.root.join("pods"))? {
            if let Some(cookie) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
                cookies.push(cookie);
            }
        }
        Ok(cookies)
    }
}

/// What [`cleanup`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pinned links, each of which detached its program.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
}

/// Unpins everything below a pin directory, of every layout version, links first: with its last pin a link detaches its
/// program and a map is freed. A directory that is not there counts as clean.
///
/// # Errors
/// The first file or directory that could not be removed.
pub fn cleanup(pin_dir: &Path) -> io::Result<Removed> {
    let mut removed = Removed::default();
    let versions = match fs::read_dir(pin_dir) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(error),
    };
    for version in versions {
        let root = version.path();
        for links in ["links", "pods", "held"] {
            removed.links += remove_all(&root.join(links))?;
        }
        removed.maps += remove_all(&root.join("maps"))?;
        fs::remove_dir(&root)?;
    }
    fs::remove_dir(pin_dir)?;
    Ok(removed)
}

fn remove_all(dir: &Path) -> io::Result<usize> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    for entry in &entries {
        fs::remove_file(entry.path())?;
    }
    fs::remove_dir(dir)?;
    Ok(entries.len())
}
