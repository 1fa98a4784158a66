//! A world that is followed step by step is the world that is built anew, whatever changes in whatever order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::testing::{local, namespace, node, node_object, pod, service, slice, uid};
use super::{LocalNode, Objects, Snapshot, World};
use crate::world::{Announcements, Incumbents, MeshNode, ObjectName, PortSet};

/// Few of each, so that they meet.
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
/// Some of them have all addresses in them, some not.
const RANGES: [&str; 5] = ["10.0.0.0/30", "10.0.0.4/30", "10.96.0.0/16", "10.0.0.0/8", "fd00::/64"];
/// Each a pod's name; its UID is `uid-<name>`.
const PODS: [&str; 7] = ["p0", "p1", "p2", "p3", "p4", "p5", "p6"];

#[derive(Clone, Debug)]
enum Change {
    Namespace(usize, Option<usize>),
    /// Ranges of pod addresses and addresses of its own.
    Node(usize, Option<(Vec<usize>, Vec<usize>)>),
    Pod(usize, Option<PodChange>),
    Service(usize, Option<ServiceChange>),
    Slice(usize, Option<SliceChange>),
    /// Which node's announcement; `None` takes it back.
    Announce(usize, Option<Announce>),
    /// The first pod of a node's announcement is announced no more, and the others move up.
    LetGo(usize),
    Enrolled(usize, bool),
    /// An object is read again and says the same.
    Again(usize),
}

#[derive(Clone, Debug)]
struct PodChange {
    namespace: usize,
    node: usize,
    addresses: Vec<usize>,
    meta: usize,
    created_s: Option<i64>,
    host_network: bool,
    completed: bool,
}

#[derive(Clone, Debug)]
struct ServiceChange {
    addresses: Vec<usize>,
    ports: Vec<u16>,
    local_only: bool,
}

#[derive(Clone, Debug)]
struct SliceChange {
    service: usize,
    port_name: bool,
    endpoints: Vec<(usize, usize, bool)>,
}

#[derive(Clone, Debug)]
struct Announce {
    as_node: usize,
    /// UID, name, addresses, strict.
    pods: Vec<(usize, usize, Vec<usize>, bool)>,
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

fn change() -> impl Strategy<Value = Change> {
    let maybe = prop::option::weighted(0.8, 0..METAS.len());
    let ranges = prop::collection::vec(0..RANGES.len(), 0..3);
    let endpoint = (0..ADDRESSES.len(), 0..4usize, any::<bool>());
    let service = (addresses(), prop::collection::vec(80..83u16, 0..4), prop::bool::weighted(0.2))
        .prop_map(|(addresses, ports, local_only)| ServiceChange { addresses, ports, local_only });
    let slice = (0..4usize, any::<bool>(), prop::collection::vec(endpoint, 0..4))
        .prop_map(|(service, port_name, endpoints)| SliceChange { service, port_name, endpoints });
    let announced = (0..PODS.len(), 0..PODS.len(), addresses(), any::<bool>());
    let honest = (0..PODS.len(), addresses(), any::<bool>())
        .prop_map(|(pod, addresses, strict)| (pod, pod, addresses, strict));
    let pods = prop::collection::vec(prop_oneof![3 => honest, 1 => announced], 0..5);
    let announce = (prop::bool::weighted(0.1), pods);
    prop_oneof![
        2 => (0..3usize, maybe).prop_map(|(name, meta)| Change::Namespace(name, meta)),
        6 => (0..PODS.len(), prop::option::weighted(0.8, pod_change()))
            .prop_map(|(name, pod)| Change::Pod(name, pod)),
        2 => (0..3usize, prop::option::weighted(0.8, (ranges, addresses())))
            .prop_map(|(name, node)| Change::Node(name, node)),
        2 => (0..4usize, prop::option::weighted(0.8, service))
            .prop_map(|(name, service)| Change::Service(name, service)),
        3 => (0..4usize, prop::option::weighted(0.8, slice))
            .prop_map(|(name, slice)| Change::Slice(name, slice)),
        4 => (0..3usize, prop::option::weighted(0.8, announce)).prop_map(|(node, announce)| {
            let announce = announce.map(|(lies, pods)| {
                Announce { as_node: (node + usize::from(lies)) % 3, pods }
            });
            Change::Announce(node, announce)
        }),
        2 => (0..3usize).prop_map(Change::LetGo),
        3 => (0..PODS.len(), any::<bool>()).prop_map(|(pod, on)| Change::Enrolled(pod, on)),
        1 => (0..PODS.len()).prop_map(Change::Again),
    ]
}

/// What a source, the announcer and enrolment would hold.
struct Told {
    objects: Objects,
    announcements: Announcements,
    local: LocalNode,
}

impl Told {
    fn apply(&mut self, change: &Change) {
        let objects = &mut self.objects;
        let in_shop = |name: &str| ObjectName::new("shop", name);
        match change {
            Change::Namespace(name, None) => objects.remove_namespace(&namespace_name(*name)),
            Change::Namespace(name, Some(meta)) => {
                objects.insert_namespace(namespace(&namespace_name(*name), METAS[*meta]));
            }
            Change::Node(name, None) => objects.remove_node(&format!("node{name}")),
            Change::Node(name, Some((ranges, addresses))) => {
                let ranges: Vec<_> = ranges.iter().map(|index| RANGES[*index]).collect();
                let mut node = node_object(&format!("node{name}"), &ranges, "192.0.2.1");
                let own = texts(addresses).into_iter().map(|text| text.parse().unwrap());
                node.addresses.extend::<Vec<std::net::IpAddr>>(own.collect());
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

fn pod_object(name: &str, it: &PodChange) -> crate::world::PodObject {
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
    let endpoint = |(address, node, ready): &(usize, usize, bool)| {
        let mut endpoint =
            json!({"addresses": [ADDRESSES[*address]], "conditions": {"ready": ready}});
        if *node < 3 {
            endpoint["nodeName"] = json!(format!("node{node}"));
            endpoint["hints"] = json!({"forZones": [{"name": if *node == 0 { "a" } else { "b" }}]});
        }
        endpoint
    };
    let endpoints: Vec<_> = it.endpoints.iter().map(endpoint).collect();
    let ports = json!([{"name": if it.port_name { "main" } else { "other" }, "port": 8080}]);
    let service = format!("s{}", it.service);
    objects.insert_slice(slice(&format!("e{name}"), &service, &ports, &json!(endpoints)));
}

fn announcement(it: &Announce) -> MeshNode {
    let pod = |(uid, name, addresses, strict): &(usize, usize, Vec<usize>, bool)| {
        json!({"uid": format!("uid-{}", PODS[*uid]), "namespace": "shop", "name": PODS[*name],
            "serviceAccount": PODS[*name], "addresses": texts(addresses),
            "mode": if *strict { "strict" } else { "permissive" }})
    };
    let pods: Vec<_> = it.pods.iter().map(pod).collect();
    serde_json::from_value(json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode",
        "metadata": {"name": format!("node{}", it.as_node)},
        "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": pods},
    }))
    .unwrap()
}

/// What the kernel's tables say, as far as they come from a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rows {
    addresses: BTreeMap<std::net::IpAddr, (bool, bool, PortSet, PortSet)>,
    nodes: BTreeSet<std::net::IpAddr>,
    services: BTreeSet<(std::net::IpAddr, u16)>,
}

impl Rows {
    fn of(world: &Snapshot) -> Self {
        let mut rows = Self::default();
        for row in world.kernel_addresses() {
            rows.set(world, row.address);
        }
        rows.nodes = world.node_addresses().copied().collect();
        let meshed = world.kernel_services().filter(|row| row.has_meshed_endpoint);
        rows.services = meshed.map(|row| (row.address, row.port)).collect();
        rows
    }

