//! How long an announcement is in force: until the node itself says otherwise. Other accounts may
//! delete a `MeshNode` or a Node, or change the boot in a Node's status, while the pods run on. The
//! announcement then holds pod by pod, as long as Pod objects confirm it.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::ProblemCode;

use super::announcement::{AnnouncedPod, Announcements, MeshNode};
use super::names::{NodeName, PodUid};
use super::objects::{Objects, PodObject};
use super::origin::{FieldError, Origin};
use super::problem::Problem;

/// The pods of a node that have not ended, with the addresses in their objects. A pod without
/// addresses has not been given any yet, or its addresses cannot be read; it confirms whatever is
/// announced of it.
pub type NodePods = HashMap<PodUid, Vec<IpAddr>>;

/// What has been found out about a node's pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The announcement that was in question. The answer says nothing about any other.
    pub about: Arc<MeshNode>,
    /// The node's pods, read after the announcement had come into question.
    pub pods: NodePods,
}

/// The last answer to each question.
pub type Answers = BTreeMap<NodeName, Answer>;

/// What nodes have announced and is in force.
pub struct InForce<'a> {
    /// By node.
    pub announcements: Cow<'a, Announcements>,
    /// The announcements for which it is open which of their pods are still there.
    pub in_question: Announcements,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
}

/// Adds a pod to those of its node, unless it has ended.
pub fn add_pod(pods: &mut NodePods, pod: &PodObject) {
    if !pod.completed {
        pods.insert(pod.uid.clone(), pod.ips.clone());
    }
}

/// What is in force, from what is `told` now and from what was in force `before`.
///
/// - An announcement is in force if its boot is that of the Node object, or if no Node object says
///   a boot.
/// - Otherwise the node does not speak for itself now: its `MeshNode` is gone, or is of another
///   boot. Its last announcement stays in force for the addresses that Pod objects confirm, and for
///   all of them until the Pod objects are known. An announcement of another boot does not replace
///   one of the boot that the Node object says.
///
/// A node withdraws by announcing no pod. `answers` say which pods there are; `None` means that
/// `objects` have all of them.
pub fn in_force<'a>(
    told: &'a Announcements,
    before: &Announcements,
    objects: &Objects,
    answers: Option<&Answers>,
) -> InForce<'a> {
    let mut announcements = Cow::Borrowed(told);
    let (mut in_question, mut problems) = (Announcements::new(), Vec::new());
    let gone = before.keys().filter(|name| !told.contains_key(*name));
    for name in told.keys().chain(gone) {
        let boot_id = objects.nodes.get(name.as_str()).and_then(|node| node.boot_id.as_ref());
        let now = told.get(name);
        if now.is_some_and(|said| boot_id.is_none_or(|boot_id| said.boot_id == *boot_id)) {
            continue;
        }
        let in_this_boot = before.get(name).filter(|said| boot_id == Some(&said.boot_id));
        let Some(said) = in_this_boot.or(now).or(before.get(name)) else { continue };
        let held = match answers {
            None => borne_out(said, &pods_of(objects, name)),
            Some(answers) => match answers.get(name).filter(|answer| answer.about == *said) {
                None => Arc::clone(said),
                Some(answer) => borne_out(said, &answer.pods),
            },
        };
        if let Some(now) = now {
            problems.push(of_another_boot(name, now, boot_id, held.pods.len()));
        } else if !held.pods.is_empty() {
            problems.push(missing(name, held.pods.len()));
        }
        // An announcement that the node still makes stays the question, whatever the answers. A
        // remembered one is reduced to the part that the last answer confirmed.
        let question = if now == Some(said) { said } else { &held };
        if !question.pods.is_empty() {
            in_question.insert(name.clone(), Arc::clone(question));
        }
        if held.pods.is_empty() {
            announcements.to_mut().remove(name);
        } else if now != Some(&held) {
            announcements.to_mut().insert(name.clone(), held);
        }
    }
    InForce { announcements, in_question, problems }
}

/// The pods of a node of which the objects are known.
fn pods_of(objects: &Objects, node: &NodeName) -> NodePods {
    let mut pods = NodePods::new();
    let of_node = |pod: &&Arc<PodObject>| pod.node.as_ref() == Some(node);
    objects.pods.iter().map(|(_, pod)| pod).filter(of_node).for_each(|pod| add_pod(&mut pods, pod));
    pods
}

