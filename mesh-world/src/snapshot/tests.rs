//! The answers of a snapshot, and its problems when objects contradict each other.

use std::net::IpAddr;

use mesh_api::{Mode, PodCode};
use serde_json::json;

use super::testing::{
    announcements, local, namespace, node, node_object, pod, service, slice, uid,
};
use super::*;
use crate::membership::Membership;
use crate::{NotEnabledReason, Wanted};

const ON: &[(&str, &str)] = &[("nodemesh.dev/mesh", "enabled")];

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Namespace shop, in the mesh; a and b on node1, c on node2.
fn shop() -> Objects {
    let mut objects = Objects::default();
    objects.insert_namespace(namespace("shop", ON));
    objects.insert_pod(pod("shop", "a", "node1", "10.0.0.1,fd00::1", &[]));
    objects.insert_pod(pod("shop", "b", "node1", "10.0.0.2", &[]));
    objects.insert_pod(pod("shop", "c", "node2", "10.0.1.3", &[]));
    objects
}

fn problems(snapshot: &Snapshot) -> Vec<String> {
    snapshot.problems().iter().map(ToString::to_string).collect()
}

fn peers(snapshot: &Snapshot) -> Vec<String> {
    let mut peers: Vec<_> = snapshot
        .0
        .standings
        .iter()
        .map(|(address, standing)| match standing.believed() {
            Some(peer) => format!("{address} {} {}", peer.name, peer.node),
            None => format!("{address} disputed"),
        })
        .collect();
    peers.sort();
    peers
}

#[test]
fn a_local_peer_is_what_is_enrolled_and_a_remote_one_what_is_announced() {
    let heard = announcements(&[("node2", &[("c", "10.0.1.3")]), ("node1", &[("b", "10.0.0.2")])]);
    let snapshot =
        Snapshot::build(&shop(), &heard, &local("node1", &["uid-a"]), &Incumbents::default());
    assert_eq!(
        peers(&snapshot),
        ["10.0.0.1 a node1", "10.0.1.3 c node2", "fd00::1 a node1"],
        "b is only announced by the own node, which is ignored"
    );
    assert!(snapshot.believed(ip("::ffff:10.0.0.1")).unwrap().local);
    assert!(!snapshot.believed(ip("10.0.1.3")).unwrap().local);
    assert_eq!(&*snapshot.workload(ip("10.0.0.2")).unwrap().name, "b");
    assert_eq!(problems(&snapshot), [""; 0]);

    let said = snapshot.announcement("boot", "cluster.local", |_| 7).unwrap();
    assert_eq!(said.node, node("node1"));
    let pods: Vec<_> = said.pods.iter().map(|p| (p.name.as_str(), p.generation)).collect();
    assert_eq!(pods, [("a", 7)]);
}

#[test]
fn a_captured_pod_that_is_no_longer_wanted_is_announced_no_more() {
    let mut objects = shop();
    objects.insert_pod(pod("shop", "a", "node1", "10.0.0.1", &[("nodemesh.dev/mesh", "disabled")]));
    let snapshot = Snapshot::build(
        &objects,
        &Announcements::new(),
        &local("node1", &["uid-a"]),
        &Incumbents::default(),
    );
    assert_eq!(snapshot.believed(ip("10.0.0.1")), None);
    let a = snapshot.local_pod(&uid("uid-a")).unwrap();
    assert_eq!((a.enrolled, &a.wanted), (false, &Wanted::Out));
    assert!(snapshot.announcement("b", "t", |_| 0).unwrap().pods.is_empty());
}

#[test]
fn local_pods_come_in_a_stable_order_with_what_is_wanted() {
    let mut objects = shop();
    objects.insert_namespace(namespace("back", &[]));
    objects.insert_pod(pod("back", "z", "node1", "10.0.0.9", &[]));
    let snapshot = Snapshot::build(
        &objects,
        &Announcements::new(),
        &local("node1", &["uid-b"]),
        &Incumbents::default(),
    );
    let rows: Vec<_> = snapshot
        .local_pods()
        .iter()
        .map(|p| (&*p.workload.name, p.wanted != Wanted::Out, p.enrolled))
        .collect();
    assert_eq!(rows, [("z", false, false), ("a", true, false), ("b", true, true)]);
}

