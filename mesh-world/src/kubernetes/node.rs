//! `v1/Node`: the ranges of pods' addresses, and addresses that no pod has.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, NodeAddress, NodeSpec, NodeStatus, NodeSystemInfo};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{object_name, texts};
use crate::address::{ADDRESS_HINT, parse_address};
use crate::cidr::Cidr;
use crate::objects::NodeObject;
use crate::origin::{FieldError, Origin};

const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Annotations that name an address of a tunnel's end.
const TUNNELS: [&str; 4] = [
    "projectcalico.org/IPv4IPIPTunnelAddr",
    "projectcalico.org/IPv4VXLANTunnelAddr",
    "projectcalico.org/IPv6VXLANTunnelAddr",
    "projectcalico.org/IPv4WireguardInterfaceAddr",
];

/// An annotation of flannel, whose tunnel's end has the first address of the node's range.
const FLANNEL: &str = "flannel.alpha.coreos.com/backend-type";

impl NodeObject {
    /// Converts an object that was read at the place `locate` adds to its origin.
    pub fn parse(node: &Node, locate: impl FnOnce(Origin) -> Origin) -> Result<Self, FieldError> {
        let name = object_name(&node.metadata)?;
        let spec = node.spec.as_ref();
        let list = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
        let pod_cidrs = match spec.and_then(|spec| spec.pod_cidr.as_deref()) {
            Some(one) if list.is_empty() && !one.is_empty() => {
                vec![range(one, "spec.podCIDR".to_owned())?]
            }
            _ => {
                let each = |(i, text): (usize, &String)| range(text, format!("spec.podCIDRs[{i}]"));
                list.iter().enumerate().map(each).collect::<Result<_, _>>()?
            }
        };
        let addresses = addresses(node.status.as_ref())?;
        let tunnels = tunnels(&node.metadata, &pod_cidrs);
        let info = node.status.as_ref().and_then(|status| status.node_info.as_ref());
        let boot_id = info.map(|info| info.boot_id.clone()).filter(|id| !id.is_empty());
        let origin = locate(Origin::api("Node", None, &name));
        let zone = node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE_LABEL));
        let zone = zone.map(|zone| Arc::from(zone.as_str()));
        Ok(Self { origin, name, pod_cidrs, addresses, tunnels, boot_id, zone })
    }
}

impl From<&NodeObject> for Node {
    /// What is kept of it, as it is read.
    fn from(node: &NodeObject) -> Self {
        let NodeObject { origin: _, name, pod_cidrs, addresses, tunnels, boot_id, zone } = node;
        let tunnels = TUNNELS.iter().zip(tunnels);
        let tunnels = tunnels.map(|(key, address)| ((*key).to_owned(), address.to_string()));
        let address = |address: &IpAddr| NodeAddress {
            type_: "InternalIP".to_owned(),
            address: address.to_string(),
        };
        let boot_id = boot_id.clone();
        let node_info = boot_id.map(|boot_id| NodeSystemInfo { boot_id, ..Default::default() });
        Self {
            metadata: ObjectMeta {
                name: Some(name.to_string()),
                labels: zone
                    .as_ref()
                    .map(|zone| [(ZONE_LABEL.to_owned(), zone.to_string())].into()),
                annotations: Some(tunnels.collect()),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec { pod_cidrs: Some(texts(pod_cidrs)), ..NodeSpec::default() }),
            status: Some(NodeStatus {
                addresses: Some(addresses.iter().map(address).collect()),
                node_info,
                ..NodeStatus::default()
            }),
        }
    }
}

impl TryFrom<&Node> for NodeObject {
    type Error = FieldError;
    fn try_from(node: &Node) -> Result<Self, FieldError> {
        Self::parse(node, |origin| origin)
    }
}

fn range(text: &str, field: String) -> Result<Cidr, FieldError> {
    Cidr::parse(text).map_err(|message| {
        FieldError::new(field, message).hint("write a range such as 10.244.1.0/24")
    })
}

/// Names among the addresses (`Hostname`, `InternalDNS`) are of no use to us.
fn addresses(status: Option<&NodeStatus>) -> Result<Vec<IpAddr>, FieldError> {
    let all = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let numeric = |kind: &str| matches!(kind, "InternalIP" | "ExternalIP");
    let addresses = all.iter().enumerate().filter(|(_, address)| numeric(&address.type_));
    let parse = |(i, address): (usize, &NodeAddress)| {
        parse_address(&address.address).map_err(|message| {
            FieldError::new(format!("status.addresses[{i}].address"), message).hint(ADDRESS_HINT)
        })
    };
    addresses.map(parse).collect()
}

