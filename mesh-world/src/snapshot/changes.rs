//! Random changes of a small world whose objects often collide, for property tests.

use std::iter;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::{local, namespace, node, node_object, pod, service, slice, uid};
use super::{LocalNode, Objects};
use crate::{Announcements, Cidr, MeshNode, ObjectName};

/// Few values of each, so that they collide.
const METAS: [&[(&str, &str)]; 6] = [
    &[],
    &[("nodemesh.dev/mesh", "enabled")],
    &[("nodemesh.dev/mesh", "enabled"), ("nodemesh.dev/mode", "strict")],
    &[("nodemesh.dev/mesh", "enabled"), ("nodemesh.dev/exclude-ports", "80,8080")],
    &[("nodemesh.dev/mode", "strikt")],
    &[("nodemesh.dev/mesh", "enabled"), ("nodemesh.dev/permissive-ports", "80,9102")],
];
const ADDRESSES: [&str; 8] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.0.3",
    "10.0.0.4",
    "10.0.0.5",
    "10.96.0.1",
    "10.96.0.2",
    "fd00::1",
];
/// Some contain all pod addresses, some not.
const RANGES: [&str; 5] = ["10.0.0.0/30", "10.0.0.4/30", "10.96.0.0/16", "10.0.0.0/8", "fd00::/64"];
const BOOTS: [&str; 2] = ["b", "after"];
const EXCLUDED: [&str; 3] = ["", "80", "80-81,8080"];
/// Each a pod's name; its UID is `uid-<name>`.
const PODS: [&str; 7] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6"];

/// One thing that changes.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    Namespace(usize, Option<usize>),
    Node(usize, Option<NodeChange>),
    Pod(usize, Option<PodChange>),
    Service(usize, Option<ServiceChange>),
    Slice(usize, Option<SliceChange>),
    /// Which node's announcement; `None` takes it back.
    Announce(usize, Option<Announce>),
    /// A node's announcement drops its first pod, and the others move up.
    LetGo(usize),
    Enrolled(usize, bool),
    /// An object is read again unchanged.
    Again(usize),
}

