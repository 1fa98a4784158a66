//! A map whose copies share their equal parts.
//!
//! A copy is one pointer. A change to one of two copies costs the two nodes and the leaf around it,
//! not the map. The differences between two copies are found in time proportional to their number,
//! since shared parts are skipped. Snapshots of a large world are such copies.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, OnceLock};

/// Children of a node. Two levels make 4,096 leaves. For the 200,000 addresses of a large cluster
/// each leaf has some 50 entries, so that a single change copies some 3 KB.
const FAN_OUT: usize = 64;
/// Bits of the hash that choose among [`FAN_OUT`].
const FAN_BITS: u32 = FAN_OUT.trailing_zeros();

/// Sorted by key.
type Leaf<K, V> = Arc<Vec<(K, V)>>;
type Branch<K, V> = Arc<[Leaf<K, V>; FAN_OUT]>;

/// Keys with values, in no order. Two maps with equal content are equal, however they came about.
pub(super) struct SharedMap<K, V> {
    root: Arc<[Branch<K, V>; FAN_OUT]>,
    len: usize,
}

/// What became of one key between two copies: `before` and `now` always differ.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Difference<'a, K, V> {
    pub(super) key: &'a K,
    pub(super) before: Option<&'a V>,
    pub(super) now: Option<&'a V>,
}

/// One random state for the process. One, so that equal keys of two maps are in the same leaf.
/// Random, so that no attacker can choose names or addresses that all fall into one leaf.
fn hash<Q: Hash + ?Sized>(key: &Q) -> u64 {
    static STATE: OnceLock<RandomState> = OnceLock::new();
    STATE.get_or_init(RandomState::new).hash_one(key)
}

/// Where a hash leads: branch and leaf.
fn path(hash: u64) -> (usize, usize) {
    let child = |bits: u64| usize::try_from(bits).unwrap_or(0) % FAN_OUT;
    (child(hash % FAN_OUT as u64), child((hash >> FAN_BITS) % FAN_OUT as u64))
}

impl<K: Ord + Hash + Clone, V: Clone> SharedMap<K, V> {
    /// How many keys there are.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The value of a key.
    pub(super) fn get<Q: Ord + Hash + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let (branch, leaf) = path(hash(key));
        let leaf = &self.root[branch][leaf];
        let at = leaf.binary_search_by(|(other, _)| other.borrow().cmp(key)).ok()?;
        leaf.get(at).map(|(_, value)| value)
    }

    /// Whether there is such a key.
    pub(super) fn contains_key<Q: Ord + Hash + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.get(key).is_some()
    }

    /// Sets a key's value.
    pub(super) fn insert(&mut self, key: K, value: V) {
        let leaf = self.leaf(hash(&key));
        match leaf.binary_search_by(|(other, _)| other.cmp(&key)) {
            Ok(at) => {
                if let Some((_, known)) = leaf.get_mut(at) {
                    *known = value;
                }
            }
            Err(at) => {
                leaf.insert(at, (key, value));
                self.len += 1;
            }
        }
    }

    /// Removes a key and says whether it was there. Removing an absent key copies nothing.
    pub(super) fn remove<Q: Ord + Hash + ?Sized>(&mut self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        if !self.contains_key(key) {
            return false;
        }
        let leaf = self.leaf(hash(key));
        if let Ok(at) = leaf.binary_search_by(|(other, _)| other.borrow().cmp(key)) {
            leaf.remove(at);
            self.len -= 1;
        }
        true
    }

    /// All keys with their values.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        let leaves = self.root.iter().flat_map(|branch| branch.iter());
        leaves.flat_map(|leaf| leaf.iter()).map(|(key, value)| (key, value))
    }

    /// All keys.
    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(key, _)| key)
    }

    /// All values, sorted by key. Sorting takes time: meant for callers that look at all of them.
    pub(super) fn sorted_values(&self) -> impl Iterator<Item = &V> {
        let mut all: Vec<_> = self.iter().collect();
        all.sort_unstable_by_key(|(key, _)| *key);
        all.into_iter().map(|(_, value)| value)
    }

    /// The leaf for a hash, to be changed: it is copied first if another map shares it.
    fn leaf(&mut self, hash: u64) -> &mut Vec<(K, V)> {
        let (branch, leaf) = path(hash);
        let branch = Arc::make_mut(&mut Arc::make_mut(&mut self.root)[branch]);
        Arc::make_mut(&mut branch[leaf])
    }
}

