//! The signer of our certificates: one asynchronous interface, two implementers.
//!
//! [`FileCa`](super::FileCa) signs from a directory (the mode without a cluster). The client of the
//! cluster's CA is the other. The caller does not know which one it has.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use super::{Anchors, SpiffeId};

/// The answer of [`Signer::sign`], to be awaited.
pub type SignFuture<'a> =
    Pin<Box<dyn Future<Output = Result<IssuedCertificate, SignError>> + Send + 'a>>;

/// Signs certificates for service accounts of this node.
pub trait Signer: Send + Sync {
    /// Asks for a certificate for `id` and the key of the DER-encoded request `csr_der`, whose only
    /// subject alternative name must be that identity.
    ///
    /// # Cancel safety
    /// Dropping the future gives up the request; a certificate may have been issued nevertheless.
    fn sign<'a>(&'a self, csr_der: &'a [u8], id: &'a SpiffeId) -> SignFuture<'a>;

    /// The trust anchors in force now. Cheap: called for every handshake configuration.
    fn anchors(&self) -> Arc<Anchors>;

    /// The fingerprint of the certificate of the CA that signs, if it is known.
    fn issuer(&self) -> Option<String> {
        None
    }

    /// The current problem with the CA, for `status`. What was in force before stays in force.
    fn problem(&self) -> Option<String> {
        None
    }
}

/// A certificate as it came from the signer.
#[derive(Debug, Clone)]
pub struct IssuedCertificate {
    /// The leaf first, then intermediates; no anchor.
    pub chain_der: Vec<CertificateDer<'static>>,
    /// From when it is valid (backdated because clocks differ between nodes).
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Why a certificate was not issued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The request is not what was asked for: broken, wrongly signed, or for another identity.
    #[error("the signing request for {id} is not acceptable: {detail}")]
    Request {
        /// The identity asked for.
        id: SpiffeId,
        /// What is wrong with the request.
        detail: String,
    },
    /// The signer may not sign for that identity.
    #[error("the CA refuses to sign for {id}: {detail}")]
    Refused {
        /// The identity asked for.
        id: SpiffeId,
        /// The CA's reason.
        detail: String,
    },
    /// The signer could not be reached.
    #[error("the CA cannot be reached: {detail}")]
    Unreachable {
        /// The last thing that failed.
        detail: String,
    },
    /// The signer did not answer in time.
    #[error("the CA did not answer within {} s", .after.as_secs())]
    TimedOut {
        /// How long we waited.
        after: Duration,
    },
    /// The CA's own certificate has ended, or ends too soon for any leaf.
    #[error("the CA's certificate has expired; make a new one with `mesh-agent ca init`")]
    CaExpired,
    /// The CA's key could not sign.
    #[error("the CA's key could not sign: {detail}")]
    Key {
        /// What the crypto library said.
        detail: String,
    },
}
