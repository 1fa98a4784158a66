//! `v1/Pod`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodIP, PodSpec, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};

use super::{declaring, namespaced_name, required};
use crate::address::{ADDRESS_HINT, parse_address};
use crate::names::{NodeName, PodUid, check_subdomain};
use crate::objects::{NetnsRef, PodObject};
use crate::origin::{FieldError, Origin};
use crate::settings::{Declaration, NETNS_ANNOTATION};

const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";
const HASH_ANNOTATION: &str = "kubernetes.io/config.hash";

impl PodObject {
    /// Converts an object that was read at the place `locate` adds to its origin.
    pub fn parse(pod: &Pod, locate: impl FnOnce(Origin) -> Origin) -> Result<Self, FieldError> {
        let meta = &pod.metadata;
        let spec = pod.spec.as_ref();
        let status = pod.status.as_ref();
        let name = namespaced_name(meta)?;
        let origin = locate(Origin::api("Pod", Some(&name.namespace), &name.name));
        let in_file = origin.file().is_some();
        let uid = match meta.uid.as_deref() {
            // A namespace has no dot in it, so two pods cannot get the same UID.
            None if in_file => PodUid::parse(&format!("{}.{}", name.namespace, name.name)),
            uid => PodUid::parse(required(uid, "metadata.uid")?),
        }
        .map_err(|message| FieldError::new("metadata.uid", message))?;
        let (ips, ips_from_list) = addresses(status)?;
        let mesh = Declaration::parse(meta.labels.as_ref(), meta.annotations.as_ref());
        let netns = meta.annotations.as_ref().and_then(|all| all.get(NETNS_ANNOTATION));
        let netns = netns.filter(|_| in_file).map(|text| netns_annotation(text)).transpose()?;
        Ok(Self {
            origin,
            uid,
            name,
            service_account: service_account(
                spec.and_then(|spec| spec.service_account_name.as_deref()),
            )?,
            node: node_name(spec.and_then(|spec| spec.node_name.as_deref()))?,
            ips,
            host_network: spec.and_then(|spec| spec.host_network) == Some(true),
            completed: status
                .and_then(|status| status.phase.as_deref())
                .is_some_and(|phase| matches!(phase, "Succeeded" | "Failed")),
            created_s: meta.creation_timestamp.as_ref().map(|time| time.0.as_second()),
            labels: meta.labels.clone().unwrap_or_default(),
            mesh,
            netns,
            static_uid: meta.annotations.as_ref().and_then(static_uid),
            ips_from_list,
        })
    }
}

impl From<&PodObject> for Pod {
    /// What is kept of it, as it is read.
    fn from(pod: &PodObject) -> Self {
        let PodObject {
            origin: _,
            uid,
            name,
            service_account,
            node,
            ips,
            host_network,
            completed,
            created_s,
            labels,
            mesh,
            netns,
            static_uid,
            ips_from_list: _,
        } = pod;
        let mut metadata = declaring(mesh, labels.clone());
        if let Some(netns) = netns {
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(NETNS_ANNOTATION.to_owned(), netns.path().display().to_string());
        }
        if let Some(uid) = static_uid {
            let annotations = metadata.annotations.get_or_insert_default();
            annotations.insert(MIRROR_ANNOTATION.to_owned(), uid.to_string());
            annotations.insert(HASH_ANNOTATION.to_owned(), uid.to_string());
        }
        let created = created_s.and_then(|created_s| jiff::Timestamp::from_second(created_s).ok());
        let ip = |ip: &IpAddr| PodIP { ip: ip.to_string() };
        Self {
            metadata: ObjectMeta {
                uid: Some(uid.to_string()),
                creation_timestamp: created.map(Time),
                namespace: Some(name.namespace.to_string()),
                name: Some(name.name.to_string()),
                ..metadata
            },
            spec: Some(PodSpec {
                service_account_name: Some(service_account.to_string()),
                node_name: node.as_ref().map(ToString::to_string),
                host_network: host_network.then_some(true),
                ..PodSpec::default()
            }),
            status: Some(PodStatus {
                phase: completed.then(|| "Succeeded".to_owned()),
                pod_ips: Some(ips.iter().map(ip).collect()),
                ..PodStatus::default()
            }),
        }
    }
}

