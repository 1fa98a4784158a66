//! The mode without a cluster: a CA in a directory, and the agent signs for itself.
//!
//! The directory holds `ca.crt`, `ca.key` (0600) and `anchors.pem`, the CA certificates that peers
//! may be signed by (several during rotation). Whoever reads `ca.key` can be anybody in the mesh;
//! in a cluster only the CA's Deployment holds it.

mod error;
mod init;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

pub use error::CaError;
pub use init::{CA_LIFETIME, CaInfo, init};

use super::anchors::{Anchors, system_time};
use super::signer::{IssuedCertificate, SignError, SignFuture, Signer};
use super::{SpiffeId, TrustDomain};

/// The CA's certificate, PEM.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The CA's private key, PKCS #8 PEM.
pub const CA_KEY: &str = "ca.key";
/// The CA certificates that peers may be signed by, PEM.
pub const ANCHORS: &str = "anchors.pem";

/// A leaf lives this long unless told otherwise: long enough to survive a night without a CA.
pub const LEAF_LIFETIME: Duration = Duration::from_hours(24);
/// Leaves are dated back by this much, for clocks that differ between nodes.
pub const BACKDATE: Duration = Duration::from_mins(5);

/// A CA whose key lies in a directory.
pub struct FileCa {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
    trust_domain: TrustDomain,
    not_after: SystemTime,
    leaf_lifetime: Duration,
    anchors: ArcSwap<Anchors>,
}

impl FileCa {
    /// Opens what [`init`] made.
    ///
    /// A key that others may read is used, with a warning in the log.
    ///
    /// # Errors
    /// Names the file, what is wrong with it, and what to do.
    pub fn open(directory: &Path) -> Result<Self, CaError> {
        let certificate_at = directory.join(CA_CERTIFICATE);
        let key_at = directory.join(CA_KEY);
        let anchors = read_anchors(&directory.join(ANCHORS))?;

        let pem = read(&certificate_at)?;
        let der = CertificateDer::from_pem_slice(&pem)
            .map_err(|e| CaError::malformed(&certificate_at, "a PEM certificate", &e))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|e| CaError::malformed(&certificate_at, "an X.509 certificate", &e))?;
        if !parsed.is_ca() {
            return Err(CaError::NotACa { file: certificate_at });
        }
        let not_after = system_time(parsed.validity().not_after.timestamp());
        if not_after <= SystemTime::now() {
            return Err(CaError::Expired { file: certificate_at, not_after });
        }
        let trust_domain = init::trust_domain_of(&parsed)
            .ok_or_else(|| CaError::NoTrustDomain { file: certificate_at.clone() })?;

