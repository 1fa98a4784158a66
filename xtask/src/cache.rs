//! What takes minutes to build and is the same for every work tree: programs of the tests'
//! Kubernetes, and tools. It is in the user's cache, as cargo's own downloads are, and may be
//! removed at any time.
use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::say;

/// A directory that no other process changes until this is dropped.
pub(crate) struct Locked {
    pub(crate) path: PathBuf,
    _lock: File,
}

/// Makes the directory if it is missing, and waits until no other process has it.
///
/// # Errors
/// It cannot be made or locked.
pub(crate) fn locked(name: &str) -> Result<Locked> {
    let path = directory(name);
    fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
    let lock = File::create(path.join("lock"));
    let lock = lock.with_context(|| format!("cannot make a lock in {}", path.display()))?;
    if lock.try_lock().is_err() {
        say::progress("cache", &format!("waiting for another process that builds {name} ..."));
        lock.lock().with_context(|| format!("cannot lock {}", path.display()))?;
    }
    Ok(Locked { path, _lock: lock })
}

/// `$XDG_CACHE_HOME/nodemesh/NAME`, by default below `~/.cache`.
pub(crate) fn directory(name: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|it| it.is_absolute());
    let home = || std::env::home_dir().unwrap_or_else(|| "/root".into()).join(".cache");
    cache.unwrap_or_else(home).join("nodemesh").join(name)
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = String::new();
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
