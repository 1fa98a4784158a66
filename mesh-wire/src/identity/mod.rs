//! A workload's identity, and how the other side can verify it.
//!
//! [`SpiffeId`] names a service account; [`Identities`] holds one key and certificate per service
//! account present on this node, signed through a [`Signer`]; [`PeerVerifier`] judges the peer's
//! certificate; [`TlsConfigs`] turns both into what a TLS handshake needs.

use std::time::SystemTime;

pub mod anchors;
pub mod clocks;
pub mod file_ca;
pub mod signer;
pub mod spiffe;
pub mod store;
pub(crate) mod tickets;
pub mod tls;
pub mod verifier;

pub use anchors::Anchors;
pub use clocks::Clocks;
pub use file_ca::FileCa;
pub use signer::{IssuedCertificate, SignError, Signer};
pub use spiffe::{SpiffeId, SpiffeIdError, TrustDomain};
pub use store::{Identities, Identity, IdentityError, IdentityStatus};
pub use tls::{ClientTls, ServerTls, TlsConfigs};
pub use verifier::PeerVerifier;

/// The CA that signs this node's certificates, and those that it trusts. Each is the SHA-256 of the
/// CA's certificate, hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnCa {
    /// The one that signs.
    pub issuer: String,
    /// Those that are trusted.
    pub anchors: Vec<String>,
}

/// The same of another node, as that node announces it.
#[derive(Clone, Copy, Debug)]
pub struct NodeCa<'a> {
    /// The node's name.
    pub node: &'a str,
    /// The CA that signs there.
    pub issuer: &'a String,
    /// Those that are trusted there.
    pub anchors: &'a [String],
}

/// A point in time for people, in UTC: `2026-11-23T04:43:26Z`.
pub fn date_of(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).map_or_else(
        |error| format!("a date that cannot be shown ({error})"),
        |timestamp| timestamp.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}