#[test]
fn of_two_pods_with_one_address_the_incumbent_keeps_it() {
    let mut objects = shop();
    objects.insert_pod(pod("shop", "aa", "node1", "fd00::5,10.0.0.2", &[]));
    let build = |objects: &Objects, enrolled: &[&str]| {
        Snapshot::build(
            objects,
            &Announcements::new(),
            &local("node1", enrolled),
            &Incumbents::default(),
        )
    };
    let holder = |snapshot: &Snapshot| snapshot.workload(ip("10.0.0.2")).unwrap().name.to_string();

    let by_name = build(&objects, &[]);
    assert_eq!(holder(&by_name), "aa");
    let by_capture = build(&objects, &["uid-b"]);
    assert_eq!(holder(&by_capture), "b", "a pod that is captured is not pushed out");
    let mut older = pod("shop", "b", "node1", "10.0.0.2", &[]);
    older.created_s = Some(1);
    objects.insert_pod(older);
    assert_eq!(holder(&build(&objects, &[])), "b", "the older one");

    assert_eq!(
        problems(&by_capture),
        ["Pod shop/aa: status.podIPs[1].ip: 10.0.0.2 is already the address of Pod shop/b; this \
          pod is not enrolled. Hint: give each pod its own address, or delete the pod that is gone."]
    );
    let loser = by_capture.local_pod(&uid("uid-aa")).unwrap();
    assert_eq!(loser.wanted, Wanted::Out);
    assert_eq!(loser.workload.addresses, [ip("fd00::5")]);
    let Membership::Waiting { reason, .. } = &loser.workload.membership else {
        panic!("it does not wait")
    };
    assert_eq!(reason.to_string(), "its address 10.0.0.2 is already that of pod shop/b");
    assert_eq!(reason.code(), PodCode::AddressTaken);
}

#[test]
fn the_addresses_of_hosts_and_ended_pods_are_not_theirs() {
    let mut objects = shop();
    let mut host = pod("shop", "proxy", "node1", "192.168.0.1", &[]);
    host.host_network = true;
    let mut ended = pod("shop", "0-job", "node1", "10.0.0.2", &[]);
    ended.completed = true;
    objects.insert_pod(host);
    objects.insert_pod(ended);
    let snapshot = Snapshot::build(
        &objects,
        &Announcements::new(),
        &local("node1", &["uid-0-job"]),
        &Incumbents::default(),
    );
    assert_eq!(snapshot.workload(ip("192.168.0.1")), None);
    assert_eq!(&*snapshot.workload(ip("10.0.0.2")).unwrap().name, "b");
    assert_eq!(
        snapshot.believed(ip("10.0.0.2")),
        None,
        "its address is b's, and b is not enrolled"
    );
    assert_eq!(problems(&snapshot), [""; 0]);
    let ended = snapshot.0.workloads.get(&uid("uid-0-job")).unwrap();
    assert_eq!(ended.membership, Membership::Disabled(NotEnabledReason::Completed));
}

#[test]
fn a_pod_without_its_namespace_is_a_problem() {
    let mut objects = shop();
    objects.remove_namespace("shop");
    objects.remove_pod(&uid("uid-b"));
    objects.remove_pod(&uid("uid-c"));
    let snapshot = Snapshot::build(
        &objects,
        &Announcements::new(),
        &local("node1", &["uid-a"]),
        &Incumbents::default(),
    );
    assert_eq!(
        problems(&snapshot),
        ["Pod shop/a: metadata.namespace: the Namespace \"shop\" is not there; the pod is not in \
          the mesh. Hint: add the object: kind Namespace, metadata.name shop."]
    );
    assert_eq!(snapshot.believed(ip("10.0.0.1")), None);
}

