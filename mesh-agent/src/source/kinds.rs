//! The Kubernetes kinds that the world is made of: one row for each.
//!
//! Watching, reading files, merging, keeping on disk and the agents' rights follow from a row. A
//! new kind is a row here, its type (`mesh-world/src/objects/`) and its conversion
//! (`mesh-world/src/kubernetes/`).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use mesh_world::{
    EndpointSliceObject, FieldError, NamespaceObject, NodeObject, ObjectName, Objects, Origin,
    PodObject, PodUid, ServiceObject,
};
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::json::read;
use super::kubernetes::ApiObject;

/// Which objects of a kind the API server is asked for.
#[derive(Debug)]
pub(super) enum WatchScope {
    All,
    /// Those of this node.
    OfOwnNode,
}

type Read = fn(Value, &dyn Fn(Origin) -> Origin) -> Result<Object, FieldError>;

/// A kind of objects: the API server's names for it, what is watched, and how one is read.
#[derive(Debug)]
pub(crate) struct Kind {
    /// `EndpointSlice`.
    pub(super) name: &'static str,
    /// `discovery.k8s.io/v1`.
    pub(crate) api_version: &'static str,
    /// `discovery.k8s.io`; empty for the core kinds.
    pub(crate) group: &'static str,
    /// `endpointslices`.
    pub(crate) plural: &'static str,
    pub(super) watched: WatchScope,
    /// All of them, to be watched.
    pub(super) all: fn(&Client) -> Api<ApiObject>,
    /// Reads an object; the second argument adds the place where it was found to its origin.
    pub(super) read: Read,
    remove: fn(&mut Objects, &ObjectName),
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
        pub(crate) const KINDS: &[Kind] = &[$(Kind {
            name: <$api as k8s_openapi::Resource>::KIND,
            api_version: <$api as k8s_openapi::Resource>::API_VERSION,
            group: <$api as k8s_openapi::Resource>::GROUP,
            plural: <$api as k8s_openapi::Resource>::URL_PATH_SEGMENT,
            watched: WatchScope::$watched,
            all: ApiObject::all::<$api>,
            read: |object, locate| {
                let kind = <$api as k8s_openapi::Resource>::KIND;
                let object = read::<$api>(object).map_err(|error| with_type_hint(error, kind))?;
                $world::parse(&object, locate).map(|it| Object::$api(Arc::new(it)))
            },
            remove: $remove,
        }),+];

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
    Namespace: NamespaceObject, All, namespaces, insert_namespace, |objects, it| objects.remove_namespace(&it.name);
    Node: NodeObject, All, nodes, insert_node, |objects, it| objects.remove_node(&it.name);
    Pod: PodObject, OfOwnNode, pods, insert_pod, |_, _| {};
    Service: ServiceObject, All, services, insert_service, Objects::remove_service;
    EndpointSlice: EndpointSliceObject, All, slices, insert_slice, Objects::remove_slice;
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

/// Removes the object of that kind, namespace and name. A pod is known by its UID, and not removed
/// by its name.
pub(super) fn remove(objects: &mut Objects, kind: &str, namespace: Option<&str>, name: &str) {
    if let Some(kind) = kind_named(kind) {
        (kind.remove)(objects, &ObjectName::new(namespace.unwrap_or_default(), name));
    }
}

/// The kind of that name.
pub(crate) fn kind_named(kind: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|known| known.name == kind)
}

fn with_type_hint(error: FieldError, kind: &str) -> FieldError {
    let unquoted = error.message.starts_with("invalid type: integer")
        || error.message.starts_with("invalid type: boolean")
        || error.message.starts_with("invalid type: floating point");
    if unquoted && error.message.ends_with("expected a string") {
        return error.hint("put the value in quotes");
    }
    let path: String = match error.field.find('[') {
        Some(bracket) => error.field.chars().take(bracket).collect(),
        None => error.field.clone(),
    };
    let kind = kind.to_ascii_lowercase();
    error.hint(format!("`kubectl explain {kind}.{path}` shows what belongs there"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_api_servers_names() {
        let slices = kind_named("EndpointSlice").unwrap();
        assert_eq!((slices.api_version, slices.group), ("discovery.k8s.io/v1", "discovery.k8s.io"));
        assert_eq!((slices.plural, kind_named("Pod").unwrap().plural), ("endpointslices", "pods"));
        assert_eq!(kind_named("Pod").unwrap().group, "");
        assert!(kind_named("Secret").is_none());
    }
}