impl<K: Ord, V: PartialEq> SharedMap<K, V> {
    /// Whether both are the same copy, without looking inside.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.root, &other.root)
    }

    /// The differences from `before`, in no order.
    pub(super) fn differences<'a>(&'a self, before: &'a Self) -> Vec<Difference<'a, K, V>> {
        let mut found = Vec::new();
        if self.is(before) {
            return found;
        }
        let branches = before.root.iter().zip(self.root.iter());
        for (before, now) in branches.filter(|(before, now)| !Arc::ptr_eq(before, now)) {
            let leaves = before.iter().zip(now.iter());
            for (before, now) in leaves.filter(|(before, now)| !Arc::ptr_eq(before, now)) {
                add_differences(before, now, &mut found);
            }
        }
        found
    }
}

/// Both are sorted, and are walked side by side.
fn add_differences<'a, K: Ord, V: PartialEq>(
    before: &'a [(K, V)],
    now: &'a [(K, V)],
    found: &mut Vec<Difference<'a, K, V>>,
) {
    let (mut before, mut now) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (before.peek(), now.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((old, _)), Some((new, _))) => old.cmp(new),
        };
        let old = if order.is_le() { before.next() } else { None };
        let new = if order.is_ge() { now.next() } else { None };
        let Some((key, _)) = new.or(old) else { return };
        let (before, now) = (old.map(|(_, value)| value), new.map(|(_, value)| value));
        if before != now {
            found.push(Difference { key, before, now });
        }
    }
}

impl<K, V> Default for SharedMap<K, V> {
    fn default() -> Self {
        let leaf = Arc::new(Vec::new());
        let branch = Arc::new(std::array::from_fn(|_| Arc::clone(&leaf)));
        Self { root: Arc::new(std::array::from_fn(|_| Arc::clone(&branch))), len: 0 }
    }
}

impl<K, V> Clone for SharedMap<K, V> {
    fn clone(&self) -> Self {
        Self { root: Arc::clone(&self.root), len: self.len }
    }
}

impl<K: Ord, V: PartialEq> PartialEq for SharedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).is_empty()
    }
}

impl<K: Ord, V: Eq> Eq for SharedMap<K, V> {}

impl<K: Ord + Hash + Clone, V: Clone> FromIterator<(K, V)> for SharedMap<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Self::default();
        for (key, value) in entries {
            map.insert(key, value);
        }
        map
    }
}

impl<K: Ord + Hash + Clone + fmt::Debug, V: Clone + fmt::Debug> fmt::Debug for SharedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn shared(model: &BTreeMap<u16, u8>) -> SharedMap<u16, u8> {
        model.iter().map(|(key, value)| (*key, *value)).collect()
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_a_copy_does_not_change_with_its_original(
            first in prop::collection::btree_map(0..300u16, any::<u8>(), 0..300),
            changes in prop::collection::vec((0..300u16, prop::option::of(any::<u8>())), 0..100),
        ) {
            let before = shared(&first);
            let (mut model, mut now) = (first.clone(), before.clone());
            for (key, value) in changes {
                if let Some(value) = value {
                    model.insert(key, value);
                    now.insert(key, value);
                } else {
                    prop_assert_eq!(now.remove(&key), model.remove(&key).is_some());
                }
            }
            prop_assert_eq!(&now, &shared(&model));
            prop_assert_eq!(now.len(), model.len());
            prop_assert_eq!(&before, &shared(&first));
            prop_assert!(now.sorted_values().eq(model.values()));
            for key in 0..300 {
                prop_assert_eq!(now.get(&key), model.get(&key));
            }

            let mut differences: Vec<_> = now.differences(&before);
            differences.sort_by_key(|difference| *difference.key);
            let expected = (0..300).filter(|key| first.get(key) != model.get(key));
            prop_assert!(differences.iter().map(|difference| *difference.key).eq(expected));
            for Difference { key, before, now } in differences {
                prop_assert_eq!((before, now), (first.get(key), model.get(key)));
            }
        }
    }

    #[test]
    fn what_two_copies_share_is_not_looked_at() {
        #[derive(Clone)]
        struct Watched<'a>(&'a std::cell::Cell<usize>);
        impl PartialEq for Watched<'_> {
            fn eq(&self, _: &Self) -> bool {
                self.0.set(self.0.get() + 1);
                true
            }
        }
        let looks = std::cell::Cell::new(0);
        let before: SharedMap<u32, _> = (0..100_000).map(|key| (key, Watched(&looks))).collect();
        let mut now = before.clone();
        now.insert(7, Watched(&looks));
        assert!(now.differences(&before).is_empty());
        assert!((1..200).contains(&looks.get()), "{} values compared for one change", looks.get());
    }
}
