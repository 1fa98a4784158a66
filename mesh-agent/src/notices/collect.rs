//! Collects from `status` what is wrong with which object.

use std::{collections::BTreeMap, fmt};

use mesh_api::{PodCode, PodState, PodStatus, ProblemCode, Status};
use mesh_world::{Origin, Problem};

/// The reason of a held pod, whatever it waits for.
const HELD: &str = "Held";

/// The object concerned, as Kubernetes names it. Ordered by namespace first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct About {
    /// Empty for objects of the cluster.
    pub(super) namespace: String,
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// Empty if the UID is not known.
    pub(super) uid: String,
}

impl fmt::Display for About {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, kind, name, uid: _ } = self;
        match &**namespace {
            "" => write!(f, "{kind} {name}"),
            namespace => write!(f, "{kind} {namespace}/{name}"),
        }
    }
}

/// One problem of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    pub(super) about: About,
    /// The code, as an Event's reason is written: `NetnsNotFound`.
    pub(super) reason: String,
}

/// The text for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Notice {
    pub(super) note: String,
}

/// Everything that is wrong with objects. A namespace's mistake is reported at its pods on this
/// node, so that no two nodes report the same. What every node sees is reported only by an agent
/// that `speaks` for all.
pub(super) fn collect(
    status: &Status,
    problems: &[Problem],
    speaks: bool,
) -> BTreeMap<Key, Notice> {
    let mut found = BTreeMap::new();
    let mut add = |about: About, code: &str, note: String| {
        let reason = if code == HELD { HELD.to_owned() } else { camel_case(code) };
        found.entry(Key { about, reason }).or_insert(Notice { note });
    };
    for pod in &status.pods {
        if pod.state == PodState::Held {
            let note = format!(
                "The mesh refuses the pod's TCP connections until it can take it in: {}: {}",
                pod.code, pod.reason
            );
            add(about(pod), HELD, note);
        } else if pod.state == PodState::NotEnrolled && is_wrong(&pod.code) {
            add(about(pod), &pod.code, format!("The pod is not in the mesh: {}", pod.reason));
        }
        let name = format!("{}/{}", pod.namespace, pod.name);
        if let Some(note) = pod.plaintext.problem(&name, pod.mode) {
            add(about(pod), ProblemCode::PlaintextBeforeStrict.code(), note);
        }
    }
    for problem in problems {
        let (code, note) = (problem.code.code(), problem.to_string());
        let Origin { kind, namespace, name, .. } = &problem.origin;
        match *kind {
            "Pod" => {
                let is_it = |pod: &&PodStatus| {
                    Some(&*pod.namespace) == namespace.as_deref() && *pod.name == **name
                };
                for pod in status.pods.iter().filter(is_it) {
                    add(about(pod), code, note.clone());
                }
            }
            "Namespace" => {
                for pod in status.pods.iter().filter(|pod| *pod.namespace == **name) {
                    add(about(pod), code, note.clone());
                }
            }
            kind if speaks => {
                let (namespace, name) = (namespace.as_deref().unwrap_or_default(), &**name);
                let (namespace, name) = (namespace.to_owned(), name.to_owned());
                add(About { namespace, kind, name, uid: String::new() }, code, note);
            }
            _ => {}
        }
    }
    found
}

/// Whether something is wrong with a pod that is not in the mesh for this reason. Else it was
/// wanted, or it passes.
fn is_wrong(code: &str) -> bool {
    PodCode::ALL.iter().any(|it| it.code() == code && it.fault().is_some())
}

fn about(pod: &PodStatus) -> About {
    About {
        namespace: pod.namespace.clone(),
        kind: "Pod",
        name: pod.name.clone(),
        uid: pod.uid.clone(),
    }
}

/// `netns_not_found` as `NetnsNotFound`.
fn camel_case(code: &str) -> String {
    let words = code.split('_').map(|word| {
        let mut letters = word.chars();
        let first = letters.next().map(|first| first.to_ascii_uppercase());
        first.into_iter().chain(letters).collect::<String>()
    });
    words.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_written_as_events_write_reasons() {
        assert_eq!(camel_case("netns_not_found"), "NetnsNotFound");
        assert_eq!(camel_case("announcement_refused"), "AnnouncementRefused");
        assert_eq!(camel_case(""), "");
    }

    #[test]
    fn a_pod_that_is_not_wanted_or_has_to_wait_is_not_wrong() {
        let quiet: Vec<_> = PodCode::ALL.iter().filter(|it| !is_wrong(it.code())).collect();
        let wanted = [
            PodCode::Enabled,
            PodCode::MeshNamespace,
            PodCode::NotLabelled,
            PodCode::PodOptedOut,
            PodCode::NamespaceOptedOut,
            PodCode::HostNetwork,
            PodCode::Completed,
            PodCode::Leaving,
            PodCode::NoAddress,
        ];
        assert!(quiet.into_iter().eq(&wanted), "they are no Events");
        assert!(!is_wrong(""), "a pod that is in the mesh");
    }
}
