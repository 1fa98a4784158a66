//! `SHARES`: how many entries of `PENDING` each pod has, as the programs count them. They refuse a
//! pod that has its share. So a pod whose handshakes never end (by a firewall of its own, for
//! instance) takes no room that others need.

use std::{io, os::fd::AsFd as _};

use aya::{
    Ebpf,
    maps::{self, MapData, MapError},
    programs::{ProgramFd, RawTracePoint},
};
use mesh_common::{
    decide::{counted, dials_allowed},
    maps::{ALL_PODS, Share},
};
use parking_lot::{Mutex, MutexGuard};

use super::{
    programs::{KernelError, program_error},
    tables::{Before, map_error},
};
use crate::sys;

/// From this many hundredths of its share on, `status` names a pod.
const NEARLY_ALL: u64 = 80;

/// What pods have.
pub struct Shares {
    give_back: ProgramFd,
    map: Mutex<maps::HashMap<MapData, u64, Share>>,
}

/// What one pod has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dials {
    /// Its dials that the agent has not fetched.
    pub own: u64,
    /// How many it may have, while others have as many as they have.
    pub allowed: u64,
}

impl Dials {
    fn is_nearly_all(self) -> bool {
        self.own.saturating_mul(100) >= self.allowed.saturating_mul(NEARLY_ALL)
    }
}

impl Shares {
    const NAME: &str = "SHARES";
    const GIVE_BACK: &str = "nm_give_back";

    pub(super) fn open(ebpf: &mut Ebpf, before: Before) -> Result<Self, KernelError> {
        let map = ebpf.take_map(Self::NAME);
        let map = map.ok_or_else(|| KernelError::Missing(Self::NAME.to_owned()))?;
        let map = maps::HashMap::try_from(map).map_err(failed)?;
        let shares = Self { give_back: give_back(ebpf)?, map: Mutex::new(map) };
        if before == Before::Gone {
            // `PENDING` has just been emptied.
            let all: Vec<u64> = shares.lock().keys().filter_map(Result::ok).collect();
            // One time for all: a dial goes back to the sum only if its pod's count is not older.
            let since_ns = now()?;
            all.into_iter()
                .chain([ALL_PODS])
                .try_for_each(|netns| shares.begin(netns, since_ns))?;
        }
        // An agent of another layout that hands over has left no sum in our map.
        shares.add(ALL_PODS)?;
        Ok(shares)
    }

    /// Gives a namespace its share, with nothing taken, unless it has one already.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add(&self, netns: u64) -> Result<(), KernelError> {
        if self.get(netns).is_some() {
            return Ok(());
        }
        self.begin(netns, now()?)
    }

    /// Takes the shares of all other namespaces away.
    pub fn retain(&self, is_known: impl Fn(u64) -> bool) {
        let all: Vec<u64> = self.lock().keys().filter_map(Result::ok).collect();
        all.into_iter()
            .filter(|netns| *netns != ALL_PODS && !is_known(*netns))
            .for_each(|netns| self.remove(netns));
    }

    /// Takes a namespace's share away.
    pub fn remove(&self, netns: u64) {
        drop(self.lock().remove(&netns)); // one that is not there is removed
    }

    /// Gives back the place of a dial that was taken out of `PENDING`.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn give_back(&self, netns: u64, share_since_ns: u64) -> io::Result<()> {
        sys::bpf::run(self.give_back.as_fd(), &[netns, share_since_ns])
    }

    /// Those of the given namespaces that have nearly all that they may have.
    pub fn greedy<T>(&self, pods: impl Iterator<Item = (T, u64)>) -> Vec<(T, Dials)> {
        let Some(all) = self.get(ALL_PODS) else { return Vec::new() };
        let dials = |own: u64| Dials { own, allowed: dials_allowed(all.dials) };
        if !dials(counted(all.dials)).is_nearly_all() {
            return Vec::new(); // then no pod has
        }
        let with_dials =
            pods.filter_map(|(pod, netns)| Some((pod, dials(counted(self.get(netns)?.dials)))));
        with_dials.filter(|(_, dials)| dials.is_nearly_all()).collect()
    }

    fn begin(&self, netns: u64, since_ns: u64) -> Result<(), KernelError> {
        let share =
            Share { since_ns, dials: 0, window: 0, reports: 0, questions_window: 0, questions: 0 };
        self.lock().insert(netns, share, 0).map_err(failed)
    }

    fn get(&self, netns: u64) -> Option<Share> {
        self.lock().get(&netns, 0).ok()
    }

    fn lock(&self) -> MutexGuard<'_, maps::HashMap<MapData, u64, Share>> {
        self.map.lock()
    }
}

/// The program that counts for the agent.
fn give_back(ebpf: &mut Ebpf) -> Result<ProgramFd, KernelError> {
    let name = Shares::GIVE_BACK;
    let missing = || KernelError::Missing(name.to_owned());
    let program: &mut RawTracePoint = ebpf
        .program_mut(name)
        .ok_or_else(missing)?
        .try_into()
        .map_err(|_of_another_kind| missing())?;
    let failed = |source| program_error(name, source);
    program.fd().map_err(failed)?.try_clone().map_err(|error| failed(error.into()))
}

/// The boot clock, in nanoseconds.
fn now() -> Result<u64, KernelError> {
    sys::clock::boot_ns().map_err(|error| failed(MapError::IoError(error)))
}

fn failed(source: MapError) -> KernelError {
    map_error(Shares::NAME, source)
}
