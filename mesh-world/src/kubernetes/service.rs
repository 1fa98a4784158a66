//! `v1/Service`.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    ClientIPConfig, Service, ServicePort, ServiceSpec, SessionAffinityConfig,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{named, namespaced_name, port_number, some_text, texts};
use crate::address::{ADDRESS_HINT, parse_address};
use crate::objects::{Protocol, ServiceKind, ServiceObject, ServicePortObject, TargetPort};
use crate::origin::{FieldError, Origin};

/// `spec.sessionAffinityConfig.clientIP.timeoutSeconds`, where the object does not say it.
const DEFAULT_AFFINITY_S: u32 = 10_800;

impl ServiceObject {
    /// Converts an object that was read at the place `locate` adds to its origin.
    pub fn parse(
        service: &Service,
        locate: impl FnOnce(Origin) -> Origin,
    ) -> Result<Self, FieldError> {
        let name = namespaced_name(&service.metadata)?;
        let origin = locate(Origin::api("Service", Some(&name.namespace), &name.name));
        let empty = ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&empty);
        let kind = kind(spec);
        let cluster_ips = match kind {
            ServiceKind::ClusterIp => cluster_ips(spec)?,
            ServiceKind::Headless | ServiceKind::ExternalName => Vec::new(),
        };
        let ports = spec.ports.as_deref().unwrap_or_default();
        Ok(Self {
            origin,
            name,
            kind,
            cluster_ips,
            ports: ports.iter().enumerate().map(port).collect::<Result<_, _>>()?,
            publish_not_ready: spec.publish_not_ready_addresses == Some(true),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            affinity_s: affinity_s(spec),
            outside_ips: outside_ips(service),
        })
    }
}

impl From<&ServiceObject> for Service {
    /// What is kept of it, as it is read.
    fn from(service: &ServiceObject) -> Self {
        let ServiceObject { origin: _, name, kind, cluster_ips, ports, .. } = service;
        let ServiceObject { publish_not_ready, local_only, affinity_s, outside_ips, .. } = service;
        let affinity = |seconds: &u32| SessionAffinityConfig {
            client_ip: Some(ClientIPConfig { timeout_seconds: i32::try_from(*seconds).ok() }),
        };
        let port = |port: &ServicePortObject| ServicePort {
            name: some_text(&port.name),
            port: port.port.into(),
            target_port: Some(match &port.target_port {
                TargetPort::Number(number) => IntOrString::Int((*number).into()),
                TargetPort::Name(name) => IntOrString::String(name.to_string()),
            }),
            protocol: Some(port.protocol.text().to_owned()),
            node_port: port.node_port.map(Into::into),
            ..ServicePort::default()
        };
        let type_ = (*kind == ServiceKind::ExternalName).then(|| "ExternalName".to_owned());
        let cluster_ips = match kind {
            ServiceKind::ClusterIp => Some(texts(cluster_ips)),
            ServiceKind::Headless => Some(vec!["None".to_owned()]),
            ServiceKind::ExternalName => None,
        };
        let spec = ServiceSpec {
            type_,
            cluster_ips,
            ports: Some(ports.iter().map(port).collect()),
            publish_not_ready_addresses: publish_not_ready.then_some(true),
            internal_traffic_policy: local_only.then(|| "Local".to_owned()),
            session_affinity: affinity_s.map(|_| "ClientIP".to_owned()),
            session_affinity_config: affinity_s.as_ref().map(affinity),
            external_ips: (!outside_ips.is_empty()).then(|| texts(outside_ips)),
            ..ServiceSpec::default()
        };
        Self { metadata: named(name), spec: Some(spec), ..Self::default() }
    }
}

impl TryFrom<&Service> for ServiceObject {
    type Error = FieldError;
    fn try_from(service: &Service) -> Result<Self, FieldError> {
        Self::parse(service, |origin| origin)
    }
}

impl Protocol {
    /// As objects have it. Which protocol other than TCP it was is not kept.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Other => "UDP",
        }
    }

    /// An absent protocol is TCP.
    pub(super) fn parse(
        text: Option<&str>,
        field: impl FnOnce() -> String,
    ) -> Result<Self, FieldError> {
        match text {
            None | Some("TCP") => Ok(Self::Tcp),
            Some("UDP" | "SCTP") => Ok(Self::Other),
            Some(other) => Err(FieldError::new(field(), format!("unknown protocol {other:?}"))
                .hint("write TCP, UDP or SCTP")),
        }
    }
}

fn kind(spec: &ServiceSpec) -> ServiceKind {
    let none = |text: &String| text == "None";
    if spec.type_.as_deref() == Some("ExternalName") {
        ServiceKind::ExternalName
    } else if spec.cluster_ip.as_ref().is_some_and(none)
        || spec.cluster_ips.as_ref().is_some_and(|all| all.iter().any(none))
    {
        ServiceKind::Headless
    } else {
        ServiceKind::ClusterIp
    }
}

fn cluster_ips(spec: &ServiceSpec) -> Result<Vec<IpAddr>, FieldError> {
    let parse = |text: &str, field: String| {
        parse_address(text).map_err(|message| FieldError::new(field, message).hint(ADDRESS_HINT))
    };
    let list = spec.cluster_ips.as_deref().unwrap_or_default();
    if list.is_empty() {
        let single = spec.cluster_ip.as_deref().filter(|text| !text.is_empty());
        return single.map(|text| parse(text, "spec.clusterIP".to_owned())).into_iter().collect();
    }
    let each = |(i, text): (usize, &String)| parse(text, format!("spec.clusterIPs[{i}]"));
    list.iter().enumerate().map(each).collect()
}

