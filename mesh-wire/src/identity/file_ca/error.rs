//! Faults of a CA directory: each error names the file, the fault and the remedy.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::identity::anchors::AnchorsError;
use crate::identity::{TrustDomain, date_of};

/// Why a CA directory cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// There is no such file.
    #[error("{} does not exist; make a CA with `mesh-agent ca init --ca-dir {}`", .file.display(), directory(.file))]
    Missing {
        /// The file.
        file: PathBuf,
    },
    /// The file is there but cannot be read.
    #[error("{} cannot be read: {error}; run as its owner, or correct its permissions", .file.display())]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{} is not {expected}: {detail}; restore it, or make a new CA in another directory", .file.display())]
    Malformed {
        /// The file.
        file: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// Key and certificate do not belong together.
    #[error("{} is not the key of {}; put back the pair that was made together", .key.display(), .certificate.display())]
    KeyMismatch {
        /// The private key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
    },
    /// A CA certificate that has ended.
    #[error("{} expired at {}; make a new CA, add its certificate to every anchors.pem, then use it", .file.display(), date_of(*.not_after))]
    Expired {
        /// The file.
        file: PathBuf,
        /// When it ended.
        not_after: SystemTime,
    },
    /// A certificate that may not sign others.
    #[error("{} is not a CA certificate (basic constraints); give the CA's, not a leaf's", .file.display())]
    NotACa {
        /// The file.
        file: PathBuf,
    },
    /// A CA certificate that names no trust domain.
    #[error("{} names no trust domain (a URI name `spiffe://<trust-domain>`); use one made by `mesh-agent ca init`", .file.display())]
    NoTrustDomain {
        /// The file.
        file: PathBuf,
    },
    /// The file of trust anchors is not usable.
    #[error("{} {error}; it must hold the CA certificates of the mesh, at least ca.crt", .file.display())]
    Anchors {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        error: AnchorsError,
    },
    /// Peers would not accept what this CA signs.
    #[error("{} is missing from {}, so no peer would accept what it signs; append it there", .certificate.display(), .anchors.display())]
    NotAnAnchor {
        /// The CA's certificate.
        certificate: PathBuf,
        /// The file of trust anchors.
        anchors: PathBuf,
    },
    /// A CA of another trust domain.
    #[error("{} is a CA of trust domain {theirs}, but this directory is that of {ours}; identities cannot change their trust domain", .file.display())]
    OtherTrustDomain {
        /// The file.
        file: PathBuf,
        /// The directory's trust domain.
        ours: TrustDomain,
        /// The file's trust domain.
        theirs: TrustDomain,
    },
    /// The anchor to remove signs here.
    #[error("{} is {}, which signs here; use another CA first (`mesh-agent ca use`)", .file.display(), .certificate.display())]
    AnchorInUse {
        /// The file.
        file: PathBuf,
        /// The CA's certificate.
        certificate: PathBuf,
    },
    /// The anchor to remove is not an anchor here.
    #[error("{} is not in {}; nothing to remove", .file.display(), .anchors.display())]
    NoAnchor {
        /// The file.
        file: PathBuf,
        /// The file of trust anchors.
        anchors: PathBuf,
    },
    /// `init` does not overwrite.
    #[error("{} already exists; a new CA would cut off every pod signed by the old one. To replace it nevertheless: --force", .file.display())]
    Exists {
        /// The file.
        file: PathBuf,
    },
    /// A file could not be written.
    #[error("{} cannot be written: {error}; choose a directory of your own with free space", .file.display())]
    Unwritable {
        /// The file.
        file: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The crypto library failed.
    #[error("a CA key could not be made: {detail}")]
    Crypto {
        /// What it said.
        detail: String,
    },
}

impl CaError {
    pub(super) fn unreadable(file: &Path, error: io::Error) -> Self {
        let file = file.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::Missing { file },
            _ => Self::Unreadable { file, error },
        }
    }

    pub(super) fn malformed(file: &Path, expected: &'static str, detail: &impl ToString) -> Self {
        Self::Malformed { file: file.to_owned(), expected, detail: detail.to_string() }
    }
}

fn directory(file: &Path) -> std::path::Display<'_> {
    file.parent().unwrap_or(file).display()
}
