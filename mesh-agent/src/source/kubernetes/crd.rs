//! The form of `MeshNode` in the API server: its `CustomResourceDefinition`. The agent writes and
//! reads [`mesh_world::MeshNode`]; a test holds the two against each other.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{CustomResource, CustomResourceExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a node's agent says it has captured. Only that node's agent may write it.
#[derive(CustomResource, Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "nodemesh.dev",
    version = "v1alpha1",
    kind = "MeshNode",
    plural = "meshnodes",
    doc = "What a node's agent says it has captured.",
    printcolumn = r#"{"name":"Trust domain","type":"string","jsonPath":".spec.trustDomain"}"#,
    printcolumn = r#"{"name":"Age","type":"date","jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub(super) struct MeshNodeSpec {
    /// The boot (`/proc/sys/kernel/random/boot_id`) of the node in which this was said.
    #[schemars(length(max = 253))]
    boot_id: String,
    /// The trust domain of the identities.
    #[schemars(length(max = 253))]
    trust_domain: String,
    /// The node's CAs, so that it is seen who has not got a new one yet. Nobody trusts a CA for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<Ca>,
    /// The pods that are captured.
    #[schemars(length(max = 4096))]
    #[serde(default)]
    pods: Vec<CapturedPod>,
}

/// CAs, each by the SHA-256 of its certificate.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct Ca {
    /// The one that signs.
    #[schemars(length(max = 253))]
    issuer: String,
    /// Those that are trusted.
    #[schemars(length(max = 16))]
    anchors: Vec<String>,
}

/// One captured pod.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
struct CapturedPod {
    /// metadata.uid of the pod.
    #[schemars(length(max = 253))]
    uid: String,
    /// The pod's namespace.
    #[schemars(length(max = 63))]
    namespace: String,
    /// The pod's name.
    #[schemars(length(max = 253))]
    name: String,
    /// The pod's service account, and so its identity.
    #[schemars(length(max = 253))]
    service_account: String,
    /// The pod's addresses.
    #[schemars(length(max = 4))]
    addresses: Vec<String>,
    /// permissive or strict.
    mode: Mode,
    /// Ports on which the pod is not in the mesh, such as 6379,8000-8010.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    exclude_ports: String,
    /// Ports on which a strict pod takes plaintext from outside the mesh.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    permissive_ports: String,
    /// Rises with every change of this entry.
    #[serde(default)]
    #[schemars(range(min = 0))]
    generation: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Permissive,
    Strict,
}

/// The `CustomResourceDefinition`, for the manifest.
pub fn mesh_node_crd() -> CustomResourceDefinition {
    MeshNode::crd()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn the_crd_has_every_field_that_is_written_and_no_other() {
        let written = json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "node1"},
            "spec": {"bootId": "b", "trustDomain": "cluster.local",
                "ca": {"issuer": "ab", "anchors": ["ab"]}, "pods": [{
                "uid": "u", "namespace": "shop", "name": "cart", "serviceAccount": "cart",
                "addresses": ["10.0.0.1"], "mode": "strict", "excludePorts": "22",
                "permissivePorts": "9102", "generation": 3}]},
        });
        let ours: mesh_world::MeshNode = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&ours).unwrap(), written);
        let theirs: MeshNode = serde_json::from_value(written.clone()).unwrap();
        assert_eq!(serde_json::to_value(&theirs).unwrap(), written);
        let crd = serde_json::to_value(mesh_node_crd()).unwrap();
        let spec = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties";
        let fields = |path: &str| {
            let fields = crd.pointer(path).and_then(Value::as_object).unwrap();
            fields.keys().cloned().collect::<Vec<_>>()
        };
        let keys = |path: &str| {
            let object = written.pointer(path).and_then(Value::as_object).unwrap();
            object.keys().cloned().collect::<Vec<_>>()
        };
        assert_eq!(fields(spec), keys("/spec"));
        assert_eq!(fields(&format!("{spec}/ca/properties")), keys("/spec/ca"));
        assert_eq!(fields(&format!("{spec}/pods/items/properties")), keys("/spec/pods/0"));
    }
}
