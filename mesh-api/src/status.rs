//! How an agent is.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{PodStatus, PortSet, ProblemFacts};

/// How an agent is. Also the form in which `mesh-agent status -o json` prints it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// Its version.
    pub version: String,
    /// Its node.
    pub node: String,
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub started: Timestamp,
    /// Its trust domain.
    pub trust_domain: String,
    /// The CA certificates that peers may be signed by: SHA-256, hexadecimal.
    pub anchors: Vec<String>,
    /// Whether it is in charge of its node and has read the world.
    #[serde(default)]
    pub ready: bool,
    /// How old its knowledge of the world is.
    #[serde(default)]
    pub knowledge: KnowledgeFacts,
    /// Whether it is draining.
    pub draining: bool,
    /// Pods of this node.
    pub pods: Vec<PodStatus>,
    /// Captured pods of other nodes, as announced.
    pub remote_peers: usize,
    /// What the agent's userspace has done.
    pub counters: NodeCounters,
    /// The kernel's verdicts by code, since its maps were made.
    pub verdicts: BTreeMap<String, u64>,
    /// The same by pod (`namespace/name`), since each was enrolled. Codes that never occurred are
    /// left out.
    pub pod_verdicts: BTreeMap<String, BTreeMap<String, u64>>,
    /// Certificates in use.
    pub identities: Vec<IdentityFacts>,
    /// What is wrong with the source or the announcements.
    pub problems: Vec<ProblemFacts>,
    /// Addresses and ports that lead to pods of the mesh, and that the mesh does not carry when a
    /// pod dials them. They are the ways to services from outside the cluster.
    #[serde(default)]
    pub not_carried: Vec<NotCarried>,
    /// Strict pods of other nodes with ports on which plaintext still reaches them.
    #[serde(default)]
    pub open_peers: Vec<OpenPeer>,
}

/// A strict pod of another node with ports on which plaintext reaches it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenPeer {
    /// The pod, as `namespace/name`.
    pub pod: String,
    /// Its node.
    pub node: String,
    /// Ports on which it is not in the mesh.
    pub exclude_ports: PortSet,
    /// Ports on which it takes plaintext although it is strict.
    pub permissive_ports: PortSet,
}

/// Ways to a service that the mesh does not carry. What its pods dial there goes as Kubernetes
/// carries it: in plaintext, which a strict pod refuses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCarried {
    /// The service, as `namespace/name`.
    pub service: String,
    /// Its port.
    pub port: u16,
    /// `externalIPs` and addresses of its load balancer.
    pub addresses: Vec<IpAddr>,
    /// Its port at every node's address.
    pub node_port: Option<u16>,
}

/// What the agent's userspace has done since it started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCounters {
    /// Connections accepted from pods.
    pub accepted_outbound: u64,
    /// Connections accepted for pods.
    pub accepted_inbound: u64,
    /// Bytes of applications that went from clients to servers.
    pub bytes_sent: u64,
    /// Bytes of applications that went from servers to clients.
    pub bytes_received: u64,
    /// Connections of pods that went to the agents' port, because the path changes source addresses
    /// or ports.
    #[serde(default)]
    pub by_agents_port: u64,
    /// Pods, announced pods and service ports that were judged while following the world.
    #[serde(default)]
    pub judged: u64,
    /// Entries of the kernel's tables of addresses and ports that were written or removed.
    #[serde(default)]
    pub table_writes: u64,
    /// Kubernetes Events that were written.
    #[serde(default)]
    pub events_written: u64,
    /// Attempts to write one that failed. What lasts is tried again.
    #[serde(default)]
    pub events_failed: u64,
    /// Problems of objects that have not been reported yet by an Event or, in file mode, in the
    /// log. They wait for their namespace's share.
    #[serde(default)]
    pub events_waiting: u64,
    /// Connections that are open.
    pub open: usize,
    /// How many may be open at once.
    pub capacity: usize,
    /// Connections that were refused because too many were open, or in their handshakes.
    pub refused_by_limits: u64,
    /// The TLS sessions that carry connections.
    #[serde(default)]
    pub sessions: SessionCounters,
    /// Bytes that the kernel holds for connections that cannot go on.
    #[serde(default)]
    pub socket_memory: usize,
    /// Reports of the kernel's refusals that found their buffer full.
    pub events_lost: u64,
}

/// TLS sessions with peers' agents. Outbound are those that this node's pods dialled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounters {
    /// Sessions that carry nothing and are kept for the next connection.
    pub kept_outbound: usize,
    /// The same, inbound.
    pub kept_inbound: usize,
    /// How many may be kept, in each direction.
    pub capacity: usize,
    /// Handshakes that led to a session.
    pub handshakes_outbound: u64,
    /// The same, inbound.
    pub handshakes_inbound: u64,
    /// Of those handshakes, the ones that resumed an earlier one.
    #[serde(default)]
    pub resumed_outbound: u64,
    /// The same, inbound.
    #[serde(default)]
    pub resumed_inbound: u64,
    /// Connections that a kept session carried, without a handshake.
    pub reused_outbound: u64,
    /// The same, inbound.
    pub reused_inbound: u64,
    /// Kept sessions that could not carry the next connection. Another session did.
    pub stale: u64,
    /// Sessions that were closed after their connection because too many were kept.
    pub not_kept: u64,
}

/// How old an agent's knowledge of the world is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnowledgeFacts {
    /// The source of the knowledge.
    pub from: KnowledgeSource,
    /// When it was last known to be true, if that is not now.
    pub as_of: Option<Timestamp>,
    /// How long ago that is, in seconds; 0 for what is known now.
    pub age_s: u64,
}

/// The source of an agent's knowledge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KnowledgeSource {
    /// None yet.
    #[default]
    Nobody,
    /// An earlier agent, by the file that it left.
    Disk,
    /// The API server, or the directory of objects.
    Source,
}

/// A certificate in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityFacts {
    /// The SPIFFE id.
    pub id: String,
    /// The certificate's serial number, if there is one.
    pub serial: Option<String>,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// Why it could not be had or renewed, if the last attempt failed.
    pub failure: Option<String>,
}
