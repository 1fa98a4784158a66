//! Where things are: the work tree, and what xtask puts under `target/`.
use std::path::{Path, PathBuf};

/// The work tree that this xtask belongs to.
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
}

impl Workspace {
    /// The tree whose `cargo xtask` runs; started without cargo, the tree that it was compiled in.
    pub(crate) fn here() -> Self {
        let xtask = std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let root = xtask.parent().map_or_else(|| xtask.clone(), Path::to_path_buf);
        Self { root }
    }

    /// The eBPF object that mesh-agent embeds.
    pub(crate) fn ebpf_object(&self) -> PathBuf {
        self.root.join("target/bpf/mesh-ebpf")
    }

    /// Where the eBPF programs are compiled. It is not the host's target directory, so that neither
    /// build waits for the other's lock.
    pub(crate) fn ebpf_target_dir(&self) -> PathBuf {
        self.root.join("target/bpf-build")
    }

    /// Its `bin` leads to the programs of the tests' Kubernetes, which are in the cache.
    pub(crate) fn cluster(&self) -> PathBuf {
        self.root.join("target/cluster")
    }

    /// The Go module that says which they are.
    pub(crate) fn cluster_module(&self) -> PathBuf {
        self.root.join("tests/cluster")
    }

    /// The kernels that `cargo xtask test --kernels` boots, a directory each, with the logs of
    /// their last run.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.root.join("target/kernels")
    }

    /// Container images, as archives.
    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("target/image")
    }

    /// Where cargo puts host programs of `profile` (`debug` or `release`). `CARGO_TARGET_DIR` moves
    /// it.
    pub(crate) fn programs(&self, profile: &str) -> PathBuf {
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
        self.root.join(target).join(profile)
    }
}
