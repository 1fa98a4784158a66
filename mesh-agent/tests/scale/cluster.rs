//! A large cluster: pods of both families on many nodes, services with their slices, and what the
//! nodes announce.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    Namespace, Pod, PodIP, PodSpec, PodStatus, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mesh_api::{Mode, PortSet};
use mesh_world::{
    AnnouncedPod, Announcements, EndpointSliceObject, LocalNode, MeshNode, NamespaceObject,
    NodeName, Objects, PodObject, PodUid, ServiceObject,
};

pub(crate) const NODES: usize = 1_000;
pub(crate) const PODS_PER_NODE: usize = 100;
pub(crate) const PODS: usize = NODES * PODS_PER_NODE;
pub(crate) const SERVICES: usize = 10_000;
const NAMESPACES: usize = 200;
/// Each pod is behind one service.
const PODS_PER_SERVICE: usize = PODS / SERVICES;

pub(crate) fn objects() -> Objects {
    let mut objects = Objects::default();
    for index in 0..NAMESPACES {
        let metadata = ObjectMeta {
            name: Some(format!("team-{index}")),
            labels: Some([("nodemesh.dev/mesh".to_owned(), "enabled".to_owned())].into()),
            ..ObjectMeta::default()
        };
        let object = Namespace { metadata, ..Namespace::default() };
        objects.insert_namespace(NamespaceObject::try_from(&object).unwrap());
    }
    for index in 0..PODS {
        objects.insert_pod(pod(index, 0));
    }
    for index in 0..SERVICES {
        objects.insert_service(service(index));
        objects.insert_slice(slice(index));
    }
    objects
}

/// The pod of that index. `version` is in a label and, from bit 20 on, in the addresses: another
/// version of a pod has other addresses.
pub(crate) fn pod(index: usize, version: u8) -> PodObject {
    let labels: BTreeMap<_, _> = [
        ("app".to_owned(), format!("app-{}", index / PODS_PER_SERVICE)),
        ("version".to_owned(), version.to_string()),
    ]
    .into();
    let ip = |address: IpAddr| PodIP { ip: address.to_string() };
    PodObject::try_from(&Pod {
        metadata: ObjectMeta {
            namespace: Some(namespace(index)),
            name: Some(format!("pod-{index}")),
            uid: Some(uid(index)),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PodSpec {
            node_name: Some(node(index)),
            service_account_name: Some(account(index)),
            ..PodSpec::default()
        }),
        status: Some(PodStatus {
            phase: Some("Running".to_owned()),
            pod_ips: Some(addresses(index, version).map(ip).to_vec()),
            ..PodStatus::default()
        }),
    })
    .unwrap()
}

/// The same as YAML, as people write it, without the label of the version.
pub(crate) fn pod_yaml(index: usize, version: u8) -> String {
    let [v4, v6] = addresses(index, version);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: pod-{index}\n  namespace: {}\n  uid: {}\n  labels:\n    \
         app: app-{}\nspec:\n  nodeName: {}\n  serviceAccountName: {}\n  containers:\n  - {{name: main, image: none}}\n\
         status:\n  phase: Running\n  podIP: {v4}\n  podIPs:\n  - ip: {v4}\n  - ip: \"{v6}\"\n",
        namespace(index),
        uid(index),
        index / PODS_PER_SERVICE,
        node(index),
        account(index),
    )
}

fn service(index: usize) -> ServiceObject {
    let port = ServicePort { name: Some("main".to_owned()), port: 80, ..ServicePort::default() };
    ServiceObject::try_from(&Service {
        metadata: ObjectMeta {
            namespace: Some(namespace(index * PODS_PER_SERVICE)),
            name: Some(format!("service-{index}")),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ips: Some(vec![Ipv4Addr::from_bits(0x0b00_0000 + index as u32).to_string()]),
            ports: Some(vec![port]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    })
    .unwrap()
}

fn slice(index: usize) -> EndpointSliceObject {
    let endpoint = |pod: usize| Endpoint {
        addresses: vec![addresses(pod, 0)[0].to_string()],
        node_name: Some(node(pod)),
        ..Endpoint::default()
    };
    let pods = index * PODS_PER_SERVICE..(index + 1) * PODS_PER_SERVICE;
    EndpointSliceObject::try_from(&EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: pods.map(endpoint).collect(),
        metadata: ObjectMeta {
            namespace: Some(namespace(index * PODS_PER_SERVICE)),
            name: Some(format!("service-{index}-v4")),
            labels: Some(
                [("kubernetes.io/service-name".to_owned(), format!("service-{index}"))].into(),
            ),
            ..ObjectMeta::default()
        },
        ports: Some(vec![EndpointPort {
            name: Some("main".to_owned()),
            port: Some(8080),
            ..EndpointPort::default()
        }]),
    })
    .unwrap()
}

/// What all nodes announce. Pods of `changed` are as in `version`, the others as in version 0.
pub(crate) fn announcements(changed: impl Fn(usize) -> bool, version: u8) -> Announcements {
    let announced = |index: usize| AnnouncedPod {
        uid: PodUid::parse(&uid(index)).unwrap(),
        namespace: namespace(index),
        name: format!("pod-{index}"),
        service_account: account(index),
        addresses: addresses(index, if changed(index) { version } else { 0 }).to_vec(),
        mode: Mode::Permissive,
        exclude_ports: PortSet::default(),
        permissive_ports: PortSet::default(),
        generation: 1,
    };
    let each = |first: usize| {
        let node = NodeName::parse(&node(first)).unwrap();
        let pods = (first..PODS).step_by(NODES).map(announced).collect();
        let announcement = MeshNode {
            node: node.clone(),
            boot_id: "boot".into(),
            trust_domain: "cluster.local".into(),
            ca: None,
            pods,
        };
        (node, Arc::new(announcement))
    };
    (0..NODES).map(each).collect()
}

/// The first node, with all its pods captured.
pub(crate) fn local() -> LocalNode {
    let enrolled =
        (0..PODS).step_by(NODES).map(|index| PodUid::parse(&uid(index)).unwrap()).collect();
    LocalNode { name: NodeName::parse(&node(0)).unwrap(), enrolled, mesh_namespace: None }
}

pub(crate) fn addresses(index: usize, version: u8) -> [IpAddr; 2] {
    let bits = index as u32 + (u32::from(version) << 20);
    [
        Ipv4Addr::from_bits(0x0a00_0000 + bits).into(),
        Ipv6Addr::from_bits((0xfd00_u128 << 112) + u128::from(bits)).into(),
    ]
}

fn uid(index: usize) -> String {
    format!("{index:08x}-0000-4000-8000-000000000000")
}

fn namespace(index: usize) -> String {
    format!("team-{}", index / PODS_PER_SERVICE % NAMESPACES)
}

fn node(index: usize) -> String {
    format!("node-{}", index % NODES)
}

fn account(index: usize) -> String {
    format!("account-{}", index / PODS_PER_SERVICE)
}
