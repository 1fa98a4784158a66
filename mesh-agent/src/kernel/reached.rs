//! `REACHED`: destinations that a pod has reached a moment ago. A dial there goes to the agent at
//! once. A dial to any other destination waits in `connect()` until the agent has reached it.

use std::{
    collections::{HashMap, VecDeque},
    os::fd::{AsFd as _, OwnedFd},
    time::Duration,
};

use aya::{Ebpf, maps::MapError};
use mesh_common::maps::{DestinationKey, limits};
use parking_lot::Mutex;

use super::{
    programs::KernelError,
    tables::{Before, emptied, map_error},
};
use crate::sys;

/// How long a destination that was reached is taken for one that answers.
const MEMORY: Duration = Duration::from_secs(30);

/// How old that is before it is renewed: not at each dial.
const RENEW_NS: u64 = 10_000_000_000;

/// The map, and which of its entries have to be taken out again.
pub struct ReachedTable {
    map: OwnedFd,
    remembered: Mutex<Remembered>,
}

/// What is in the map, and when it expires.
#[derive(Default)]
struct Remembered {
    /// When each entry expires, in the order in which they came. One that was forgotten or came
    /// again since is not in `until` with that time.
    by_age: VecDeque<(u64, DestinationKey)>,
    until: HashMap<DestinationKey, u64>,
    per_pod: HashMap<u64, usize>,
}

impl ReachedTable {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        // The map is this agent's own, and empty.
        let map = emptied::<DestinationKey, u64>("REACHED", ebpf, Before::Lives)?;
        Ok(Self { map, remembered: Mutex::default() })
    }

    /// Remembers that a pod has reached a destination just now, unless the pod has too many such
    /// destinations. A pod that dials the whole cluster waits a little at each
    /// dial, and takes no other pod's room.
    ///
    /// # Errors
    /// What the kernel said; the next dial is then asked about again.
    pub fn remember(&self, key: DestinationKey) -> Result<(), KernelError> {
        let failed = |source| map_error("REACHED", MapError::IoError(source));
        let now = sys::clock::boot_ns().map_err(failed)?;
        let mut remembered = self.remembered.lock();
        for old in remembered.forget_until(now) {
            drop(sys::bpf::take::<_, u64>(self.map.as_fd(), &old)); // it has expired in any case
        }
        let until = now + MEMORY.as_nanos() as u64;
        if !remembered.add(key, until) {
            return Ok(());
        }
        sys::bpf::put(self.map.as_fd(), &key, &until).map_err(failed)
    }

    /// Forgets a destination that a pod could not reach any more: its next dial there waits.
    ///
    /// # Errors
    /// What the kernel said; the next dials there may then succeed and be reset.
    pub fn forget(&self, key: &DestinationKey) -> Result<(), KernelError> {
        let mut remembered = self.remembered.lock();
        if !remembered.forget(key) {
            return Ok(());
        }
        let taken = sys::bpf::take::<_, u64>(self.map.as_fd(), key);
        taken.map(drop).map_err(|source| map_error("REACHED", MapError::IoError(source)))
    }
}

impl Remembered {
    /// Takes out the oldest entries, as far as they have expired.
    fn forget_until(&mut self, now: u64) -> Vec<DestinationKey> {
        let mut old = Vec::new();
        while let Some((until, key)) = self.by_age.pop_front_if(|(until, _)| *until <= now) {
            if self.until.get(&key) == Some(&until) {
                self.forget(&key);
                old.push(key);
            }
        }
        old
    }

    /// Whether it was there.
    fn forget(&mut self, key: &DestinationKey) -> bool {
        let was_there = self.until.remove(key).is_some();
        if was_there && let Some(count) = self.per_pod.get_mut(&key.netns) {
            *count -= 1;
            if *count == 0 {
                self.per_pod.remove(&key.netns);
            }
        }
        was_there
    }

    /// Whether there was room for a new one, or an old one lasts longer now.
    fn add(&mut self, key: DestinationKey, until: u64) -> bool {
        match self.until.get(&key) {
            Some(known) if until.saturating_sub(*known) < RENEW_NS => return false,
            Some(_) => {}
            None => {
                let of_pod = self.per_pod.entry(key.netns).or_default();
                if *of_pod >= limits::REACHED_PER_POD {
                    return false;
                }
                *of_pod += 1;
            }
        }
        self.until.insert(key, until);
        self.by_age.push_back((until, key));
        true
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::addr::{Addr, AddrPort};

    use super::*;

    fn key(netns: u64, port: usize) -> DestinationKey {
        DestinationKey::new(netns, AddrPort::new(Addr::LOCALHOST_V6, port as u16))
    }

    #[test]
    fn a_pod_has_so_much_room_and_takes_nobody_elses() {
        let mut remembered = Remembered::default();
        for port in 0..limits::REACHED_PER_POD {
            assert!(remembered.add(key(7, port), 100));
        }
        assert!(!remembered.add(key(7, 9999), 100), "one too many");
        assert!(remembered.add(key(8, 1), 100), "another pod");
        assert_eq!(remembered.forget_until(99).len(), 0);
        assert_eq!(remembered.forget_until(100).len(), limits::REACHED_PER_POD + 1);
        assert!(remembered.per_pod.is_empty() && remembered.until.is_empty());
        assert!(remembered.add(key(7, 9999), 200), "there is room again");
    }

    #[test]
    fn what_is_reached_again_lasts_longer_and_takes_no_more_room() {
        let mut remembered = Remembered::default();
        assert!(remembered.add(key(7, 1), 100));
        assert!(!remembered.add(key(7, 1), 99 + RENEW_NS), "too soon");
        assert!(remembered.add(key(7, 1), 100 + RENEW_NS));
        assert_eq!(remembered.per_pod.get(&7), Some(&1));
        assert_eq!(remembered.forget_until(100), []);
        assert_eq!(remembered.forget_until(100 + RENEW_NS), [key(7, 1)]);
        assert!(remembered.per_pod.is_empty() && remembered.by_age.is_empty());
    }

    #[test]
    fn what_is_forgotten_and_comes_again_lasts_as_long_as_the_second_time() {
        let mut remembered = Remembered::default();
        assert!(remembered.add(key(7, 1), 100) && remembered.forget(&key(7, 1)));
        assert!(!remembered.forget(&key(7, 1)) && remembered.per_pod.is_empty());
        assert!(remembered.add(key(7, 1), 200));
        assert_eq!(remembered.forget_until(100), []);
        assert_eq!(remembered.forget_until(200), [key(7, 1)]);
    }
}
