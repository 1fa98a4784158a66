//! Why a TLS handshake or session failed, and the alert that tells the other side.
//!
//! The judging side knows everything; the other side sees an alert of one byte. Each reason has one
//! alert, and each alert leads back to one reason. So both sides report the same reason, or one
//! reports the coarser of two (docs/wire.md, alerts).

use std::fmt;

use rustls::AlertDescription as Alert;
use rustls::{Error, PeerIncompatible};

use super::Fault;
use crate::identity::verifier::PeerRejection;

/// The side that found the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JudgedBy {
    /// This agent: it knows the details.
    Us,
    /// The other agent: we know its alert.
    Peer,
}

impl JudgedBy {
    /// Stable code, for flows.
    pub const fn as_code(self) -> &'static str {
        match self {
            Self::Us => "us",
            Self::Peer => "peer",
        }
    }
}

/// Why TLS failed. "The judged side" is the one whose certificate or message was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TlsReason {
    /// A valid identity, but not the one expected.
    WrongIdentity,
    /// An identity of another trust domain.
    ForeignTrustDomain,
    /// The certificate cannot be read, or does not carry exactly one SPIFFE id of ours.
    MalformedIdentity,
    /// The certificate has ended. To the side that sees only the alert, it may also not have begun.
    CertificateExpired,
    /// The certificate has not begun.
    CertificateNotYetValid,
    /// The certificate leads to no trust anchor of the judging side.
    UnknownAnchor,
    /// The certificate is not made for this side of TLS.
    WrongPurpose,
    /// A signature does not verify, or uses an algorithm that is not accepted.
    BadSignature,
    /// The client showed no certificate.
    NoCertificate,
    /// Another version than TLS 1.3.
    TlsVersion,
    /// `nodemesh/1` was not offered or not chosen.
    NoAlpn,
    /// No cipher suite, group or signature scheme in common.
    NothingInCommon,
    /// A record that does not decrypt: altered on the way, or the keys differ.
    BadRecord,
    /// A record longer than TLS allows.
    OversizedRecord,
    /// A message or frame that cannot be read.
    MalformedMessage,
    /// A message or frame that may not come now.
    UnexpectedMessage,
    /// Values that contradict each other or the protocol.
    IllegalParameter,
    /// The TLS library of one side failed.
    TlsInternal,
    /// An alert without a meaning in the protocol; the number is its own.
    OtherAlert(u8),
}

impl TlsReason {
    /// Every reason but [`TlsReason::OtherAlert`].
    pub const ALL: [Self; 18] = [
        Self::WrongIdentity,
        Self::ForeignTrustDomain,
        Self::MalformedIdentity,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::UnknownAnchor,
        Self::WrongPurpose,
        Self::BadSignature,
        Self::NoCertificate,
        Self::TlsVersion,
        Self::NoAlpn,
        Self::NothingInCommon,
        Self::BadRecord,
        Self::OversizedRecord,
        Self::MalformedMessage,
        Self::UnexpectedMessage,
        Self::IllegalParameter,
        Self::TlsInternal,
    ];

    /// The alert that tells the other side (RFC 8446 §6.2).
    pub const fn alert(self) -> u8 {
        match self {
            Self::WrongIdentity => 49,
            Self::ForeignTrustDomain => 46,
            Self::MalformedIdentity => 42,
            Self::CertificateExpired | Self::CertificateNotYetValid => 45,
            Self::UnknownAnchor => 48,
            Self::WrongPurpose => 43,
            Self::BadSignature => 51,
            Self::NoCertificate => 116,
            Self::TlsVersion => 70,
            Self::NoAlpn => 120,
            Self::NothingInCommon => 40,
            Self::BadRecord => 20,
            Self::OversizedRecord => 22,
            Self::MalformedMessage => 50,
            Self::UnexpectedMessage => 10,
            Self::IllegalParameter => 47,
            Self::TlsInternal => 80,
            Self::OtherAlert(number) => number,
        }
    }

    /// What a received alert says.
    pub fn from_alert(number: u8) -> Self {
        Self::ALL.into_iter().find(|r| r.alert() == number).unwrap_or(Self::OtherAlert(number))
    }

