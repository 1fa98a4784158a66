//! `FAILED`: destinations that a pod could not reach a moment ago. Until an entry is forgotten, the
//! kernel refuses the pod's next dial there at once, with the error that the network would have
//! given.
//!
//! A redirected `connect()` has succeeded before the agent knows whether the destination can be
//! reached, so the first failure can only be a reset. Programs that retry get the reason by this
//! table.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{
    Ebpf,
    maps::{self, MapData, MapError},
};
use mesh_common::maps::{Failed, FailedKey, limits};
use parking_lot::Mutex;

use super::{
    programs::KernelError,
    tables::{Before, emptied, map_error},
};
use crate::sys;

/// How long a failure is remembered. Retries that follow at once get the reason, and no program
/// waits long for a destination that is there again.
pub const MEMORY: Duration = Duration::from_secs(1);

/// The same if only the peer's agent was not there. A restarted agent is back within a second, and
/// the application behind it was never away.
pub const MEMORY_OF_AGENT: Duration = Duration::from_millis(250);

/// The map, and which of its entries have to be taken out again.
pub struct FailedTable {
    map: OwnedFd,
    remembered: Mutex<Remembered>,
}

/// What is in the map. An expired entry may stay behind another whose time is longer; the programs
/// look at the clock.
#[derive(Default)]
struct Remembered {
    /// When each entry expires, in the order in which they came.
    by_age: VecDeque<(u64, FailedKey)>,
    keys: HashSet<FailedKey>,
    per_pod: HashMap<u64, usize>,
}

impl FailedTable {
    pub(super) fn open(ebpf: &mut Ebpf, before: Before) -> Result<Self, KernelError> {
        // The failures of an earlier agent are out of date.
        let map = emptied::<FailedKey, Failed>("FAILED", ebpf, before)?;
        Ok(Self { map, remembered: Mutex::default() })
    }

    /// Remembers that a dial failed, unless it is remembered already (its time is not extended) or
    /// the pod has too many such destinations. A pod that dials the whole cluster gets resets only,
    /// and takes no other pod's room.
    ///
    /// `errno` is one of [`mesh_common::errno`], `memory` one of [`MEMORY`] and
    /// [`MEMORY_OF_AGENT`].
    ///
    /// # Errors
    /// What the kernel said; the failure is then not remembered, and the next dial is tried.
    pub fn remember(
        &self,
        key: FailedKey,
        errno: u32,
        memory: Duration,
    ) -> Result<(), KernelError> {
        let failed = |source| map_error("FAILED", MapError::IoError(source));
        let now = sys::clock::boot_ns().map_err(failed)?;
        let mut remembered = self.remembered.lock();
        for old in remembered.forget_until(now) {
            sys::bpf::take::<_, Failed>(self.map.as_fd(), &old).map_err(failed)?;
        }
        let until_boot_ns = now + memory.as_nanos() as u64;
        if !remembered.add(key, until_boot_ns) {
            return Ok(());
        }
        let value = Failed { until_boot_ns, errno, zero: 0 };
        sys::bpf::put(self.map.as_fd(), &key, &value).map_err(failed)
    }
}

impl FailedTable {
    /// Takes out what another agent remembered: that agent is gone, and its list of entries with
    /// it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn forget_others(&self) -> Result<(), KernelError> {
        let failed = |source| map_error("FAILED", source);
        let fd = self.map.try_clone().map_err(|error| failed(MapError::IoError(error)))?;
        let map = maps::Map::HashMap(MapData::from_fd(fd).map_err(failed)?);
        let mut map = maps::HashMap::<_, FailedKey, Failed>::try_from(map).map_err(failed)?;
        let remembered = self.remembered.lock();
        let all: Vec<FailedKey> = map.keys().filter_map(Result::ok).collect();
        for key in all.iter().filter(|key| !remembered.keys.contains(key)) {
            match map.remove(key) {
                Err(MapError::KeyNotFound) => {}
                removed => removed.map_err(failed)?,
            }
        }
        Ok(())
    }
}

impl Remembered {
    /// Takes out the oldest entries, as far as they have expired.
    fn forget_until(&mut self, now: u64) -> Vec<FailedKey> {
        let mut old = Vec::new();
        while let Some((_, key)) = self.by_age.pop_front_if(|(until, _)| *until <= now) {
            self.keys.remove(&key);
            if let Some(count) = self.per_pod.get_mut(&key.netns) {
                *count -= 1;
                if *count == 0 {
                    self.per_pod.remove(&key.netns);
                }
            }
            old.push(key);
        }
        old
    }

    /// Whether there was room for a new one.
    fn add(&mut self, key: FailedKey, until: u64) -> bool {
        let of_pod = self.per_pod.get(&key.netns).copied().unwrap_or(0);
        if of_pod >= limits::FAILED_PER_POD || !self.keys.insert(key) {
            return false;
        }
        self.per_pod.insert(key.netns, of_pod + 1);
        self.by_age.push_back((until, key));
        true
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::addr::{Addr, AddrPort};

    use super::*;

    fn key(netns: u64, port: usize) -> FailedKey {
        FailedKey::new(netns, AddrPort::new(Addr::LOCALHOST_V6, port as u16))
    }

    #[test]
    fn a_pod_has_so_much_room_and_takes_nobody_elses() {
        let mut remembered = Remembered::default();
        for port in 0..limits::FAILED_PER_POD {
            assert!(remembered.add(key(7, port), 100));
        }
        assert!(!remembered.add(key(7, 9999), 100), "one too many");
        assert!(remembered.add(key(8, 1), 100), "another pod");
        assert!(!remembered.add(key(8, 1), 200), "remembered already, and for no longer");
        assert_eq!(remembered.forget_until(99).len(), 0);
        assert_eq!(remembered.forget_until(100).len(), limits::FAILED_PER_POD + 1);
        assert!(remembered.per_pod.is_empty() && remembered.keys.is_empty());
        assert!(remembered.add(key(7, 9999), 200), "there is room again");
    }
}
