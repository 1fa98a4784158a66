//! One agent per node: a lock on a file in the runtime directory, which ends with the process that
//! holds it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
};
use thiserror::Error;

/// Why the lock could not be taken.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another agent (pid {pid}) runs for this node: it holds {path}; take over from it with --take-over, stop it first (kill -TERM {pid}), or give this one another --runtime-dir and --pin-dir"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Process id of the holder, as far as the file says it.
        pid: String,
    },
    /// Another agent uses the pins, from another runtime directory.
    #[error("another agent uses the pin directory {path}; give each agent a --pin-dir of its own")]
    PinsHeld {
        /// The directory.
        path: PathBuf,
    },
    /// The file could not be made.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// The lock, as long as it lives.
#[derive(Debug)]
pub struct NodeLock {
    _file: Flock<File>,
}

/// The lock on a pin directory, as long as it lives: two agents with one would swap each other's
/// programs.
#[derive(Debug)]
pub struct PinLock {
    _directory: Flock<File>,
}

impl PinLock {
    /// Takes the lock; makes the directory if it is not there.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(pin_dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: pin_dir.to_owned(), source };
        fs::create_dir_all(pin_dir).map_err(failed)?;
        match Flock::lock(File::open(pin_dir).map_err(failed)?, FlockArg::LockExclusiveNonblock) {
            Ok(directory) => Ok(Self { _directory: directory }),
            Err((_, Errno::EWOULDBLOCK)) => Err(LockError::PinsHeld { path: pin_dir.to_owned() }),
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

impl NodeLock {
    /// Takes the lock, or says which process has it.
    ///
    /// # Errors
    /// See [`LockError`].
    pub fn take(runtime_dir: &Path) -> Result<Self, LockError> {
        let failed = |source| LockError::Io { path: runtime_dir.to_owned(), source };
        fs::create_dir_all(runtime_dir).map_err(failed)?;
        let path = runtime_dir.join("lock");
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut file) => {
                let written = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| writeln!(file, "{}", std::process::id()));
                written.map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid).map_err(failed)?;
                Err(LockError::Held { path, pid: pid.trim().to_owned() })
            }
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_refused_by_name_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let first = NodeLock::take(dir.path()).unwrap();
        let refused = NodeLock::take(dir.path()).unwrap_err().to_string();
        assert!(
            refused.contains(&format!("another agent (pid {})", std::process::id())),
            "{refused}"
        );
        drop(first);
        NodeLock::take(dir.path()).unwrap();
    }

    #[test]
    fn pins_have_one_agent_too() {
        let dir = tempfile::tempdir().unwrap();
        let first = PinLock::take(dir.path()).unwrap();
        assert!(matches!(PinLock::take(dir.path()), Err(LockError::PinsHeld { .. })));
        drop(first);
        PinLock::take(dir.path()).unwrap();
    }
}
