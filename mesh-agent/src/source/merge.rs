//! Merges the files' objects. When a file changes, only what it touches is merged again.
//!
//! Of two objects with one name (or UID) the one in force stays, else the first by file name and
//! line. So what is in force depends on the objects that share a name or UID, and on those that
//! share one with them. A change settles only these again.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh_world::{Objects, Origin, PodUid};

use super::error::SourceError;
use super::kinds::{self, Object};
use super::last_good::LastGood;

/// The objects in force, and the duplicates.
#[derive(Default)]
pub(super) struct Merged {
    objects: Objects,
    /// Every name and UID.
    claims: HashMap<Key, NameHolders>,
    duplicates: BTreeMap<Spot, SourceError>,
}

/// Kind, namespace and name; for a pod also `uid` and its UID.
pub(super) type Key = (&'static str, Option<Arc<str>>, Arc<str>);

/// A file, and which of its objects.
type Spot = (Arc<str>, usize);

/// One name or UID: the objects that have it, and the one in force, so that a duplicate elsewhere
/// does not replace it.
#[derive(Default)]
struct NameHolders {
    spots: Vec<Spot>,
    owner: Option<Owner>,
}

/// Where the object in force stands: its file, and its place in it until that file changes.
pub(super) type Owner = (Arc<str>, Option<usize>);

impl Merged {
    /// The objects in force.
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What is wrong with the objects that are not in force.
    pub(super) fn duplicates(&self) -> impl Iterator<Item = &SourceError> {
        self.duplicates.values()
    }

    /// Gives unreadable values of objects the meaning that an earlier agent read.
    pub(super) fn inherit(&mut self, earlier: &Objects) {
        self.objects.inherit(earlier);
    }

    /// Applies changed files.
    pub(super) fn update(
        &mut self,
        files: &LastGood<Vec<Object>>,
        replaced: &[(Arc<str>, Option<Vec<Object>>)],
    ) {
        let mut touched = HashSet::new();
        for (file, before) in replaced {
            for (index, object) in before.iter().flatten().enumerate() {
                let spot = (Arc::clone(file), index);
                self.duplicates.remove(&spot);
                for key in keys(object) {
                    let claim = self.claims.entry(key.clone()).or_default();
                    claim.spots.retain(|other| *other != spot);
                    if let Some((_, index)) = claim.owner.as_mut().filter(|(it, _)| it == file) {
                        *index = None;
                    }
                    touched.insert(key);
                }
            }
        }
        for (file, _) in replaced {
            for (index, object) in files.good_of(file).into_iter().flatten().enumerate() {
                for key in keys(object) {
                    let claim = self.claims.entry(key.clone()).or_default();
                    claim.spots.push((Arc::clone(file), index));
                    touched.insert(key);
                }
            }
        }
        let at = |(file, index): &Spot| files.good_of(file)?.get(*index);
        let spots = self.reachable(&mut touched, at);
        self.settle(&touched, spots.iter().filter_map(|spot| Some((spot, at(spot)?))));
    }

    /// All objects that have one of these names or UIDs, or share one with such objects. Adds their
    /// names and UIDs to `touched`.
    fn reachable<'a>(
        &self,
        touched: &mut HashSet<Key>,
        at: impl Fn(&Spot) -> Option<&'a Object>,
    ) -> BTreeSet<Spot> {
        let mut spots = BTreeSet::new();
        let mut unseen: Vec<Key> = touched.iter().cloned().collect();
        while let Some(key) = unseen.pop() {
            for spot in self.claims.get(&key).into_iter().flat_map(|claim| &claim.spots) {
                if spots.insert(spot.clone()) {
                    let found = at(spot).into_iter().flat_map(keys);
                    unseen.extend(found.filter(|key| touched.insert(key.clone())));
                }
            }
        }
        spots
    }

    /// Decides which of these objects are in force; no other object has one of the names and UIDs
    /// `touched`.
    fn settle<'a>(
        &mut self,
        touched: &HashSet<Key>,
        objects: impl Iterator<Item = (&'a Spot, &'a Object)>,
    ) {
        let was_in_force = |spot: &Spot, object: &Object| {
            let claim = keys(object).next().and_then(|name| self.claims.get(&name));
            claim.is_some_and(|claim| owns(claim.owner.as_ref(), spot))
        };
        let mut objects: Vec<_> = objects.collect();
        // Stable: files and lines stay in order.
        objects.sort_by_cached_key(|(spot, object)| !was_in_force(spot, object));

        let mut taken: HashMap<Key, (&Spot, &Origin)> = HashMap::new();
        let (mut in_force, mut others) = (Vec::new(), Vec::new());
        for (spot, object) in objects {
            if keys(object).any(|key| taken.contains_key(&key)) {
                others.push((spot, object));
                continue;
            }
            self.duplicates.remove(spot);
            taken.extend(keys(object).map(|key| (key, (spot, object.origin()))));
            in_force.push(object);
        }
        for (spot, object) in others {
            let holder = keys(object).find_map(|key| taken.get(&key));
            if let Some((_, holder)) = holder {
                self.duplicates.insert(spot.clone(), duplicate(&spot.0, object, holder));
            }
        }
        for key in touched {
            let owner = taken.get(key).map(|((file, index), _)| (Arc::clone(file), Some(*index)));
            let Some(claim) = self.claims.get_mut(key) else { continue };
            if owner.is_none() && claim.owner.is_some() {
                remove(&mut self.objects, key);
            }
            claim.owner = owner;
            if claim.spots.is_empty() {
                self.claims.remove(key);
            }
        }
        for object in in_force {
            object.insert_into(&mut self.objects);
        }
    }
}

/// Whether the object at a spot is the one in force.
pub(super) fn owns(owner: Option<&Owner>, (file, index): &Spot) -> bool {
    owner.is_some_and(|(of, at)| of == file && at.is_none_or(|at| at == *index))
}

/// Removes what was in force under a key. A pod goes by its UID, as the world knows it.
fn remove(objects: &mut Objects, (kind, namespace, name): &Key) {
    match *kind {
        UID => PodUid::parse(name).iter().for_each(|uid| objects.remove_pod(uid)),
        kind => kinds::remove(objects, kind, namespace.as_deref(), name),
    }
}

/// Stands in the kind's place, for the UID of a pod.
const UID: &str = "uid";

/// The name, and for a pod the UID.
pub(super) fn keys(object: &Object) -> impl Iterator<Item = Key> {
    let Origin { kind, namespace, name, .. } = object.origin();
    let uid = object.uid().map(|uid| (UID, None, Arc::from(uid.as_str())));
    [Some((*kind, namespace.clone(), Arc::clone(name))), uid].into_iter().flatten()
}

pub(super) fn duplicate(file: &Arc<str>, object: &Object, holder: &Origin) -> SourceError {
    let origin = object.origin();
    let same_name = (&origin.kind, &origin.namespace, &origin.name)
        == (&holder.kind, &holder.namespace, &holder.name);
    let what = if same_name { "is there twice" } else { "has a uid that is there twice" };
    let message = format!("this {} {what}; in force is {holder}", origin.kind);
    SourceError::at(file, origin.place(""), message).hint("remove one of the two")
}