#[derive(Clone, Debug)]
pub(crate) struct NodeChange {
    /// Of pod addresses.
    ranges: Vec<usize>,
    /// Of its own.
    addresses: Vec<usize>,
    boot: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct PodChange {
    namespace: usize,
    node: usize,
    addresses: Vec<usize>,
    meta: usize,
    created_s: Option<i64>,
    host_network: bool,
    completed: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct ServiceChange {
    addresses: Vec<usize>,
    ports: Vec<u16>,
    local_only: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct SliceChange {
    service: usize,
    port_name: bool,
    endpoints: Vec<EndpointChange>,
}

#[derive(Clone, Debug)]
pub(crate) struct EndpointChange {
    address: usize,
    /// Another address of the same endpoint.
    second: Option<usize>,
    node: usize,
    ready: bool,
    serving: bool,
    terminating: bool,
    for_node: Option<usize>,
}

#[derive(Clone, Debug)]
pub(crate) struct Announce {
    as_node: usize,
    boot: usize,
    /// UID, name, addresses, strict, excluded ports.
    pods: Vec<(usize, usize, Vec<usize>, bool, usize)>,
}

fn addresses() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..ADDRESSES.len(), 0..4)
}

fn pod_change() -> impl Strategy<Value = PodChange> {
    let rarely = || prop::bool::weighted(0.1);
    let created = prop::option::of(0..3i64);
    (0..3usize, 0..3usize, addresses(), 0..METAS.len(), created, rarely(), rarely()).prop_map(
        |(namespace, node, addresses, meta, created_s, host_network, completed)| PodChange {
            namespace,
            node,
            addresses,
            meta,
            created_s,
            host_network,
            completed,
        },
    )
}

/// Any change.
pub(crate) fn change() -> impl Strategy<Value = Change> {
    let maybe = prop::option::weighted(0.8, 0..METAS.len());
    let ranges = prop::collection::vec(0..RANGES.len(), 0..3);
    let second = prop::option::weighted(0.1, 0..ADDRESSES.len());
    let state = (any::<bool>(), any::<bool>(), prop::bool::weighted(0.3));
    let for_node = prop::option::weighted(0.2, 0..3usize);
    let endpoint = (0..ADDRESSES.len(), second, 0..4usize, state, for_node).prop_map(
        |(address, second, node, (ready, serving, terminating), for_node)| EndpointChange {
            address,
            second,
            node,
            ready,
            serving,
            terminating,
            for_node,
        },
    );
    let service = (addresses(), prop::collection::vec(80..83u16, 0..4), prop::bool::weighted(0.2))
        .prop_map(|(addresses, ports, local_only)| ServiceChange { addresses, ports, local_only });
    let slice = (0..4usize, any::<bool>(), prop::collection::vec(endpoint, 0..4))
        .prop_map(|(service, port_name, endpoints)| SliceChange { service, port_name, endpoints });
    let excluded = || 0..EXCLUDED.len();
    let announced = (0..PODS.len(), 0..PODS.len(), addresses(), any::<bool>(), excluded());
    let honest = (0..PODS.len(), addresses(), any::<bool>(), excluded())
        .prop_map(|(pod, addresses, strict, ports)| (pod, pod, addresses, strict, ports));
    let pods = prop::collection::vec(prop_oneof![3 => honest, 1 => announced], 0..5);
    let boot = || prop_oneof![4 => Just(0), 1 => Just(1)];
    let announce = (prop::bool::weighted(0.1), boot(), pods);
    let node = (ranges, addresses(), prop::option::weighted(0.8, boot()))
        .prop_map(|(ranges, addresses, boot)| NodeChange { ranges, addresses, boot });
    prop_oneof![
        2 => (0..3usize, maybe).prop_map(|(name, meta)| Change::Namespace(name, meta)),
        6 => (0..PODS.len(), prop::option::weighted(0.8, pod_change()))
            .prop_map(|(name, pod)| Change::Pod(name, pod)),
        2 => (0..3usize, prop::option::weighted(0.8, node))
            .prop_map(|(name, node)| Change::Node(name, node)),
        2 => (0..4usize, prop::option::weighted(0.8, service))
            .prop_map(|(name, service)| Change::Service(name, service)),
        3 => (0..4usize, prop::option::weighted(0.8, slice))
            .prop_map(|(name, slice)| Change::Slice(name, slice)),
        4 => (0..3usize, prop::option::weighted(0.8, announce)).prop_map(|(node, announce)| {
            let announce = announce.map(|(lies, boot, pods)| {
                Announce { as_node: (node + usize::from(lies)) % 3, boot, pods }
            });
            Change::Announce(node, announce)
        }),
        2 => (0..3usize).prop_map(Change::LetGo),
        3 => (0..PODS.len(), any::<bool>()).prop_map(|(pod, on)| Change::Enrolled(pod, on)),
        1 => (0..PODS.len()).prop_map(Change::Again),
    ]
}

/// What a source, the announcer and enrolment would hold.
pub(crate) struct Told {
    pub(crate) objects: Objects,
    pub(crate) announcements: Announcements,
    pub(crate) local: LocalNode,
}

impl Told {
    pub(crate) fn nothing() -> Self {
        let (objects, announcements) = (Objects::default(), Announcements::new());
        Self { objects, announcements, local: local("node0", &[]) }
    }

