//! Events of watches, in the orders in which they may come.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use mesh_world::{FieldError, PodObject};
use serde_json::json;

use super::super::kinds::{KINDS, Object};
use super::content::{Change, Content, Name};

fn pod(name: &str, uid: &str) -> Change {
    let meta = json!({"namespace": "shop", "name": name, "uid": uid});
    let pod = serde_json::from_value::<Pod>(json!({"metadata": meta})).unwrap();
    let object = PodObject::try_from(&pod).map(|pod| Object::Pod(Arc::new(pod)));
    Change::Is(named(name), object)
}

fn named(name: &str) -> Name {
    ("Pod", Some("shop".into()), name.into())
}

fn in_force(content: &Content) -> Vec<String> {
    let pods = content.objects().pods();
    let mut pods: Vec<_> = pods.map(|pod| format!("{}={}", pod.name.name, pod.uid)).collect();
    pods.sort();
    pods
}

fn told(changes: impl IntoIterator<Item = Change>) -> Content {
    let mut content = Content::default();
    changes.into_iter().for_each(|change| content.apply(change));
    content
}

#[test]
fn what_a_new_list_does_not_hold_is_gone_but_not_before_its_end() {
    let mut content = told([Change::ListBegins("Pod"), pod("a", "1"), pod("b", "2")]);
    content.apply(Change::ListEnds("Pod"));
    content.apply(pod("c", "3"));
    content.apply(Change::ListBegins("Pod"));
    content.apply(pod("b", "2"));
    assert_eq!(in_force(&content), ["a=1", "b=2", "c=3"]);
    content.apply(Change::ListEnds("Pod"));
    assert_eq!(in_force(&content), ["b=2"]);
    content.apply(Change::Gone(named("b")));
    assert!(in_force(&content).is_empty());
}

#[test]
fn a_list_that_is_broken_off_takes_nobody_away() {
    let mut content = told([Change::ListBegins("Pod"), pod("a", "1"), Change::ListEnds("Pod")]);
    content.apply(Change::ListBegins("Pod"));
    content.apply(Change::Failed { kind: "Pod", error: "reset".into() });
    content.apply(Change::ListBegins("Pod"));
    content.apply(pod("a", "1"));
    content.apply(Change::ListEnds("Pod"));
    assert_eq!(in_force(&content), ["a=1"]);
}

#[test]
fn a_pod_that_was_made_anew_under_its_name_replaces_the_other() {
    let content = told([pod("a", "1"), pod("a", "2")]);
    assert_eq!(in_force(&content), ["a=2"]);
}

#[test]
fn an_object_that_cannot_be_read_keeps_what_it_said_and_is_reported_until_it_can_or_goes() {
    let bad = || Change::Is(named("a"), Err(FieldError::new("status.podIP", "\"x\" is none")));
    let errors = |content: &Content| content.errors().map(ToString::to_string).collect::<Vec<_>>();
    let mut content = told([pod("a", "1"), bad()]);
    assert_eq!(in_force(&content), ["a=1"]);
    assert_eq!(errors(&content), ["Pod shop/a: status.podIP: \"x\" is none."]);
    content.apply(pod("a", "1"));
    assert_eq!(errors(&content), [""; 0]);
    content.apply(bad());
    content.apply(Change::Gone(named("a")));
    assert_eq!(errors(&content), [""; 0]);
    assert!(in_force(&content).is_empty());
}

#[test]
fn what_cannot_be_read_when_an_agent_begins_is_as_an_earlier_one_read_it() {
    let declaring = |uid: &str, mode: &str| {
        let annotations = json!({"nodemesh.dev/mode": mode});
        let meta =
            json!({"namespace": "shop", "name": uid, "uid": uid, "annotations": annotations});
        let pod = serde_json::from_value::<Pod>(json!({"metadata": meta})).unwrap();
        let object = PodObject::try_from(&pod).map(|pod| Object::Pod(Arc::new(pod)));
        Change::Is(named(uid), object)
    };
    let earlier = told([declaring("slip", "strict"), pod("broken", "2"), pod("gone", "3")]);
    let broken = Change::Is(named("broken"), Err(FieldError::new("metadata", "is no good")));
    let mut now = told([declaring("slip", "strikt"), broken]);
    assert_eq!(in_force(&now), ["slip=slip"]);
    now.inherit(earlier.objects());
    assert_eq!(in_force(&now), ["broken=2", "slip=slip"], "and no other comes back");
    let slip = now.objects().pods().find(|pod| *pod.name.name == *"slip").unwrap();
    assert!(format!("{slip:?}").contains("Strict"), "{slip:?}");
    now.apply(Change::Gone(named("broken")));
    assert_eq!(in_force(&now), ["slip=slip"]);
}

#[test]
fn nothing_is_told_before_every_kind_has_been_listed() {
    let mut content = Content::default();
    for kind in KINDS.iter().map(|it| it.name) {
        assert!(!content.is_listed());
        content.apply(Change::ListBegins(kind));
        content.apply(Change::ListEnds(kind));
    }
    assert!(content.is_listed());
}
