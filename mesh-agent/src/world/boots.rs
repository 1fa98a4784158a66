//! Announcements of an earlier boot: after a reboot a node's pods run before its agent does, so what it said before is void
//! until it says it again.

use std::borrow::Cow;

use super::announcement::Announcements;
use super::objects::Objects;
use super::origin::{FieldError, Origin};
use super::problem::{Problem, ProblemCode};

/// The announcements without those of nodes that have been booted since, as far as Node objects tell
/// (`status.nodeInfo.bootID`), and a problem for each of these.
pub fn of_this_boot<'a>(
    announcements: &'a Announcements,
    objects: &Objects,
) -> (Cow<'a, Announcements>, Vec<Problem>) {
    let mut kept = Cow::Borrowed(announcements);
    let mut problems = Vec::new();
    for (name, announcement) in announcements {
        let node = objects.nodes.get(name.as_str());
        let boot_id = node.and_then(|node| node.boot_id.as_ref());
        if boot_id.is_none_or(|boot_id| announcement.boot_id == *boot_id) {
            continue;
        }
        kept.to_mut().remove(name);
        let origin = Origin::api("MeshNode", None, name.as_str());
        let message = format!(
            "{name} announced {} pods in boot {:?} and has been booted since; none of it is believed",
            announcement.pods.len(),
            announcement.boot_id
        );
        let error = FieldError::new("spec.bootId", message).hint(
            "its agent announces them again when it runs; if this stays, look at that node's agent",
        );
        problems.push(Problem::new(&origin, ProblemCode::AnnouncementRefused, error));
    }
    (kept, problems)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::world::objects::NodeObject;
    use crate::world::{MeshNode, NodeName};

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
        let (kept, problems) = of_this_boot(&announcements, &objects);
        let names: Vec<_> = kept.keys().map(NodeName::as_str).collect();
        assert_eq!(names, ["running", "silent", "unknown"]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("has been booted since"), "{}", problems[0]);
        objects.insert_node(node("rebooted", Some("one")));
        let (kept, problems) = of_this_boot(&announcements, &objects);
        assert!(matches!(kept, Cow::Borrowed(_)) && problems.is_empty());
    }
}