impl TryFrom<&Pod> for PodObject {
    type Error = FieldError;
    fn try_from(pod: &Pod) -> Result<Self, FieldError> {
        Self::parse(pod, |origin| origin)
    }
}

/// What the kubelet writes into a static pod's mirror (`pkg/kubelet/types`,
/// `pkg/kubelet/config/common.go`). Only a digest of 32 hexadecimal digits is taken. No pod of the
/// API server has such a UID, so that no object can name another pod's cgroup.
fn static_uid(annotations: &BTreeMap<String, String>) -> Option<PodUid> {
    annotations.get(MIRROR_ANNOTATION)?;
    let hash = annotations.get(HASH_ANNOTATION)?;
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let is_digest = hash.len() == 32 && hash.bytes().all(is_digit);
    PodUid::parse(hash).ok().filter(|_| is_digest)
}

fn addresses(status: Option<&PodStatus>) -> Result<(Vec<IpAddr>, bool), FieldError> {
    let Some(status) = status else {
        return Ok((Vec::new(), false));
    };
    let parse = |text: &str, field: String| {
        parse_address(text).map_err(|message| FieldError::new(field, message).hint(ADDRESS_HINT))
    };
    let list = status.pod_ips.as_deref().unwrap_or_default();
    if !list.is_empty() {
        let each =
            |(i, pod_ip): (usize, &PodIP)| parse(&pod_ip.ip, format!("status.podIPs[{i}].ip"));
        return Ok((list.iter().enumerate().map(each).collect::<Result<_, _>>()?, true));
    }
    match status.pod_ip.as_deref() {
        Some(text) if !text.is_empty() => {
            Ok((vec![parse(text, "status.podIP".to_owned())?], false))
        }
        _ => Ok((Vec::new(), false)),
    }
}

fn service_account(name: Option<&str>) -> Result<Arc<str>, FieldError> {
    let name = name.filter(|name| !name.is_empty()).unwrap_or("default");
    check_subdomain(name).map_err(|message| FieldError::new("spec.serviceAccountName", message))?;
    Ok(Arc::from(name))
}

fn node_name(name: Option<&str>) -> Result<Option<NodeName>, FieldError> {
    let name = name.filter(|name| !name.is_empty());
    name.map(NodeName::parse)
        .transpose()
        .map_err(|message| FieldError::new("spec.nodeName", message))
}