/// What cannot be read is left out: without it, some connections take a detour through the agent.
fn tunnels(metadata: &ObjectMeta, pod_cidrs: &[Cidr]) -> Vec<IpAddr> {
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key);
    let named = TUNNELS.iter().filter_map(|key| parse_address(annotation(key)?).ok());
    let first = pod_cidrs.iter().filter(|_| annotation(FLANNEL).is_some()).map(Cidr::first);
    let mut tunnels = Vec::new();
    for address in named.chain(first).take(TUNNELS.len()) {
        if !tunnels.contains(&address) {
            tunnels.push(address);
        }
    }
    tunnels
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn convert(value: serde_json::Value) -> Result<NodeObject, FieldError> {
        NodeObject::try_from(&serde_json::from_value::<Node>(value).unwrap())
    }

    #[test]
    fn ranges_and_addresses_are_what_is_kept_of_a_node() {
        let node = convert(json!({
            "metadata": {"name": "node1", "labels": {ZONE_LABEL: "a"}},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]},
            "status": {"addresses": [
                {"type": "InternalIP", "address": "192.168.100.1"},
                {"type": "Hostname", "address": "node1"},
                {"type": "ExternalIP", "address": "::ffff:203.0.113.7"},
            ], "nodeInfo": {
                "architecture": "", "bootID": "b1", "containerRuntimeVersion": "", "kernelVersion": "",
                "kubeProxyVersion": "", "kubeletVersion": "", "machineID": "", "operatingSystem": "",
                "osImage": "", "systemUUID": "",
            }},
        }))
        .unwrap();
        let ranges: Vec<_> = node.pod_cidrs.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.244.1.0/24", "fd00:1::/64"]);
        let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["192.168.100.1", "203.0.113.7"]);
        assert_eq!((node.boot_id.as_deref(), node.zone.as_deref()), (Some("b1"), Some("a")));
        assert_eq!(NodeObject::try_from(&Node::from(&node)), Ok(node), "written and read again");
        let spec = json!({"podCIDR": "10.244.2.0/24"});
        let one = convert(json!({"metadata": {"name": "node2"}, "spec": spec})).unwrap();
        assert_eq!(one.pod_cidrs, [Cidr::parse("10.244.2.0/24").unwrap()]);
        let bare = convert(json!({"metadata": {"name": "node3"}})).unwrap();
        assert!(bare.pod_cidrs.is_empty() && bare.addresses.is_empty());
    }

    #[test]
    fn the_ends_of_tunnels_are_the_nodes() {
        let node = |annotations| {
            let spec = json!({"podCIDRs": ["10.244.1.0/24", "fd00:1::/64"]});
            let metadata = json!({"name": "node1", "annotations": annotations});
            let node = convert(json!({"metadata": metadata, "spec": spec})).unwrap();
            assert_eq!(NodeObject::try_from(&Node::from(&node)), Ok(node.clone()), "kept");
            node.tunnels.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(node(json!({})), [""; 0]);
        assert_eq!(node(json!({FLANNEL: "vxlan"})), ["10.244.1.0", "fd00:1::"]);
        assert_eq!(
            node(json!({TUNNELS[0]: "?", TUNNELS[1]: "10.244.1.1", TUNNELS[2]: "fd00:1::1"})),
            ["10.244.1.1", "fd00:1::1"]
        );
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let refused = |spec, status| {
            let node = json!({"metadata": {"name": "n"}, "spec": spec, "status": status});
            convert(node).unwrap_err().to_string()
        };
        assert_eq!(
            refused(json!({"podCIDRs": ["10.0.0.0/8", "10.0.0.0"]}), json!({})),
            "spec.podCIDRs[1]: \"10.0.0.0\" is not a range of IP addresses"
        );
        let addresses = json!({"addresses": [{"type": "InternalIP", "address": "node1"}]});
        assert_eq!(
            refused(json!({}), addresses),
            "status.addresses[0].address: \"node1\" is not an IP address"
        );
    }
}