/// The part of an announcement that a node's pods confirm.
fn borne_out(said: &Arc<MeshNode>, pods: &NodePods) -> Arc<MeshNode> {
    let still = |pod: &AnnouncedPod| {
        let known = pods.get(&pod.uid)?;
        let has = |address: &IpAddr| known.is_empty() || known.contains(address);
        let addresses: Vec<_> = pod.addresses.iter().copied().filter(has).collect();
        (!addresses.is_empty()).then(|| AnnouncedPod { addresses, ..pod.clone() })
    };
    let pods: Vec<_> = said.pods.iter().filter_map(still).collect();
    if pods == said.pods {
        return Arc::clone(said);
    }
    let MeshNode { node, boot_id, trust_domain, ca, pods: _ } = &**said;
    let (node, boot_id, trust_domain) = (node.clone(), boot_id.clone(), trust_domain.clone());
    Arc::new(MeshNode { node, boot_id, trust_domain, ca: ca.clone(), pods })
}

fn of_another_boot(
    name: &NodeName,
    now: &MeshNode,
    boot_id: Option<&String>,
    held: usize,
) -> Problem {
    let message = format!(
        "{name} announces {} pods in boot {:?}, and its Node says that it is in boot {:?}; {held} announced pods that may still be there are dialled over TLS, or not at all",
        now.pods.len(),
        now.boot_id,
        boot_id.map_or("", String::as_str)
    );
    let error = FieldError::new("spec.bootId", message).hint(
        "after a reboot its agent announces them again when it runs; if this stays, look at that node's agent, and at what writes the Node's status",
    );
    problem(name, ProblemCode::AnnouncementDoubted, error)
}

fn missing(name: &NodeName, held: usize) -> Problem {
    let message = format!(
        "it is not there any more, and {name} has not withdrawn the {held} pods that it announced; they are dialled over TLS, or not at all"
    );
    let error = FieldError::new("", message).hint(
        "its agent writes it again when it runs and its Node is there; what it announced is forgotten with the pods' objects",
    );
    problem(name, ProblemCode::AnnouncementMissing, error)
}

