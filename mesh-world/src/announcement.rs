//! `MeshNode`: what a node's agent says it has captured.
//!
//! One object per node with one form: cluster-scoped in Kubernetes, a file in file mode. Unknown
//! fields are ignored, since two versions of the agent talk during an upgrade.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::{Mode, PortSet};
use serde::{Deserialize, Deserializer, Serialize};

use super::address::parse_address;
use super::names::{NodeName, PodUid, check_label, check_subdomain};

/// Most pods that one node may announce: as many as one agent can capture (`limits::LOCAL_PODS`).
/// It is a node's share of every other agent's memory and tables.
const MAX_PODS: usize = 1024;
/// Most addresses of one pod; Kubernetes gives at most two.
const MAX_ADDRESSES: usize = 4;
/// Most addresses of all pods of a node: two for each.
const MAX_ADDRESSES_OF_NODE: usize = 2 * MAX_PODS;
/// Most pairs of an address and an excepted port over all pods of a node. It is twice what 110 pods
/// of two addresses can have, so that no author of annotations reaches it. Each pair is an entry in
/// tables of every other agent.
const MAX_PORTS: usize = 1 << 20;
const MAX_SHORT_TEXT_BYTES: usize = 253;
/// Most trust anchors that one node may name; a change of CA needs two.
const MAX_ANCHORS: usize = 16;

/// The latest announcement of every node, by the node's name.
pub type Announcements = BTreeMap<NodeName, Arc<MeshNode>>;

/// All that one node announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Wire", into = "Wire")]
pub struct MeshNode {
    /// The node that speaks.
    pub node: NodeName,
    /// `/proc/sys/kernel/random/boot_id` of the node: what it said in an earlier boot is void.
    pub boot_id: String,
    /// The trust domain of its identities.
    pub trust_domain: String,
    /// Its CAs; agents of earlier versions do not say.
    pub ca: Option<AnnouncedCa>,
    /// The captured pods.
    pub pods: Vec<AnnouncedPod>,
}

/// A node's CAs, each by the SHA-256 of its certificate, hexadecimal. No agent trusts a CA because
/// it is listed here. The list only says which nodes a change of CA waits for and names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncedCa {
    /// The one that signs.
    #[serde(deserialize_with = "short_text")]
    pub issuer: String,
    /// Those that are trusted.
    #[serde(deserialize_with = "anchors")]
    pub anchors: Vec<String>,
}

/// One captured pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AnnouncedPod {
    /// `metadata.uid`.
    pub uid: PodUid,
    /// Its namespace.
    #[serde(deserialize_with = "namespace")]
    pub namespace: String,
    /// Its name.
    #[serde(deserialize_with = "dns_name")]
    pub name: String,
    /// Its service account, hence its identity.
    #[serde(deserialize_with = "dns_name")]
    pub service_account: String,
    /// Its addresses; IPv4-mapped ones as IPv4.
    #[serde(deserialize_with = "addresses")]
    pub addresses: Vec<IpAddr>,
    /// Whether it refuses what does not come through the mesh.
    pub mode: Mode,
    /// Ports on which it is not in the mesh.
    #[serde(default, skip_serializing_if = "PortSet::is_empty")]
    pub exclude_ports: PortSet,
    /// Ports on which it takes plaintext although it is strict. There, mesh TLS whose source
    /// address or port was changed on the way reaches the application.
    #[serde(default, skip_serializing_if = "PortSet::is_empty")]
    pub permissive_ports: PortSet,
    /// Rises with every change of this entry, so that a peer can say which version it has seen.
    #[serde(default)]
    pub generation: u64,
}

/// The Kubernetes form of a [`MeshNode`].
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Wire {
    api_version: ApiVersion,
    kind: Kind,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Serialize, Deserialize)]
enum ApiVersion {
    #[serde(rename = "nodemesh.dev/v1alpha1")]
    V1Alpha1,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    MeshNode,
}

#[derive(Serialize, Deserialize)]
struct Metadata {
    name: NodeName,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    #[serde(deserialize_with = "short_text")]
    boot_id: String,
    #[serde(deserialize_with = "dns_name")]
    trust_domain: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ca: Option<AnnouncedCa>,
    #[serde(default, deserialize_with = "pods")]
    pods: Vec<AnnouncedPod>,
}

impl From<Wire> for MeshNode {
    fn from(wire: Wire) -> Self {
        let Spec { boot_id, trust_domain, ca, pods } = wire.spec;
        Self { node: wire.metadata.name, boot_id, trust_domain, ca, pods }
    }
}

impl From<MeshNode> for Wire {
    fn from(announcement: MeshNode) -> Self {
        let MeshNode { node, boot_id, trust_domain, ca, pods } = announcement;
        Self {
            api_version: ApiVersion::V1Alpha1,
            kind: Kind::MeshNode,
            metadata: Metadata { name: node },
            spec: Spec { boot_id, trust_domain, ca, pods },
        }
    }
}

fn checked<'de, D: Deserializer<'de>>(
    deserializer: D,
    check: impl FnOnce(&str) -> Result<(), String>,
) -> Result<String, D::Error> {
    let text = String::deserialize(deserializer)?;
    check(&text).map_err(serde::de::Error::custom)?;
    Ok(text)
}

fn namespace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, check_label)
}

fn dns_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, check_subdomain)
}

