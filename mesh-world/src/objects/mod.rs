//! The input of the world: Kubernetes objects, trimmed to what the mesh needs and checked.
//!
//! Each kind has a file. `kubernetes/` converts them from and to the API server's own types.

mod endpoint_slice;
mod namespace;
mod node;
mod pod;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use endpoint_slice::{EndpointObject, EndpointSliceObject, SlicePort};
pub use namespace::NamespaceObject;
pub use node::NodeObject;
pub use pod::{NetnsRef, PodObject};
pub use service::{Protocol, ServiceKind, ServiceObject, ServicePortObject, TargetPort};

use super::names::{ObjectName, PodUid};
use super::shared_map::SharedMap;

/// Every object that is known. A clone shares everything with its original; a change costs only the
/// changed object.
///
/// Its content does not depend on the order in which objects came, with one exception. An object
/// that replaces an earlier version of itself inherits the values that it made unreadable
/// (`Declared::Unreadable`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    /// By name.
    pub(super) namespaces: SharedMap<Arc<str>, Arc<NamespaceObject>>,
    /// By name.
    pub(super) nodes: SharedMap<Arc<str>, Arc<NodeObject>>,
    /// By UID.
    pub(super) pods: SharedMap<PodUid, Arc<PodObject>>,
    /// By namespace and name.
    pub(super) services: SharedMap<ObjectName, Arc<ServiceObject>>,
    /// By namespace and name.
    pub(super) slices: SharedMap<ObjectName, Arc<EndpointSliceObject>>,
}

impl Objects {
    /// Adds a namespace or replaces the one of that name.
    pub fn insert_namespace(&mut self, namespace: impl Into<Arc<NamespaceObject>>) {
        let mut namespace = namespace.into();
        let earlier = self.namespaces.get(&namespace.name);
        if let Some(earlier) = earlier.filter(|_| namespace.mesh.has_unreadable()) {
            Arc::make_mut(&mut namespace).mesh.carry_over(&earlier.mesh);
        }
        self.namespaces.insert(Arc::clone(&namespace.name), namespace);
    }

    /// Adds a node or replaces the one of that name.
    pub fn insert_node(&mut self, node: impl Into<Arc<NodeObject>>) {
        let node = node.into();
        self.nodes.insert(Arc::clone(&node.name), node);
    }

    /// Adds a pod or replaces the one of that UID.
    pub fn insert_pod(&mut self, pod: impl Into<Arc<PodObject>>) {
        let mut pod = pod.into();
        let earlier = self.pods.get(&pod.uid);
        if let Some(earlier) = earlier.filter(|_| pod.mesh.has_unreadable()) {
            Arc::make_mut(&mut pod).mesh.carry_over(&earlier.mesh);
        }
        self.pods.insert(pod.uid.clone(), pod);
    }

    /// Adds a service or replaces the one of that name.
    pub fn insert_service(&mut self, service: impl Into<Arc<ServiceObject>>) {
        let service = service.into();
        self.services.insert(service.name.clone(), service);
    }

    /// Adds an endpoint slice or replaces the one of that name.
    pub fn insert_slice(&mut self, slice: impl Into<Arc<EndpointSliceObject>>) {
        let slice = slice.into();
        self.slices.insert(slice.name.clone(), slice);
    }

    /// Gives unreadable values of objects the meaning that an earlier agent read, where it is
    /// known.
    pub fn inherit(&mut self, earlier: &Self) {
        let unreadable =
            |(_, namespace): &(_, &Arc<NamespaceObject>)| namespace.mesh.has_unreadable();
        let namespaces: Vec<_> =
            self.namespaces.iter().filter(unreadable).map(|(_, it)| Arc::clone(it)).collect();
        for mut namespace in namespaces {
            if let Some(before) = earlier.namespaces.get(&namespace.name) {
                Arc::make_mut(&mut namespace).mesh.carry_over(&before.mesh);
                self.namespaces.insert(Arc::clone(&namespace.name), namespace);
            }
        }
        let unreadable = |(_, pod): &(_, &Arc<PodObject>)| pod.mesh.has_unreadable();
        let pods: Vec<_> =
            self.pods.iter().filter(unreadable).map(|(_, it)| Arc::clone(it)).collect();
        for mut pod in pods {
            if let Some(before) = earlier.pods.get(&pod.uid) {
                Arc::make_mut(&mut pod).mesh.carry_over(&before.mesh);
                self.pods.insert(pod.uid.clone(), pod);
            }
        }
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
        self.namespaces.sorted_values()
    }

    /// All nodes, by name.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<NodeObject>> {
        self.nodes.sorted_values()
    }

    /// All pods, by UID.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<PodObject>> {
        self.pods.sorted_values()
    }

    /// The static pods of a node: the UID of their cgroups, and the UID of their objects. If
    /// several objects claim to be the same static pod, the first created is. The kubelet makes a
    /// mirror as soon as the pod runs, and removes an object that it did not make.
    pub fn static_pods(&self, node: &str) -> Vec<(&PodUid, &PodUid)> {
        let mut first: BTreeMap<&PodUid, &PodObject> = BTreeMap::new();
        let here = |pod: &&PodObject| pod.node.as_ref().is_some_and(|known| known.as_str() == node);
        let made = |pod: &PodObject| (pod.created_s.unwrap_or(i64::MAX), pod.uid.clone());
        for pod in self.pods.iter().map(|(_, pod)| pod.as_ref()).filter(here) {
            let Some(uid) = &pod.static_uid else { continue };
            let known = first.entry(uid).or_insert(pod);
            if made(pod) < made(known) {
                *known = pod;
            }
        }
        first.into_iter().map(|(cgroup, pod)| (cgroup, &pod.uid)).collect()
    }

    /// A pod.
    pub fn pod(&self, uid: &PodUid) -> Option<&Arc<PodObject>> {
        self.pods.get(uid)
    }

    /// A node.
    pub fn node(&self, name: &str) -> Option<&Arc<NodeObject>> {
        self.nodes.get(name)
    }

    /// All services, by namespace and name.
    pub fn services(&self) -> impl Iterator<Item = &Arc<ServiceObject>> {
        self.services.sorted_values()
    }

    /// All endpoint slices, by namespace and name.
    pub fn slices(&self) -> impl Iterator<Item = &Arc<EndpointSliceObject>> {
        self.slices.sorted_values()
    }
}

#[cfg(test)]
mod tests {
    use super::super::snapshot::testing::pod;
    use super::*;

    #[test]
    fn of_several_mirrors_of_one_static_pod_the_first_made_is_it() {
        let digest = PodUid::parse(&"a".repeat(32)).unwrap();
        let mut objects = Objects::default();
        for (name, node, created_s) in
            [("false", "node1", 7), ("true", "node1", 5), ("elsewhere", "node2", 1)]
        {
            let mut pod = pod("kube-system", name, node, "10.0.0.1", &[]);
            (pod.static_uid, pod.created_s) = (Some(digest.clone()), Some(created_s));
            objects.insert_pod(pod);
        }
        objects.insert_pod(pod("shop", "cart", "node1", "10.0.0.2", &[]));
        let uid = |name: &str| {
            let named = objects.pods().find(|pod| &*pod.name.name == name).unwrap();
            named.uid.clone()
        };
        assert_eq!(objects.static_pods("node1"), [(&digest, &uid("true"))]);
        assert_eq!(objects.static_pods("node2"), [(&digest, &uid("elsewhere"))]);
    }
}
