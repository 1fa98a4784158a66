//! What the programs on the pods' cgroup are told of this node, and how they get there.

use std::{path::PathBuf, sync::Arc};

use mesh_common::maps::{NODE_OWN_NETNS, NODE_REFUSE_UNCLASSIFIED};

use crate::kernel::{Kernel, KernelError};

/// All that is needed to attach them.
pub(super) struct Hooks {
    pub(super) kernel: Arc<Kernel>,
    /// The cgroup above the pods.
    pub(super) pods_cgroup: PathBuf,
    /// Cookie of the network namespace of the node itself.
    pub(super) node_netns: u64,
    /// Whether pods that are not classified are refused.
    pub(super) refuse_unclassified: bool,
}

impl Hooks {
    /// Attaches the programs, or swaps those that another agent has attached. What they need to
    /// know of the node is set first.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub(super) fn attach(&self) -> Result<(), KernelError> {
        let tables = self.kernel.tables();
        tables.set_node(NODE_OWN_NETNS, self.node_netns)?;
        tables.set_node(NODE_REFUSE_UNCLASSIFIED, self.refuse_unclassified.into())?;
        self.kernel.attach_cgroup(&self.pods_cgroup)?;
        self.kernel.guard_unclassified(&self.pods_cgroup, self.refuse_unclassified)
    }
}
