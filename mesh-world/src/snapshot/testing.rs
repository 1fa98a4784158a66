//! Objects for unit tests, made through the same conversions as real ones.

use std::sync::Arc;

use serde_json::{Value, json};

use super::LocalNode;
use crate::announcement::{Announcements, MeshNode};
use crate::names::{NodeName, PodUid};
use crate::objects::{EndpointSliceObject, NamespaceObject, NodeObject, PodObject, ServiceObject};

/// Names and values. `nodemesh.dev/mesh` becomes a label; all others become annotations.
pub(crate) type Meta<'a> = &'a [(&'a str, &'a str)];

fn labels_and_annotations(meta: Meta<'_>) -> (Value, Value) {
    let pick = |label: bool| {
        let chosen = meta.iter().filter(move |(key, _)| (*key == "nodemesh.dev/mesh") == label);
        Value::Object(chosen.map(|(key, value)| ((*key).to_owned(), json!(value))).collect())
    };
    (pick(true), pick(false))
}

pub(crate) fn namespace(name: &str, meta: Meta<'_>) -> NamespaceObject {
    let (labels, annotations) = labels_and_annotations(meta);
    let metadata = json!({"name": name, "labels": labels, "annotations": annotations});
    let object = serde_json::from_value(json!({"metadata": metadata})).unwrap();
    NamespaceObject::try_from(&object).unwrap()
}

/// A node with its ranges of pod addresses and one address of its own.
pub(crate) fn node_object(name: &str, pod_cidrs: &[&str], address: &str) -> NodeObject {
    let object = serde_json::from_value(json!({
        "metadata": {"name": name}, "spec": {"podCIDRs": pod_cidrs},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }));
    NodeObject::try_from(&object.unwrap()).unwrap()
}

/// A running pod with the UID `uid-<name>` and a service account of its own name. `addresses` are
/// separated by commas.
pub(crate) fn pod(
    namespace: &str,
    name: &str,
    node: &str,
    addresses: &str,
    meta: Meta<'_>,
) -> PodObject {
    let (labels, annotations) = labels_and_annotations(meta);
    let ips: Vec<_> = addresses.split(',').map(|ip| json!({"ip": ip})).collect();
    let object = serde_json::from_value(json!({
        "metadata": {"namespace": namespace, "name": name, "uid": format!("uid-{name}"),
            "labels": labels, "annotations": annotations},
        "spec": {"nodeName": node, "serviceAccountName": name, "containers": []},
        "status": {"phase": "Running", "podIPs": ips},
    }));
    PodObject::try_from(&object.unwrap()).unwrap()
}

/// A service in namespace shop.
pub(crate) fn service(name: &str, spec: &Value) -> ServiceObject {
    let metadata = json!({"namespace": "shop", "name": name});
    let object = serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap();
    ServiceObject::try_from(&object).unwrap()
}

/// A slice of a service in namespace shop. Its address family is told from `endpoints`.
pub(crate) fn slice(
    name: &str,
    service: &str,
    ports: &Value,
    endpoints: &Value,
) -> EndpointSliceObject {
    let labels = json!({"kubernetes.io/service-name": service});
    let family = if endpoints.to_string().contains("::") { "IPv6" } else { "IPv4" };
    let object = serde_json::from_value(json!({
        "metadata": {"namespace": "shop", "name": name, "labels": labels},
        "addressType": family, "ports": ports, "endpoints": endpoints,
    }));
    EndpointSliceObject::try_from(&object.unwrap()).unwrap()
}

pub(crate) fn uid(text: &str) -> PodUid {
    PodUid::parse(text).unwrap()
}

pub(crate) fn node(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

pub(crate) fn local(name: &str, enrolled: &[&str]) -> LocalNode {
    LocalNode {
        name: node(name),
        enrolled: enrolled.iter().map(|text| uid(text)).collect(),
        mesh_namespace: None,
    }
}

/// Announcements of nodes with pods, all in namespace shop. A pod is (name, one address): the name
/// is also the service account, and the UID is `uid-<name>`.
pub(crate) fn announcements(nodes: &[(&str, &[(&str, &str)])]) -> Announcements {
    let announce = |(name, pods): &(&str, &[(&str, &str)])| {
        let pods: Vec<_> = pods
            .iter()
            .map(|(pod, address)| {
                json!({"uid": format!("uid-{pod}"), "namespace": "shop", "name": pod,
                    "serviceAccount": pod, "addresses": [address], "mode": "permissive"})
            })
            .collect();
        let announcement: MeshNode = serde_json::from_value(json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": name},
            "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": pods},
        }))
        .unwrap();
        (node(name), Arc::new(announcement))
    };
    nodes.iter().map(announce).collect()
}