#[test]
fn what_is_announced_is_captured_whatever_contradicts_it() {
    let mut objects = shop();
    let mut host = pod("shop", "proxy", "node3", "192.168.0.3", &[]);
    host.host_network = true;
    objects.insert_pod(host);
    objects.insert_service(service("web", &json!({"clusterIP": "10.96.0.1"})));
    let endpoints = json!([{"addresses": ["10.0.4.1"], "nodeName": "node4"}]);
    objects.insert_slice(slice("web-1", "web", &json!([]), &endpoints));
    let heard = announcements(&[(
        "node3",
        &[
            ("a", "10.0.0.1"),
            ("b", "10.0.9.9"),
            ("m", "10.0.1.3"),
            ("n", "10.96.0.1"),
            ("o", "192.168.0.3"),
            ("p", "10.0.4.1"),
            ("q", "10.0.3.1"),
        ],
    )]);
    let snapshot = Snapshot::build(&objects, &heard, &local("node1", &[]), &Incumbents::default());
    assert_eq!(
        peers(&snapshot),
        [
            "10.0.0.1 a node3",
            "10.0.1.3 disputed",
            "10.0.3.1 q node3",
            "10.0.4.1 p node3",
            "10.0.9.9 b node3",
            "192.168.0.3 o node3",
        ],
        "all but a service's address"
    );
    let why = |i: usize, what: &str| {
        format!(
            "MeshNode node3: spec.pods[{i}].addresses[0]: {what}. Hint: if this does not pass within \
             seconds, find out what runs as that node's agent, and who has written what contradicts \
             it."
        )
    };
    let tls = |address: &str, pod: &str, what: &str| {
        format!(
            "{address} is announced for pod shop/{pod}, but {what}; dialled over TLS as pod \
             shop/{pod} on node3, or not at all"
        )
    };
    assert_eq!(
        problems(&snapshot),
        [
            why(0, &tls("10.0.0.1", "a", "it belongs to a pod on node1")),
            why(1, &tls("10.0.9.9", "b", "it belongs to a pod on node1")),
            why(
                2,
                "10.0.1.3 is announced for pod shop/m, but several are said to be there: pod shop/m \
                 on node3 (service account shop/m) and the object of pod shop/c (service account \
                 shop/c); nothing decides between them, and pods of the mesh cannot dial it"
            ),
            why(
                3,
                "10.96.0.1 is announced for pod shop/n, but is a service's address; not believed"
            ),
            why(
                4,
                &tls(
                    "192.168.0.3",
                    "o",
                    "Pod shop/proxy (hostNetwork) has it as a node's own address"
                )
            ),
            why(
                5,
                &tls("10.0.4.1", "p", "EndpointSlice shop/web-1 has it as an endpoint on node4")
            ),
        ]
    );
}

#[test]
fn of_two_nodes_that_announce_one_address_the_first_in_time_is_believed_or_none() {
    let here = local("node1", &[]);
    let first = announcements(&[("node4", &[("x", "10.0.9.1")])]);
    let mut both = first.clone();
    both.extend(announcements(&[("node3", &[("y", "10.0.9.1")])]));
    let incumbents = Incumbents::default().after(&first, &both, &here.name);
    let snapshot = Snapshot::build(&shop(), &both, &here, &incumbents);
    assert_eq!(peers(&snapshot), ["10.0.9.1 x node4"]);
    assert_eq!(
        problems(&snapshot),
        [
            "MeshNode node3: spec.pods[0].addresses[0]: 10.0.9.1 is announced for pod shop/y, but also \
          for pod shop/x on node4; dialled over TLS as pod shop/x on node4, or not at all. Hint: if \
          this does not pass within seconds, find out what runs as that node's agent, and who has \
          written what contradicts it."
        ]
    );
    let snapshot = Snapshot::build(&shop(), &both, &here, &Incumbents::default());
    assert_eq!(peers(&snapshot), ["10.0.9.1 disputed"]);
    let codes: Vec<_> = snapshot.problems().iter().map(|it| it.code.code()).collect();
    assert_eq!(codes, ["disputed_address"; 2], "both are told of");
}

#[test]
fn a_contested_pod_is_as_closed_as_every_claim_says() {
    let claim = |node: &str, mode: Mode, exclude: &str, permissive: &str| {
        let mut heard = announcements(&[(node, &[("x", "10.0.9.1")])]);
        let mut said = MeshNode::clone(&heard.values().next().unwrap().clone());
        said.pods[0].mode = mode;
        said.pods[0].exclude_ports = exclude.parse().unwrap();
        said.pods[0].permissive_ports = permissive.parse().unwrap();
        heard.insert(said.node.clone(), Arc::new(said));
        heard
    };
    let mut heard = claim("node3", Mode::Permissive, "80-90", "22");
    heard.extend(claim("node4", Mode::Strict, "90,100", "22-23"));
    let snapshot = Snapshot::build(&shop(), &heard, &local("node1", &[]), &Incumbents::default());
    let peer = snapshot.believed(ip("10.0.9.1")).expect("both mean one identity");
    assert_eq!(peer.mode, Mode::Strict);
    assert_eq!(peer.exclude_ports.to_string(), "90");
    assert_eq!(peer.permissive_ports.to_string(), "22");
}