    /// Stable code, for metrics and flows.
    pub const fn as_code(self) -> &'static str {
        match self {
            Self::WrongIdentity => "wrong_identity",
            Self::ForeignTrustDomain => "foreign_trust_domain",
            Self::MalformedIdentity => "malformed_identity",
            Self::CertificateExpired => "certificate_expired",
            Self::CertificateNotYetValid => "certificate_not_yet_valid",
            Self::UnknownAnchor => "unknown_anchor",
            Self::WrongPurpose => "wrong_certificate_purpose",
            Self::BadSignature => "bad_signature",
            Self::NoCertificate => "no_client_certificate",
            Self::TlsVersion => "tls_version",
            Self::NoAlpn => "no_alpn",
            Self::NothingInCommon => "no_tls_parameters_in_common",
            Self::BadRecord => "bad_record",
            Self::OversizedRecord => "oversized_record",
            Self::MalformedMessage => "malformed_message",
            Self::UnexpectedMessage => "unexpected_message",
            Self::IllegalParameter => "illegal_parameter",
            Self::TlsInternal => "tls_internal",
            Self::OtherAlert(_) => "other_alert",
        }
    }

    /// The party at fault.
    pub const fn fault(self, judged_by: JudgedBy) -> Fault {
        match (self, judged_by) {
            (
                Self::WrongIdentity
                | Self::ForeignTrustDomain
                | Self::MalformedIdentity
                | Self::CertificateExpired
                | Self::CertificateNotYetValid
                | Self::UnknownAnchor
                | Self::WrongPurpose
                | Self::NoCertificate
                | Self::TlsVersion
                | Self::NoAlpn
                | Self::NothingInCommon,
                _,
            ) => Fault::Configuration,
            (Self::TlsInternal, JudgedBy::Us) => Fault::Us,
            (_, JudgedBy::Us) | (Self::TlsInternal | Self::OtherAlert(_), JudgedBy::Peer) => {
                Fault::Peer
            }
            // The peer says that what we sent was wrong.
            (_, JudgedBy::Peer) => Fault::Us,
        }
    }

    /// What an error of rustls means, if this side found it.
    pub(crate) fn of_error(error: &Error) -> Self {
        match error {
            Error::AlertReceived(alert) => Self::from_alert(u8::from(*alert)),
            Error::NoCertificatesPresented => Self::NoCertificate,
            Error::NoApplicationProtocol => Self::NoAlpn,
            Error::DecryptError => Self::BadRecord,
            Error::PeerSentOversizedRecord => Self::OversizedRecord,
            Error::InvalidMessage(_) => Self::MalformedMessage,
            Error::InappropriateMessage { .. } | Error::InappropriateHandshakeMessage { .. } => {
                Self::UnexpectedMessage
            }
            Error::PeerIncompatible(what) => match what {
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::Tls13RequiredForQuic => Self::TlsVersion,
                _ => Self::NothingInCommon,
            },
            Error::PeerMisbehaved(_) => Self::IllegalParameter,
            Error::InvalidCertificate(error) => {
                Self::from_alert(u8::from(Alert::from(error.clone())))
            }
            _ => Self::TlsInternal,
        }
    }
}

impl From<&PeerRejection> for TlsReason {
    fn from(rejection: &PeerRejection) -> Self {
        match rejection {
            PeerRejection::MalformedCertificate { .. }
            | PeerRejection::NotOneUri { .. }
            | PeerRejection::MalformedSpiffeId { .. } => Self::MalformedIdentity,
            PeerRejection::Expired { .. } => Self::CertificateExpired,
            PeerRejection::NotYetValid { .. } => Self::CertificateNotYetValid,
            PeerRejection::UnknownAnchor => Self::UnknownAnchor,
            PeerRejection::WrongPurpose => Self::WrongPurpose,
            PeerRejection::UnsupportedSignature => Self::BadSignature,
            PeerRejection::ForeignTrustDomain { .. } => Self::ForeignTrustDomain,
            PeerRejection::UnexpectedIdentity { .. } => Self::WrongIdentity,
        }
    }
}

impl fmt::Display for TlsReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::WrongIdentity => {
                "the certificate shown is valid but names another identity than the one expected; \
                 the address may have passed to another pod"
            }
            Self::ForeignTrustDomain => "the certificate shown belongs to another trust domain",
            Self::MalformedIdentity => {
                "the certificate shown does not carry exactly one SPIFFE id of the mesh"
            }
            Self::CertificateExpired => {
                "the certificate shown is outside its dates; it could not be renewed, or a clock \
                 is wrong"
            }
            Self::CertificateNotYetValid => {
                "the certificate shown is not valid yet; a clock is wrong"
            }
            Self::UnknownAnchor => {
                "the certificate shown leads to no trust anchor; two CAs, or an anchor is missing"
            }
            Self::WrongPurpose => "the certificate shown is not made for this side of TLS",
            Self::BadSignature => "a signature in the handshake was not accepted",
            Self::NoCertificate => "the client showed no certificate; it is no agent of this mesh",
            Self::TlsVersion => "the peer does not speak TLS 1.3; it is no agent of this mesh",
            Self::NoAlpn => "the peer speaks TLS but not nodemesh/1; it is no agent of this mesh",
            Self::NothingInCommon => "no cipher suite or key exchange in common",
            Self::BadRecord => "a TLS record did not decrypt; it was altered on the way",
            Self::OversizedRecord => "a TLS record was longer than allowed",
            Self::MalformedMessage => "a message could not be read",
            Self::UnexpectedMessage => "a message came that may not come now",
            Self::IllegalParameter => "a message contradicted the protocol",
            Self::TlsInternal => "the TLS library failed; see the log of the agent that says so",
            Self::OtherAlert(number) => return write!(f, "TLS alert {number}"),
        })
    }
}