fn short_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    checked(deserializer, |text| match text.len() {
        0..=MAX_SHORT_TEXT_BYTES => Ok(()),
        length => Err(format!("{length} bytes are more than {MAX_SHORT_TEXT_BYTES}")),
    })
}

fn anchors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.len() > MAX_ANCHORS || texts.iter().any(|text| text.len() > MAX_SHORT_TEXT_BYTES) {
        let message =
            format!("more than {MAX_ANCHORS} anchors, or a longer one than a fingerprint is");
        return Err(serde::de::Error::custom(message));
    }
    Ok(texts)
}

fn addresses<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpAddr>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.len() > MAX_ADDRESSES {
        let message = format!("{} addresses are more than {MAX_ADDRESSES}", texts.len());
        return Err(serde::de::Error::custom(message));
    }
    let parse = |text: &String| parse_address(text).map_err(serde::de::Error::custom);
    texts.iter().map(parse).collect()
}

fn pods<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<AnnouncedPod>, D::Error> {
    let pods = Vec::<AnnouncedPod>::deserialize(deserializer)?;
    if pods.len() > MAX_PODS {
        let message = format!("{} pods are more than {MAX_PODS}", pods.len());
        return Err(serde::de::Error::custom(message));
    }
    let addresses: usize = pods.iter().map(|pod| pod.addresses.len()).sum();
    if addresses > MAX_ADDRESSES_OF_NODE {
        let message =
            format!("{addresses} addresses of all pods are more than {MAX_ADDRESSES_OF_NODE}");
        return Err(serde::de::Error::custom(message));
    }
    let count = |pod: &AnnouncedPod| {
        pod.addresses.len()
            * (pod.exclude_ports.iter().count() + pod.permissive_ports.iter().count())
    };
    let ports: usize = pods.iter().map(count).sum();
    if ports > MAX_PORTS {
        let message = format!("{ports} ports at all addresses are more than {MAX_PORTS}");
        return Err(serde::de::Error::custom(message));
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object() -> Value {
        json!({
            "apiVersion": "nodemesh.dev/v1alpha1",
            "kind": "MeshNode",
            "metadata": {"name": "node2"},
            "spec": {"bootId": "b1", "trustDomain": "cluster.local", "ca": {"issuer": "ab", "anchors": ["ab", "cd"]}, "pods": [{
                "uid": "u1", "namespace": "shop", "name": "cart-0", "serviceAccount": "cart",
                "addresses": ["10.0.0.2", "fd00::2"], "mode": "strict",
                "excludePorts": "6379,8000-8010", "permissivePorts": "9102", "generation": 3,
            }]},
        })
    }

    #[test]
    fn the_form_is_that_of_a_kubernetes_object_and_survives_a_round_trip() {
        let announcement: MeshNode = serde_json::from_value(object()).unwrap();
        assert_eq!(announcement.pods[0].mode, Mode::Strict);
        assert_eq!(serde_json::to_value(&announcement).unwrap(), object());
    }

    #[test]
    fn what_another_version_adds_is_ignored() {
        let mut newer = object();
        newer["metadata"]["ownerReferences"] = json!([{"kind": "Node"}]);
        newer["spec"]["pods"][0]["future"] = json!(1);
        assert!(serde_json::from_value::<MeshNode>(newer).is_ok());
    }

    #[test]
    fn an_announcement_that_cannot_be_true_is_refused() {
        let refused = |path: &str, value: Value| {
            let mut object = object();
            *object.pointer_mut(path).unwrap() = value;
            serde_json::from_value::<MeshNode>(object).unwrap_err().to_string()
        };
        assert_eq!(
            refused("/spec/pods/0/addresses/0", json!("127.0.0.1")),
            "\"127.0.0.1\" is a loopback address"
        );
        assert_eq!(
            refused("/spec/pods/0/serviceAccount", json!("a/b")),
            "\"a/b\" is not a DNS name in lower case"
        );
        assert_eq!(refused("/kind", json!("Pod")), "unknown variant `Pod`, expected `MeshNode`");
        assert_eq!(
            refused("/spec/pods/0/addresses", json!(vec!["10.0.0.1"; 17])),
            "17 addresses are more than 4"
        );
        assert_eq!(MAX_PODS, mesh_common::maps::limits::LOCAL_PODS, "as many as can be captured");
        let pods = |count: usize, addresses: &[&str]| {
            let pod = json!({
                "uid": "u1", "namespace": "shop", "name": "cart-0", "serviceAccount": "cart",
                "addresses": addresses, "mode": "strict",
            });
            json!(vec![pod; count])
        };
        assert_eq!(refused("/spec/pods", pods(1025, &[])), "1025 pods are more than 1024");
        assert_eq!(
            refused("/spec/pods", pods(683, &["10.0.0.1", "10.0.0.2", "10.0.0.3"])),
            "2049 addresses of all pods are more than 2048"
        );
        // 1,024 ports each, as annotations may name.
        let pod = json!({
            "uid": "u1", "namespace": "shop", "name": "cart-0", "serviceAccount": "cart",
            "addresses": ["10.0.0.2", "fd00::2", "fd00::3", "fd00::4"], "mode": "strict",
            "excludePorts": "1-1024",
        });
        assert_eq!(
            refused("/spec/pods", json!(vec![pod; 257])),
            "1052672 ports at all addresses are more than 1048576"
        );
    }
}