    fn set(&mut self, world: &Snapshot, address: std::net::IpAddr) {
        match world.kernel_address(address) {
            Some(row) => {
                let ports = row.exclude_ports.cloned().unwrap_or_default();
                let open = row.permissive_ports.cloned().unwrap_or_default();
                self.addresses.insert(address, (row.known_pod, row.peer, ports, open))
            }
            None => self.addresses.remove(&address),
        };
        if world.is_node_address(address) {
            self.nodes.insert(address);
        } else {
            self.nodes.remove(&address);
        }
    }

    fn follow(&mut self, before: &Snapshot, now: &Snapshot) {
        for address in now.changed_addresses(before) {
            self.set(now, address);
        }
        for (address, port) in now.changed_services(before) {
            if now.is_meshed_service(address, port) {
                self.services.insert((address, port));
            } else {
                self.services.remove(&(address, port));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn each_step_leads_to_what_is_built_anew(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..20),
    ) {
        let mut told = Told {
            objects: Objects::default(),
            announcements: Announcements::new(),
            local: local("node0", &[]),
        };
        let shared = |told: &Told| (Arc::new(told.objects.clone()), Arc::new(told.announcements.clone()));
        let (objects, announcements) = shared(&told);
        let mut world = World::new(&objects, &announcements, &told.local, Incumbents::default());
        let mut rows = Rows::of(world.snapshot());
        let mut heard = announcements;
        for changes in &steps {
            for change in changes {
                told.apply(change);
            }
            let (objects, announcements) = shared(&told);
            let before = world.snapshot().clone();
            let now = Incumbents::clone(world.incumbents());
            let now = now.after(&heard, &announcements, &told.local.name);
            heard = Arc::clone(&announcements);
            let followed = world.update(&objects, &announcements, &told.local).clone();
            prop_assert_eq!(world.incumbents(), &now);
            let built = Snapshot::build(&objects, &announcements, &told.local, world.incumbents());
            prop_assert_eq!(&followed, &built);
            prop_assert_eq!(followed.problems(), built.problems());
            prop_assert!(followed != before || followed.is(&before), "equal, but made anew");
            rows.follow(&before, &followed);
            prop_assert_eq!(&rows, &Rows::of(&built));
        }
    }
}
