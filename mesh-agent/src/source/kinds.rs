//! The Kubernetes kinds that the world is made of: one row for each.
//!
//! Watching, reading files, merging, keeping on disk and the agents' rights follow from a row. A
//! new kind is a row here, its type (`mesh-world/src/objects/`) and its conversion
//! (`mesh-world/src/kubernetes/`).

use std::fmt::Debug;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_world::{
    EndpointSliceObject, FieldError, NamespaceObject, NodeObject, ObjectName, Objects, Origin,
    PodObject, PodUid, ServiceObject,
};
use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

/// What the API server is asked for of a kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Whole objects.
    Whole,
    /// Their metadata.
    Metadata,
    /// The whole objects of this node.
    OfOwnNode,
}

/// A kind by the API server's names for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct KindName {
    /// `EndpointSlice`.
    pub(crate) kind: &'static str,
    /// `discovery.k8s.io/v1`.
    pub(crate) api_version: &'static str,
    /// `discovery.k8s.io`; empty for the core kinds.
    pub(crate) group: &'static str,
    /// `endpointslices`.
    pub(crate) plural: &'static str,
}

/// The world's type of a kind.
pub(super) trait Kind: Sized {
    /// The API server's type.
    type Api: k8s_openapi::Metadata<Ty = ObjectMeta>
        + kube::Resource<DynamicType = ()>
        + Clone
        + Debug
        + Default
        + DeserializeOwned
        + Send
        + 'static;

    const NAME: KindName;
    const WATCHED: Watched;

    /// Converts an object that was read at the place `locate` adds to its origin.
    fn convert(
        object: &Self::Api,
        locate: impl FnOnce(Origin) -> Origin,
    ) -> Result<Object, FieldError>;
}

/// Something that is done for a kind.
pub(super) trait ForKind {
    type Done;
    fn run<K: Kind>(self) -> Self::Done;
}

/// Each row: the API server's type, the world's, what is watched; of [`Objects`] all of them, to
/// insert one, to remove one by its name.
macro_rules! kinds {
    ($($api:ident: $world:ident, $watched:ident, $all:ident, $insert:ident, $remove:expr;)+) => {
        /// One object, shared with the world.
        #[derive(Clone, Debug)]
        pub(super) enum Object {
            $($api(Arc<$world>),)+
        }

        /// Every kind.
        pub(crate) const KINDS: &[KindName] = &[$($world::NAME),+];

        $(impl Kind for $world {
            type Api = $api;
            const NAME: KindName = KindName {
                kind: <$api as k8s_openapi::Resource>::KIND,
                api_version: <$api as k8s_openapi::Resource>::API_VERSION,
                group: <$api as k8s_openapi::Resource>::GROUP,
                plural: <$api as k8s_openapi::Resource>::URL_PATH_SEGMENT,
            };
            const WATCHED: Watched = Watched::$watched;

            fn convert(
                object: &$api,
                locate: impl FnOnce(Origin) -> Origin,
            ) -> Result<Object, FieldError> {
                $world::parse(object, locate).map(|it| Object::$api(Arc::new(it)))
            }
        })+

        /// Does something for the kind of that name; `None` if there is no such kind.
        pub(super) fn for_kind<F: ForKind>(kind: &str, what: F) -> Option<F::Done> {
            $(if kind == $world::NAME.kind {
                return Some(what.run::<$world>());
            })+
            None
        }

        /// Does something for each kind, in the order of the rows.
        pub(super) fn for_each<F: ForKind + Copy>(what: F) -> Vec<F::Done> {
            vec![$(what.run::<$world>()),+]
        }

        /// Removes what has that name. A pod is known by its UID, and not removed by its name.
        fn remove_named(objects: &mut Objects, kind: &str, name: &ObjectName) {
            $(if kind == $world::NAME.kind {
                let remove: fn(&mut Objects, &ObjectName) = $remove;
                return remove(objects, name);
            })+
        }

        impl Object {
            /// Where it was read.
            pub(super) fn origin(&self) -> &Origin {
                match self {
                    $(Self::$api(object) => &object.origin,)+
                }
            }

            /// Adds it to the objects in force.
            pub(super) fn insert_into(&self, objects: &mut Objects) {
                match self {
                    $(Self::$api(object) => objects.$insert(Arc::clone(object)),)+
                }
            }

            /// All objects, kind by kind.
            pub(super) fn all(objects: &Objects) -> impl Iterator<Item = Self> {
                std::iter::empty()$(.chain(objects.$all().map(|it| Self::$api(Arc::clone(it)))))+
            }
        }

        /// What is kept of it, as the API server writes it.
        impl Serialize for Object {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$api(object) => $api::from(&**object).serialize(serializer),)+
                }
            }
        }
    };
}

kinds! {
    Namespace: NamespaceObject, Metadata, namespaces, insert_namespace, |objects, it| objects.remove_namespace(&it.name);
    Node: NodeObject, Whole, nodes, insert_node, |objects, it| objects.remove_node(&it.name);
    Pod: PodObject, OfOwnNode, pods, insert_pod, |_, _| {};
    Service: ServiceObject, Whole, services, insert_service, Objects::remove_service;
    EndpointSlice: EndpointSliceObject, Whole, slices, insert_slice, Objects::remove_slice;
}

impl Object {
    /// The UID by which the world knows it, if it does not go by its name.
    pub(super) fn uid(&self) -> Option<&PodUid> {
        match self {
            Self::Pod(pod) => Some(&pod.uid),
            _ => None,
        }
    }
}

/// Removes the object of that kind, namespace and name.
pub(super) fn remove(objects: &mut Objects, kind: &str, namespace: Option<&str>, name: &str) {
    remove_named(objects, kind, &ObjectName::new(namespace.unwrap_or_default(), name));
}

/// The kind of that name.
pub(crate) fn kind_named(kind: &str) -> Option<&'static KindName> {
    KINDS.iter().find(|known| known.kind == kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_api_servers_names() {
        let slices = kind_named("EndpointSlice").unwrap();
        assert_eq!((slices.api_version, slices.group), ("discovery.k8s.io/v1", "discovery.k8s.io"));
        assert_eq!((slices.plural, kind_named("Pod").unwrap().plural), ("endpointslices", "pods"));
        assert_eq!((kind_named("Pod").unwrap().group, kind_named("Secret")), ("", None));
    }
}
