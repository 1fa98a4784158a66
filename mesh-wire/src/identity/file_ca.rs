//! The mode without a cluster: a CA in a directory, and the agent signs for itself.
//!
//! The directory holds `ca.crt`, `ca.key` (0600) and `anchors.pem`, the CA certificates that peers
//! may be signed by (several during rotation). A process that reads `ca.key` can take any identity
//! in the mesh; in a cluster only the CA's Deployment holds it.

mod change;
mod error;
mod init;
mod rotate;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::{ArcSwap, ArcSwapOption};
use change::Change;
pub use error::CaError;
pub use init::{CA_LIFETIME, CaInfo, init, make, trust_domain_in};
use parking_lot::{Mutex, MutexGuard};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
pub use rotate::{add_anchor, remove_anchor, use_ca};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_util::sync::CancellationToken;
use zeroize::{Zeroize as _, Zeroizing};

use super::anchors::{Anchors, fingerprint, system_time};
use super::signer::{IssuedCertificate, SignError, SignFuture, Signer};
use super::{SpiffeId, TrustDomain};

/// The CA's certificate, PEM.
pub const CA_CERTIFICATE: &str = "ca.crt";
/// The CA's private key, PKCS #8 PEM.
pub const CA_KEY: &str = "ca.key";
/// The CA certificates that peers may be signed by, PEM.
pub const ANCHORS: &str = "anchors.pem";

/// A leaf's lifetime unless configured otherwise: long enough to survive a night without a CA.
pub const LEAF_LIFETIME: Duration = Duration::from_hours(24);
/// Leaves are dated back by this much, for clocks that differ between nodes.
pub const BACKDATE: Duration = Duration::from_mins(5);

/// How often the directory is checked for changes. A change is applied at the second check that
/// finds it, so that two files that change together are read together.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// A CA whose key lies in a directory.
pub struct FileCa {
    directory: PathBuf,
    trust_domain: TrustDomain,
    leaf_lifetime: Duration,
    authority: ArcSwap<Authority>,
    anchors: ArcSwap<Anchors>,
    problem: ArcSwapOption<CaError>,
    change: Mutex<Option<Change>>,
}

/// The CA that signs.
struct Authority {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    trust_domain: TrustDomain,
    not_after: SystemTime,
}

impl FileCa {
    /// Opens what [`init`] made.
    ///
    /// A key that others may read is used, with a warning in the log.
    ///
    /// # Errors
    /// Names the file, what is wrong with it, and what to do.
    pub fn open(directory: &Path) -> Result<Self, CaError> {
        let (authority, anchors) = read_both(directory)?;
        Ok(Self {
            directory: directory.to_owned(),
            trust_domain: authority.trust_domain.clone(),
            leaf_lifetime: LEAF_LIFETIME,
            authority: ArcSwap::from_pointee(authority),
            anchors: ArcSwap::from_pointee(anchors),
            problem: ArcSwapOption::empty(),
            change: Mutex::default(),
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
        self.authority.load().not_after
    }

    /// Reads the directory again. Returns whether another CA signs from now on. A CA that replaces
    /// another one waits for [`FileCa::settle`].
    ///
    /// # Errors
    /// As [`FileCa::open`], or it is a CA of another trust domain. What was in force stays in
    /// force.
    pub fn reload(&self) -> Result<bool, CaError> {
        let (authority, anchors) = read_both(&self.directory)?;
        if authority.trust_domain != self.trust_domain {
            return Err(CaError::OtherTrustDomain {
                file: self.directory.join(CA_CERTIFICATE),
                ours: self.trust_domain.clone(),
                theirs: authority.trust_domain,
            });
        }
        Ok(self.take(authority, anchors))
    }

    /// A panic elsewhere leaves the value valid: it is replaced as a whole.
    fn change(&self) -> MutexGuard<'_, Option<Change>> {
        self.change.lock()
    }

    /// Follows the directory until `stop`, and calls `changed` whenever another CA signs.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub async fn follow(&self, changed: impl Fn(), stop: CancellationToken) {
        let mut known = stamps(&self.directory);
        let mut waiting = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            let now = stamps(&self.directory);
            if now == known || waiting.as_ref() != Some(&now) {
                waiting = Some(now);
                continue;
            }
            known = now;
            match self.reload() {
                Ok(other) => {
                    self.problem.store(None);
                    if other {
                        changed();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "the CA directory has changed and cannot be used; what was in force stays so");
                    self.problem.store(Some(Arc::new(error)));
                }
            }
        }
    }

    fn sign_now(&self, csr_der: &[u8], id: &SpiffeId) -> Result<IssuedCertificate, SignError> {
        let request_error = |detail: String| SignError::Request { id: id.clone(), detail };
        if *id.trust_domain() != self.trust_domain {
            let detail = format!("this CA signs for trust domain {}", self.trust_domain);
            return Err(SignError::Refused { id: id.clone(), detail });
        }
        // Parsing verifies the request's signature, which proves that the requester holds the key.
        let request = CertificateSigningRequestParams::from_der(&csr_der.into())
            .map_err(|e| request_error(e.to_string()))?;
        let uri = uri_name(id).map_err(|e| request_error(e.to_string()))?;
        if request.params.subject_alt_names != [uri] {
            return Err(request_error("it names something else than this identity".to_owned()));
        }
        let authority = self.authority.load();
        let now = SystemTime::now();
        let not_after = now.checked_add(self.leaf_lifetime).unwrap_or(authority.not_after);
        let not_after = not_after.min(authority.not_after);
        if not_after <= now {
            return Err(SignError::CaExpired);
        }
        let not_before = now - BACKDATE;
        let mut params = leaf_params(request.params.subject_alt_names)
            .map_err(|detail| SignError::Key { detail })?;
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        let leaf = params
            .signed_by(&request.public_key, &authority.issuer)
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

    fn issuer(&self) -> Option<String> {
        Some(Self::issuer(self))
    }

    fn problem(&self) -> Option<String> {
        self.problem.load().as_ref().map(ToString::to_string)
    }
}

