//! The world and the kernel's tables, following what the source says: in proportion to what changes, and off the threads
//! that carry connections.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
};

use super::{shares::Excess, tables};
use crate::{
    kernel::KernelError,
    proxy::Mesh,
    tasks::off_the_workers,
    world::{Announcements, Cidr, Incumbents, LocalNode, Objects, Snapshot, World},
};

/// See the file. `None` only while it works, or after a step that was dropped before its end: then it begins anew.
#[derive(Default)]
pub(super) struct Follower(Option<State>);

#[derive(Default)]
struct State {
    /// `None` before the first step.
    world: Option<World>,
    /// What the kernel's tables hold; `None` if that is not known. Kept also because the last copy of a large snapshot
    /// must not be dropped by a connection that has just looked something up.
    written: Option<Snapshot>,
    /// For what there was no room, of this snapshot: it is not tried again before something changes.
    lost: Option<(Snapshot, Vec<Excess>)>,
    /// The ranges of pod addresses that the kernel holds; `None` if that is not known.
    ranges: Option<Arc<BTreeSet<Cidr>>>,
}

impl Follower {
    /// The world as these make it. If they are what they were, this takes no time.
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
        let state = self.0.get_or_insert_default();
        if let Some(world) = &state.world
            && world.is_of(objects, announcements, &local)
        {
            return world.snapshot().clone();
        }
        let (objects, announcements) = (Arc::clone(objects), Arc::clone(announcements));
        let update = move |state: &mut State| {
            let world = match &mut state.world {
                Some(world) => {
                    world.update(&objects, &announcements, &local);
                    world
                }
                empty => {
                    let incumbents = Incumbents::default();
                    empty.insert(World::new(&objects, &announcements, &local, incumbents))
                }
            };
            (world.snapshot().clone(), world.work().total())
        };
        let Some((world, judged)) = off_the_workers(&mut self.0, update).await else {
            return mesh.world.load().as_ref().clone(); // the runtime is being shut down
        };
        mesh.counters.judged.fetch_add(judged as u64, Ordering::Relaxed);
        world
    }

    /// Brings the kernel's ranges of pod addresses to a world's. If they are there already, this takes no time.
    ///
    /// # Errors
    /// What the kernel said; the next call tries again.
    pub(super) fn write_ranges(
        &mut self,
        mesh: &Mesh,
        world: &Snapshot,
    ) -> Result<(), KernelError> {
        let state = self.0.get_or_insert_default();
        let wanted = world.pod_cidrs();
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
        if let Some(state) = &mut self.0 {
            (state.written, state.lost, state.ranges) = (None, None, None);
        }
    }

    /// Who has asked for more than the kernel's tables have room for.
    pub(super) fn lost(&self) -> &[Excess] {
        let lost = self.0.as_ref().and_then(|state| state.lost.as_ref());
        lost.map_or(&[], |(_, lost)| lost)
    }

    /// Brings the kernel's tables to a world, as far as there is room.
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
        let state = self.0.get_or_insert_default();
        let lost = state.lost.as_ref().map(|(world, _)| world);
        if state.written.as_ref().or(lost).is_some_and(|written| written.is(world)) {
            return Ok(());
        }
        let (mesh, world) = (Arc::clone(mesh), world.clone());
        let write = move |state: &mut State| {
            let before = state.written.take();
            state.lost = None;
            let written = tables::write_world(mesh.kernel.tables(), before.as_ref(), &world)?;
            mesh.counters.table_writes.fetch_add(written.entries as u64, Ordering::Relaxed);
            if written.lost.is_empty() {
                state.written = Some(world);
            } else {
                state.lost = Some((world, written.lost));
            }
            Ok(())
        };
        off_the_workers(&mut self.0, write).await.unwrap_or(Ok(()))
    }
}
