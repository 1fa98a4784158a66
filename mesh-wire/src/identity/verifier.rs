//! Judges a peer's certificate: a path to one of our anchors, valid dates, the right purpose,
//! exactly one SPIFFE id of our trust domain, and the identity we expected.
//!
//! The path is judged first: a peer that cannot show a path learns nothing about what we expected.
//! rustls passes on only an alert. So the exact reason is left in a per-thread slot, which the code
//! that drives the handshake empties (see [`observed`]). That works because rustls calls verifiers
//! synchronously, on the caller's thread.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, PeerIncompatible,
    SignatureScheme,
};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::{Anchors, Clocks, SpiffeId, SpiffeIdError, TrustDomain, date_of};

/// Our verifier, for both sides of a handshake.
#[derive(Debug)]
pub struct PeerVerifier {
    anchors: Arc<Anchors>,
    trust_domain: TrustDomain,
    expected: Option<SpiffeId>,
    algorithms: WebPkiSupportedAlgorithms,
    clocks: Option<Arc<Clocks>>,
    /// Chains that it has accepted. The lock is taken once or twice by a handshake.
    accepted: Mutex<HashMap<ChainDigest, AcceptedChain>>,
}

/// A SHA-256 of a purpose and a chain of certificates.
type ChainDigest = [u8; 32];

/// What a verifier has found out about a chain.
#[derive(Debug, Clone)]
struct AcceptedChain {
    id: SpiffeId,
    /// All its certificates are valid in this time, in seconds since 1970.
    valid: RangeInclusive<u64>,
}

/// The longest chain that is looked at. A ticket that a peer gives us has a copy of its chain.
const MAX_CHAIN_BYTES: usize = 32 * 1024;

/// Chains that a verifier remembers; the peers of one service account have fewer. Beyond it, all
/// are forgotten.
const MOST_ACCEPTED: usize = 1024;

impl PeerVerifier {
    /// A verifier that accepts `expected` only, or any identity of the trust domain if `None`
    /// (policy then decides, once the handshake is done).
    pub fn new(
        anchors: Arc<Anchors>,
        trust_domain: TrustDomain,
        expected: Option<SpiffeId>,
        provider: &CryptoProvider,
    ) -> Self {
        let algorithms = provider.signature_verification_algorithms;
        let accepted = Mutex::default();
        Self { anchors, trust_domain, expected, algorithms, clocks: None, accepted }
    }

    /// The same verifier, which also notes peers whose clock differs.
    #[must_use]
    pub fn noting(self, clocks: Arc<Clocks>) -> Self {
        Self { clocks: Some(clocks), ..self }
    }

    /// Judges a chain at a given time, for one purpose. One that was accepted is known again for as
    /// long as all its certificates are valid.
    ///
    /// # Errors
    /// The first thing wrong with it, path before names.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: Purpose,
    ) -> Result<SpiffeId, PeerRejection> {
        let bytes: usize = intermediates.iter().map(|it| it.len()).sum();
        if bytes + leaf.len() > MAX_CHAIN_BYTES {
            let detail =
                format!("its chain has {} bytes, more than {MAX_CHAIN_BYTES}", bytes + leaf.len());
            return Err(PeerRejection::MalformedCertificate { detail });
        }
        let digest = digest_of(leaf, intermediates, purpose);
        if let Some(known) = self.accepted.lock().get(&digest)
            && known.valid.contains(&now.as_secs())
        {
            return Ok(known.id.clone());
        }
        let id = self.verify_anew(leaf, intermediates, now, purpose)?;
        if let Some(valid) = validity(leaf, intermediates) {
            let mut accepted = self.accepted.lock();
            if accepted.len() >= MOST_ACCEPTED {
                accepted.clear();
            }
            accepted.insert(digest, AcceptedChain { id: id.clone(), valid });
        }
        Ok(id)
    }

    fn verify_anew(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: Purpose,
    ) -> Result<SpiffeId, PeerRejection> {
        let usage = match purpose {
            Purpose::Server => KeyUsage::server_auth(),
            Purpose::Client => KeyUsage::client_auth(),
        };
        let certificate = EndEntityCert::try_from(leaf).map_err(|e| path_rejection(&e))?;
        certificate
            .verify_for_usage(
                self.algorithms.all,
                self.anchors.trusted(),
                intermediates,
                now,
                usage,
                None,
                None,
            )
            .map_err(|e| path_rejection(&e))?;
        let presented = spiffe_id_of(leaf)?;
        if *presented.trust_domain() != self.trust_domain {
            let ours = self.trust_domain.clone();
            return Err(PeerRejection::ForeignTrustDomain { ours, presented });
        }
        match &self.expected {
            Some(expected) if *expected != presented => {
                Err(PeerRejection::UnexpectedIdentity { expected: expected.clone(), presented })
            }
            _ => Ok(presented),
        }
    }

    fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        purpose: Purpose,
    ) -> Result<(), rustls::Error> {
        let verified = self.verify(leaf, intermediates, now, purpose);
        match (&self.clocks, &verified) {
            (Some(clocks), Ok(id)) => clocks.is_right(id),
            (Some(clocks), Err(PeerRejection::NotYetValid { not_before_unix_s })) => {
                // A stranger's certificate says nothing about clocks: apart from its dates it must
                // be of the mesh.
                let begins = Duration::from_secs(*not_before_unix_s);
                let then = UnixTime::since_unix_epoch(begins);
                if let Ok(id) = self.verify(leaf, intermediates, then, purpose) {
                    clocks.is_ahead(id, begins.saturating_sub(Duration::from_secs(now.as_secs())));
                }
            }
            _ => {}
        }
        verified.map(drop).map_err(|rejection| {
            let error = rejection.as_rustls();
            SLOT.with_borrow_mut(|slot| *slot = Some(rejection));
            rustls::Error::InvalidCertificate(error)
        })
    }
}