        let key_pem = Zeroizing::new(read(&key_at)?);
        warn_if_readable_by_others(&key_at);
        let key_text = std::str::from_utf8(&key_pem)
            .map_err(|e| CaError::malformed(&key_at, "a PEM private key", &e))?;
        let key = KeyPair::from_pem(key_text)
            .map_err(|e| CaError::malformed(&key_at, "a PKCS #8 private key in PEM", &e))?;
        if rcgen::PublicKeyData::subject_public_key_info(&key) != parsed.public_key().raw {
            return Err(CaError::KeyMismatch { key: key_at, certificate: certificate_at });
        }
        if !anchors.certificates().contains(&der) {
            return Err(CaError::NotAnAnchor {
                certificate: certificate_at,
                anchors: directory.join(ANCHORS),
            });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| CaError::malformed(&certificate_at, "a CA certificate", &e))?;
        Ok(Self {
            directory: directory.to_owned(),
            issuer,
            trust_domain,
            not_after,
            leaf_lifetime: LEAF_LIFETIME,
            anchors: ArcSwap::from_pointee(anchors),
        })
    }

    /// Signs for `lifetime` from now on (the agent's `--leaf-ttl`).
    #[must_use]
    pub fn with_leaf_lifetime(mut self, lifetime: Duration) -> Self {
        self.leaf_lifetime = lifetime;
        self
    }

    /// The trust domain that the CA's certificate names.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// When the CA's own certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Reads `anchors.pem` again, for a rotation without a restart.
    ///
    /// # Errors
    /// As [`FileCa::open`] for that file; the anchors in force stay as they were.
    pub fn reload_anchors(&self) -> Result<(), CaError> {
        let anchors = read_anchors(&self.directory.join(ANCHORS))?;
        if **self.anchors.load() != anchors {
            self.anchors.store(Arc::new(anchors));
        }
        Ok(())
    }

    fn sign_now(&self, csr_der: &[u8], id: &SpiffeId) -> Result<IssuedCertificate, SignError> {
        let request_error = |detail: String| SignError::Request { id: id.clone(), detail };
        if *id.trust_domain() != self.trust_domain {
            let detail = format!("this CA signs for trust domain {}", self.trust_domain);
            return Err(SignError::Refused { id: id.clone(), detail });
        }
        // Parsing verifies the request's signature: the requester holds the key.
        let request = CertificateSigningRequestParams::from_der(&csr_der.into())
            .map_err(|e| request_error(e.to_string()))?;
        let uri = uri_name(id).map_err(|e| request_error(e.to_string()))?;
        if request.params.subject_alt_names != [uri] {
            return Err(request_error("it names something else than this identity".to_owned()));
        }
        let now = SystemTime::now();
        let not_after = now.checked_add(self.leaf_lifetime).unwrap_or(self.not_after);
        let not_after = not_after.min(self.not_after);
        if not_after <= now {
            return Err(SignError::CaExpired);
        }
        let not_before = now - BACKDATE;
        let mut params = leaf_params(request.params.subject_alt_names)
            .map_err(|detail| SignError::Key { detail })?;
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let leaf = params
            .signed_by(&request.public_key, &self.issuer)
            .map_err(|e| SignError::Key { detail: e.to_string() })?;
        Ok(IssuedCertificate { chain_der: vec![leaf.into()], not_before, not_after })
    }
}

impl Signer for FileCa {
    fn sign<'a>(&'a self, csr_der: &'a [u8], id: &'a SpiffeId) -> SignFuture<'a> {
        Box::pin(async move { self.sign_now(csr_der, id) })
    }

    fn anchors(&self) -> Arc<Anchors> {
        self.anchors.load_full()
    }
}

impl std::fmt::Debug for FileCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileCa").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The subject alternative name of an identity.
///
/// # Errors
/// Never for a [`SpiffeId`], which is ASCII; rcgen's type asks for it.
pub(super) fn uri_name(id: &SpiffeId) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(id.as_str().try_into()?))
}

/// Everything of a leaf but its dates. The subject is empty: the identity stands in one place.
fn leaf_params(names: Vec<SanType>) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "nodemesh workload");
    params.subject_alt_names = names;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    params.serial_number = Some(random_serial().map_err(|()| "no random bytes".to_owned())?);
    Ok(params)
}

/// 127 random bits: RFC 5280 §4.1.2.2 wants positive numbers of at most 20 bytes.
fn random_serial() -> Result<SerialNumber, ()> {
    let mut bytes = [0u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_unspecified| ())?;
    if let Some(first) = bytes.first_mut() {
        *first = (*first & 0x7f) | 0x40;
    }
    Ok(SerialNumber::from_slice(&bytes))
}

fn read(file: &Path) -> Result<Vec<u8>, CaError> {
    fs::read(file).map_err(|error| CaError::unreadable(file, error))
}

fn read_anchors(file: &Path) -> Result<Anchors, CaError> {
    let anchors = Anchors::from_pem(&read(file)?)
        .map_err(|error| CaError::Anchors { file: file.to_owned(), error })?;
    if anchors.not_after() <= SystemTime::now() {
        return Err(CaError::Expired { file: file.to_owned(), not_after: anchors.not_after() });
    }
    Ok(anchors)
}

fn warn_if_readable_by_others(key: &Path) {
    if let Ok(metadata) = fs::metadata(key)
        && metadata.permissions().mode() & 0o077 != 0
    {
        tracing::warn!(
            file = %key.display(),
            mode = format_args!("{:o}", metadata.permissions().mode() & 0o777),
            "the CA's private key can be read by others; whoever reads it can be anybody in the \
             mesh. Do: chmod 600",
        );
    }
}

#[cfg(test)]
mod tests;