impl Authority {
    fn fingerprint(&self) -> String {
        fingerprint(&self.certificate)
    }

    fn read(directory: &Path) -> Result<Self, CaError> {
        let certificate_at = directory.join(CA_CERTIFICATE);
        let key_at = directory.join(CA_KEY);
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
        let mut key_der = PrivateKeyDer::from_pem_slice(&key_pem)
            .map_err(|e| CaError::malformed(&key_at, "a PKCS #8 private key in PEM", &e))?;
        let key = KeyPair::try_from(&key_der);
        key_der.zeroize();
        let mut key =
            key.map_err(|e| CaError::malformed(&key_at, "a PKCS #8 private key in PEM", &e))?;
        // The serialized form. The crypto library's own form, which signs, is erased when dropped.
        key.zeroize();
        if rcgen::PublicKeyData::subject_public_key_info(&key) != parsed.public_key().raw {
            return Err(CaError::KeyMismatch { key: key_at, certificate: certificate_at });
        }
        let issuer = Issuer::from_ca_cert_der(&der, key)
            .map_err(|e| CaError::malformed(&certificate_at, "a CA certificate", &e))?;
        Ok(Self { certificate: der.into_owned(), issuer, trust_domain, not_after })
    }
}

/// The CA and the anchors of a directory, which must fit together.
fn read_both(directory: &Path) -> Result<(Authority, Anchors), CaError> {
    let anchors_at = directory.join(ANCHORS);
    let anchors = read_anchors(&anchors_at)?;
    let authority = Authority::read(directory)?;
    if !anchors.certificates().contains(&authority.certificate) {
        let certificate = directory.join(CA_CERTIFICATE);
        return Err(CaError::NotAnAnchor { certificate, anchors: anchors_at });
    }
    Ok((authority, anchors))
}

/// The properties that change when one of the files is written or replaced: inode, size, and time
/// in nanoseconds.
type Stamps = Vec<Option<(u64, u64, i64, i64)>>;

fn stamps(directory: &Path) -> Stamps {
    let stamp = |file: &str| {
        let found = fs::metadata(directory.join(file)).ok()?;
        Some((found.ino(), found.len(), found.mtime(), found.mtime_nsec()))
    };
    [CA_CERTIFICATE, CA_KEY, ANCHORS].map(stamp).to_vec()
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

/// All of a leaf but its dates. The subject is empty, so that the identity stands in one place.
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