#[test]
fn a_node_cannot_announce_under_another_name_or_another_identity() {
    let mut heard = announcements(&[("node2", &[("c", "10.0.1.3")])]);
    let mut lying = MeshNode::clone(heard.get("node2").unwrap());
    lying.pods[0].service_account = "admin".into();
    heard.insert(node("node2"), Arc::new(lying.clone()));
    let build = |heard: &Announcements| {
        Snapshot::build(&shop(), heard, &local("node1", &[]), &Incumbents::default())
    };
    let snapshot = build(&heard);
    let Some(Standing::Disputed(dispute)) = snapshot.standing(ip("10.0.1.3")) else {
        panic!("the object says another service account")
    };
    assert_eq!(
        dispute.to_string(),
        "pod shop/c on node2 (service account shop/admin) and the object of pod shop/c (service \
         account shop/c)"
    );
    heard.insert(node("node7"), Arc::new(lying));
    let under_another_name = build(&heard);
    assert_eq!(
        under_another_name.problems()[1].message,
        "node node7 speaks for node2; none of it is believed"
    );
}

#[test]
fn a_service_leads_to_its_ready_endpoints_of_the_same_family_by_port_name() {
    let mut objects = shop();
    let ports =
        json!([{"name": "http", "port": 80}, {"name": "dns", "port": 80, "protocol": "UDP"}]);
    objects.insert_service(service(
        "web",
        &json!({"clusterIPs": ["10.96.0.1", "fd96::1"], "ports": ports}),
    ));
    let v4 = json!([
        {"addresses": ["10.0.0.1"]},
        {"addresses": ["10.0.0.7"], "conditions": {"ready": false}},
        {"addresses": ["10.9.9.9"]},
    ]);
    let slice_ports = json!([{"name": "other", "port": 1}, {"name": "http", "port": 8080}]);
    objects.insert_slice(slice("web-4", "web", &slice_ports, &v4));
    let v6 = json!([{"addresses": ["fd00::1"]}]);
    objects.insert_slice(slice("web-6", "web", &slice_ports, &v6));
    let snapshot = Snapshot::build(
        &objects,
        &Announcements::new(),
        &local("node1", &["uid-a"]),
        &Incumbents::default(),
    );

    let endpoints = |vip: &str| -> Vec<String> {
        let service = snapshot.service(ip(vip), 80).unwrap();
        service.endpoints.iter().map(|e| e.socket_addr().to_string()).collect()
    };
    assert_eq!(endpoints("10.96.0.1"), ["10.0.0.1:8080", "10.9.9.9:8080"]);
    assert_eq!(endpoints("fd96::1"), ["[fd00::1]:8080"]);
    assert_eq!(snapshot.service(ip("10.96.0.1"), 81), None);
    assert_eq!(problems(&snapshot), [""; 0], "endpoints need not be known pods");
}

#[test]
fn without_a_ready_endpoint_the_terminating_ones_that_serve_are_taken() {
    let endpoints = json!([
        {"addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        {"addresses": ["10.0.0.2"], "conditions": {"ready": false, "serving": false, "terminating": true}},
        {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "serving": true, "terminating": false},
         "nodeName": "node1"},
    ]);
    let taken = |spec: serde_json::Value| -> Vec<(String, bool)> {
        let mut objects = shop();
        objects.insert_service(service("web", &spec));
        objects.insert_slice(slice("web-1", "web", &json!([{"port": 8080}]), &endpoints));
        let snapshot = Snapshot::build(
            &objects,
            &Announcements::new(),
            &local("node1", &[]),
            &Incumbents::default(),
        );
        let service = snapshot.service(ip("10.96.0.1"), 80).unwrap();
        service.endpoints.iter().map(|e| (e.addr.to_string(), e.ready)).collect()
    };
    let plain = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]});
    assert_eq!(taken(plain.clone()), [("10.0.0.1".to_owned(), false)]);
    let mut all = plain.clone();
    all["publishNotReadyAddresses"] = json!(true);
    assert_eq!(taken(all.clone()).len(), 3);
    all["internalTrafficPolicy"] = json!("Local");
    assert_eq!(taken(all), [("10.0.0.3".to_owned(), true)]);
}

