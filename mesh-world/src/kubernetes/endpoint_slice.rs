//! `discovery.k8s.io/v1/EndpointSlice`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::discovery::v1::{
    Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode, ForZone,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{named, namespaced_name, port_number, some_text, texts};
use crate::address::{ADDRESS_HINT, parse_address};
use crate::names::{NodeName, ObjectName, PodUid};
use crate::objects::{EndpointObject, EndpointSliceObject, Protocol, SlicePort};
use crate::origin::{FieldError, Origin};

const SERVICE_LABEL: &str = "kubernetes.io/service-name";

impl EndpointSliceObject {
    /// Converts an object that was read at the place `locate` adds to its origin.
    pub fn parse(
        slice: &EndpointSlice,
        locate: impl FnOnce(Origin) -> Origin,
    ) -> Result<Self, FieldError> {
        let meta = &slice.metadata;
        let name = namespaced_name(meta)?;
        let origin = locate(Origin::api("EndpointSlice", Some(&name.namespace), &name.name));
        let service = meta.labels.as_ref().and_then(|labels| labels.get(SERVICE_LABEL));
        let endpoints = match slice.address_type.as_str() {
            "IPv4" | "IPv6" => {
                slice.endpoints.iter().enumerate().map(endpoint).collect::<Result<_, _>>()?
            }
            "FQDN" => Vec::new(),
            other => {
                let message = format!("unknown address type {other:?}");
                return Err(FieldError::new("addressType", message).hint("write IPv4 or IPv6"));
            }
        };
        let ports = slice.ports.as_deref().unwrap_or_default();
        let ports = ports.iter().enumerate().filter_map(|(i, p)| port(i, p).transpose());
        Ok(Self {
            origin,
            service: service.map(|service| ObjectName::new(&name.namespace, service)),
            name,
            endpoints,
            ports: ports.collect::<Result<_, _>>()?,
        })
    }
}

impl From<&EndpointSliceObject> for EndpointSlice {
    /// What is kept of it, as it is read.
    fn from(slice: &EndpointSliceObject) -> Self {
        let EndpointSliceObject { origin: _, name, service, endpoints, ports } = slice;
        let v6 = endpoints.iter().flat_map(|it| &it.addresses).any(IpAddr::is_ipv6);
        let port = |port: &SlicePort| EndpointPort {
            name: some_text(&port.name),
            port: Some(port.port.into()),
            protocol: Some(port.protocol.text().to_owned()),
            ..EndpointPort::default()
        };
        let label = |service: &ObjectName| (SERVICE_LABEL.to_owned(), service.name.to_string());
        Self {
            metadata: ObjectMeta {
                labels: service.as_ref().map(|service| BTreeMap::from([label(service)])),
                ..named(name)
            },
            address_type: if v6 { "IPv6" } else { "IPv4" }.to_owned(),
            endpoints: endpoints.iter().map(Endpoint::from).collect(),
            ports: Some(ports.iter().map(port).collect()),
        }
    }
}

impl From<&EndpointObject> for Endpoint {
    fn from(endpoint: &EndpointObject) -> Self {
        let EndpointObject { addresses, ready, serving, terminating, node, .. } = endpoint;
        let EndpointObject { pod, for_zones, for_nodes, .. } = endpoint;
        let zone = |zone: &Arc<str>| ForZone { name: zone.to_string() };
        let for_node = |node: &Arc<str>| ForNode { name: node.to_string() };
        let hints = EndpointHints {
            for_zones: (!for_zones.is_empty()).then(|| for_zones.iter().map(zone).collect()),
            for_nodes: (!for_nodes.is_empty()).then(|| for_nodes.iter().map(for_node).collect()),
        };
        let reference = |uid: &PodUid| ObjectReference {
            kind: Some("Pod".to_owned()),
            uid: Some(uid.to_string()),
            ..ObjectReference::default()
        };
        Self {
            addresses: texts(addresses),
            conditions: Some(EndpointConditions {
                ready: Some(*ready),
                serving: Some(*serving),
                terminating: Some(*terminating),
            }),
            node_name: node.as_ref().map(ToString::to_string),
            target_ref: pod.as_ref().map(reference),
            hints: (hints != EndpointHints::default()).then_some(hints),
            ..Self::default()
        }
    }
}

impl TryFrom<&EndpointSlice> for EndpointSliceObject {
    type Error = FieldError;
    fn try_from(slice: &EndpointSlice) -> Result<Self, FieldError> {
        Self::parse(slice, |origin| origin)
    }
}