    pub(crate) fn apply(&mut self, change: &Change) {
        let objects = &mut self.objects;
        let in_shop = |name: &str| ObjectName::new("shop", name);
        match change {
            Change::Namespace(name, None) => objects.remove_namespace(&namespace_name(*name)),
            Change::Namespace(name, Some(meta)) => {
                objects.insert_namespace(namespace(&namespace_name(*name), METAS[*meta]));
            }
            Change::Node(name, None) => objects.remove_node(&format!("node{name}")),
            Change::Node(name, Some(NodeChange { ranges, addresses, boot })) => {
                let ranges: Vec<_> = ranges.iter().map(|index| RANGES[*index]).collect();
                let mut node = node_object(&format!("node{name}"), &ranges, "192.0.2.1");
                let own = texts(addresses).into_iter().map(|text| text.parse().unwrap());
                node.addresses.extend::<Vec<std::net::IpAddr>>(own.collect());
                node.tunnels = node.pod_cidrs.iter().map(Cidr::first).collect();
                node.boot_id = boot.map(|boot| BOOTS[boot].to_owned());
                node.zone = (addresses.len() % 2 == 1).then(|| "a".into());
                objects.insert_node(node);
            }
            Change::Pod(name, None) => objects.remove_pod(&uid(&format!("uid-{}", PODS[*name]))),
            Change::Pod(name, Some(it)) => objects.insert_pod(pod_object(PODS[*name], it)),
            Change::Service(name, None) => objects.remove_service(&in_shop(&format!("s{name}"))),
            Change::Service(name, Some(it)) => {
                objects.insert_service(service(&format!("s{name}"), &service_spec(it)));
            }
            Change::Slice(name, None) => objects.remove_slice(&in_shop(&format!("e{name}"))),
            Change::Slice(name, Some(it)) => insert_slice(objects, *name, it),
            Change::Announce(name, None) => {
                self.announcements.remove(&node(&format!("node{name}")));
            }
            Change::Announce(name, Some(it)) => {
                self.announcements.insert(node(&format!("node{name}")), Arc::new(announcement(it)));
            }
            Change::LetGo(name) => {
                if let Some(it) = self.announcements.get_mut(&node(&format!("node{name}"))) {
                    let pods = it.pods.get(1..).unwrap_or_default().to_vec();
                    *it = Arc::new(MeshNode { pods, ..MeshNode::clone(it) });
                }
            }
            Change::Enrolled(name, on) => {
                let uid = uid(&format!("uid-{}", PODS[*name]));
                if *on {
                    self.local.enrolled.insert(uid)
                } else {
                    self.local.enrolled.remove(&uid)
                };
            }
            Change::Again(name) => {
                let uid = uid(&format!("uid-{}", PODS[*name]));
                let same = objects.pods().find(|pod| pod.uid == uid).map(|pod| (**pod).clone());
                if let Some(pod) = same {
                    objects.insert_pod(pod);
                }
            }
        }
    }
}

fn namespace_name(index: usize) -> String {
    ["shop", "ns1", "ns2"][index].to_owned()
}

fn texts(addresses: &[usize]) -> Vec<&'static str> {
    addresses.iter().map(|index| ADDRESSES[*index]).collect()
}

fn pod_object(name: &str, it: &PodChange) -> crate::PodObject {
    let node = format!("node{}", it.node);
    let mut pod = pod(&namespace_name(it.namespace), name, &node, "10.0.0.9", METAS[it.meta]);
    pod.ips = texts(&it.addresses).iter().map(|text| text.parse().unwrap()).collect();
    (pod.created_s, pod.host_network, pod.completed) =
        (it.created_s, it.host_network, it.completed);
    pod
}

fn service_spec(it: &ServiceChange) -> Value {
    let ports: Vec<_> = it.ports.iter().map(|port| json!({"name": "main", "port": port})).collect();
    let policy = if it.local_only { "Local" } else { "Cluster" };
    json!({"clusterIPs": texts(&it.addresses), "ports": ports, "internalTrafficPolicy": policy})
}

fn insert_slice(objects: &mut Objects, name: usize, it: &SliceChange) {
    let endpoint = |it: &EndpointChange| {
        let EndpointChange { ready, serving, terminating, .. } = it;
        let addresses: Vec<_> = iter::once(it.address).chain(it.second).collect();
        let mut endpoint = json!({"addresses": texts(&addresses), "conditions":
            {"ready": ready, "serving": serving, "terminating": terminating}});
        if it.node < 3 {
            endpoint["nodeName"] = json!(format!("node{}", it.node));
            endpoint["hints"] =
                json!({"forZones": [{"name": if it.node == 0 { "a" } else { "b" }}]});
        }
        if let Some(node) = it.for_node {
            endpoint["hints"]["forNodes"] = json!([{"name": format!("node{node}")}]);
        }
        endpoint
    };
    let endpoints: Vec<_> = it.endpoints.iter().map(endpoint).collect();
    let ports = json!([{"name": if it.port_name { "main" } else { "other" }, "port": 8080}]);
    let service = format!("s{}", it.service);
    objects.insert_slice(slice(&format!("e{name}"), &service, &ports, &json!(endpoints)));
}

fn announcement(it: &Announce) -> MeshNode {
    let pod = |(uid, name, addresses, strict, ports): &(usize, usize, Vec<usize>, bool, usize)| {
        json!({"uid": format!("uid-{}", PODS[*uid]), "namespace": "shop", "name": PODS[*name],
            "serviceAccount": PODS[*name], "addresses": texts(addresses),
            "mode": if *strict { "strict" } else { "permissive" },
            "excludePorts": EXCLUDED[*ports]})
    };
    let pods: Vec<_> = it.pods.iter().map(pod).collect();
    serde_json::from_value(json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode",
        "metadata": {"name": format!("node{}", it.as_node)},
        "spec": {"bootId": BOOTS[it.boot], "trustDomain": "cluster.local", "pods": pods},
    }))
    .unwrap()
}
