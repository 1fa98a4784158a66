//! One key and certificate per service account that has a pod on this node.
//!
//! Keys are made here and never leave. Readers (every handshake) take no lock. A certificate is
//! renewed at half of its life, or at once if the clock is before or after its dates. While renewal
//! fails, the old certificate stays in use for as long as it is valid, and the failure is shown.
//! Existing connections continue with the keys they have.

mod issue;
mod renew;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use tokio::sync::Notify;

use super::signer::{SignError, Signer};
use super::tls::TlsCache;
use super::{Anchors, Clocks, OwnCa, PeerVerifier, SpiffeId, date_of};
use crate::SingleFlight;

/// A service account's key and certificate, as used in handshakes.
pub struct Identity {
    id: SpiffeId,
    key: Arc<CertifiedKey>,
    serial: String,
    issued_at: SystemTime,
    not_before: SystemTime,
    not_after: SystemTime,
    /// To be renewed as soon as possible, whatever its dates.
    outdated: AtomicBool,
    clocks: Arc<Clocks>,
    pub(super) tls: TlsCache,
}

impl Identity {
    /// The identity that it proves.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// The certificate chain and the key that signs with it.
    pub fn certified_key(&self) -> &Arc<CertifiedKey> {
        &self.key
    }

    /// The certificate's serial number, hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// What this node knows of other clocks.
    pub(super) fn clocks(&self) -> &Arc<Clocks> {
        &self.clocks
    }

    /// Until when it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// When it is due for renewal: half-way between being issued and its end.
    pub fn renew_at(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.issued_at).unwrap_or_default();
        self.issued_at + life / 2
    }

    /// Whether it must be replaced as soon as possible, even before half of its life: its CA does
    /// not sign any more, or the present is outside its dates. The clock may have been wrong when
    /// it was signed, and be right now.
    fn is_outdated(&self) -> bool {
        self.outdated.load(Ordering::Relaxed) || !self.is_valid()
    }

    /// Whether its dates allow it to be shown to a peer now.
    pub fn is_valid(&self) -> bool {
        let now = SystemTime::now();
        self.not_before <= now && now < self.not_after
    }

    /// The report for people while it is not valid.
    pub fn problem(&self) -> Option<String> {
        let Self { id, not_before, not_after, .. } = self;
        let now = SystemTime::now();
        (!self.is_valid()).then(|| {
            format!(
                "the certificate of {id} is valid from {} to {}, and this node's clock says {}: peers refuse it until it is renewed, which is tried at once; if that does not help, the clock is wrong",
                date_of(*not_before), date_of(*not_after), date_of(now)
            )
        })
    }
}

/// The identities of this node.
pub struct Identities {
    signer: Arc<dyn Signer>,
    current: ArcSwap<HashMap<SpiffeId, Arc<Identity>>>,
    issuing: SingleFlight<SpiffeId>,
    failures: Mutex<BTreeMap<SpiffeId, RenewalFailure>>,
    announced_ca: Mutex<Option<OwnCa>>,
    clocks: Arc<Clocks>,
    changed: Notify,
}

impl Identities {
    /// An empty store whose certificates come from `signer`.
    pub fn new(signer: Arc<dyn Signer>) -> Self {
        Self {
            signer,
            current: ArcSwap::default(),
            issuing: SingleFlight::default(),
            failures: Mutex::default(),
            announced_ca: Mutex::default(),
            clocks: Arc::default(),
            changed: Notify::new(),
        }
    }

    /// The identity of `id`, made and signed if this node has no valid one. Of several callers at
    /// once, one does it.
    ///
    /// # Errors
    /// The signer said no or could not be asked, or what it sent is not what was asked for.
    ///
    /// # Cancel safety
    /// Safe: another waiting caller takes over.
    pub async fn ensure(&self, id: &SpiffeId) -> Result<Arc<Identity>, IdentityError> {
        if let Some(identity) = self.valid(id) {
            return Ok(identity);
        }
        let _turn = self.issuing.turn(id.clone()).await;
        if let Some(identity) = self.valid(id) {
            return Ok(identity);
        }
        self.issue(id, issue::Occasion::Wanted).await
    }