fn affinity_s(spec: &ServiceSpec) -> Option<u32> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|it| it.client_ip.as_ref());
    let seconds = config.and_then(|it| it.timeout_seconds).and_then(|it| u32::try_from(it).ok());
    Some(seconds.unwrap_or(DEFAULT_AFFINITY_S))
}

/// Names of load balancers and unreadable addresses are left out: these addresses are only shown to
/// people.
fn outside_ips(service: &Service) -> Vec<IpAddr> {
    let external = service.spec.iter().flat_map(|spec| spec.external_ips.iter().flatten());
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|it| it.ingress.as_ref()).into_iter().flatten();
    let all = external.chain(ingress.filter_map(|it| it.ip.as_ref()));
    all.filter_map(|text| parse_address(text).ok()).collect()
}

fn port((index, port): (usize, &ServicePort)) -> Result<ServicePortObject, FieldError> {
    let field = |name: &str| format!("spec.ports[{index}].{name}");
    let number = port_number(port.port, || field("port"))?;
    let target_port = match &port.target_port {
        None => TargetPort::Number(number),
        Some(IntOrString::Int(target)) => {
            TargetPort::Number(port_number(*target, || field("targetPort"))?)
        }
        Some(IntOrString::String(name)) => TargetPort::Name(Arc::from(name.as_str())),
    };
    Ok(ServicePortObject {
        name: Arc::from(port.name.as_deref().unwrap_or_default()),
        port: number,
        target_port,
        protocol: Protocol::parse(port.protocol.as_deref(), || field("protocol"))?,
        node_port: port
            .node_port
            .and_then(|port| u16::try_from(port).ok())
            .filter(|port| *port > 0),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn convert(spec: &serde_json::Value) -> Result<ServiceObject, String> {
        let value = json!({"metadata": {"namespace": "shop", "name": "cart"}, "spec": spec});
        let service: Service = serde_json::from_value(value).unwrap();
        ServiceObject::try_from(&service).map_err(|error| error.to_string())
    }

    #[test]
    fn only_a_service_with_an_address_has_addresses() {
        let kind_and_ips = |spec: &serde_json::Value| {
            convert(spec).map(|s| (s.kind, s.cluster_ips.len())).unwrap()
        };
        let both = json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]});
        assert_eq!(kind_and_ips(&both), (ServiceKind::ClusterIp, 2));
        assert_eq!(kind_and_ips(&json!({"clusterIP": "10.96.0.1"})), (ServiceKind::ClusterIp, 1));
        assert_eq!(kind_and_ips(&json!({"clusterIP": ""})), (ServiceKind::ClusterIp, 0));
        assert_eq!(kind_and_ips(&json!({"clusterIP": "None"})), (ServiceKind::Headless, 0));
        assert_eq!(
            kind_and_ips(&json!({"type": "ExternalName", "externalName": "example.org"})),
            (ServiceKind::ExternalName, 0)
        );
    }

    #[test]
    fn a_clients_affinity_and_the_ways_in_from_outside() {
        let affinity = |spec: serde_json::Value| convert(&spec).unwrap().affinity_s;
        assert_eq!(affinity(json!({"sessionAffinity": "None"})), None);
        assert_eq!(affinity(json!({"sessionAffinity": "ClientIP"})), Some(10_800));
        let config = json!({"clientIP": {"timeoutSeconds": 60}});
        let spec = json!({"sessionAffinity": "ClientIP", "sessionAffinityConfig": config});
        assert_eq!(affinity(spec), Some(60));
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "cart"},
            "spec": {"externalIPs": ["198.51.100.1", "x"], "ports": [{"port": 80, "nodePort": 30080}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "198.51.100.2"}, {"hostname": "lb"}]}},
        }))
        .unwrap();
        let service = ServiceObject::try_from(&service).unwrap();
        let outside: Vec<_> = service.outside_ips.iter().map(ToString::to_string).collect();
        assert_eq!(outside, ["198.51.100.1", "198.51.100.2"]);
        assert_eq!(service.ports[0].node_port, Some(30080));
    }

    #[test]
    fn what_is_kept_can_be_written_and_read_again() {
        for spec in [
            json!({"clusterIPs": ["10.96.0.1", "fd00::1"], "internalTrafficPolicy": "Local",
                "publishNotReadyAddresses": true, "sessionAffinity": "ClientIP",
                "externalIPs": ["198.51.100.1"], "ports": [{"port": 80, "nodePort": 30080}, {"name": "dns", "port": 53,
                "protocol": "UDP"}, {"name": "web", "port": 443, "targetPort": "https"}]}),
            json!({"clusterIP": "None"}),
            json!({"type": "ExternalName", "externalName": "example.org"}),
        ] {
            let service = convert(&spec).unwrap();
            assert_eq!(ServiceObject::try_from(&Service::from(&service)), Ok(service));
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        let refused = |spec: serde_json::Value| convert(&spec).unwrap_err();
        assert_eq!(
            refused(json!({"ports": [{"port": 80}, {"port": 70000}]})),
            "spec.ports[1].port: 70000 is not a port"
        );
        assert_eq!(
            refused(json!({"ports": [{"port": 80, "targetPort": 0}]})),
            "spec.ports[0].targetPort: 0 is not a port"
        );
        assert_eq!(
            refused(json!({"ports": [{"port": 80, "protocol": "tcp"}]})),
            "spec.ports[0].protocol: unknown protocol \"tcp\""
        );
        assert_eq!(
            refused(json!({"clusterIPs": ["10.96.0.1", "x"]})),
            "spec.clusterIPs[1]: \"x\" is not an IP address"
        );
    }
}
