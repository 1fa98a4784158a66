//! The input of the world: Kubernetes objects, trimmed to what the mesh needs and checked.
//!
//! Each kind has a file with its conversion from the API server's own type. Both sources use these
//! conversions, so a file and a cluster cannot mean different things.

mod endpoint_slice;
mod namespace;
mod node;
mod pod;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

pub use endpoint_slice::{EndpointObject, EndpointSliceObject, SlicePort};
pub use namespace::NamespaceObject;
pub use node::NodeObject;
pub use pod::{NetnsRef, PodObject};
pub use service::{Protocol, ServiceKind, ServiceObject, ServicePortObject, TargetPort};

use super::names::{ObjectName, PodUid, check_label, check_subdomain};
use super::origin::FieldError;

/// Every object that is known. Cloning is cheap per object (`Arc`).
///
/// Its content does not depend on the order in which objects came, but for one thing: an object
/// that replaces an earlier version of itself inherits what it made unreadable
/// (`Declared::Unreadable`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// By name.
    pub(super) namespaces: BTreeMap<Arc<str>, Arc<NamespaceObject>>,
    /// By name.
    nodes: BTreeMap<Arc<str>, Arc<NodeObject>>,
    /// By UID.
    pub(super) pods: BTreeMap<PodUid, Arc<PodObject>>,
    /// By namespace and name.
    pub(super) services: BTreeMap<ObjectName, Arc<ServiceObject>>,
    /// By namespace and name.
    pub(super) slices: BTreeMap<ObjectName, Arc<EndpointSliceObject>>,
}

impl Objects {
    /// Adds a namespace or replaces the one of that name.
    pub fn insert_namespace(&mut self, mut namespace: NamespaceObject) {
        if let Some(earlier) = self.namespaces.get(&namespace.name) {
            namespace.mesh.carry_over(&earlier.mesh);
        }
        self.namespaces.insert(Arc::clone(&namespace.name), Arc::new(namespace));
    }

    /// Adds a node or replaces the one of that name.
    pub fn insert_node(&mut self, node: NodeObject) {
        self.nodes.insert(Arc::clone(&node.name), Arc::new(node));
    }

    /// Adds a pod or replaces the one of that UID.
    pub fn insert_pod(&mut self, mut pod: PodObject) {
        if let Some(earlier) = self.pods.get(&pod.uid) {
            pod.mesh.carry_over(&earlier.mesh);
        }
        self.pods.insert(pod.uid.clone(), Arc::new(pod));
    }

    /// Adds a service or replaces the one of that name.
    pub fn insert_service(&mut self, service: ServiceObject) {
        self.services.insert(service.name.clone(), Arc::new(service));
    }

    /// Adds an endpoint slice or replaces the one of that name.
    pub fn insert_slice(&mut self, slice: EndpointSliceObject) {
        self.slices.insert(slice.name.clone(), Arc::new(slice));
    }

    /// Forgets a namespace; its pods stay known, and out of the mesh.
    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Forgets a node; its pods stay known.
    pub fn remove_node(&mut self, name: &str) {
        self.nodes.remove(name);
    }

    /// Forgets a pod.
    pub fn remove_pod(&mut self, uid: &PodUid) {
        self.pods.remove(uid);
    }

    /// Forgets a service.
    pub fn remove_service(&mut self, name: &ObjectName) {
        self.services.remove(name);
    }

    /// Forgets an endpoint slice.
    pub fn remove_slice(&mut self, name: &ObjectName) {
        self.slices.remove(name);
    }

    /// All namespaces, by name.
    pub fn namespaces(&self) -> impl Iterator<Item = &Arc<NamespaceObject>> {
        self.namespaces.values()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeObject>> {
        self.nodes.values()
    }

    /// All pods, by UID.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodObject>> {
        self.pods.values()
    }

    /// All services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceObject>> {
        self.services.values()
    }

    /// All endpoint slices, by namespace and name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSliceObject>> {
        self.slices.values()
    }

    /// For a source that builds everything anew: lets what became unreadable keep what the same
    /// object said in `earlier`.
    pub fn carry_over(&mut self, earlier: &Self) {
        for (name, namespace) in &mut self.namespaces {
            if let Some(before) = earlier.namespaces.get(name) {
                Arc::make_mut(namespace).mesh.carry_over(&before.mesh);
            }
        }
        for (uid, pod) in &mut self.pods {
            if let Some(before) = earlier.pods.get(uid) {
                Arc::make_mut(pod).mesh.carry_over(&before.mesh);
            }
        }
    }
}

/// `metadata.name`, which must be a DNS name.
fn object_name(meta: &ObjectMeta) -> Result<Arc<str>, FieldError> {
    let name = required(meta.name.as_deref(), "metadata.name")?;
    check_subdomain(name).map_err(|message| FieldError::new("metadata.name", message))?;
    Ok(Arc::from(name))
}

/// `metadata.namespace` and `metadata.name`.
fn namespaced_name(meta: &ObjectMeta) -> Result<ObjectName, FieldError> {
    // `kubectl` fills in its context's namespace; we have none, and guessing `default` would put a
    // pod under another namespace's settings.
    let namespace = required(meta.namespace.as_deref(), "metadata.namespace")?;
    check_label(namespace).map_err(|message| FieldError::new("metadata.namespace", message))?;
    Ok(ObjectName { namespace: Arc::from(namespace), name: object_name(meta)? })
}

fn required<'a>(value: Option<&'a str>, field: &'static str) -> Result<&'a str, FieldError> {
    match value {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(FieldError::new(field, "is missing").hint(format!("add {field}"))),
    }
}

/// A port number as Kubernetes writes it, 1 to 65535.
fn port_number(number: i32, field: impl FnOnce() -> String) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(field(), format!("{number} is not a port"))
            .hint("write a number from 1 to 65535")),
    }
}
