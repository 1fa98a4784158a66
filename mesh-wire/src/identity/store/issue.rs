//! Making one identity: key, request, signature, and a check of what came back.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SigningKey};
use zeroize::{Zeroize as _, Zeroizing};

use super::{Identities, Identity, IdentityError, PeerVerifier, RenewalFailure};
use crate::identity::SpiffeId;
use crate::identity::file_ca::uri_name;
use crate::identity::signer::{IssuedCertificate, SignError};
use crate::identity::tls::{TlsCache, crypto};
use crate::identity::verifier::Purpose;

/// A signer that has not answered after this time is asked again later.
const SIGN_TIMEOUT: Duration = Duration::from_secs(20);

/// Why an identity is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Occasion {
    /// A caller waits for it.
    Wanted,
    /// Half of its life is over. If the identity was dropped meanwhile, it is not brought back.
    Renewal,
}

impl Identities {
    /// Makes, signs and publishes a new identity. Notes failures.
    pub(super) async fn issue(
        &self,
        id: &SpiffeId,
        occasion: Occasion,
    ) -> Result<Arc<Identity>, IdentityError> {
        let result = self.make(id).await;
        match &result {
            Ok(identity) => {
                self.failures.lock().remove(id);
                self.current.rcu(|known| {
                    let mut next = HashMap::clone(known);
                    if occasion == Occasion::Wanted || known.contains_key(id) {
                        next.insert(id.clone(), Arc::clone(identity));
                    }
                    next
                });
                self.changed.notify_one();
            }
            Err(error) => {
                let mut failures = self.failures.lock();
                let attempts = failures.get(id).map_or(0, |f| f.attempts).saturating_add(1);
                let at = SystemTime::now();
                failures.insert(id.clone(), RenewalFailure { error: error.clone(), attempts, at });
            }
        }
        result
    }

    async fn make(&self, id: &SpiffeId) -> Result<Arc<Identity>, IdentityError> {
        let (csr, key) =
            key_and_request(id).map_err(|detail| IdentityError::Key { id: id.clone(), detail })?;
        let issued_at = SystemTime::now();
        let issued = tokio::time::timeout(SIGN_TIMEOUT, self.signer.sign(&csr, id))
            .await
            .unwrap_or(Err(SignError::TimedOut { after: SIGN_TIMEOUT }))?;
        self.accept(id, issued, key, issued_at)
            .map(Arc::new)
            .map_err(|detail| IdentityError::Answer { id: id.clone(), detail })
    }

    /// Checks the signer's answer against what was asked, as a peer would.
    fn accept(
        &self,
        id: &SpiffeId,
        issued: IssuedCertificate,
        key: Arc<dyn SigningKey>,
        issued_at: SystemTime,
    ) -> Result<Identity, String> {
        let (leaf, intermediates) =
            issued.chain_der.split_first().ok_or("it contains no certificate")?;
        let trust_domain = id.trust_domain().clone();
        let verifier = PeerVerifier::new(self.anchors(), trust_domain, Some(id.clone()), &crypto());
        for purpose in [Purpose::Server, Purpose::Client] {
            verifier
                .verify(leaf, intermediates, UnixTime::now(), purpose)
                .map_err(|rejection| format!("a peer would say: {rejection}"))?;
        }
        let (_, parsed) =
            x509_parser::parse_x509_certificate(leaf).map_err(|error| error.to_string())?;
        let serial = parsed.tbs_certificate.raw_serial_as_string();
        let key = CertifiedKey::new(issued.chain_der, key);
        key.keys_match().map_err(|error| error.to_string())?;
        Ok(Identity {
            id: id.clone(),
            key: Arc::new(key),
            serial,
            issued_at,
            not_before: issued.not_before,
            not_after: issued.not_after,
            outdated: AtomicBool::new(false),
            clocks: Arc::clone(&self.clocks),
            tls: TlsCache::default(),
        })
    }
}

/// A new P-256 key and a request for `id` signed with it. The key's serialised bytes are erased
/// here; the crypto library erases its own copy when that is dropped.
fn key_and_request(id: &SpiffeId) -> Result<(Vec<u8>, Arc<dyn SigningKey>), String> {
    let mut pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(to_text)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri_name(id).map_err(to_text)?];
    let csr = params.serialize_request(&pair).map_err(to_text)?;
    let der = Zeroizing::new(pair.serialize_der());
    pair.zeroize();
    let key = any_supported_type(&PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_slice())))
        .map_err(|error| error.to_string())?;
    Ok((csr.der().to_vec(), key))
}

#[expect(clippy::needless_pass_by_value, reason = "map_err passes the error by value")]
fn to_text(error: rcgen::Error) -> String {
    error.to_string()
}
