//! What the watches have said so far.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use mesh_world::{FieldError, ObjectName, Objects, PodUid};

use super::super::error::SourceError;
use super::super::kinds::{self, KINDS, Object};

/// An object's kind, namespace and name.
pub(super) type Name = (&'static str, Option<Arc<str>>, Arc<str>);

/// What a watch says.
#[derive(Debug)]
pub(super) enum Change {
    /// All objects of a kind follow: for the first time, or because the API server has forgotten
    /// the changes in between (410).
    ListBegins(&'static str),
    /// An object is there, and this is what it says.
    Is(Name, Result<Object, FieldError>),
    /// An object is gone.
    Gone(Name),
    /// Objects that have not come by now are gone.
    ListEnds(&'static str),
    /// A watch has been broken off; it restarts by itself.
    Failed { kind: &'static str, error: String },
}

impl Change {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::ListBegins(kind)
            | Self::ListEnds(kind)
            | Self::Failed { kind, .. }
            | Self::Is((kind, ..), _)
            | Self::Gone((kind, ..)) => kind,
        }
    }
}

/// The objects in force.
#[derive(Default)]
pub(super) struct Content {
    objects: Objects,
    /// The names in force; for a pod with its UID.
    in_force: HashMap<Name, Option<PodUid>>,
    errors: BTreeMap<Name, SourceError>,
    /// What has come since a list began, by kind.
    listing: HashMap<&'static str, HashSet<Name>>,
    listed: BTreeSet<&'static str>,
}

impl Content {
    pub(super) fn objects(&self) -> &Objects {
        &self.objects
    }

    /// What is wrong with objects. Their earlier content stays in force.
    pub(super) fn errors(&self) -> impl Iterator<Item = &SourceError> {
        self.errors.values()
    }

    /// Whether no pod is unknown because of an error in it or in its namespace. Other kinds say
    /// nothing about which pods exist. An account that may write them must not keep the agent from
    /// tidying up.
    pub(super) fn knows_all_pods(&self) -> bool {
        !self.errors.keys().any(|(kind, ..)| matches!(*kind, "Pod" | "Namespace"))
    }

    /// Whether every kind has been listed once; nothing is published before.
    pub(super) fn is_listed(&self) -> bool {
        KINDS.iter().all(|it| self.listed.contains(it.name))
    }

    pub(super) fn apply(&mut self, change: Change) {
        match change {
            Change::ListBegins(kind) => drop(self.listing.insert(kind, HashSet::new())),
            Change::Is(name, object) => {
                if let Some(seen) = self.listing.get_mut(name.0) {
                    seen.insert(name.clone());
                }
                self.put(name, object);
            }
            Change::Gone(name) => self.remove(&name),
            Change::ListEnds(kind) => {
                let seen = self.listing.remove(kind).unwrap_or_default();
                let known = self.in_force.keys().chain(self.errors.keys());
                let gone = known.filter(|name| name.0 == kind && !seen.contains(*name));
                for name in gone.cloned().collect::<Vec<_>>() {
                    self.remove(&name);
                }
                self.listed.insert(kind);
            }
            Change::Failed { .. } => {}
        }
    }

    /// Gives what cannot be read the meaning that an earlier agent read, in part or as a whole
    /// object. Called once, when everything has been listed; later versions of an object inherit
    /// from the one before.
    pub(super) fn inherit(&mut self, earlier: &Objects) {
        self.objects.inherit(earlier);
        let missing = self.errors.keys().filter(|name| !self.in_force.contains_key(*name));
        for name in missing.cloned().collect::<Vec<_>>() {
            let (kind, namespace, object) = &name;
            let uid = match *kind {
                "Namespace" => {
                    let known = earlier.namespaces().find(|known| known.name == *object);
                    let Some(known) = known else { continue };
                    self.objects.insert_namespace(Arc::clone(known));
                    None
                }
                "Pod" => {
                    let named = ObjectName::new(namespace.as_deref().unwrap_or_default(), object);
                    let known = earlier.pods().find(|known| known.name == named);
                    let Some(known) = known else { continue };
                    self.objects.insert_pod(Arc::clone(known));
                    Some(known.uid.clone())
                }
                _ => continue,
            };
            self.in_force.insert(name, uid);
        }
    }

    fn put(&mut self, name: Name, object: Result<Object, FieldError>) {
        let object = match object {
            Ok(object) => object,
            Err(error) => {
                let error = SourceError::in_object(&display(&name), error);
                self.errors.insert(name, error);
                return;
            }
        };
        self.errors.remove(&name);
        let uid = object.uid().cloned();
        // A pod that was deleted and created again under its name while the watch was broken is
        // another pod.
        if let Some(Some(before)) = self.in_force.get(&name)
            && Some(before) != uid.as_ref()
        {
            self.objects.remove_pod(before);
        }
        object.insert_into(&mut self.objects);
        self.in_force.insert(name, uid);
    }

    fn remove(&mut self, name: &Name) {
        self.errors.remove(name);
        let Some(uid) = self.in_force.remove(name) else { return };
        let (kind, namespace, object) = name;
        match uid {
            Some(uid) => self.objects.remove_pod(&uid),
            None => kinds::remove(&mut self.objects, kind, namespace.as_deref(), object),
        }
    }
}

/// `Pod shop/cart`.
fn display((kind, namespace, name): &Name) -> Arc<str> {
    match namespace {
        Some(namespace) => format!("{kind} {namespace}/{name}").into(),
        None => format!("{kind} {name}").into(),
    }
}
