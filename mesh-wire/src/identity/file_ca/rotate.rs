//! `mesh-agent ca add-anchor`, `use` and `remove-anchor`: replace one CA by another without a
//! failed connection.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use zeroize::Zeroizing;

use super::{ANCHORS, Authority, CA_CERTIFICATE, CA_KEY, CaError, init, read, read_anchors};
use crate::identity::TrustDomain;

/// Trusts the CA certificates of `file` too. Returns how many of them are new.
///
/// # Errors
/// `file` or the directory's anchors cannot be used; nothing has been changed.
pub fn add_anchor(directory: &Path, file: &Path) -> Result<usize, CaError> {
    let anchors_at = directory.join(ANCHORS);
    let known = read_anchors(&anchors_at)?;
    let ours = Authority::read(directory)?.trust_domain;
    let mut blocks = blocks(&anchors_at)?;
    let before = blocks.len();
    let added = certificates(file, &ours)?;
    blocks.extend(added.into_iter().filter(|(one, _)| !known.certificates().contains(one)));
    write(&anchors_at, &blocks)?;
    Ok(blocks.len() - before)
}

/// Stops trusting the CA certificates of `file`.
///
/// # Errors
/// One of them signs here, or is no anchor here, or a file cannot be used; nothing has been
/// changed.
pub fn remove_anchor(directory: &Path, file: &Path) -> Result<(), CaError> {
    let anchors_at = directory.join(ANCHORS);
    let known = read_anchors(&anchors_at)?;
    let authority = Authority::read(directory)?;
    let removed = certificates(file, &authority.trust_domain)?;
    let removed: Vec<_> = removed.into_iter().map(|(certificate, _)| certificate).collect();
    if removed.contains(&authority.certificate) {
        return Err(CaError::AnchorInUse {
            file: file.to_owned(),
            certificate: directory.join(CA_CERTIFICATE),
        });
    }
    if let Some(_unknown) = removed.iter().find(|one| !known.certificates().contains(one)) {
        return Err(CaError::NoAnchor { file: file.to_owned(), anchors: anchors_at });
    }
    let mut blocks = blocks(&anchors_at)?;
    blocks.retain(|(certificate, _)| !removed.contains(certificate));
    write(&anchors_at, &blocks)
}

/// Signs from now on with the CA of another directory, which must be trusted here already.
///
/// # Errors
/// The other CA cannot be used or is no anchor here, or a file cannot be written.
pub fn use_ca(directory: &Path, from: &Path) -> Result<(), CaError> {
    let next = Authority::read(from)?;
    let ours = Authority::read(directory)?.trust_domain;
    if next.trust_domain != ours {
        let file = from.join(CA_CERTIFICATE);
        return Err(CaError::OtherTrustDomain { file, ours, theirs: next.trust_domain });
    }
    if !read_anchors(&directory.join(ANCHORS))?.certificates().contains(&next.certificate) {
        return Err(CaError::NotAnAnchor {
            certificate: from.join(CA_CERTIFICATE),
            anchors: directory.join(ANCHORS),
        });
    }
    // The key first: until the certificate follows, the two do not fit, and an agent that looks now
    // keeps what it has.
    let key = Zeroizing::new(read(&from.join(CA_KEY))?);
    init::write(&directory.join(CA_KEY), &key, 0o600, true)?;
    let certificate = read(&from.join(CA_CERTIFICATE))?;
    init::write(&directory.join(CA_CERTIFICATE), &certificate, 0o644, true)
}

/// A certificate and its PEM text.
type Block = (CertificateDer<'static>, String);

/// The CA certificates in a file, all of our trust domain.
fn certificates(file: &Path, ours: &TrustDomain) -> Result<Vec<Block>, CaError> {
    read_anchors(file)?;
    let found = blocks(file)?;
    for (certificate, _) in &found {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|e| CaError::malformed(file, "an X.509 certificate", &e))?;
        let theirs = init::trust_domain_of(&parsed)
            .ok_or_else(|| CaError::NoTrustDomain { file: file.to_owned() })?;
        if theirs != *ours {
            let (file, ours) = (file.to_owned(), ours.clone());
            return Err(CaError::OtherTrustDomain { file, ours, theirs });
        }
    }
    Ok(found)
}

/// The certificates in a file with their texts, so that those that stay are kept as they were
/// written.
fn blocks(file: &Path) -> Result<Vec<Block>, CaError> {
    let malformed = |detail: &dyn ToString| CaError::Malformed {
        file: file.to_owned(),
        expected: "PEM certificates",
        detail: detail.to_string(),
    };
    let content = read(file)?;
    let text = std::str::from_utf8(&content).map_err(|e| malformed(&e))?;
    let begin = text.match_indices(BEGIN).map(|(at, _)| at);
    let ends = begin.clone().skip(1).chain([text.len()]);
    begin
        .zip(ends)
        .map(|(from, to)| {
            let block = text.get(from..to).unwrap_or_default().trim_end();
            let certificate = CertificateDer::from_pem_slice(block.as_bytes());
            Ok((certificate.map_err(|e| malformed(&e))?, format!("{block}\n")))
        })
        .collect()
}

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

fn write(anchors: &Path, blocks: &[Block]) -> Result<(), CaError> {
    let text: String = blocks.iter().map(|(_, text)| text.as_str()).collect();
    init::write(anchors, text.as_bytes(), 0o644, true)
}
