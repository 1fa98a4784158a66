//! A pod's network namespace: found, told apart from others, and entered; and sockets made inside
//! it.
//!
//! Threads of the data path never change their namespace. A few threads of our own do, and return
//! to the agent's namespace when they are idle.

mod addresses;
mod factory;
mod mounted;
mod netlink;
mod reserved;
mod sockets;

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

pub use addresses::own_addresses;
pub use factory::{Factory, FactoryGone};
pub use mounted::is_mounted;
pub use reserved::{ReserveError, reserve_ports, reserved_ports, restore_ports};
pub use sockets::{OpenSocket, SocketList};
use thiserror::Error;

/// Where `ip netns` keeps namespaces, for annotations that give a bare name.
const NAMED: &str = "/run/netns";

/// Why a namespace cannot be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// It is not there.
    #[error(
        "network namespace {path}: {source}; does the pod still exist, and is the annotation nodemesh.dev/netns right?"
    )]
    Open {
        /// What was named.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It could not be entered.
    #[error(
        "cannot enter network namespace {path}: {source}; it must be a network namespace, and the agent needs CAP_SYS_ADMIN"
    )]
    Enter {
        /// What was named.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel is too old to tell namespaces apart.
    #[error(
        "cannot read the cookie of network namespace {path}: {source}; the kernel must be 5.15 or newer"
    )]
    Cookie {
        /// What was named.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The threads that enter namespaces are gone: the agent is stopping.
    #[error("the agent is stopping")]
    Stopping(#[from] FactoryGone),
}

/// An open network namespace. Keeps the namespace alive as long as it lives.
#[derive(Clone, Debug)]
pub struct Netns {
    path: Arc<Path>,
    file: Arc<File>,
    inode: (u64, u64),
    cookie: u64,
}

impl Netns {
    /// Opens a namespace by path, or by its name below /run/netns.
    ///
    /// # Errors
    /// See [`NetnsError`].
    pub async fn open(factory: &Factory, name_or_path: &Path) -> Result<Self, NetnsError> {
        let path = Path::new(NAMED).join(name_or_path); // an absolute path replaces the first
        let file =
            File::open(&path).map_err(|source| NetnsError::Open { path: path.clone(), source })?;
        let metadata = file.metadata();
        let metadata =
            metadata.map_err(|source| NetnsError::Open { path: path.clone(), source })?;
        let inode = (metadata.dev(), metadata.ino());
        let file = Arc::new(file);
        let cookie = factory
            .run(&file, crate::sys::sock::own_netns_cookie)
            .await?
            .map_err(|source| NetnsError::Enter { path: path.clone(), source })?
            .map_err(|source| NetnsError::Cookie { path: path.clone(), source })?;
        Ok(Self { path: path.into(), file, inode, cookie })
    }

    /// The number by which eBPF programs know this namespace. Never given twice in one boot.
    pub fn cookie(&self) -> u64 {
        self.cookie
    }

    /// Where it was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Device and inode, by which the kernel's file system of namespaces knows it.
    pub fn inode(&self) -> (u64, u64) {
        self.inode
    }

    /// Whether its path still leads to it. `false` means that the pod is gone or has another
    /// namespace.
    pub fn still_there(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.inode)
    }

    /// Runs a short job inside the namespace, on one of the factory's threads.
    ///
    /// # Errors
    /// See [`NetnsError`].
    pub async fn run<T: Send + 'static>(
        &self,
        factory: &Factory,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NetnsError> {
        let entered = factory.run(&self.file, job).await?;
        entered.map_err(|source| NetnsError::Enter { path: self.path.to_path_buf(), source })
    }

    /// Runs a short job on one of the factory's threads, which tells it whether it has entered the
    /// namespace. Waits for nothing; if the threads are gone, the job is dropped.
    pub fn run_later(&self, factory: &Factory, job: impl FnOnce(bool) + Send + 'static) {
        factory.run_later(&self.file, job);
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
