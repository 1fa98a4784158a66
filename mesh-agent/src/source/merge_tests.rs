//! Settling again after each change of a file gives the same result as settling all files anew.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::sync::Arc;

use mesh_world::{ObjectName, Objects, Origin};
use proptest::prelude::*;
use serde_json::json;

use super::directory::{Change, Content};
use super::document::parse_file;
use super::error::SourceError;
use super::kinds::Object;
use super::last_good::LastGood;
use super::merge::{Key, Merged, Owner, duplicate, keys, owns};

/// One document: kind, name, UID of a pod, mode.
type Document = (usize, usize, usize, usize);

const MODES: [&str; 3] = ["permissive", "strict", "strikt"];

fn text(documents: &[Document]) -> String {
    let mut text = String::new();
    for (kind, name, uid, mode) in documents {
        let annotations = json!({"nodemesh.dev/mode": MODES[*mode]});
        let in_shop = |name: String| json!({"namespace": "shop", "name": name});
        let object = match kind {
            0 => json!({"apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": format!("n{name}"), "annotations": annotations}}),
            1 => {
                json!({"apiVersion": "v1", "kind": "Service", "metadata": in_shop(format!("s{name}"))})
            }
            2 => json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": in_shop(format!("e{name}")), "addressType": "IPv4", "endpoints": []}),
            3 => {
                json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("node{name}")},
                "spec": {"podCIDR": format!("10.{mode}.0.0/16")}})
            }
            _ => json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop",
                "name": format!("p{name}"), "uid": format!("u{uid}"), "annotations": annotations}}),
        };
        writeln!(text, "---\n{object}").unwrap();
    }
    text
}

/// Merges all files from the beginning; only the earlier owners are remembered.
fn merge_all(
    files: &LastGood<Vec<Object>>,
    owners: &mut HashMap<Key, Owner>,
    before: &Objects,
) -> (Objects, Vec<SourceError>) {
    let spots = files.good().flat_map(|(file, all)| {
        all.iter().enumerate().map(move |(index, object)| ((Arc::clone(file), index), object))
    });
    let mut all: Vec<_> = spots.collect();
    all.sort_by_key(|(spot, object)| {
        !owns(keys(object).next().and_then(|name| owners.get(&name)), spot)
    });
    let mut taken: HashMap<Key, (&(Arc<str>, usize), &Origin)> = HashMap::new();
    let (mut objects, mut others) = (before.clone(), Vec::new());
    for (spot, object) in &all {
        if keys(object).any(|key| taken.contains_key(&key)) {
            others.push((spot, object));
            continue;
        }
        taken.extend(keys(object).map(|key| (key, (spot, object.origin()))));
        object.insert_into(&mut objects);
    }
    let there = |kind, name: &ObjectName| {
        taken.contains_key(&(kind, Some(Arc::clone(&name.namespace)), Arc::clone(&name.name)))
    };
    for namespace in before.namespaces() {
        if !taken.contains_key(&("Namespace", None, Arc::clone(&namespace.name))) {
            objects.remove_namespace(&namespace.name);
        }
    }
    for node in before.nodes() {
        if !taken.contains_key(&("Node", None, Arc::clone(&node.name))) {
            objects.remove_node(&node.name);
        }
    }
    for pod in
        before.pods().filter(|it| !taken.contains_key(&("uid", None, it.uid.as_str().into())))
    {
        objects.remove_pod(&pod.uid);
    }
    for service in before.services().filter(|service| !there("Service", &service.name)) {
        objects.remove_service(&service.name);
    }
    for slice in before.slices().filter(|slice| !there("EndpointSlice", &slice.name)) {
        objects.remove_slice(&slice.name);
    }
    let error = |(spot, object): (&(Arc<str>, usize), &&Object)| {
        let holder = keys(object).find_map(|key| taken.get(&key)).unwrap();
        duplicate(&spot.0, object, holder.1)
    };
    let errors = others.into_iter().map(error).collect();
    *owners = taken
        .iter()
        .map(|(key, ((file, index), _))| (key.clone(), (Arc::clone(file), Some(*index))))
        .collect();
    (objects, errors)
}

fn sorted(mut errors: Vec<SourceError>) -> Vec<SourceError> {
    errors.sort_by(|a, b| (&a.file, a.place, &a.message).cmp(&(&b.file, b.place, &b.message)));
    errors
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn a_changed_file_leads_to_what_merging_all_files_leads_to(
        steps in prop::collection::vec(
            prop::collection::vec(
                (0..4usize, prop::option::weighted(0.8, prop::collection::vec(
                    (0..6usize, 0..3usize, 0..3usize, 0..3usize), 0..5,
                ))),
                1..3,
            ),
            1..12,
        ),
    ) {
        let (mut files, mut merged) = (LastGood::after(BTreeMap::new()), Merged::default());
        let (mut owners, mut objects) = (HashMap::<Key, Owner>::new(), Objects::default());
        for step in steps {
            // A scan names each file once.
            let step: HashMap<usize, Option<Vec<Document>>> = step.into_iter().collect();
            let change = |(file, documents): (usize, Option<Vec<Document>>)| Change {
                file: format!("f{file}.yaml").into(),
                content: documents.map_or(Content::Gone, |it| Content::Text(format!("#\n{}", text(&it)))),
            };
            let applied = files.apply(Ok(step.into_iter().map(change).collect()), parse_file);
            merged.update(&files, &applied.replaced);
            for (file, index) in owners.values_mut() {
                let replaced = applied.replaced.iter().any(|(it, _)| it == file);
                *index = index.filter(|_| !replaced);
            }
            let (expected, errors) = merge_all(&files, &mut owners, &objects);
            prop_assert_eq!(merged.objects(), &expected);
            prop_assert_eq!(sorted(merged.duplicates().cloned().collect()), sorted(errors));
            objects = expected;
        }
    }
}