fn digest_of(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    purpose: Purpose,
) -> ChainDigest {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(&[purpose as u8]);
    for certificate in std::iter::once(leaf).chain(intermediates) {
        context.update(&(certificate.len() as u64).to_be_bytes());
        context.update(certificate);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

/// When all of a chain's certificates are valid, in seconds since 1970. `None` if there is no such
/// time, or one cannot be read.
fn validity(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Option<RangeInclusive<u64>> {
    let (mut from, mut until) = (0, u64::MAX);
    for certificate in std::iter::once(leaf).chain(intermediates) {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
        from = from.max(u64::try_from(parsed.validity().not_before.timestamp()).ok()?);
        until = until.min(u64::try_from(parsed.validity().not_after.timestamp()).ok()?);
    }
    (from <= until).then_some(from..=until)
}

/// What the certificate is used for by the peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// The peer accepted our connection.
    Server,
    /// The peer connected to us.
    Client,
}

/// The one SPIFFE id that a certificate carries.
///
/// # Errors
/// No URI name, several, or one that is not a SPIFFE id as we write them.
pub fn spiffe_id_of(leaf: &CertificateDer<'_>) -> Result<SpiffeId, PeerRejection> {
    presented(leaf).map(|(id, _not_after)| id)
}

/// As [`spiffe_id_of`], with the end of the certificate's life.
pub(crate) fn presented(
    leaf: &CertificateDer<'_>,
) -> Result<(SpiffeId, SystemTime), PeerRejection> {
    let malformed =
        |detail: &str| PeerRejection::MalformedCertificate { detail: detail.to_owned() };
    let (_, parsed) =
        x509_parser::parse_x509_certificate(leaf).map_err(|e| malformed(&e.to_string()))?;
    let mut uris = Vec::new();
    for extension in parsed.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => {
                for name in &names.general_names {
                    match name {
                        GeneralName::URI(uri) => uris.push(*uri),
                        GeneralName::Invalid(..) => {
                            return Err(malformed("a subject alternative name cannot be read"));
                        }
                        _ => {}
                    }
                }
            }
            ParsedExtension::ParseError { .. } => {
                return Err(malformed("an extension cannot be read"));
            }
            _ => {}
        }
    }
    match uris.as_slice() {
        [uri] => match uri.parse() {
            Ok(id) => Ok((id, SystemTime::from(parsed.validity().not_after.to_datetime()))),
            Err(why) => {
                let uri = uri.chars().take(MAX_SHOWN_URI).collect();
                Err(PeerRejection::MalformedSpiffeId { uri, why })
            }
        },
        others => Err(PeerRejection::NotOneUri { found: others.len() }),
    }
}

/// The longest URI of a stranger's certificate that is shown, in characters.
const MAX_SHOWN_URI: usize = 200;

