//! What `mesh-agent flows -o json` prints, as far as the tests ask for it.

use std::net::{IpAddr, SocketAddr};

use serde::Deserialize;

use crate::Pod;

/// One connection, as one agent saw it.
#[derive(Debug, Clone, Deserialize)]
pub struct Flow {
    /// Its number, which the agent gives to no other.
    pub id: u64,
    /// `outbound` or `inbound`.
    pub direction: String,
    /// How long it took in microseconds, if it is over.
    pub duration_us: Option<u64>,
    /// The end that dialled.
    pub client: Party,
    /// The end that was dialled.
    pub server: Party,
    /// What the application dialled.
    pub original_destination: SocketAddr,
    /// The service it dialled, as `namespace/name`.
    pub service: Option<String>,
    /// The kernel's reason code.
    pub verdict: String,
    /// How the bytes went.
    pub security: Security,
    /// How it ended: a code.
    pub outcome: String,
    /// The party at fault: a code.
    pub fault: Option<String>,
    /// The same as a sentence.
    pub reason: String,
    /// The applications' bytes.
    pub bytes: Bytes,
}

/// One end.
#[derive(Debug, Clone, Deserialize)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// Its port.
    pub port: u16,
    /// The pod, as `namespace/name`.
    pub pod: Option<String>,
    /// The SPIFFE id that was proven.
    pub identity: Option<String>,
}

/// How the bytes went.
#[derive(Debug, Clone, Deserialize)]
pub struct Security {
    /// `mtls`, `plaintext` or `none`.
    pub kind: String,
    /// Why, with `plaintext`.
    pub why: Option<String>,
    /// The TLS version, with `mtls`.
    pub version: Option<String>,
    /// The key exchange, with `mtls`.
    pub key_exchange: Option<String>,
    /// `application` or `agents`, with `mtls`.
    pub wire_port: Option<String>,
}

/// Bytes each way.
#[derive(Debug, Clone, Deserialize)]
pub struct Bytes {
    /// From the client.
    pub sent: u64,
    /// From the server.
    pub received: u64,
}

impl Flow {
    /// Whether it went over mutual TLS between proven identities.
    pub fn is_mtls(&self) -> bool {
        self.security.kind == "mtls"
            && self.client.identity.is_some()
            && self.server.identity.is_some()
    }

    /// Whether it was from this pod to that port of the other pod, over either family.
    pub fn between(&self, client: &Pod, server: &Pod, port: u16) -> bool {
        client.addresses().contains(&self.client.address)
            && server.addresses().contains(&self.server.address)
            && self.server.port == port
    }
}

/// The SPIFFE id that a pod's certificate has in the default trust domain.
pub fn spiffe_id(namespace: &str, service_account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{service_account}")
}
