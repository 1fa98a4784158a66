//! A record as it is stored: codes, and names that are shared with others, so that it stays small.
//! It becomes text, a [`FlowRecord`], only when it is printed.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use jiff::Timestamp;
use mesh_api::{Bytes, Direction, Fault, FlowRecord, Outcome, PlaintextReason, TlsFacts, WirePort};
use mesh_common::verdict::Verdict;
use mesh_wire::{TlsInfo, identity::SpiffeId};
use mesh_world::ObjectName;

/// One connection, as this agent saw it. The fields are those of [`FlowRecord`].
#[derive(Clone, Debug)]
pub struct Record {
    pub(super) id: u64,
    pub(super) node: Arc<str>,
    pub(super) direction: Direction,
    pub(super) opened: Timestamp,
    pub(super) duration_us: Option<u64>,
    /// The application that dialled.
    pub client: Party,
    /// The application that was dialled, or the endpoint that was chosen.
    pub server: Party,
    /// What the application dialled.
    pub original_destination: SocketAddr,
    /// The service that it dialled.
    pub service: Option<ObjectName>,
    pub(super) verdict: Verdict,
    /// How the bytes travel between the nodes.
    pub security: Security,
    /// `None` while it has not ended.
    pub(super) outcome: Option<Outcome>,
    pub(super) fault: Option<Fault>,
    pub(super) reason: Cow<'static, str>,
    pub(super) bytes: Bytes,
    pub(super) alike: u64,
}

/// One end of a connection.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its address.
    pub address: IpAddr,
    /// Its port, as the application knows it.
    pub port: u16,
    /// The pod that has the address, if the agent knows it.
    pub pod: Option<ObjectName>,
    /// The identity that was proven in TLS, or that the node's kernel knows.
    pub identity: Option<SpiffeId>,
}

/// How the bytes travel between the nodes.
#[derive(Clone, Debug)]
pub enum Security {
    /// Mutual TLS, to the application's port or to the agents'.
    Mtls(TlsInfo, WirePort),
    /// Plaintext, and why.
    Plaintext(PlaintextReason),
    /// On one node, without TLS.
    Local,
    /// No bytes travelled.
    None,
}

impl Party {
    /// An end of which nothing but the address is known yet.
    pub fn at(address: SocketAddr) -> Self {
        let (address, port) = (address.ip().to_canonical(), address.port());
        Self { address, port, pod: None, identity: None }
    }
}

impl Record {
    /// The end that is on this node.
    pub(super) fn local(&self) -> &Party {
        match self.direction {
            Direction::Outbound => &self.client,
            Direction::Inbound => &self.server,
        }
    }
}

impl From<&Record> for FlowRecord {
    fn from(record: &Record) -> Self {
        Self {
            id: record.id,
            node: record.node.to_string(),
            direction: record.direction,
            opened: record.opened,
            duration_us: record.duration_us,
            client: (&record.client).into(),
            server: (&record.server).into(),
            original_destination: record.original_destination,
            service: record.service.as_ref().map(ObjectName::to_string),
            verdict: record.verdict.code().to_owned(),
            security: (&record.security).into(),
            outcome: record.outcome.map_or(Self::OPEN, Outcome::code).to_owned(),
            fault: record.fault,
            reason: record.reason.to_string(),
            bytes: record.bytes,
            alike: record.alike,
        }
    }
}

impl From<&Party> for mesh_api::Party {
    fn from(party: &Party) -> Self {
        Self {
            address: party.address,
            port: party.port,
            pod: party.pod.as_ref().map(ObjectName::to_string),
            identity: party.identity.as_ref().map(SpiffeId::to_string),
        }
    }
}

impl From<&Security> for mesh_api::Security {
    fn from(security: &Security) -> Self {
        match *security {
            Security::Mtls(TlsInfo { version, cipher, key_exchange }, wire_port) => {
                Self::Mtls(TlsFacts {
                    version: version.to_owned(),
                    cipher_suite: cipher.to_owned(),
                    key_exchange: key_exchange.to_owned(),
                    wire_port,
                })
            }
            Security::Plaintext(why) => Self::Plaintext { why: why.code().to_owned() },
            Security::Local => Self::Local,
            Security::None => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{json, to_value};

    use super::*;

    #[test]
    fn a_record_is_printed_as_text() {
        let party = |address: &str, pod, account: &str| Party {
            pod: Some(ObjectName::new("shop", pod)),
            identity: format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().ok(),
            ..Party::at(address.parse().unwrap())
        };
        let tls = TlsInfo { version: "TLSv1_3", cipher: "AES", key_exchange: "X25519MLKEM768" };
        let record = Record {
            id: 1,
            node: "node1".into(),
            direction: Direction::Outbound,
            opened: "2026-01-02T03:04:05Z".parse().unwrap(),
            duration_us: Some(7),
            client: party("10.0.0.1:40000", "web-1", "web"),
            server: party("[::ffff:10.0.0.2]:8080", "cart-1", "cart"),
            original_destination: "10.96.0.2:80".parse().unwrap(),
            service: Some(ObjectName::new("shop", "cart")),
            verdict: Verdict::RedirectService,
            security: Security::Mtls(tls, WirePort::Agents),
            outcome: Some(Outcome::Ended(mesh_api::Reason::ApplicationReset)),
            fault: Some(Fault::Application),
            reason: "reset".into(),
            bytes: Bytes { sent: 3, received: 4 },
            alike: 0,
        };
        let printed = |record: &Record| to_value(FlowRecord::from(record)).unwrap();
        let mut told = json!({
            "id": 1, "node": "node1", "direction": "outbound", "opened": "2026-01-02T03:04:05Z",
            "duration_us": 7, "client": {
                "address": "10.0.0.1", "port": 40000, "pod": "shop/web-1",
                "identity": "spiffe://cluster.local/ns/shop/sa/web",
            },
            "server": {
                "address": "10.0.0.2", "port": 8080, "pod": "shop/cart-1",
                "identity": "spiffe://cluster.local/ns/shop/sa/cart",
            },
            "original_destination": "10.96.0.2:80", "service": "shop/cart",
            "verdict": "redirect_service", "security": {
                "kind": "mtls", "version": "TLSv1_3", "cipher_suite": "AES",
                "key_exchange": "X25519MLKEM768", "wire_port": "agents",
            },
            "outcome": "application_reset", "fault": "application", "reason": "reset",
            "bytes": {"sent": 3, "received": 4}, "alike": 0,
        });
        assert_eq!(printed(&record), told);
        let security = Security::Plaintext(PlaintextReason::OwnAddress);
        told["security"] = json!({"kind": "plaintext", "why": "own_address"});
        told["outcome"] = json!("open");
        assert_eq!(printed(&Record { security, outcome: None, ..record }), told);
    }
}
