//! A namespace's settings from before the pod was enrolled. They are kept in the runtime directory,
//! so that a later agent, or `mesh-agent cleanup`, can put them back.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::netns::{Factory, Netns, NetnsError, restore_ports};

/// The note: one namespace's settings from before the pod was enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Saved {
    /// The namespace's path.
    pub netns: PathBuf,
    /// Its cookie, so that another namespace at the same path is left alone.
    pub cookie: u64,
    /// `net.ipv4.ip_local_reserved_ports`.
    pub reserved_ports: String,
}

impl Saved {
    /// The note about a namespace, if there is one.
    pub fn read(dir: &Path, cookie: u64) -> Option<Self> {
        serde_json::from_slice(&fs::read(path(dir, cookie)).ok()?).ok()
    }

    /// Writes the note.
    ///
    /// # Errors
    /// What the file system said.
    pub fn write(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)?;
        let unfinished = dir.join(format!(".{}", self.cookie));
        fs::write(&unfinished, serde_json::to_vec(self)?)?;
        fs::rename(unfinished, path(dir, self.cookie))
    }

    /// Forgets the note.
    pub fn forget(dir: &Path, cookie: u64) {
        if let Err(error) = fs::remove_file(path(dir, cookie))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, cookie, "cannot forget the settings of a namespace");
        }
    }
}

/// Puts back the settings of every namespace that is noted and still there, except those of `keep`.
/// Returns how many.
///
/// # Errors
/// The directory could not be read. A namespace that is gone is skipped; a failure in one is only
/// logged.
pub async fn restore_all(factory: &Factory, dir: &Path, keep: &[u64]) -> io::Result<usize> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(error) => return Err(error),
    };
    let mut restored = 0;
    for entry in entries {
        let cookie = entry.file_name().to_str().and_then(|name| name.parse().ok());
        if let Some(cookie) = cookie.filter(|cookie| !keep.contains(cookie)) {
            restored += usize::from(restore(factory, dir, cookie).await);
        }
    }
    Ok(restored)
}

/// Puts back one namespace's settings if they are noted. Returns `false` if there was nothing to
/// do, or if the kernel refused, which is logged.
pub(super) async fn restore(factory: &Factory, dir: &Path, cookie: u64) -> bool {
    let Some(saved) = Saved::read(dir, cookie) else { return false };
    let restored = put_back(factory, &saved).await.unwrap_or_else(|error| {
        tracing::warn!(%error, netns = %saved.netns.display(), "cannot put back the reserved ports");
        false
    });
    Saved::forget(dir, cookie);
    restored
}

/// `false` if the namespace is gone.
async fn put_back(factory: &Factory, saved: &Saved) -> Result<bool, NetnsError> {
    let Ok(netns) = Netns::open(factory, &saved.netns).await else {
        return Ok(false);
    };
    if netns.cookie() != saved.cookie {
        return Ok(false);
    }
    let before = saved.reserved_ports.clone();
    let written = netns.run(factory, move || restore_ports(&before)).await?;
    written.map_err(|source| NetnsError::Enter { path: saved.netns.clone(), source })?;
    Ok(true)
}

fn path(dir: &Path, cookie: u64) -> PathBuf {
    dir.join(cookie.to_string())
}