    /// The identity of `id`, if this node has one; perhaps expired. Takes no lock.
    pub fn current(&self, id: &SpiffeId) -> Option<Arc<Identity>> {
        self.current.load().get(id).cloned()
    }

    /// Forgets every identity that `keep` does not name. Their keys are erased with the last
    /// handshake in progress; connections that were made with them continue.
    pub fn retain(&self, keep: &BTreeSet<SpiffeId>) {
        self.current.rcu(|known| {
            let mut next = HashMap::clone(known);
            next.retain(|id, _| keep.contains(id));
            next
        });
        self.failures.lock().retain(|id, _| keep.contains(id));
        self.changed.notify_one();
    }

    /// Has every identity signed anew, now, because another CA signs. Until then the old ones stay
    /// in use.
    pub fn renew_all(&self) {
        for identity in self.current.load().values() {
            identity.outdated.store(true, Ordering::Relaxed);
        }
        self.changed.notify_one();
    }

    /// The report on peers whose clock differs from this node's.
    pub fn clock_problem(&self) -> Option<String> {
        self.clocks.problem()
    }

    /// Problems with certificates that are in use now.
    pub fn problems(&self) -> Vec<String> {
        let current = self.current.load();
        let mut problems: Vec<_> = current.values().filter_map(|one| one.problem()).collect();
        problems.sort();
        problems
    }

    /// The current problem with the CA.
    pub fn ca_problem(&self) -> Option<String> {
        self.signer.problem()
    }

    /// What this node announces of the CA. While certificates wait to be signed by another CA, the
    /// previous announcement is still true.
    pub fn announced_ca(&self) -> Option<OwnCa> {
        let mut announced = self.announced_ca.lock();
        let signs = self.signer.issuer()?;
        let issuer = match announced.take() {
            Some(before) if !self.are_renewed() => before.issuer,
            _ => signs,
        };
        *announced = Some(OwnCa { issuer, anchors: self.anchors().fingerprints() });
        announced.clone()
    }

    /// Whether no certificate waits to be signed anew.
    pub fn are_renewed(&self) -> bool {
        self.current.load().values().all(|identity| !identity.is_outdated())
    }

    /// The trust anchors in force now.
    pub fn anchors(&self) -> Arc<Anchors> {
        self.signer.anchors()
    }

    /// Every identity of this node, by name, for `status`.
    pub fn status(&self) -> Vec<IdentityStatus> {
        let failures = self.failures.lock().clone();
        let current = self.current.load();
        let ids: BTreeSet<_> = current.keys().chain(failures.keys()).cloned().collect();
        ids.into_iter()
            .map(|id| IdentityStatus {
                certificate: current.get(&id).cloned(),
                failure: failures.get(&id).cloned(),
                id,
            })
            .collect()
    }

    fn valid(&self, id: &SpiffeId) -> Option<Arc<Identity>> {
        self.current(id).filter(|identity| identity.is_valid())
    }
}

/// What `status` shows of one identity.
#[derive(Debug, Clone)]
pub struct IdentityStatus {
    /// The identity.
    pub id: SpiffeId,
    /// The certificate in use, if there is one; it may have expired.
    pub certificate: Option<Arc<Identity>>,
    /// Why it could not be had or renewed, if the last attempt failed.
    pub failure: Option<RenewalFailure>,
}

/// The last of a series of failed attempts to get a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewalFailure {
    /// Why the last attempt failed.
    pub error: IdentityError,
    /// How many failed in a row.
    pub attempts: u32,
    /// When the last one failed.
    pub at: SystemTime,
}

/// Why there is no new certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// A key or request could not be made here.
    #[error("a key for {id} could not be made on this node: {detail}")]
    Key {
        /// The identity that the key was for.
        id: SpiffeId,
        /// What the crypto library said.
        detail: String,
    },
    /// The signer did not issue it.
    #[error(transparent)]
    Signer(#[from] SignError),
    /// The signer issued something other than what was asked for.
    #[error("the CA's answer for {id} cannot be used: {detail}")]
    Answer {
        /// The identity that the certificate was for.
        id: SpiffeId,
        /// What is wrong with it.
        detail: String,
    },
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("id", &self.id)
            .field("serial", &self.serial)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Identities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identities")
            .field("current", &self.current.load().values())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
