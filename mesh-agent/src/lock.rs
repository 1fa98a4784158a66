//! One agent per node: a lock on a file in the runtime directory, which ends with the process that holds it.

use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use nix::fcntl::{Flock, FlockArg};
use thiserror::Error;

/// Why the lock was not had.
#[derive(Debug, Error)]
pub enum LockError {
    /// Another agent has it.
    #[error(
        "another agent (pid {pid}) runs for this node: it holds {path}; stop it first (kill -TERM {pid}), or give this one another --runtime-dir and --pin-dir"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who holds it, as far as it says.
        pid: String,
    },
    /// The file could not be made.
    #[error("cannot use the runtime directory {path}: {source}")]
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

impl NodeLock {
    /// Takes the lock, or says who has it.
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
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
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
}