#[test]
fn endpoints_that_are_meant_for_this_node_or_zone_are_preferred_as_kube_proxy_does() {
    let endpoint = |address: &str, ready: bool, hints: serde_json::Value| json!({"addresses": [address], "conditions": {"ready": ready}, "hints": hints});
    let zone = |name: &str| json!({"forZones": [{"name": name}]});
    let both = |zone: &str, node: &str| json!({"forZones": [{"name": zone}], "forNodes": [{"name": node}]});
    let taken = |endpoints: serde_json::Value, policy: &str| -> Vec<String> {
        let mut objects = shop();
        let mut here = node_object("node1", &[], "192.0.2.1");
        here.zone = Some("a".into());
        objects.insert_node(here);
        let spec = json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}], "internalTrafficPolicy": policy});
        objects.insert_service(service("web", &spec));
        objects.insert_slice(slice("web-1", "web", &json!([{"port": 8080}]), &endpoints));
        let snapshot = Snapshot::build(
            &objects,
            &Announcements::new(),
            &local("node1", &[]),
            &Incumbents::default(),
        );
        let service = snapshot.service(ip("10.96.0.1"), 80).unwrap();
        service.endpoints.iter().map(|e| e.addr.to_string()).collect()
    };
    let two =
        |one, other| json!([endpoint("10.1.0.1", true, one), endpoint("10.1.0.2", true, other)]);
    let all = ["10.1.0.1", "10.1.0.2"];
    assert_eq!(taken(two(zone("a"), zone("b")), "Cluster"), ["10.1.0.1"]);
    assert_eq!(taken(two(zone("b"), zone("c")), "Cluster"), all, "none is for here");
    assert_eq!(taken(two(zone("a"), json!({})), "Cluster"), all, "not every one has a hint");
    assert_eq!(taken(two(both("a", "node2"), both("b", "node1")), "Cluster"), ["10.1.0.2"]);
    assert_eq!(taken(two(both("a", "node2"), both("b", "node3")), "Cluster"), ["10.1.0.1"]);
    let near_is_away =
        json!([endpoint("10.1.0.1", false, zone("a")), endpoint("10.1.0.2", true, zone("b"))]);
    assert_eq!(taken(near_is_away, "Cluster"), ["10.1.0.2"]);
    assert!(taken(two(zone("a"), zone("b")), "Local").is_empty(), "no endpoint is on this node");
}

#[test]
fn services_that_are_reached_from_outside_too_are_told() {
    let mut objects = shop();
    for (name, ports) in [
        ("in", json!([{"port": 80}])),
        ("out", json!([{"port": 80, "nodePort": 30080}])),
        ("unmeshed", json!([{"port": 80, "nodePort": 30081}])),
    ] {
        let vip = format!("10.96.0.{}", name.len());
        objects.insert_service(service(name, &json!({"clusterIP": vip, "ports": ports})));
        let to = if name == "unmeshed" { "10.9.9.9" } else { "10.0.0.1" };
        let endpoints = json!([{"addresses": [to]}]);
        objects.insert_slice(slice(name, name, &json!([{"port": 8080}]), &endpoints));
    }
    let snapshot = Snapshot::build(
        &objects,
        &Announcements::new(),
        &local("node1", &["uid-a"]),
        &Incumbents::default(),
    );
    let told = snapshot.services_with_outside();
    let told: Vec<_> = told.iter().map(|it| (&*it.name, it.outside.node_port)).collect();
    assert_eq!(told, [("out", Some(30080))]);
}

