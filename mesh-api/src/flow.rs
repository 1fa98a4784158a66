//! What a record holds, in the form that `mesh-agent flows -o json` prints.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::Fault;

/// One connection, as one agent saw it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowRecord {
    /// Number within this run of the agent.
    pub id: u64,
    /// The node whose agent saw it.
    pub node: String,
    /// Which way it went.
    pub direction: Direction,
    /// When the agent accepted it, or the kernel refused it.
    pub opened: Timestamp,
    /// How long it took in microseconds; `None` while it is open.
    pub duration_us: Option<u64>,
    /// The application that dialled.
    pub client: Party,
    /// The application that was dialled. If a service was dialled, the endpoint that was chosen.
    pub server: Party,
    /// What the application dialled.
    pub original_destination: SocketAddr,
    /// The service that the application dialled, as `namespace/name`, if it dialled one.
    pub service: Option<String>,
    /// Code of the kernel's verdict ([`Verdict`](mesh_common::verdict::Verdict)).
    pub verdict: String,
    /// How the bytes went between the nodes.
    pub security: Security,
    /// Code of how it ended ([`Outcome`](crate::Outcome)); [`FlowRecord::OPEN`] while it has not.
    pub outcome: String,
    /// The party at fault, if there is a fault. A record of an earlier version has no such field.
    #[serde(default)]
    pub fault: Option<Fault>,
    /// The same as a sentence, with the likely cause.
    pub reason: String,
    /// Bytes of the applications.
    pub bytes: Bytes,
    /// 0, or the number of connections that this record stands for: they were like this one, came
    /// to nothing in the seconds after it, and were too many to be recorded one by one.
    #[serde(default)]
    pub alike: u64,
}

impl FlowRecord {
    /// The outcome of a connection that has not ended.
    pub const OPEN: &'static str = "open";
}

/// Which way a connection went, seen from the node of the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// A pod of this node dialled.
    Outbound,
    /// A pod of this node was dialled.
    Inbound,
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// Its port, as the application knows it.
    pub port: u16,
    /// The pod that has the address, as `namespace/name`, if the agent knows it.
    pub pod: Option<String>,
    /// The SPIFFE id that was proven in TLS, or that the node's kernel knows; `None` in plaintext.
    pub identity: Option<String>,
}

impl fmt::Display for Party {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = SocketAddr::new(self.address, self.port);
        match &self.pod {
            Some(pod) => write!(f, "{pod} ({address})"),
            None => address.fmt(f),
        }
    }
}

/// How the bytes went between the nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Security {
    /// Mutual TLS between the two pods' identities.
    Mtls(TlsFacts),
    /// Plaintext, as the application sent the bytes, and why.
    Plaintext {
        /// Code of the reason ([`PlaintextReason`](crate::PlaintextReason)).
        why: String,
    },
    /// Between two pods of one node, through its agent and without TLS. The kernel knows who dials.
    Local,
    /// No bytes went.
    None,
}

/// What TLS agreed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsFacts {
    /// The version.
    pub version: String,
    /// The cipher suite.
    pub cipher_suite: String,
    /// The key exchange.
    pub key_exchange: String,
    /// The port of the destination pod that was dialled. A record of an earlier version has no such
    /// field: that version knew one port.
    #[serde(default)]
    pub wire_port: WirePort,
}

/// Which port of the destination pod TLS goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WirePort {
    /// The application's own.
    #[default]
    Application,
    /// The agents': the path changes source addresses or ports.
    Agents,
}

/// Bytes of the applications, each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bytes {
    /// From the client to the server.
    pub sent: u64,
    /// From the server to the client.
    pub received: u64,
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json, to_value};

    use super::*;

    fn record() -> Value {
        let party = json!({"address": "10.0.0.1", "port": 80, "pod": null, "identity": null});
        json!({
            "id": 1, "node": "node1", "direction": "outbound", "opened": "2026-01-02T03:04:05Z",
            "duration_us": 7, "client": party, "server": party,
            "original_destination": "10.0.0.1:80", "service": null, "verdict": "redirect_peer",
            "security": {"kind": "none"}, "outcome": "session_truncated", "reason": "",
            "bytes": {"sent": 0, "received": 0}, "alike": 0,
        })
    }

    #[test]
    fn a_record_of_an_earlier_version_is_read_and_names_no_fault() {
        let read: FlowRecord = from_value(record()).unwrap();
        assert_eq!(read.fault, None);
    }

    #[test]
    fn an_earlier_version_finds_in_a_record_all_that_it_knows() {
        let read = FlowRecord { fault: Some(Fault::Peer), ..from_value(record()).unwrap() };
        let mut written = to_value(&read).unwrap();
        assert_eq!(written.as_object_mut().unwrap().remove("fault"), Some(json!("peer")));
        assert_eq!(written, record());
        assert_eq!(from_value::<FlowRecord>(to_value(&read).unwrap()).unwrap(), read);
    }
}