/// Why we do not accept a peer's certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerRejection {
    /// Not X.509, or an extension that cannot be read.
    #[error("the peer's certificate cannot be read: {detail}")]
    MalformedCertificate {
        /// What the parser said.
        detail: String,
    },
    /// It has ended.
    #[error(
        "the peer's certificate expired at {}; its node cannot renew it, or a clock is wrong",
        date_of_unix(*.not_after_unix_s)
    )]
    Expired {
        /// When it ended, seconds since 1970.
        not_after_unix_s: u64,
    },
    /// It has not begun.
    #[error(
        "the peer's certificate is valid only from {}; a clock is wrong",
        date_of_unix(*.not_before_unix_s)
    )]
    NotYetValid {
        /// When it begins, seconds since 1970.
        not_before_unix_s: u64,
    },
    /// No path to one of our anchors.
    #[error(
        "the peer's certificate was not issued by any of our trust anchors; two CAs, or an anchor is missing here"
    )]
    UnknownAnchor,
    /// Not made for TLS clients or servers.
    #[error("the peer's certificate is not meant for this purpose (extended key usage)")]
    WrongPurpose,
    /// Signed with an algorithm that we do not accept.
    #[error("the peer's certificate is signed with an algorithm that is not accepted here")]
    UnsupportedSignature,
    /// No URI name, or several.
    #[error("the peer's certificate carries {found} URI names instead of exactly one SPIFFE id")]
    NotOneUri {
        /// How many there are.
        found: usize,
    },
    /// Its URI name is no SPIFFE id as the mesh writes them.
    #[error("the peer's certificate names `{uri}`, which is not a SPIFFE id of the mesh: {why}")]
    MalformedSpiffeId {
        /// The name, cut to 200 characters.
        uri: String,
        /// What is wrong with it.
        why: SpiffeIdError,
    },
    /// An identity of another trust domain, under an anchor of ours.
    #[error("the peer is {presented}, but our trust domain is {ours}")]
    ForeignTrustDomain {
        /// Our trust domain.
        ours: TrustDomain,
        /// The identity that the certificate names.
        presented: SpiffeId,
    },
    /// A valid identity, but not that of the destination.
    #[error(
        "the peer is {presented}, but {expected} was expected; its address may have passed to another pod"
    )]
    UnexpectedIdentity {
        /// The identity that was expected.
        expected: SpiffeId,
        /// The identity that the certificate names.
        presented: SpiffeId,
    },
}

impl PeerRejection {
    /// The rustls error whose alert tells the peer as much as it may know (docs/wire.md, alerts).
    fn as_rustls(&self) -> CertificateError {
        match self {
            Self::MalformedCertificate { .. } => CertificateError::BadEncoding,
            Self::Expired { .. } => CertificateError::Expired,
            Self::NotYetValid { .. } => CertificateError::NotValidYet,
            Self::UnknownAnchor => CertificateError::UnknownIssuer,
            Self::WrongPurpose => CertificateError::InvalidPurpose,
            Self::UnsupportedSignature => CertificateError::BadSignature,
            Self::NotOneUri { .. } | Self::MalformedSpiffeId { .. } => {
                CertificateError::NotValidForName
            }
            Self::ForeignTrustDomain { .. } => {
                CertificateError::Other(OtherError(Arc::new(self.clone())))
            }
            Self::UnexpectedIdentity { .. } => CertificateError::ApplicationVerificationFailure,
        }
    }
}

thread_local! {
    static SLOT: RefCell<Option<PeerRejection>> = const { RefCell::new(None) };
}

/// Runs a step of a handshake. Returns its result, and why a [`PeerVerifier`] rejected the peer in
/// it.
pub fn observed<R>(step: impl FnOnce() -> R) -> (R, Option<PeerRejection>) {
    SLOT.take();
    let result = step();
    (result, SLOT.take())
}

fn path_rejection(error: &webpki::Error) -> PeerRejection {
    use webpki::Error as E;
    match error {
        E::CertExpired { not_after, .. } => {
            PeerRejection::Expired { not_after_unix_s: not_after.as_secs() }
        }
        E::CertNotValidYet { not_before, .. } => {
            PeerRejection::NotYetValid { not_before_unix_s: not_before.as_secs() }
        }
        // Another CA of the same name: its key does not fit. To people that means "not our anchor".
        E::UnknownIssuer
        | E::InvalidSignatureForPublicKey
        | E::PathLenConstraintViolated
        | E::EndEntityUsedAsCa
        | E::NameConstraintViolation
        | E::MaximumPathBuildCallsExceeded
        | E::MaximumPathDepthExceeded
        | E::MaximumSignatureChecksExceeded => PeerRejection::UnknownAnchor,
        E::RequiredEkuNotFoundContext(_) | E::EmptyEkuExtension | E::CaUsedAsEndEntity => {
            PeerRejection::WrongPurpose
        }
        E::UnsupportedSignatureAlgorithmContext(_)
        | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_)
        | E::SignatureAlgorithmMismatch => PeerRejection::UnsupportedSignature,
        other => PeerRejection::MalformedCertificate { detail: other.to_string() },
    }
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>, // an address; identities are not addresses
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now, Purpose::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[] // a peer has one certificate; hints would only make the handshake longer
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.judge(end_entity, intermediates, now, Purpose::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn date_of_unix(seconds: u64) -> String {
    date_of(UNIX_EPOCH + Duration::from_secs(seconds))
}
