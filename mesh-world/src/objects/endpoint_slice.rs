//! `discovery.k8s.io/v1/EndpointSlice`.

use std::net::IpAddr;
use std::sync::Arc;

use super::Protocol;
use crate::names::{NodeName, ObjectName, PodUid};
use crate::origin::Origin;

/// Some of a service's endpoints, all of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSliceObject {
    /// Where it was read.
    pub origin: Origin,
    /// Namespace and name of the slice.
    pub name: ObjectName,
    /// The service it belongs to, from its label; `None` without that label.
    pub service: Option<ObjectName>,
    /// The endpoints; none for `addressType: FQDN`, which has no addresses.
    pub endpoints: Vec<EndpointObject>,
    /// The ports, the same for each endpoint.
    pub ports: Vec<SlicePort>,
}

/// One endpoint, usually a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointObject {
    /// Its addresses, which are interchangeable.
    pub addresses: Vec<IpAddr>,
    /// May get new connections. An unknown condition counts as ready, as the API says.
    pub ready: bool,
    /// Could answer, whether or not it is being terminated.
    pub serving: bool,
    /// Is being terminated.
    pub terminating: bool,
    /// The node it is on.
    pub node: Option<NodeName>,
    /// The pod it is, if it is one.
    pub pod: Option<PodUid>,
    /// The zones whose clients it is meant for; empty without a hint.
    pub for_zones: Vec<Arc<str>>,
    /// The nodes whose clients it is meant for; empty without a hint.
    pub for_nodes: Vec<Arc<str>>,
}

/// One port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// The name by which the service's port finds it; may be empty.
    pub name: Arc<str>,
    /// The endpoint's port.
    pub port: u16,
    /// Its protocol.
    pub protocol: Protocol,
}
