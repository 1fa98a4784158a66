//! For how long an announcement is in force. After a reboot a node's pods run before its agent does, so what it said before
//! is void until it says it again. Until then, and until the node itself withdraws it, it holds.

use std::borrow::Cow;
use std::sync::Arc;

use super::announcement::{Announcements, MeshNode};
use super::names::NodeName;
use super::objects::Objects;
use super::origin::{FieldError, Origin};
use super::problem::{Problem, ProblemCode};

/// What nodes have announced and is in force.
pub struct InForce<'a> {
    /// By node.
    pub announcements: Cow<'a, Announcements>,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
}

/// The announcements without those of nodes that have been booted since, as far as Node objects tell
/// (`status.nodeInfo.bootID`), and with those that were in force `before` and are not there any more although their nodes
/// have not withdrawn them: whoever deletes a `MeshNode` takes nobody out of the mesh. A node withdraws by announcing no pod.
/// It is remembered as long as its Node object says that it is in the same boot.
pub fn of_this_boot<'a>(
    told: &'a Announcements,
    before: &Announcements,
    objects: &Objects,
) -> InForce<'a> {
    let mut announcements = Cow::Borrowed(told);
    let mut problems = Vec::new();
    let boot_id = |node: &NodeName| objects.nodes.get(node.as_str())?.boot_id.as_ref();
    for (name, announcement) in told {
        if boot_id(name).is_none_or(|boot_id| announcement.boot_id == *boot_id) {
            continue;
        }
        announcements.to_mut().remove(name);
        let message = format!(
            "{name} announced {} pods in boot {:?} and has been booted since; none of it is believed",
            announcement.pods.len(),
            announcement.boot_id
        );
        let error = FieldError::new("spec.bootId", message).hint(
            "its agent announces them again when it runs; if this stays, look at that node's agent",
        );
        problems.push(problem(name, ProblemCode::AnnouncementRefused, error));
    }
    let is_missing = |(name, said): &(&NodeName, &Arc<MeshNode>)| {
        let in_this_boot = boot_id(name).is_some_and(|boot_id| said.boot_id == *boot_id);
        !told.contains_key(*name) && !said.pods.is_empty() && in_this_boot
    };
    for (name, said) in before.iter().filter(is_missing) {
        announcements.to_mut().insert(name.clone(), Arc::clone(said));
        let message = format!(
            "it is not there any more, and {name} has not withdrawn the {} pods that it announced; they are dialled over TLS, or not at all",
            said.pods.len()
        );
        let error = FieldError::new("", message).hint(
            "its agent writes it again when it runs; a node that is gone for good is forgotten with its Node object",
        );
        problems.push(problem(name, ProblemCode::AnnouncementMissing, error));
    }
    InForce { announcements, problems }
}

fn problem(node: &NodeName, code: ProblemCode, error: FieldError) -> Problem {
    Problem::new(&Origin::api("MeshNode", None, node.as_str()), code, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::objects::NodeObject;
    use crate::world::snapshot::testing::announcements;

    fn node(name: &str, boot_id: Option<&str>) -> NodeObject {
        let node = k8s_openapi::api::core::v1::Node::default();
        let node = k8s_openapi::api::core::v1::Node {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            ..node
        };
        NodeObject { boot_id: boot_id.map(str::to_owned), ..NodeObject::try_from(&node).unwrap() }
    }

    fn announcement(name: &str, boot_id: &str) -> (NodeName, Arc<MeshNode>) {
        let node = NodeName::parse(name).unwrap();
        let (boot_id, trust_domain) = (boot_id.to_owned(), "cluster.local".to_owned());
        (node.clone(), Arc::new(MeshNode { node, boot_id, trust_domain, ca: None, pods: vec![] }))
    }

    #[test]
    fn what_a_node_said_before_its_last_boot_is_void() {
        let announcements = Announcements::from([
            announcement("rebooted", "one"),
            announcement("running", "two"),
            announcement("silent", "three"),
            announcement("unknown", "four"),
        ]);
        let mut objects = Objects::default();
        objects.insert_node(node("rebooted", Some("another")));
        objects.insert_node(node("running", Some("two")));
        objects.insert_node(node("silent", None));
        let nothing = Announcements::new();
        let InForce { announcements: kept, problems } =
            of_this_boot(&announcements, &nothing, &objects);
        let names: Vec<_> = kept.keys().map(NodeName::as_str).collect();
        assert_eq!(names, ["running", "silent", "unknown"]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("has been booted since"), "{}", problems[0]);
        objects.insert_node(node("rebooted", Some("one")));
        let InForce { announcements: kept, problems } =
            of_this_boot(&announcements, &nothing, &objects);
        assert!(matches!(kept, Cow::Borrowed(_)) && problems.is_empty());
    }

    #[test]
    fn what_vanishes_without_being_withdrawn_holds_for_as_long_as_its_node_runs() {
        let before = announcements(&[("node2", &[("c", "10.0.1.3")][..]), ("node3", &[])]);
        let nothing = Announcements::new();
        let mut objects = Objects::default();
        let holds = |told: &Announcements, objects: &Objects| {
            let InForce { announcements, problems } = of_this_boot(told, &before, objects);
            assert!(problems.len() <= 1, "{problems:?}");
            announcements.keys().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(holds(&nothing, &objects), [""; 0], "nobody says that its node is there");
        objects.insert_node(node("node2", Some("b")));
        objects.insert_node(node("node3", Some("b")));
        assert_eq!(holds(&nothing, &objects), ["node2"], "the other has announced nobody");
        let withdrawn = announcements(&[("node2", &[])]);
        assert_eq!(holds(&withdrawn, &objects), ["node2"]);
        let after = of_this_boot(&withdrawn, &before, &objects).announcements.into_owned();
        assert!(of_this_boot(&nothing, &after, &objects).announcements.is_empty(), "in order");
        objects.insert_node(node("node2", Some("another boot")));
        assert_eq!(holds(&nothing, &objects), [""; 0]);
    }
}
