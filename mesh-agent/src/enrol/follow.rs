//! Keeps the world and the kernel's tables at what the source says: in proportion to what changes,
//! and off the threads that carry connections.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use mesh_world::{
    Announcements, Cidr, Incumbents, LocalNode, Memory, Objects, Snapshot, World, tables::Excess,
};

use super::tables::{self, Filled, Unwritten};
use crate::{kernel::KernelError, proxy::Mesh, tasks::off_the_workers};

/// Builds the world and writes the kernel's tables, each from what was there before.
pub(super) struct WorldFollower {
    /// `None` before the first update, while one runs on the blocking pool, and after one that was
    /// cancelled: the next call then builds everything.
    state: Option<FollowState>,
    /// What an earlier agent knew of announcements; the first step takes it.
    memory: Memory,
    /// As the last step left it.
    incumbents: Incumbents,
}

#[derive(Default)]
struct FollowState {
    /// `None` before the first step.
    world: Option<World>,
    /// What the kernel's tables hold; `None` if that is not known. It is also kept so that the last
    /// copy of a large snapshot is not dropped by a connection that has just looked something up.
    written: Option<Snapshot>,
    /// A snapshot that did not fit, and what found no room. It is not tried again before something
    /// changes.
    lost: Option<(Snapshot, Vec<Excess>)>,
    /// Whether any address may be that of a pod that found no room.
    anywhere: bool,
    /// How full the kernel's tables are.
    filled: Vec<Filled>,
    /// The ranges of pod addresses that the kernel holds; `None` if that is not known.
    ranges: Option<Arc<BTreeSet<Cidr>>>,
}

impl WorldFollower {
    /// Begins with what an earlier agent remembered.
    pub(super) fn after(memory: Memory) -> Self {
        Self { state: None, memory, incumbents: Incumbents::default() }
    }

    /// For addresses that several nodes announce, which of them was first.
    pub(super) fn incumbents(&self) -> Incumbents {
        self.incumbents.clone()
    }

    /// Builds the world that these make. If nothing has changed, this takes no time.
    ///
    /// # Cancel safety
    /// Not cancel safe: the next call builds everything.
    pub(super) async fn build(
        &mut self,
        mesh: &Mesh,
        objects: &Arc<Objects>,
        announcements: &Arc<Announcements>,
        local: LocalNode,
    ) -> Snapshot {
        let state = self.state.get_or_insert_default();
        if let Some(world) = &state.world
            && world.is_of(objects, announcements, &local)
        {
            return world.snapshot().clone();
        }
        let (objects, announcements) = (Arc::clone(objects), Arc::clone(announcements));
        let memory = std::mem::take(&mut self.memory);
        let update = move |state: &mut FollowState| {
            let world = match &mut state.world {
                Some(world) => {
                    world.update(&objects, &announcements, &local);
                    world
                }
                empty => {
                    let Memory { announcements: before, incumbents } = memory;
                    let incumbents = incumbents.after(&before, &announcements, &local.name);
                    empty.insert(World::new(&objects, &announcements, &local, incumbents))
                }
            };
            (world.snapshot().clone(), world.incumbents().clone(), world.work().total())
        };
        let Some((world, incumbents, judged)) = off_the_workers(&mut self.state, update).await
        else {
            return mesh.world.load().as_ref().clone(); // the runtime is being shut down
        };
        mesh.counters.judged.fetch_add(judged as u64, Ordering::Relaxed);
        self.incumbents = incumbents;
        world
    }

    /// Writes a world's ranges of pod addresses to the kernel. If they are there already, this
    /// takes no time.
    ///
    /// # Errors
    /// What the kernel said; the next call tries again.
    pub(super) fn write_ranges(
        &mut self,
        mesh: &Mesh,
        world: &Snapshot,
    ) -> Result<(), KernelError> {
        let state = self.state.get_or_insert_default();
        let all = Arc::new(BTreeSet::from([Cidr::ALL]));
        let wanted = if state.anywhere { &all } else { world.pod_cidrs() };
        if state.ranges.as_ref().is_some_and(|written| Arc::ptr_eq(written, wanted)) {
            return Ok(());
        }
        state.ranges = None;
        mesh.kernel.tables().pod_cidrs.sync(wanted.iter())?;
        state.ranges = Some(Arc::clone(wanted));
        Ok(())
    }

    /// Another agent may have written to the kernel's tables: the next calls write everything.
    pub(super) fn forget_written(&mut self) {
        if let Some(state) = &mut self.state {
            (state.written, state.lost, state.ranges) = (None, None, None);
        }
    }

    /// The namespaces and nodes that asked for more than the kernel's tables have room for.
    pub(super) fn lost(&self) -> &[Excess] {
        let lost = self.state.as_ref().and_then(|state| state.lost.as_ref());
        lost.map_or(&[], |(_, lost)| lost)
    }

    /// How full the kernel's tables are.
    pub(super) fn filled(&self) -> &[Filled] {
        self.state.as_ref().map_or(&[], |state| &state.filled)
    }

    /// Writes a world to the kernel's tables, as far as there is room.
    ///
    /// # Errors
    /// What the kernel said; the next call writes everything.
    ///
    /// # Cancel safety
    /// As [`Self::build`].
    pub(super) async fn write(
        &mut self,
        mesh: &Arc<Mesh>,
        world: &Snapshot,
    ) -> Result<(), KernelError> {
        let state = self.state.get_or_insert_default();
        let lost = state.lost.as_ref().map(|(world, _)| world);
        if state.written.as_ref().or(lost).is_some_and(|written| written.is(world)) {
            return Ok(());
        }
        let (mesh, world) = (Arc::clone(mesh), world.clone());
        let write = move |state: &mut FollowState| {
            let before = state.written.take();
            state.lost = None;
            let written = tables::write_world(mesh.kernel.tables(), before.as_ref(), &world);
            let written = written.map_err(|Unwritten { error, anywhere }| {
                (state.anywhere, state.ranges) = (anywhere, None);
                error
            })?;
            mesh.counters.table_writes.fetch_add(written.entries as u64, Ordering::Relaxed);
            (state.filled, state.anywhere) = (written.filled, written.anywhere);
            if written.lost.is_empty() {
                state.written = Some(world);
            } else {
                state.ranges = None; // written with them
                state.lost = Some((world, written.lost));
            }
            Ok(())
        };
        off_the_workers(&mut self.state, write).await.unwrap_or(Ok(()))
    }
}
