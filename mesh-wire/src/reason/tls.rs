//! Why a TLS handshake or session failed, and the alert that tells the other side.
//!
//! The judging side knows everything; the other side sees an alert of one byte. Each reason has one
//! alert, and each alert leads back to one reason. So both sides report the same reason, or one
//! reports the coarser of two (docs/wire.md, alerts).

use mesh_api::Fault;
use rustls::AlertDescription as Alert;
use rustls::{Error, PeerIncompatible, PeerMisbehaved};

use super::numbered;
use crate::identity::verifier::PeerRejection;

/// The side that found the fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JudgedBy {
    /// This agent: it knows the details.
    Us,
    /// The other agent: we know its alert.
    Peer,
}

numbered! {
    /// Why TLS failed, and the alert that tells the other side (RFC 8446 §6.2). "The judged side"
    /// is the one whose certificate or message was wrong.
    TlsReason(u8), alert, from_alert;
    WrongIdentity = 49, WrongIdentity;
    ForeignTrustDomain = 46, ForeignTrustDomain;
    MalformedIdentity = 42, MalformedIdentity;
    CertificateExpired = 45, CertificateExpired;
    CertificateNotYetValid = 45, CertificateNotYetValid;
    UnknownAnchor = 48, UnknownAnchor;
    WrongPurpose = 43, WrongCertificatePurpose;
    BadSignature = 51, BadSignature;
    NoCertificate = 116, NoClientCertificate;
    TlsVersion = 70, TlsVersion;
    NoAlpn = 120, NoAlpn;
    NothingInCommon = 40, NoTlsParametersInCommon;
    BadRecord = 20, BadRecord;
    OversizedRecord = 22, OversizedRecord;
    MalformedMessage = 50, MalformedMessage;
    UnexpectedMessage = 10, UnexpectedMessage;
    IllegalParameter = 47, IllegalParameter;
    TlsInternal = 80, TlsInternal;
    _ = OtherAlert, OtherAlert, "TLS alert {}";
}

impl TlsReason {
    /// The party at fault.
    pub fn fault(self, judged_by: JudgedBy) -> Option<Fault> {
        let fault = self.reason().fault();
        match (self, judged_by) {
            (Self::OtherAlert(_), _) | (_, JudgedBy::Us) => fault,
            (_, JudgedBy::Peer) => fault.map(Fault::seen_by_peer),
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
            Error::PeerMisbehaved(PeerMisbehaved::IncorrectBinder) => Self::BadSignature,
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
