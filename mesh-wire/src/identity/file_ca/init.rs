//! `mesh-agent ca init`: makes a CA in a directory.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use zeroize::{Zeroize as _, Zeroizing};

use super::{ANCHORS, BACKDATE, CA_CERTIFICATE, CA_KEY, CaError, random_serial};
use crate::identity::TrustDomain;

/// A CA made by [`init`] lives ten years.
pub const CA_LIFETIME: Duration = Duration::from_hours(24 * 3650);

/// What [`init`] made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CaInfo {
    /// The CA's certificate.
    pub certificate: PathBuf,
    /// The CA's private key, mode 0600.
    pub key: PathBuf,
    /// The trust anchors, holding this one.
    pub anchors: PathBuf,
    /// The trust domain it vouches for.
    pub trust_domain: TrustDomain,
    /// When the CA's certificate ends.
    pub not_after: SystemTime,
}

/// Makes `ca.crt`, `ca.key` (0600) and `anchors.pem` in `directory`, which is created if needed:
/// P-256, ten years, no further CA below it.
///
/// # Errors
/// One of the files is already there (unless `force`), or cannot be written. Nothing of an
/// existing CA is touched without `force`.
pub fn init(directory: &Path, trust_domain: &TrustDomain, force: bool) -> Result<CaInfo, CaError> {
    let info = CaInfo {
        certificate: directory.join(CA_CERTIFICATE),
        key: directory.join(CA_KEY),
        anchors: directory.join(ANCHORS),
        trust_domain: trust_domain.clone(),
        not_after: SystemTime::now() + CA_LIFETIME,
    };
    if !force {
        for file in [&info.certificate, &info.key, &info.anchors] {
            if file.symlink_metadata().is_ok() {
                return Err(CaError::Exists { file: file.clone() });
            }
        }
    }
    let (certificate, key) =
        make(trust_domain, info.not_after).map_err(|detail| CaError::Crypto { detail })?;
    fs::create_dir_all(directory)
        .map_err(|error| CaError::Unwritable { file: directory.to_owned(), error })?;
    // The key first: a directory without a certificate is recognised as incomplete.
    write(&info.key, key.as_bytes(), 0o600, force)?;
    write(&info.certificate, certificate.as_bytes(), 0o644, force)?;
    write(&info.anchors, certificate.as_bytes(), 0o644, force)?;
    Ok(info)
}

/// The trust domain that a CA certificate in PEM names, if it is one of ours.
pub fn trust_domain_in(pem: &[u8]) -> Option<TrustDomain> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    trust_domain_of(&parsed)
}

/// The trust domain in a CA certificate: the host of its one SPIFFE URI name.
pub(super) fn trust_domain_of(certificate: &X509Certificate<'_>) -> Option<TrustDomain> {
    certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => {
            names.general_names.iter().find_map(|name| match name {
                GeneralName::URI(uri) => uri.strip_prefix("spiffe://")?.parse().ok(),
                _ => None,
            })
        }
        _ => None,
    })
}

/// Certificate and key as PEM.
pub fn make(
    trust_domain: &TrustDomain,
    not_after: SystemTime,
) -> Result<(String, Zeroizing<String>), String> {
    let text = |e: rcgen::Error| e.to_string();
    let mut key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(text)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("nodemesh CA {trust_domain}"));
    params.subject_alt_names = vec![SanType::URI(trust_domain.uri().try_into().map_err(text)?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - BACKDATE).into();
    params.not_after = not_after.into();
    params.serial_number = Some(random_serial().map_err(|()| "no random bytes".to_owned())?);
    let certificate = params.self_signed(&key).map_err(text)?.pem();
    let pem = Zeroizing::new(key.serialize_pem());
    key.zeroize();
    Ok((certificate, pem))
}

/// Writes a new file and renames it, so that a crash leaves the old content or the new.
pub(super) fn write(
    file: &Path,
    content: &[u8],
    mode: u32,
    overwrite: bool,
) -> Result<(), CaError> {
    let unwritable = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => CaError::Exists { file: file.to_owned() },
        _ => CaError::Unwritable { file: file.to_owned(), error },
    };
    let mut options = fs::OpenOptions::new();
    options.write(true).mode(mode).create_new(true);
    if !overwrite {
        let mut new = options.open(file).map_err(unwritable)?;
        return new.write_all(content).and_then(|()| new.sync_all()).map_err(unwritable);
    }
    let beside = file.with_extension("new");
    fs::remove_file(&beside).ok(); // left by a crash; if it stays, the next line says so
    let mut new = options.open(&beside).map_err(unwritable)?;
    new.write_all(content).and_then(|()| new.sync_all()).map_err(unwritable)?;
    fs::rename(&beside, file).map_err(unwritable)
}
