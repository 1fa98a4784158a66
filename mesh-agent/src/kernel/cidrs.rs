//! `POD_CIDRS`: the longest-prefix trie of the ranges in which pods' addresses lie. If they are too
//! many, the trie holds the one range of all addresses.

use std::collections::BTreeSet;

use aya::{
    Ebpf,
    maps::{
        MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use mesh_common::{addr::Addr, maps::limits};
use mesh_world::Cidr;
use parking_lot::Mutex;

use super::programs::KernelError;

const NAME: &str = "POD_CIDRS";

/// The value of every prefix. Programs only ask whether a prefix is there.
const PRESENT: u32 = 1;

/// First address and number of common bits, of 128.
type Prefix = (Addr, u32);

/// All addresses.
const ALL: Prefix = (Addr::NONE, 0);

/// The trie, and a copy of its content. Only agents write it.
pub struct CidrTable(Mutex<Mirrored>);

struct Mirrored {
    map: LpmTrie<MapData, Addr, u32>,
    /// What the kernel holds, as far as this agent knows.
    content: BTreeSet<Prefix>,
    /// How many ranges the last sync was given.
    wanted: usize,
}

impl CidrTable {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf.take_map(NAME).ok_or_else(|| KernelError::Missing(NAME.to_owned()))?;
        let map = LpmTrie::<_, Addr, u32>::try_from(map).map_err(map_error)?;
        let content = content(&map)?;
        let wanted = content.len();
        Ok(Self(Mutex::new(Mirrored { map, content, wanted })))
    }

    /// Reads again what the kernel holds: another agent may have written to it.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn reload(&self) -> Result<(), KernelError> {
        let mut inner = self.0.lock();
        inner.content = content(&inner.map)?;
        Ok(())
    }

    /// How many ranges there are, or would be if there were room.
    pub fn wanted(&self) -> usize {
        self.0.lock().wanted
    }

    /// Makes the map hold exactly these ranges, or all addresses if they are too many.
    ///
    /// # Errors
    /// The first range that could not be written or removed; the rest is tried by the next sync.
    pub fn sync<'a>(&self, wanted: impl Iterator<Item = &'a Cidr>) -> Result<(), KernelError> {
        let wanted: BTreeSet<Prefix> =
            wanted.map(|range| (range.first().into(), u32::from(range.length_of_128()))).collect();
        let mut inner = self.0.lock();
        inner.wanted = wanted.len();
        let Mirrored { map, content, .. } = &mut *inner;
        for step in steps(content, wanted, limits::POD_CIDRS) {
            match step {
                Step::Add(prefix @ (addr, length)) => {
                    map.insert(&Key::new(length, addr), PRESENT, 0).map_err(map_error)?;
                    content.insert(prefix);
                }
                Step::Remove(prefix @ (addr, length)) => {
                    match map.remove(&Key::new(length, addr)) {
                        Err(MapError::KeyNotFound) => {}
                        other => other.map_err(map_error)?,
                    }
                    content.remove(&prefix);
                }
            }
        }
        Ok(())
    }
}

/// What is done to the map.
#[derive(Clone, Copy, Debug)]
enum Step {
    Add(Prefix),
    Remove(Prefix),
}

/// The steps from some ranges to others, in a map with `room` entries. A range that is in both is
/// never missing meanwhile: where both sets do not fit at once, all addresses are in the map until
/// the steps are done. One entry of the map is kept free for that.
fn steps(content: &BTreeSet<Prefix>, wanted: BTreeSet<Prefix>, room: usize) -> Vec<Step> {
    let wanted = if wanted.len() < room { wanted } else { BTreeSet::from([ALL]) };
    let fits = content.union(&wanted).count() < room;
    let mut steps = Vec::new();
    if (wanted.contains(&ALL) || !fits) && !content.contains(&ALL) {
        steps.push(Step::Add(ALL));
    }
    let others = |prefix: &&Prefix| **prefix != ALL;
    let new = wanted.difference(content).filter(others).map(|prefix| Step::Add(*prefix));
    let stale = content.difference(&wanted).filter(others).map(|prefix| Step::Remove(*prefix));
    if fits {
        steps.extend(new.chain(stale));
    } else {
        steps.extend(stale.chain(new));
    }
    if (content.contains(&ALL) || !fits) && !wanted.contains(&ALL) {
        steps.push(Step::Remove(ALL));
    }
    steps
}

fn content(map: &LpmTrie<MapData, Addr, u32>) -> Result<BTreeSet<Prefix>, KernelError> {
    let keys = map.keys().map(|key| key.map(|key| (key.data(), key.prefix_len())));
    keys.collect::<Result<_, _>>().map_err(map_error)
}

fn map_error(source: MapError) -> KernelError {
    KernelError::Map { map: NAME, source: Box::new(source) }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = BTreeSet<Prefix>> {
        let range = |host: u8| (IpAddr::from([10, host, 0, 0]).into(), 112);
        let all = prop::bool::weighted(0.1);
        (prop::collection::btree_set(0..9u8, 0..8), all).prop_map(move |(hosts, all)| {
            let ranges = hosts.into_iter().map(range);
            if all { BTreeSet::from([ALL]) } else { ranges.collect() }
        })
    }

    proptest! {
        #[test]
        fn what_is_wanted_is_never_missing_and_there_is_always_room(
            all_wanted in prop::collection::vec(ranges(), 1..8),
        ) {
            const ROOM: usize = 6;
            let mut content = BTreeSet::new();
            for wanted in all_wanted {
                let before = content.clone();
                for step in steps(&before, wanted.clone(), ROOM) {
                    match step {
                        Step::Add(it) => prop_assert!(content.insert(it), "{step:?}"),
                        Step::Remove(it) => prop_assert!(content.remove(&it), "{step:?}"),
                    }
                    prop_assert!(content.len() <= ROOM, "{content:?}");
                    let stays = before.intersection(&wanted).all(|it| content.contains(it));
                    prop_assert!(stays || content.contains(&ALL), "{step:?}: {content:?}");
                }
                let fits = wanted.len() < ROOM;
                prop_assert_eq!(&content, &if fits { wanted } else { BTreeSet::from([ALL]) });
            }
        }
    }
}
