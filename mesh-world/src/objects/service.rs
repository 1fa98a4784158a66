//! `v1/Service`.

use std::net::IpAddr;
use std::sync::Arc;

use crate::names::ObjectName;
use crate::origin::Origin;

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceObject {
    /// Where it was read.
    pub origin: Origin,
    /// Namespace and name.
    pub name: ObjectName,
    /// What kind of service; only [`ServiceKind::ClusterIp`] has addresses of its own.
    pub kind: ServiceKind,
    /// `spec.clusterIPs`, else `spec.clusterIP`; empty for headless and `ExternalName`.
    pub cluster_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<ServicePortObject>,
    /// `spec.publishNotReadyAddresses`.
    pub publish_not_ready: bool,
    /// `spec.internalTrafficPolicy: Local`: only endpoints on the client's node.
    pub local_only: bool,
    /// `spec.sessionAffinity: ClientIP`: how long after its last connection a client keeps its
    /// endpoint, in seconds.
    pub affinity_s: Option<u32>,
    /// Addresses at which it is reached from outside: `spec.externalIPs`, and those of its load
    /// balancer.
    pub outside_ips: Vec<IpAddr>,
}

/// What a service's name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceKind {
    /// A virtual address (also `NodePort` and `LoadBalancer`).
    ClusterIp,
    /// `clusterIP: None`: DNS answers with pod addresses, so clients dial those.
    Headless,
    /// DNS answers with another name; the agent sees nothing of it.
    ExternalName,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The only one that the mesh carries.
    Tcp,
    /// Any other.
    Other,
}

/// Where a service's port leads. Kept for people: the number that counts is in the slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// A number.
    Number(u16),
    /// The name of a container's port.
    Name(Arc<str>),
}

/// One port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePortObject {
    /// Its name; empty where a service has one port without a name.
    pub name: Arc<str>,
    /// The port to dial on the service's address.
    pub port: u16,
    /// Where it leads.
    pub target_port: TargetPort,
    /// Its protocol.
    pub protocol: Protocol,
    /// The port at which every node leads to it.
    pub node_port: Option<u16>,
}
