//! Everything that a cluster needs, as one file of Kubernetes objects: `daemonset.yaml`.
//!
//! Written here as JSON reads best; a test checks it against Kubernetes' own types, so that a field
//! that Kubernetes does not know fails. The purpose of each permission is in docs/kubernetes.md.

mod access;
mod agent;
mod authority;
mod events;
mod image;
mod node_objects;
mod policy;
mod untaint;

use std::fmt::Write as _;

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

/// The manifest could not be written. Fault: ours.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// The CRD cannot be written as JSON.
    #[error("the CRD cannot be written: {0}")]
    Crd(#[from] serde_json::Error),
    /// An object cannot be written as YAML.
    #[error("an object cannot be written: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
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
            yaml.push_str(&serde_saphyr::to_string(&part.object)?);
        }
        Ok(yaml)
    }

    fn parts(&self) -> Result<Vec<Part>, ManifestError> {
        let mut parts = vec![part(
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
        )];
        parts.extend(node_objects::parts()?);
        parts.extend(access::parts());
        parts.extend(events::parts());
        parts.extend(authority::parts(self));
        parts.extend(agent::parts(self));
        parts.extend(untaint::parts(self));
        Ok(parts)
    }
}

fn part(about: &'static str, object: Value) -> Part {
    Part { about, object }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::admissionregistration::v1 as admission;
    use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
    use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
    use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as extensions;
    use serde::{Serialize, de::DeserializeOwned};

    use super::*;

    /// What an object says, as far as its type knows it.
    fn known(object: &Value) -> Result<Value, String> {
        fn as_of<T: Serialize + DeserializeOwned>(object: &Value) -> Result<Value, String> {
            let typed: T = serde_json::from_value(object.clone()).map_err(|it| it.to_string())?;
            serde_json::to_value(typed).map_err(|it| it.to_string())
        }
        match object["kind"].as_str().unwrap_or_default() {
            "ClusterRole" => as_of::<ClusterRole>(object),
            "ClusterRoleBinding" => as_of::<ClusterRoleBinding>(object),
            "CustomResourceDefinition" => as_of::<extensions::CustomResourceDefinition>(object),
            "DaemonSet" => as_of::<DaemonSet>(object),
            "Deployment" => as_of::<Deployment>(object),
            "Namespace" => as_of::<Namespace>(object),
            "Role" => as_of::<Role>(object),
            "RoleBinding" => as_of::<RoleBinding>(object),
            "ServiceAccount" => as_of::<ServiceAccount>(object),
            "ValidatingAdmissionPolicy" => as_of::<admission::ValidatingAdmissionPolicy>(object),
            "ValidatingAdmissionPolicyBinding" => {
                as_of::<admission::ValidatingAdmissionPolicyBinding>(object)
            }
            kind => Err(format!("not checked: {kind}")),
        }
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

    #[test]
    fn kubernetes_knows_every_field() {
        for Part { object, .. } in default().parts().unwrap() {
            let known = known(&object).unwrap_or_else(|error| panic!("{error}: {object}"));
            assert_eq!(lost(&object, &known, ""), None, "{object}");
        }
        let slip = json!({"kind": "Namespace", "metadata": {"name": "x", "label": {}}});
        assert_eq!(lost(&slip, &known(&slip).unwrap(), "").as_deref(), Some(".metadata.label"));
    }

    fn default() -> Manifest {
        let image: Image = IMAGE.parse().unwrap();
        let pull_policy = PullPolicy::of(&image);
        Manifest { image, pull_policy, trust_domain: "cluster.local".parse().unwrap() }
    }

    #[test]
    fn the_manifest_reads_as_it_was_written() {
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
}
