//! Holds pods: programs on the cgroup of a pod that may not send or take plaintext and is not
//! enrolled yet. Like all programs they outlive the agent, so that a held pod stays held while it
//! is away.

use std::path::Path;

use super::programs::{Kernel, KernelError, attached_to, hang_on, open_cgroup, unpin};

/// Programs on a held pod's cgroup.
const HELD_PROGRAMS: [&str; 4] =
    ["nm_held_ingress", HELD_EGRESS, "nm_held_connect4", "nm_held_connect6"];
/// The one of them for what leaves.
pub(super) const HELD_EGRESS: &str = "nm_held_egress";
/// Program on the pods' cgroup, where the node refuses pods that are not classified.
const UNCLASSIFIED: &str = "nm_unclassified_ingress";

impl Kernel {
    /// Refuses the TCP connections of everything below a cgroup, both ways, until it is released.
    ///
    /// # Errors
    /// See [`KernelError`]; what could be attached stays, and holds.
    pub fn hold(&self, cgroup: &Path) -> Result<(), KernelError> {
        let (directory, id) = open_cgroup(cgroup)?;
        HELD_PROGRAMS.into_iter().try_for_each(|name| {
            self.with_program(name, |program| {
                hang_on(program, name, (&directory, id), &self.pins, &self.pins.held(id, name))
            })
        })
    }

    /// Ends holding a cgroup, by its id; it may be gone.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn release(&self, id: u64) -> Result<(), KernelError> {
        HELD_PROGRAMS.into_iter().try_for_each(|name| unpin(&self.pins, &self.pins.held(id, name)))
    }

    /// Ids of the cgroups that are held, perhaps by an earlier agent.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn held(&self) -> Result<Vec<u64>, KernelError> {
        self.pins
            .held_ids()
            .map_err(|source| KernelError::Link { path: self.pins.held(0, ""), source })
    }

    /// Whether a cgroup is there and held.
    pub fn is_held(&self, id: u64) -> bool {
        HELD_PROGRAMS.into_iter().any(|name| {
            let pin = self.pins.held(id, name);
            let elsewhere = self.pins.elsewhere(&pin);
            elsewhere.iter().chain([&pin]).any(|pin| attached_to(pin) == Some(id))
        })
    }

    /// Sets whether packets that begin a connection with a pod that is not classified are dropped.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn guard_unclassified(&self, cgroup: &Path, refuse: bool) -> Result<(), KernelError> {
        let pin = self.pins.link(UNCLASSIFIED);
        if !refuse {
            return unpin(&self.pins, &pin);
        }
        let (directory, id) = open_cgroup(cgroup)?;
        self.with_program(UNCLASSIFIED, |program| {
            hang_on(program, UNCLASSIFIED, (&directory, id), &self.pins, &pin)
        })
    }

    pub(super) fn with_program(
        &self,
        name: &str,
        act: impl FnOnce(&mut aya::programs::Program) -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut ebpf = self.ebpf.lock();
        let program = ebpf.program_mut(name);
        act(program.ok_or_else(|| KernelError::Missing(name.to_owned()))?)
    }
}
