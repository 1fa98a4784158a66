//! Where things are pinned, and how all of it is removed.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// The layout below a pin directory.
#[derive(Clone, Debug)]
pub(super) struct PinDir {
    pin_dir: PathBuf,
    root: PathBuf,
}

/// How the name begins under which a link is pinned for a moment, before it replaces another one.
const UNFINISHED: &str = "new_";

/// What a layout consists of.
const PARTS: [&str; 4] = ["maps", "links", "pods", "held"];

impl PinDir {
    /// Makes the directories.
    pub(super) fn create(pin_dir: &Path) -> io::Result<Self> {
        let root = pin_dir.join(format!("v{}", mesh_common::ABI));
        let pins = Self { pin_dir: pin_dir.to_owned(), root };
        pins.make()?;
        Ok(pins)
    }

    fn make(&self) -> io::Result<()> {
        PARTS.iter().try_for_each(|part| fs::create_dir_all(self.root.join(part)))
    }

    /// The directories of other layouts, which agents of other versions have pinned.
    pub(super) fn others(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.pin_dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| *path != self.root).collect()
    }

    /// Where other layouts pin what `pin` stands for in ours.
    pub(super) fn elsewhere(&self, pin: &Path) -> Vec<PathBuf> {
        let Ok(name) = pin.strip_prefix(&self.root) else { return Vec::new() };
        self.others().into_iter().map(|root| root.join(name)).collect()
    }

    /// Makes this layout one of the others, and an empty one in its place.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn set_aside(&self) -> io::Result<()> {
        let mut number = 0;
        let aside = loop {
            let name = self.pin_dir.join(format!("aside{number}"));
            if !name.exists() {
                break name;
            }
            number += 1;
        };
        fs::rename(&self.root, aside)?;
        self.make()
    }

    /// Removes the links on the pods' cgroup and the maps of other layouts: this layout does their
    /// work by now. What they have pinned for single pods stays until it is taken over or let go.
    ///
    /// # Errors
    /// The first file that could not be removed.
    pub(super) fn remove_others(&self) -> io::Result<()> {
        for root in self.others() {
            remove_all(&root.join("links"))?;
            remove_all(&root.join("maps"))?;
        }
        self.remove_empty();
        Ok(())
    }

    /// Removes other layouts of which nothing is left.
    pub(super) fn remove_empty(&self) {
        for root in self.others() {
            for dir in PARTS.map(|part| root.join(part)).iter().chain([&root]) {
                drop(fs::remove_dir(dir)); // what is pinned in it keeps it
            }
        }
    }

    /// The names of what is pinned in a part of this layout and of the others.
    fn names(&self, part: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for root in self.others().iter().chain([&self.root]) {
            let entries = match fs::read_dir(root.join(part)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                names.extend(entry?.file_name().into_string().ok());
            }
        }
        Ok(names)
    }

    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.root.join("maps").join(name)
    }

    pub(super) fn link(&self, program: &str) -> PathBuf {
        self.root.join("links").join(program)
    }

    /// Named after the namespace's cookie: unlike a UID it never holds a dot, which bpffs refuses.
    /// Like the pins themselves it lives no longer than this boot.
    pub(super) fn pod(&self, netns: u64) -> PathBuf {
        self.root.join("pods").join(netns.to_string())
    }

    /// A program that holds a cgroup, which is named by its id.
    pub(super) fn held(&self, cgroup: u64, program: &str) -> PathBuf {
        self.root.join("held").join(format!("{cgroup}-{program}"))
    }

    /// Where a link is pinned for a moment, before it replaces another one. Two agents may do so at
    /// the same time, so the name holds the process id.
    pub(super) fn unfinished(pin: &Path) -> PathBuf {
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        pin.with_file_name(format!("{UNFINISHED}{}_{name}", std::process::id()))
    }

    /// Removes what agents that were killed in such a moment have left. No other agent may be
    /// pinning meanwhile.
    ///
    /// # Errors
    /// The first pin that could not be removed.
    pub(super) fn remove_unfinished(&self) -> io::Result<()> {
        for part in PARTS {
            for entry in fs::read_dir(self.root.join(part))? {
                let entry = entry?;
                if entry.file_name().to_str().is_some_and(|name| name.starts_with(UNFINISHED)) {
                    fs::remove_file(entry.path())?;
                }
            }
        }
        Ok(())
    }

    /// The cgroups that are held, perhaps by some of the programs only.
    pub(super) fn held_ids(&self) -> io::Result<Vec<u64>> {
        let mut ids = Vec::new();
        for name in self.names("held")? {
            let id = name.split_once('-').and_then(|(id, _)| id.parse().ok());
            ids.extend(id.filter(|id| !ids.contains(id)));
        }
        Ok(ids)
    }

    /// The namespaces that have a pinned link.
    pub(super) fn pods(&self) -> io::Result<Vec<u64>> {
        Ok(self.names("pods")?.iter().filter_map(|name| name.parse().ok()).collect())
    }
}

/// Ends any agent's hold, of any layout, on the cgroups from `own` up to, and without, `above`.
/// Returns whether there was one. A held agent cannot reach the API server, which would tell it
/// that it need not be held.
///
/// # Errors
/// The first pin that could not be removed.
pub fn free_from_hold(pin_dir: &Path, own: &Path, above: &Path) -> io::Result<bool> {
    let below = own.ancestors().take_while(|path| *path != above && path.starts_with(above));
    let ids: Vec<String> =
        below.filter_map(|path| Some(fs::metadata(path).ok()?.ino().to_string())).collect();
    let mut was_held = false;
    for layout in fs::read_dir(pin_dir).into_iter().flatten().flatten() {
        for pin in fs::read_dir(layout.path().join("held")).into_iter().flatten().flatten() {
            let name = pin.file_name();
            let held = name.to_str().and_then(|name| name.split_once('-')).map(|(id, _)| id);
            if held.is_some_and(|held| ids.iter().any(|id| id == held)) {
                fs::remove_file(pin.path())?;
                was_held = true;
            }
        }
    }
    Ok(was_held)
}

/// What [`cleanup`] took away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Pinned links, each of which detached its program.
    pub links: usize,
    /// Pinned maps.
    pub maps: usize,
}

/// Unpins everything below a pin directory, of every layout version, links first: with its last pin
/// a link detaches its program and a map is freed. A directory that is not there counts as clean.
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
