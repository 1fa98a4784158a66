//! Everything that a cluster needs, as one file of Kubernetes objects: `daemonset.yaml`.
//!
//! Written here as JSON reads best, and checked against Kubernetes' own types: an unknown field
//! fails ([`Manifest::yaml`]). The purpose of each permission is in docs/kubernetes.md.

mod access;
mod agent;
mod authority;
mod events;
mod image;
mod node_objects;
mod policy;
mod untaint;

use std::fmt::Write as _;

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use thiserror::Error;

pub use self::image::{Image, PullPolicy};
use mesh_wire::identity::TrustDomain;

/// The namespace of every object that is not cluster-wide.
pub const NAMESPACE: &str = "nodemesh";
/// The agents' DaemonSet and service account.
pub const AGENT: &str = "mesh-agent";
/// The image that `cargo xtask image` makes.
pub const IMAGE: &str = concat!("nodemesh.dev/mesh-agent:", env!("CARGO_PKG_VERSION"));

/// What can be chosen.
#[derive(Clone, Debug)]
pub struct Manifest {
    /// The image of all programs.
    pub image: Image,
    /// Whether nodes may fetch it.
    pub pull_policy: PullPolicy,
    /// The trust domain of all identities.
    pub trust_domain: TrustDomain,
}

/// The manifest does not match Kubernetes' types. Fault: ours.
#[derive(Debug, Error)]
#[error("{kind} {name}: {what}")]
pub struct ManifestError {
    kind: String,
    name: String,
    what: String,
}

/// An object and its purpose.
struct Part {
    about: &'static str,
    object: Value,
}

impl Manifest {
    /// A container of the one image.
    fn container(&self, name: &str, mut fields: Value) -> Value {
        if let Some(container) = fields.as_object_mut() {
            container.insert("name".to_owned(), json!(name));
            container.insert("image".to_owned(), json!(self.image.as_str()));
            container.insert("imagePullPolicy".to_owned(), json!(self.pull_policy.as_str()));
        }
        fields
    }

    /// All objects, in the order in which they can be applied.
    ///
    /// # Errors
    /// See [`ManifestError`].
    pub fn yaml(&self) -> Result<String, ManifestError> {
        let mut yaml = String::from(
            "# Nodemesh, all of it. Written by `cargo xtask manifest`: change mesh-agent/src/manifest, not this file.\n",
        );
        for part in self.parts()? {
            yaml.push('\n');
            for line in part.about.lines() {
                let _infallible = writeln!(yaml, "# {line}");
            }
            yaml.push_str("---\n");
            yaml.push_str(&text(&part.object)?);
        }
        Ok(yaml)
    }

    fn parts(&self) -> Result<Vec<Part>, ManifestError> {
        let mut parts = vec![part::<k8s_openapi::api::core::v1::Namespace>(
            "The namespace of the agents. They change the node, so no Pod Security profile but `privileged` lets them; they are\nnever in the mesh themselves.",
            json!({
                "apiVersion": "v1", "kind": "Namespace",
                "metadata": {"name": NAMESPACE, "labels": {
                    "nodemesh.dev/mesh": "disabled",
                    "pod-security.kubernetes.io/enforce": "privileged",
                    "pod-security.kubernetes.io/audit": "privileged",
                    "pod-security.kubernetes.io/warn": "privileged",
                }},
            }),
        )?];
        parts.extend(node_objects::parts()?);
        parts.extend(access::parts()?);
        parts.extend(events::parts()?);
        parts.extend(authority::parts(self)?);
        parts.extend(agent::parts(self)?);
        parts.extend(untaint::parts(self)?);
        Ok(parts)
    }
}

/// Checks an object against its type.
fn part<T: Serialize + DeserializeOwned>(
    about: &'static str,
    object: Value,
) -> Result<Part, ManifestError> {
    let typed: T =
        serde_json::from_value(object.clone()).map_err(|error| wrong(&object, &error))?;
    let known = serde_json::to_value(typed).map_err(|error| wrong(&object, &error))?;
    if let Some(field) = lost(&object, &known, "") {
        return Err(wrong(&object, &format!("Kubernetes does not know the field {field}")));
    }
    Ok(Part { about, object })
}

fn wrong(object: &Value, what: &impl ToString) -> ManifestError {
    let text =
        |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    ManifestError { kind: text("/kind"), name: text("/metadata/name"), what: what.to_string() }
}

/// The first field that the type has dropped or changed.
fn lost(ours: &Value, known: &Value, at: &str) -> Option<String> {
    match (ours, known) {
        (Value::Object(ours), Value::Object(known)) => ours.iter().find_map(|(key, value)| {
            let at = format!("{at}.{key}");
            match known.get(key) {
                Some(known) => lost(value, known, &at),
                None => Some(at),
            }
        }),
        (Value::Array(ours), Value::Array(known)) if ours.len() == known.len() => {
            let mut both = ours.iter().zip(known).enumerate();
            both.find_map(|(i, (ours, known))| lost(ours, known, &format!("{at}[{i}]")))
        }
        (ours, known) => (ours != known).then(|| at.to_owned()),
    }
}

fn text(object: &Value) -> Result<String, ManifestError> {
    serde_saphyr::to_string(object).map_err(|error| wrong(object, &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn default() -> Manifest {
        let image: Image = IMAGE.parse().unwrap();
        let pull_policy = PullPolicy::of(&image);
        Manifest { image, pull_policy, trust_domain: "cluster.local".parse().unwrap() }
    }

    #[test]
    fn the_manifest_is_of_objects_that_kubernetes_knows_and_reads_as_it_was_written() {
        let yaml = default().yaml().unwrap();
        let read: Vec<Value> = serde_saphyr::from_multiple(&yaml).unwrap();
        let parts = default().parts().unwrap();
        let written: Vec<_> = parts.into_iter().map(|part| part.object).collect();
        assert_eq!(read, written);
    }

    #[test]
    fn daemonset_yaml_is_what_is_written_here() {
        let file = include_str!("../../../daemonset.yaml");
        assert_eq!(file, default().yaml().unwrap(), "run: cargo xtask manifest");
    }

    #[test]
    fn a_field_that_kubernetes_does_not_know_is_found() {
        let slip = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "x", "label": {}}});
        let error = part::<k8s_openapi::api::core::v1::Namespace>("", slip).err().unwrap();
        assert_eq!(
            error.to_string(),
            "Namespace x: Kubernetes does not know the field .metadata.label"
        );
    }
}