fn netns_annotation(text: &str) -> Result<NetnsRef, FieldError> {
    NetnsRef::parse(text).map_err(|message| {
        FieldError::new(format!("metadata.annotations[{NETNS_ANNOTATION}]"), message)
            .hint("write the name that `ip netns` shows, or a path such as /proc/1234/ns/net")
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn convert(value: serde_json::Value) -> Result<PodObject, FieldError> {
        PodObject::try_from(&serde_json::from_value::<Pod>(value).unwrap())
    }

    fn refused(value: serde_json::Value) -> String {
        convert(value).unwrap_err().to_string()
    }

    #[test]
    fn a_pod_is_trimmed_to_what_the_mesh_needs() {
        let pod = convert(json!({
            "metadata": {"namespace": "shop", "name": "cart-0", "uid": "u1", "labels": {"app": "cart"},
                "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"nodemesh.dev/netns": "/proc/1/ns/net"}},
            "spec": {"nodeName": "node1", "containers": []},
            "status": {"phase": "Running", "podIP": "10.0.0.9",
                "podIPs": [{"ip": "::ffff:10.0.0.9"}, {"ip": "fd00::9"}]},
        }))
        .unwrap();
        assert_eq!(pod.ips, ["10.0.0.9".parse::<IpAddr>().unwrap(), "fd00::9".parse().unwrap()]);
        assert_eq!(&*pod.service_account, "default");
        assert_eq!(pod.created_s, Some(1_767_225_600));
        assert!(!pod.completed && !pod.host_network);
        assert_eq!(pod.netns, None, "an object of the API server must not name a namespace file");
        assert_eq!(pod.address_field(pod.ips[1]), "status.podIPs[1].ip");
        assert_eq!(PodObject::try_from(&Pod::from(&pod)), Ok(pod), "written and read again");
        let odd = convert(json!({
            "metadata": {"namespace": "shop", "name": "x", "uid": "u2",
                "labels": {"nodemesh.dev/mesh": "enabled"},
                "annotations": {"nodemesh.dev/mode": "strict", "nodemesh.dev/exclude-ports": "22"}},
            "spec": {"hostNetwork": true, "serviceAccountName": "x", "containers": []},
            "status": {"phase": "Failed", "podIPs": [{"ip": "10.0.0.8"}]},
        }))
        .unwrap();
        assert_eq!(PodObject::try_from(&Pod::from(&odd)), Ok(odd), "written and read again");
    }

    #[test]
    fn only_a_mirror_names_a_digest_as_the_uid_of_its_cgroup() {
        const HASH: &str = "73bd32bbb27ec8f1e4f7ea3a3e3b2e28";
        let of = |annotations: serde_json::Value| {
            let meta = json!({"namespace": "kube-system", "name": "dns-node1", "uid": "u", "annotations": annotations});
            let pod = convert(json!({"metadata": meta})).unwrap();
            let again = PodObject::try_from(&Pod::from(&pod)).unwrap();
            assert_eq!(again.static_uid, pod.static_uid, "written and read again");
            pod.static_uid.map(|uid| uid.to_string())
        };
        let (mirror, hash) = ("kubernetes.io/config.mirror", "kubernetes.io/config.hash");
        assert_eq!(of(json!({mirror: HASH, hash: HASH})).as_deref(), Some(HASH));
        assert_eq!(of(json!({hash: HASH})), None);
        assert_eq!(of(json!({mirror: HASH})), None);
        for another in ["0a1b2c3d-0000-4000-8000-00000000000f", "../x", "", &HASH[1..]] {
            assert_eq!(of(json!({mirror: another, hash: another})), None, "{another}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let meta = json!({"namespace": "shop", "name": "cart", "uid": "u"});
        assert_eq!(
            refused(json!({"metadata": {"namespace": "shop"}})),
            "metadata.name: is missing"
        );
        assert_eq!(
            refused(json!({"metadata": {"namespace": "shop", "name": "cart"}})),
            "metadata.uid: is missing"
        );
        let ips = json!({"podIPs": [{"ip": "10.0.0.1"}, {"ip": "10.0.0"}]});
        assert_eq!(
            refused(json!({"metadata": meta, "status": ips})),
            "status.podIPs[1].ip: \"10.0.0\" is not an IP address"
        );
        assert_eq!(
            refused(json!({"metadata": meta, "status": {"podIP": "127.0.0.1"}})),
            "status.podIP: \"127.0.0.1\" is a loopback address"
        );
        let spec = json!({"serviceAccountName": "a/../b", "containers": []});
        assert_eq!(
            refused(json!({"metadata": meta, "spec": spec})),
            "spec.serviceAccountName: \"a/../b\" is not a DNS name in lower case"
        );
    }

    #[test]
    fn a_network_namespace_is_a_name_or_an_absolute_path() {
        assert_eq!(NetnsRef::parse("pod1").unwrap().path(), Path::new("/run/netns/pod1"));
        assert_eq!(NetnsRef::parse("/proc/7/ns/net").unwrap().path(), Path::new("/proc/7/ns/net"));
        for bad in ["", "a/b", "..", "./x"] {
            assert!(NetnsRef::parse(bad).is_err(), "{bad:?}");
        }
    }
}
