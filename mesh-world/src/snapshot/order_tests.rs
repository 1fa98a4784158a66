//! A snapshot is a function of the known facts, not of the order in which they became known.

use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::testing::{announcements, local, namespace, pod, service, slice};
use super::{Objects, Snapshot};
use crate::{Incumbents, Wanted};

const ON: &[(&str, &str)] = &[("nodemesh.dev/mesh", "enabled")];

#[derive(Clone, Debug)]
enum Piece {
    Namespace(usize, bool),
    Pod { name: usize, namespace: usize, node: usize, address: u8, meta: usize },
    Service(usize, u8),
    Slice(usize, u8, bool),
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        (0..2usize, any::<bool>()).prop_map(|(name, on)| Piece::Namespace(name, on)),
        (0..12usize, 0..3usize, 0..3usize, 1..8u8, 0..4usize).prop_map(
            |(name, namespace, node, address, meta)| Piece::Pod {
                name,
                namespace,
                node,
                address,
                meta
            }
        ),
        (0..3usize, 1..3u8).prop_map(|(name, vip)| Piece::Service(name, vip)),
        (0..3usize, 1..8u8, any::<bool>())
            .prop_map(|(name, address, ready)| Piece::Slice(name, address, ready)),
    ]
}

fn insert(objects: &mut Objects, piece: &Piece) {
    const METAS: [&[(&str, &str)]; 4] = [
        &[],
        ON,
        &[("nodemesh.dev/mode", "strict"), ("nodemesh.dev/mesh", "enabled")],
        &[("nodemesh.dev/mode", "strikt")],
    ];
    match piece {
        Piece::Namespace(name, on) => {
            let meta = if *on { ON } else { &[] };
            objects.insert_namespace(namespace(&format!("ns{name}"), meta));
        }
        Piece::Pod { name, namespace, node, address, meta } => objects.insert_pod(pod(
            &format!("ns{namespace}"),
            &format!("p{name}"),
            &format!("node{node}"),
            &format!("10.0.0.{address}"),
            METAS[*meta],
        )),
        Piece::Service(name, vip) => objects.insert_service(service(
            &format!("s{name}"),
            &json!({"clusterIP": format!("10.96.0.{vip}"), "ports": [{"port": 80}]}),
        )),
        Piece::Slice(name, address, ready) => {
            let endpoint = json!([{"addresses": [format!("10.0.0.{address}")],
                "conditions": {"ready": ready}}]);
            let name = format!("s{name}");
            objects.insert_slice(slice(&name, &name, &json!([{"port": 8080}]), &endpoint));
        }
    }
}

/// One piece per key, since the later of two versions of one object counts.
fn distinct(pieces: Vec<Piece>) -> Vec<Piece> {
    let mut seen = BTreeSet::new();
    let mut key_is_new = |piece: &Piece| {
        seen.insert(match piece {
            Piece::Namespace(name, _) => (0, *name),
            Piece::Pod { name, .. } => (1, *name),
            Piece::Service(name, _) => (2, *name),
            Piece::Slice(name, ..) => (3, *name),
        })
    };
    pieces.into_iter().filter(|piece| key_is_new(piece)).collect()
}

proptest! {
    #[test]
    fn the_order_of_insertion_does_not_matter(
        (first, second) in prop::collection::vec(piece(), 0..40)
            .prop_map(distinct)
            .prop_flat_map(|pieces| (Just(pieces.clone()), Just(pieces).prop_shuffle())),
        enrolled in prop::sample::subsequence(vec!["uid-p0", "uid-p1", "uid-p2", "uid-p3"], 0..4),
        announced in 1..9u8,
    ) {
        let build = |pieces: &[Piece]| {
            let mut objects = Objects::default();
            for piece in pieces {
                insert(&mut objects, piece);
            }
            let address = format!("10.0.0.{announced}");
            let heard = announcements(&[("node1", &[("p4", &address)]), ("node2", &[("p5", &address)])]);
            Snapshot::build(&objects, &heard, &local("node0", &enrolled), &Incumbents::default())
        };
        let snapshot = build(&first);
        prop_assert_eq!(&snapshot, &build(&second));

        // These hold whatever came in.
        for row in snapshot.kernel_addresses() {
            if let Some(peer) = snapshot.believed(row.address) {
                prop_assert!(peer.addresses.contains(&row.address));
                let owner = snapshot.workload(row.address);
                prop_assert!(owner.is_none_or(|pod| pod.uid == peer.uid && pod.node.as_ref() == Some(&peer.node)));
            }
        }
        for pod in snapshot.local_pods() {
            let conflict_free = pod.workload.addresses.iter().all(|a| {
                snapshot.workload(*a).is_some_and(|owner| owner.uid == pod.workload.uid)
            });
            prop_assert!(conflict_free);
            prop_assert!(pod.wanted == Wanted::Out || !pod.workload.addresses.is_empty());
        }
    }
}