fn problem(node: &NodeName, code: ProblemCode, error: FieldError) -> Problem {
    Problem::new(&Origin::api("MeshNode", None, node.as_str()), code, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::NodeObject;
    use crate::snapshot::testing::{announcements, node as node_name, pod};

    fn node(name: &str, boot_id: Option<&str>) -> NodeObject {
        let node = k8s_openapi::api::core::v1::Node {
            metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                name: Some(name.to_owned()),
                ..Default::default()
            },
            ..Default::default()
        };
        NodeObject { boot_id: boot_id.map(str::to_owned), ..NodeObject::try_from(&node).unwrap() }
    }

    /// The addresses in force, and the codes of the problems.
    fn held(in_force: &InForce<'_>) -> (Vec<String>, Vec<&'static str>) {
        let pods = in_force.announcements.values().flat_map(|said| &said.pods);
        let addresses = pods.flat_map(|pod| &pod.addresses).map(ToString::to_string).collect();
        (addresses, in_force.problems.iter().map(|it| it.code.code()).collect())
    }

    /// Announced in boot "b".
    fn of_node2() -> Announcements {
        announcements(&[("node2", &[("c", "10.0.1.3"), ("d", "10.0.1.4")][..]), ("node3", &[])])
    }

    #[test]
    fn what_a_node_says_in_the_boot_that_its_node_says_is_in_force_as_it_is() {
        let (told, before) = (of_node2(), announcements(&[("node2", &[("x", "10.0.1.9")])]));
        let mut objects = Objects::default();
        for boot_id in [None, Some("b")] {
            objects.insert_node(node("node2", boot_id));
            let found = in_force(&told, &before, &objects, None);
            assert!(matches!(found.announcements, Cow::Borrowed(_)));
            assert!(found.problems.is_empty() && found.in_question.is_empty());
        }
        assert!(in_force(&told, &before, &Objects::default(), None).problems.is_empty());
    }

    #[test]
    fn a_deleted_mesh_node_or_node_or_another_boot_takes_no_pod_out_that_is_still_there() {
        let (before, nothing) = (of_node2(), Announcements::new());
        let mut objects = Objects::default();
        objects.insert_pod(pod("shop", "c", "node2", "10.0.1.3", &[]));
        objects.insert_pod(pod("shop", "d", "node2", "10.0.1.4", &[]));
        let both = ["10.0.1.3", "10.0.1.4"].map(str::to_owned).to_vec();
        let missing = || (both.clone(), vec!["announcement_missing"]);
        assert_eq!(held(&in_force(&nothing, &before, &objects, None)), missing());
        for boot_id in ["b", "another"] {
            objects.insert_node(node("node2", Some(boot_id)));
            assert_eq!(held(&in_force(&nothing, &before, &objects, None)), missing());
        }
        let doubted = || (both.clone(), vec!["announcement_doubted"]);
        assert_eq!(held(&in_force(&before, &nothing, &objects, None)), doubted());

        // A pod is released when its object has other addresses, has ended or is gone.
        objects.insert_pod(pod("shop", "c", "node2", "10.0.1.7", &[]));
        let d = (vec!["10.0.1.4".to_owned()], vec!["announcement_doubted"]);
        assert_eq!(held(&in_force(&before, &nothing, &objects, None)), d);
        let mut unaddressed = pod("shop", "c", "node2", "10.0.1.7", &[]);
        unaddressed.ips.clear();
        objects.insert_pod(unaddressed);
        assert_eq!(held(&in_force(&before, &nothing, &objects, None)), doubted());
        let mut completed = pod("shop", "c", "node2", "10.0.1.3", &[]);
        completed.completed = true;
        objects.insert_pod(completed);
        assert_eq!(held(&in_force(&before, &nothing, &objects, None)), d);
        let less = in_force(&nothing, &before, &objects, None).announcements.into_owned();
        objects.remove_pod(&pod("shop", "d", "node2", "10.0.1.4", &[]).uid);
        assert_eq!(held(&in_force(&nothing, &less, &objects, None)), (vec![], vec![]));
        assert_eq!(held(&in_force(&before, &nothing, &objects, None)).0, [""; 0]);
    }

    #[test]
    fn until_it_is_known_which_pods_are_there_all_of_them_hold() {
        let (before, nothing) = (of_node2(), Announcements::new());
        let objects = Objects::default();
        let unknown = in_force(&nothing, &before, &objects, Some(&Answers::new()));
        assert_eq!(held(&unknown).0, ["10.0.1.3", "10.0.1.4"]);
        let name = node_name("node2");
        let about = Arc::clone(&unknown.in_question[&name]);
        assert_eq!(unknown.in_question.len(), 1, "a node without pods is in no question");
        let mut pods = NodePods::new();
        add_pod(&mut pods, &pod("shop", "d", "node2", "10.0.1.4", &[]));
        let answers = Answers::from([(name.clone(), Answer { about, pods })]);
        let known = in_force(&nothing, &before, &objects, Some(&answers));
        assert_eq!(held(&known).0, ["10.0.1.4"]);
        // The remembered announcement is another one now: an answer to the earlier one says nothing
        // about it.
        let less = known.announcements.into_owned();
        assert_eq!(known.in_question, less);
        let again = in_force(&nothing, &less, &objects, Some(&answers));
        assert_eq!((held(&again).0, &again.in_question), (vec!["10.0.1.4".to_owned()], &less));
        // An honest agent whose Node says a false boot goes on: its new announcements hold, too.
        let mut objects = Objects::default();
        objects.insert_node(node("node2", Some("false")));
        let told = announcements(&[("node2", &[("e", "10.0.1.5")])]);
        let new = in_force(&told, &less, &objects, Some(&answers));
        assert_eq!((held(&new).0, &new.in_question), (vec!["10.0.1.5".to_owned()], &told));
    }

    #[test]
    fn a_node_withdraws_by_its_own_word_in_its_boot_alone() {
        let before = of_node2();
        let withdrawn = announcements(&[("node2", &[])]);
        let mut objects = Objects::default();
        objects.insert_pod(pod("shop", "c", "node2", "10.0.1.3", &[]));
        objects.insert_node(node("node2", Some("b")));
        let after = in_force(&withdrawn, &before, &objects, None).announcements.into_owned();
        assert_eq!(held(&in_force(&Announcements::new(), &after, &objects, None)).0, [""; 0]);
        let mut of_another = withdrawn.clone();
        let name = node_name("node2");
        Arc::make_mut(of_another.get_mut(&name).unwrap()).boot_id = "earlier".to_owned();
        let found = in_force(&of_another, &before, &objects, None);
        assert_eq!(held(&found), (vec!["10.0.1.3".to_owned()], vec!["announcement_doubted"]));
    }
}
