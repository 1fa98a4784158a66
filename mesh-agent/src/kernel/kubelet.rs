//! Lets the node's kubelet into strict pods: programs on the kubelet's own cgroup note what it
//! dials. Like all programs they outlive the agent. While it is away, probes go on unless the
//! kubelet gets another cgroup.

use std::{net::SocketAddr, path::Path};

use aya::{
    Ebpf,
    maps::{self, MapData},
};
use mesh_common::{
    decide::is_fresh,
    maps::{DialKey, NODE_KUBELET_CGROUP},
};
use parking_lot::Mutex;

use super::{
    programs::{Kernel, KernelError, hang_on, open_cgroup},
    tables::map_error,
};

/// Programs on the kubelet's cgroup. Those that mark its sockets come last, so that what is marked
/// is noted.
const KUBELET_PROGRAMS: [&str; 3] =
    ["nm_kubelet_sockops", "nm_kubelet_connect4", "nm_kubelet_connect6"];

impl Kernel {
    /// Takes the processes of a cgroup, but not of those below it, for the node's kubelet: strict
    /// pods take its connections. A kubelet that was set earlier loses that.
    ///
    /// # Errors
    /// See [`KernelError`]; probes of strict pods may then be refused.
    pub fn attach_kubelet(&self, cgroup: &Path) -> Result<(), KernelError> {
        let (directory, id) = open_cgroup(cgroup)?;
        self.tables().set_node(NODE_KUBELET_CGROUP, id)?;
        KUBELET_PROGRAMS.into_iter().try_for_each(|name| {
            self.with_program(name, |program| {
                hang_on(program, name, (&directory, id), &self.pins, &self.pins.link(name))
            })
        })
    }
}

/// `KUBELET_DIALS`: what the kubelet has dialled and not closed.
pub struct KubeletDials {
    map: Mutex<maps::HashMap<MapData, DialKey, u64>>,
}

impl KubeletDials {
    const NAME: &str = "KUBELET_DIALS";

    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf.take_map(Self::NAME);
        let map = map.ok_or_else(|| KernelError::Missing(Self::NAME.to_owned()))?;
        let map = maps::HashMap::try_from(map).map_err(|source| map_error(Self::NAME, source))?;
        Ok(Self { map: Mutex::new(map) })
    }

    /// Whether the kubelet has dialled this, as far as it is noted still.
    pub fn contains(&self, from: SocketAddr, to: SocketAddr) -> bool {
        let map = self.map.lock();
        map.get(&DialKey { from: from.into(), to: to.into() }, 0).is_ok()
    }

    /// Forgets notes that are too old to be asked for: of connections that stay open, and of a
    /// kubelet that has lost its cgroup.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn sweep(&self, now_boot_ns: u64) -> Result<(), KernelError> {
        let mut map = self.map.lock();
        let entries: Result<Vec<_>, _> = map.iter().collect();
        let entries = entries.map_err(|source| map_error(Self::NAME, source))?;
        for (key, noted_ns) in entries {
            if !is_fresh(noted_ns, now_boot_ns) {
                drop(map.remove(&key)); // its socket may have been closed meanwhile
            }
        }
        Ok(())
    }
}
