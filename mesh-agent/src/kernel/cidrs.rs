//! `POD_CIDRS`: the longest-prefix trie of the ranges in which pods' addresses lie.

use std::{
    collections::BTreeSet,
    sync::{Mutex, PoisonError},
};

use aya::{
    Ebpf,
    maps::{
        MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use mesh_common::addr::Addr;

use super::programs::KernelError;
use crate::world::Cidr;

const NAME: &str = "POD_CIDRS";

/// What stands behind every prefix: only its being there counts.
const PRESENT: u32 = 1;

/// First address and number of common bits, of 128.
type Prefix = (Addr, u32);

/// A trie whose content the agent alone decides.
pub struct CidrTable(Mutex<Mirrored>);

struct Mirrored {
    map: LpmTrie<MapData, Addr, u32>,
    /// What the kernel holds.
    content: BTreeSet<Prefix>,
}

impl CidrTable {
    pub(super) fn open(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let map = ebpf.take_map(NAME).ok_or_else(|| KernelError::Missing(NAME.to_owned()))?;
        let map = LpmTrie::<_, Addr, u32>::try_from(map).map_err(map_error)?;
        let content = content(&map)?;
        Ok(Self(Mutex::new(Mirrored { map, content })))
    }

    /// Looks again at what the kernel holds: another agent may have written.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn reload(&self) -> Result<(), KernelError> {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.content = content(&inner.map)?;
        Ok(())
    }

    /// Makes the map hold exactly these ranges: first what is new, then what must go.
    ///
    /// # Errors
    /// The first range that could not be written or removed; the rest is tried by the next sync.
    pub fn sync<'a>(&self, wanted: impl Iterator<Item = &'a Cidr>) -> Result<(), KernelError> {
        let wanted: BTreeSet<Prefix> =
            wanted.map(|range| (range.first().into(), u32::from(range.length_of_128()))).collect();
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Mirrored { map, content } = &mut *inner;
        for prefix @ (addr, length) in wanted.difference(&content.clone()).copied() {
            map.insert(&Key::new(length, addr), PRESENT, 0).map_err(map_error)?;
            content.insert(prefix);
        }
        for prefix @ (addr, length) in content.clone().difference(&wanted).copied() {
            match map.remove(&Key::new(length, addr)) {
                Err(MapError::KeyNotFound) => {}
                other => other.map_err(map_error)?,
            }
            content.remove(&prefix);
        }
        Ok(())
    }
}

fn content(map: &LpmTrie<MapData, Addr, u32>) -> Result<BTreeSet<Prefix>, KernelError> {
    let keys = map.keys().map(|key| key.map(|key| (key.data(), key.prefix_len())));
    keys.collect::<Result<_, _>>().map_err(map_error)
}

fn map_error(source: MapError) -> KernelError {
    KernelError::Map { map: NAME, source: Box::new(source) }
}
