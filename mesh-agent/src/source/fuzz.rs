//! Targets `objects` and `announcements`: files that people and other nodes' agents have written.
#![allow(clippy::panic, reason = "a target tells a defect by panicking")]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use mesh_api::{MAX_PORTS, MAX_RANGES, PodCode, PortSet};
use mesh_world::{
    Announcements, Incumbents, LocalNode, MeshNode, NodeName, Objects, PodUid, Problem, Snapshot,
    Wanted,
};
use serde_json::{Number, Value};

use super::document::parse_file;
use super::error::SourceError;
use super::kinds::Object;
use super::{file_announcer, tree};
use fuzz_input::Input;

/// The node of the reader.
const OWN_NODE: &str = "node1";

/// A file of objects becomes a world, in whatever order the objects come. The file's errors have
/// places in it.
pub(crate) fn objects(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    is_read_as_json_is(text);
    let file = Arc::from("x.yaml");
    let objects = match parse_file(&file, text) {
        Ok(objects) => objects,
        Err(errors) => return are_explained(text, &errors),
    };
    let first = world(objects.iter());
    let local = LocalNode {
        name: node(OWN_NODE),
        enrolled: first.pods().step_by(2).map(|pod| pod.uid.clone()).collect(),
        mesh_namespace: None,
    };
    let snapshot = Snapshot::build(&first, &Announcements::new(), &local, &Incumbents::default());
    holds_together(&snapshot, &local);
    if has_no_name_twice(&objects) {
        let again = Snapshot::build(
            &world(objects.iter().rev()),
            &Announcements::new(),
            &local,
            &Incumbents::default(),
        );
        assert_eq!(snapshot, again, "the order of objects matters");
        let mut read_again = first.clone();
        insert(&mut read_again, objects.iter());
        assert_eq!(read_again, first, "an unchanged file changes something");
    }
}

/// An announcement of another node's agent: the file as it is, and its effect on a world that knows
/// better about some of it.
pub(crate) fn announcements(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let file = Arc::from("node2.json");
    let announcement = match file_announcer::parse(&file, text) {
        Ok(announcement) => announcement,
        Err(errors) => return are_explained(text, &errors),
    };
    assert_eq!(announcement.node.as_str(), "node2", "a node speaks only for itself");
    let written = serde_json::to_string_pretty(&*announcement).unwrap_or_default();
    let read = file_announcer::parse(&file, &written);
    assert_eq!(read.as_ref(), Ok(&announcement), "not read as it was written: {written}");

    let honest = Arc::new(MeshNode { node: node("node3"), ..(*announcement).clone() });
    let all = Announcements::from([
        (announcement.node.clone(), Arc::clone(&announcement)),
        (node("node3"), honest),
    ]);
    let enrolled = PodUid::parse("uid-own").into_iter().collect();
    let local = LocalNode { name: node(OWN_NODE), enrolled, mesh_namespace: None };
    let snapshot = Snapshot::build(&SHOP, &all, &local, &Incumbents::default());
    holds_together(&snapshot, &local);
    let shop = Snapshot::build(&SHOP, &Announcements::new(), &local, &Incumbents::default());
    for row in snapshot.kernel_addresses() {
        let Some(standing) = snapshot.standing(row.address) else { continue };
        assert!(shop.service(row.address, 80).is_none(), "a service's address is no pod's");
        let Some(peer) = standing.believed() else { continue };
        if peer.local {
            assert_eq!(shop.standing(row.address), Some(standing), "others decide about our pod");
            continue;
        }
        let said = announcement.pods.iter().any(|pod| {
            pod.uid == peer.uid
                && pod.addresses.contains(&row.address)
                && pod.service_account == *peer.service_account
                && pod.namespace == *peer.namespace
        });
        assert!(said, "{peer:?} was never announced");
        if let Some(owner) = shop.workload(row.address) {
            assert_eq!(
                (&owner.namespace, &owner.service_account),
                (&peer.namespace, &peer.service_account),
                "believed against what is known"
            );
        }
    }
    for address in announcement.pods.iter().flat_map(|pod| &pod.addresses) {
        let is_captured = snapshot.kernel_address(*address).is_some_and(|row| row.peer);
        let is_of_service = SHOP.services().any(|it| it.cluster_ips.contains(address));
        assert!(is_captured || is_of_service, "{address} is announced and dialled in plaintext");
    }
    // Announcements do not diminish what is known here.
    assert!(snapshot.local_pods() == shop.local_pods(), "our own pods have changed");
}

