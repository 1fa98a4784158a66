//! The trust anchors: the CA certificates that may vouch for a peer. There are several during
//! rotation.

use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, TrustAnchor};

/// A set of CA certificates, at least one. Immutable; a change is a new set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchors {
    certificates: Vec<CertificateDer<'static>>,
    trusted: Vec<TrustAnchor<'static>>,
    not_after: Vec<SystemTime>,
}

impl Anchors {
    /// Reads every `CERTIFICATE` block of a PEM text.
    ///
    /// # Errors
    /// No certificate in it, or one that is not a CA certificate; the number is its place, from 1.
    pub fn from_pem(pem: &[u8]) -> Result<Self, AnchorsError> {
        let mut certificates = Vec::new();
        for (at, block) in CertificateDer::pem_slice_iter(pem).enumerate() {
            certificates.push(block.map_err(|e| AnchorsError::Pem(at + 1, e.to_string()))?);
        }
        Self::from_certificates(certificates)
    }

    /// The set of these CA certificates.
    ///
    /// # Errors
    /// As [`Anchors::from_pem`].
    pub fn from_certificates(
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, AnchorsError> {
        if certificates.is_empty() {
            return Err(AnchorsError::Empty);
        }
        let mut trusted = Vec::with_capacity(certificates.len());
        let mut not_after = Vec::with_capacity(certificates.len());
        for (at, certificate) in certificates.iter().enumerate() {
            let malformed = |e: String| AnchorsError::Malformed(at + 1, e);
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
                .map_err(|e| malformed(e.to_string()))?;
            if !parsed.is_ca() {
                return Err(AnchorsError::NotACa(at + 1));
            }
            not_after.push(system_time(parsed.validity().not_after.timestamp()));
            let anchor = webpki::anchor_from_trusted_cert(certificate)
                .map_err(|e| malformed(e.to_string()))?;
            trusted.push(anchor.to_owned());
        }
        Ok(Self { certificates, trusted, not_after })
    }

    /// The certificates, in the order given.
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// The form that path building needs.
    pub(crate) fn trusted(&self) -> &[TrustAnchor<'static>] {
        &self.trusted
    }

    /// The [`fingerprint`] of each certificate.
    pub fn fingerprints(&self) -> Vec<String> {
        self.certificates.iter().map(fingerprint).collect()
    }

    /// These, and those of the other set.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        let mut both = self.clone();
        let all = other.certificates.iter().zip(&other.trusted).zip(&other.not_after);
        for ((certificate, trusted), not_after) in all {
            if !both.certificates.contains(certificate) {
                both.certificates.push(certificate.clone());
                both.trusted.push(trusted.clone());
                both.not_after.push(*not_after);
            }
        }
        both
    }

    /// When the last of them ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after.iter().copied().max().unwrap_or(SystemTime::UNIX_EPOCH)
    }
}

/// SHA-256 of a certificate, hexadecimal, as `openssl x509 -fingerprint -sha256` prints it without
/// its colons.
pub(crate) fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    let digit = |nibble: u8| char::from_digit(u32::from(nibble), 16);
    let digest = digest(&SHA256, certificate);
    let digits = digest.as_ref().iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 0xf)]);
    digits.flatten().collect()
}

/// Why a text is no set of trust anchors. Numbers are places in the file, from 1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorsError {
    /// No `CERTIFICATE` block.
    #[error("contains no certificate")]
    Empty,
    /// A broken PEM block.
    #[error("block {0} is not PEM: {1}")]
    Pem(usize, String),
    /// A block that is not an X.509 certificate.
    #[error("certificate {0} cannot be read: {1}")]
    Malformed(usize, String),
    /// A certificate that may not sign others.
    #[error("certificate {0} is not a CA certificate (basic constraints)")]
    NotACa(usize),
}

/// Converts seconds since 1970, the form of X.509 dates, into a time. Earlier dates count as 1970.
pub(crate) fn system_time(unix_s: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_s).unwrap_or(0))
}