fn endpoint((index, endpoint): (usize, &Endpoint)) -> Result<EndpointObject, FieldError> {
    let field = |rest: &str| format!("endpoints[{index}].{rest}");
    let address = |(i, text): (usize, &String)| {
        let error = |message| FieldError::new(field(&format!("addresses[{i}]")), message);
        parse_address(text).map_err(|message| error(message).hint(ADDRESS_HINT))
    };
    let node = endpoint.node_name.as_deref().map(NodeName::parse).transpose();
    let conditions = endpoint.conditions.as_ref();
    let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
    let hints = endpoint.hints.as_ref();
    let for_zones = hints.and_then(|hints| hints.for_zones.as_ref()).into_iter().flatten();
    let for_nodes = hints.and_then(|hints| hints.for_nodes.as_ref()).into_iter().flatten();
    let pod = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod"));
    Ok(EndpointObject {
        addresses: endpoint.addresses.iter().enumerate().map(address).collect::<Result<_, _>>()?,
        ready,
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(ready),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: node.map_err(|message| FieldError::new(field("nodeName"), message))?,
        // Only a help to people: an unusable reference is no reason to lose the endpoint.
        pod: pod.and_then(|target| PodUid::parse(target.uid.as_deref()?).ok()),
        for_zones: for_zones.map(|zone| Arc::from(zone.name.as_str())).collect(),
        for_nodes: for_nodes.map(|node| Arc::from(node.name.as_str())).collect(),
    })
}

/// A port without a number means "all ports" and cannot be what a service's port leads to.
fn port(index: usize, port: &EndpointPort) -> Result<Option<SlicePort>, FieldError> {
    let field = |name: &str| format!("ports[{index}].{name}");
    let Some(number) = port.port else {
        return Ok(None);
    };
    Ok(Some(SlicePort {
        name: Arc::from(port.name.as_deref().unwrap_or_default()),
        port: port_number(number, || field("port"))?,
        protocol: Protocol::parse(port.protocol.as_deref(), || field("protocol"))?,
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn convert(mut value: serde_json::Value) -> Result<EndpointSliceObject, String> {
        let labels = json!({SERVICE_LABEL: "cart"});
        value["metadata"] = json!({"namespace": "shop", "name": "cart-x", "labels": labels});
        let slice: EndpointSlice = serde_json::from_value(value).unwrap();
        EndpointSliceObject::try_from(&slice).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_said_has_the_meaning_that_the_api_gives_it() {
        let slice = convert(json!({
            "addressType": "IPv4",
            "endpoints": [
                {"addresses": ["10.0.0.1"]},
                {"addresses": ["10.0.0.2"], "conditions": {"ready": false}, "nodeName": "node1",
                 "targetRef": {"kind": "Pod", "uid": "u2"},
                 "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]}},
            ],
            "ports": [{"port": 8080}, {"name": "all"}],
        }))
        .unwrap();
        assert_eq!(slice.service, Some(ObjectName::new("shop", "cart")));
        let [first, second] = &slice.endpoints[..] else { panic!("two endpoints") };
        assert!(first.ready && first.serving && !first.terminating);
        assert!(!second.ready && !second.serving);
        assert_eq!(second.pod.as_ref().unwrap().as_str(), "u2");
        assert_eq!((&*second.for_zones[0], &*second.for_nodes[0]), ("a", "node1"));
        assert_eq!(slice.ports.len(), 1, "a port without a number leads nowhere");
        assert_eq!(slice.ports[0].protocol, Protocol::Tcp);
        let again = EndpointSliceObject::try_from(&EndpointSlice::from(&slice));
        assert_eq!(again, Ok(slice), "written and read again");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let bad = json!([{"addresses": ["10.0.0.1"]}, {"addresses": ["10.0.0.2", "x"]}]);
        assert_eq!(
            convert(json!({"addressType": "IPv4", "endpoints": bad})).unwrap_err(),
            "endpoints[1].addresses[1]: \"x\" is not an IP address"
        );
        assert_eq!(
            convert(json!({"addressType": "ipv4", "endpoints": []})).unwrap_err(),
            "addressType: unknown address type \"ipv4\""
        );
        let fqdn = json!({"addressType": "FQDN", "endpoints": [{"addresses": ["a.example"]}]});
        assert!(convert(fqdn).unwrap().endpoints.is_empty());
    }
}