/// A world with pods of three nodes, a service and endpoints.
static SHOP: LazyLock<Objects> = LazyLock::new(|| {
    let file = Arc::from("shop.yaml");
    match parse_file(&file, include_str!("fuzz/shop.yaml")) {
        Ok(objects) => world(objects.iter()),
        Err(errors) => panic!("{errors:?}"),
    }
});

fn world<'a>(all: impl Iterator<Item = &'a Object>) -> Objects {
    let mut objects = Objects::default();
    insert(&mut objects, all);
    objects
}

fn insert<'a>(objects: &mut Objects, all: impl Iterator<Item = &'a Object>) {
    all.for_each(|object| object.insert_into(objects));
}

/// Whether no two objects have one name or UID. Of such two the later one counts, so that their
/// order matters.
fn has_no_name_twice(objects: &[Object]) -> bool {
    let mut seen = BTreeSet::new();
    objects.iter().all(|object| {
        let origin = object.origin();
        let is_new = seen.insert((origin.kind, origin.namespace.clone(), origin.name.to_string()));
        let uid_is_new = match object {
            Object::Pod(pod) => seen.insert(("uid", None, pod.uid.to_string())),
            _ => true,
        };
        is_new && uid_is_new
    })
}

/// The invariants that the data path and enrolment rely on.
fn holds_together(snapshot: &Snapshot, local: &LocalNode) {
    for row in snapshot.kernel_addresses() {
        let address = row.address;
        assert!(!special(address), "{address} is in the kernel's table");
        let standing = snapshot.standing(address);
        assert_eq!(row.peer, standing.is_some());
        let believed = snapshot.believed(address);
        assert_eq!(row.exclude_ports.is_some(), believed.is_some());
        if let Some(peer) = believed {
            assert!(peer.addresses.contains(&address));
            assert_eq!(peer.local, peer.node == local.name);
            assert!(peer.exclude_ports.ranges().len() <= MAX_RANGES);
            assert!(peer.exclude_ports.iter().count() <= MAX_PORTS as usize);
            let owner = snapshot.workload(address).filter(|_| peer.local);
            assert!(owner.is_none_or(|pod| pod.uid == peer.uid), "two pods have {address}");
        }
        if let Some(pod) = snapshot.workload(address) {
            assert!(pod.addresses.contains(&address));
        }
    }
    for pod in snapshot.local_pods() {
        assert_eq!(pod.workload.node.as_ref(), Some(&local.name));
        assert!(!pod.enrolled || local.enrolled.contains(&pod.workload.uid));
        assert!(pod.wanted == Wanted::Out || !pod.workload.addresses.is_empty());
        assert_eq!(pod.wanted != Wanted::Out, pod.workload.membership.code() == PodCode::Enabled);
    }
    for row in snapshot.kernel_services() {
        assert!(!special(row.address) && row.port != 0);
        let Some(service) = snapshot.service(row.address, row.port) else {
            panic!("no service at {}:{}", row.address, row.port);
        };
        assert!(service.endpoints.is_sorted());
        assert!(service.others.is_sorted());
        assert!(service.targets().all(|target| target.is_ipv4() == row.address.is_ipv4()));
    }
    for address in snapshot.node_addresses() {
        assert!(snapshot.workload(*address).is_none(), "{address} is a node's and a pod's");
    }
    if let Some(own) = snapshot.announcement("boot", "cluster.local", |_| 1) {
        let file = Arc::from(format!("{OWN_NODE}.json"));
        let text = serde_json::to_string(&own).unwrap_or_default();
        let read = file_announcer::parse(&file, &text);
        assert_eq!(read.as_deref(), Ok(&own), "others cannot read what we announce");
    }
    for problem in snapshot.problems() {
        is_a_sentence(&problem.to_string());
        let Problem { message, .. } = problem;
        assert!(!message.is_empty());
    }
}

fn special(address: IpAddr) -> bool {
    let v4_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
    v4_mapped || address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

/// Every error has a place in the file, and contains nothing that could move a terminal's cursor.
fn are_explained(text: &str, errors: &[SourceError]) {
    assert!(!errors.is_empty(), "refused without a reason");
    let lines = text.split(['\n', '\r']).count();
    for error in errors {
        is_a_sentence(&error.to_string());
        if let Some(place) = error.place {
            assert!(place.line as usize <= lines, "{error}: {lines} lines");
        }
    }
}

fn is_a_sentence(text: &str) {
    assert!(!text.chars().any(char::is_control), "controls a terminal: {text:?}");
}

/// JSON is YAML: ours reads what a JSON parser reads, with the same result.
fn is_read_as_json_is(text: &str) {
    let Ok(json) = serde_json::from_str::<Value>(text) else {
        return;
    };
    if !json.is_object() {
        return;
    }
    if let Ok(mut documents) = tree::parse(text) {
        assert_eq!(documents.len(), 1, "one JSON object, several documents");
        let read = documents.pop().map(tree::Tree::into_value);
        let same = read.as_ref().is_some_and(|read| same(read, &json));
        assert!(same, "JSON is read as something else: {read:?}, not {json:?}");
    }
}

/// Equal, except that `-0` is 0, 1.0 is 1, and the last digits of a fraction may differ
/// (`serde_json` rounds them in its own way unless told otherwise). No field of the mesh's objects
/// tells these apart.
fn same(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Number(left), Value::Number(right)) => same_number(left, right),
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| same(l, r))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(key, l)| right.get(key).is_some_and(|r| same(l, r)))
        }
        _ => left == right,
    }
}