#[test]
fn the_kernels_tables_say_which_addresses_and_services_concern_the_mesh() {
    let mut objects = shop();
    let meta = &[("nodemesh.dev/mode", "strict"), ("nodemesh.dev/exclude-ports", "9000")];
    objects.insert_pod(pod("shop", "a", "node1", "10.0.0.1", meta));
    for (name, vip, target) in [("web", "10.96.0.1", 8080), ("metrics", "10.96.0.2", 9000)] {
        let spec = json!({"clusterIP": vip, "ports": [{"port": 80}]});
        objects.insert_service(service(name, &spec));
        let endpoints = json!([{"addresses": ["10.0.0.1"]}]);
        objects.insert_slice(slice(name, name, &json!([{"port": target}]), &endpoints));
    }
    objects.insert_service(service(
        "zweb",
        &json!({"clusterIP": "10.96.0.1", "ports": [{"port": 80}]}),
    ));
    let heard = announcements(&[("node2", &[("x", "10.0.9.1")])]);
    let snapshot =
        Snapshot::build(&objects, &heard, &local("node1", &["uid-a"]), &Incumbents::default());

    let mut rows: Vec<_> = snapshot
        .kernel_addresses()
        .map(|row| {
            let ports = row.exclude_ports.map(ToString::to_string).unwrap_or_default();
            (row.address.to_string(), row.peer, row.local, ports)
        })
        .collect();
    rows.sort();
    let row = |address: &str, peer, local, ports: &str| {
        (address.to_owned(), peer, local, ports.to_owned())
    };
    assert_eq!(
        rows,
        [
            row("10.0.0.1", true, true, "9000"),
            row("10.0.0.2", false, true, ""),
            row("10.0.1.3", false, false, ""),
            row("10.0.9.1", true, false, ""),
        ]
    );
    let mut services: Vec<_> = snapshot
        .kernel_services()
        .map(|row| (row.address.to_string(), row.port, row.has_meshed_endpoint))
        .collect();
    services.sort();
    assert_eq!(
        services,
        [("10.96.0.1".to_owned(), 80, true), ("10.96.0.2".to_owned(), 80, false)],
        "an excluded port does not lead into the mesh"
    );
    assert_eq!(
        problems(&snapshot),
        ["Service shop/zweb: spec.ports[0].port: port 80 of 10.96.0.1 is already that of Service \
          shop/web; this service is not known there. Hint: give each service its own address."]
    );
}

#[test]
fn an_endpoint_that_the_agent_would_not_choose_leads_into_the_mesh_too() {
    let vip: IpAddr = "10.96.0.1".parse().unwrap();
    let spec = json!({"clusterIP": vip, "ports": [{"port": 80}]});
    let local_only = json!({"clusterIP": vip, "ports": [{"port": 80}],
        "internalTrafficPolicy": "Local"});
    let not_ready = json!([{"addresses": ["10.0.9.1"], "conditions": {"ready": false}}]);
    let terminating =
        json!([{"addresses": ["10.0.9.1"], "conditions": {"ready": false, "terminating": true}}]);
    let elsewhere = json!([{"addresses": ["10.0.9.1"], "nodeName": "node2"}]);
    let second = json!([{"addresses": ["10.0.9.9", "10.0.9.1"]}]);
    let heard = announcements(&[("node2", &[("x", "10.0.9.1")])]);
    let cases =
        [(&spec, not_ready), (&spec, terminating), (&local_only, elsewhere), (&spec, second)];
    for (spec, endpoints) in cases {
        let mut objects = Objects::default();
        objects.insert_service(service("web", spec));
        objects.insert_slice(slice("web", "web", &json!([{"port": 8080}]), &endpoints));
        let build =
            |heard| Snapshot::build(&objects, heard, &local("node1", &[]), &Incumbents::default());
        let chosen = build(&heard).service(vip, 80).unwrap().endpoints.clone();
        assert!(chosen.iter().all(|it| it.addr.to_string() != "10.0.9.1"), "{chosen:?}");
        let leads =
            |snapshot: Snapshot| snapshot.kernel_services().all(|row| row.has_meshed_endpoint);
        assert!(leads(build(&heard)), "{endpoints}");
        assert!(!leads(build(&announcements(&[]))), "{endpoints}");
    }
}

#[test]
fn a_node_that_claims_many_addresses_of_others_has_a_bounded_part_in_what_is_told() {
    let pods: Vec<_> = (0..30).map(|n| (format!("x{n}"), format!("10.0.1.{}", n + 10))).collect();
    let pods: Vec<_> = pods.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect();
    let liars = ["node8", "node9"].map(|node| (node, &pods[..]));
    let mut objects = shop();
    for (name, address) in &pods {
        objects.insert_pod(pod("shop", &format!("of-node1-{name}"), "node1", address, &[]));
    }
    let local = local("node1", &[]);
    let snapshot =
        Snapshot::build(&objects, &announcements(&liars), &local, &Incumbents::default());
    let told = problems(&snapshot);
    assert_eq!(told.len(), 18, "{told:#?}");
    assert!(told[8].contains("MeshNode node8: and 22 more of this kind"), "{}", told[8]);
    assert!(told[17].contains("MeshNode node9: and 22 more of this kind"), "{}", told[17]);
}