fn same_number(left: &Number, right: &Number) -> bool {
    let whole = |number: &Number| number.is_i64() || number.is_u64();
    match (left.as_f64(), right.as_f64()) {
        _ if whole(left) && whole(right) => left == right,
        (Some(left), Some(right)) => {
            (left - right).abs() <= left.abs().max(right.abs()) * 4.0 * f64::EPSILON
        }
        _ => false,
    }
}

fn node(name: &str) -> NodeName {
    match NodeName::parse(name) {
        Ok(name) => name,
        Err(error) => panic!("{error}"),
    }
}

/// Any ranges of ports, written as text: parsing gives the set of those ports, if it may be so
/// large.
fn ports_of_numbers(input: &mut Input<'_>) {
    let mut texts = Vec::new();
    let mut expected = BTreeSet::new();
    while !input.is_empty() {
        let (first, more) = (input.u16().max(1), u16::from(input.u8()));
        let last = first.saturating_add(more);
        texts.push(format!("{first}-{last}"));
        expected.extend(first..=last);
    }
    let text = texts.join(",");
    let ranges = expected.iter().filter(|port| !expected.contains(&(**port - 1))).count();
    let read = text.parse::<PortSet>();
    assert_eq!(read.is_ok(), ranges <= MAX_RANGES && expected.len() <= MAX_PORTS as usize);
    if let Ok(ports) = read {
        assert!(ports.iter().eq(expected), "other ports than in {text}");
    }
}

/// Ports, addresses and names, as annotations and fields hold them: an accepted text is written as
/// it was read.
pub(crate) fn names(data: &[u8]) {
    use mesh_wire::identity::{SpiffeId, TrustDomain};
    use mesh_world::{NetnsRef, parse_address};

    let mut input = Input::new(data);
    let kind = input.u8() % 8;
    if kind == 7 {
        return ports_of_numbers(&mut input);
    }
    let Ok(text) = std::str::from_utf8(input.take(data.len())) else {
        return;
    };
    match kind {
        0 => {
            let Ok(ports) = text.parse::<PortSet>() else { return };
            assert!(
                ports.iter().count() <= MAX_PORTS as usize && ports.ranges().len() <= MAX_RANGES
            );
            assert!(ports.iter().all(|port| port != 0 && ports.contains(port)));
            assert!(ports.iter().is_sorted_by(|a, b| a < b));
            assert_eq!(ports.to_string().parse(), Ok(ports));
        }
        1 => {
            let Ok(address) = parse_address(text) else { return };
            assert!(!special(address));
            assert_eq!(parse_address(&address.to_string()), Ok(address));
        }
        2 => {
            let Ok(id) = text.parse::<SpiffeId>() else { return };
            assert_eq!(id.as_str(), text, "two spellings of one identity");
            let parts = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
            assert_eq!(parts, Ok(id), "not the sum of its parts");
        }
        3 => {
            let Ok(domain) = text.parse::<TrustDomain>() else { return };
            assert_eq!(domain.as_str(), text);
            assert!(!text.contains(['/', ':', '@', '%', '?', '#']), "more than a host");
        }
        4 | 5 => {
            let is_name =
                if kind == 4 { NodeName::parse(text).is_ok() } else { PodUid::parse(text).is_ok() };
            // It becomes a file's name.
            let leaves = text.is_empty() || text.starts_with('.') || text.contains(['/', '\0']);
            assert!(!(is_name && (leaves || text.chars().any(char::is_control))), "{text:?}");
        }
        _ => {
            let Ok(netns) = NetnsRef::parse(text) else { return };
            assert!(netns.path().is_absolute(), "{netns:?}");
            let named = !text.starts_with('/');
            assert!(!named || netns.path().parent() == Some("/run/netns".as_ref()), "{netns:?}");
        }
    }
}
