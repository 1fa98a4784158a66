//! Identities over their life: made once, renewed in time, kept when the CA is away, forgotten.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::*;
use crate::identity::signer::SignFuture;
use crate::identity::{FileCa, TlsConfigs, TrustDomain, file_ca};

/// A CA that counts, and that can be away.
struct CountingCa {
    ca: FileCa,
    signed: AtomicUsize,
    away: AtomicBool,
    directory: tempfile::TempDir,
}

impl CountingCa {
    fn new(lifetime: Duration) -> Arc<Self> {
        let directory = tempfile::tempdir().unwrap();
        file_ca::init(directory.path(), &domain(), false).unwrap();
        let ca = FileCa::open(directory.path()).unwrap().with_leaf_lifetime(lifetime);
        let (signed, away) = (AtomicUsize::new(0), false.into());
        Arc::new(Self { ca, signed, away, directory })
    }
}

impl Signer for CountingCa {
    fn sign<'a>(&'a self, csr_der: &'a [u8], id: &'a SpiffeId) -> SignFuture<'a> {
        Box::pin(async move {
            tokio::task::yield_now().await;
            if self.away.load(Ordering::Relaxed) {
                return Err(SignError::Unreachable { detail: "test".to_owned() });
            }
            self.signed.fetch_add(1, Ordering::Relaxed);
            self.ca.sign(csr_der, id).await
        })
    }

    fn anchors(&self) -> Arc<Anchors> {
        self.ca.anchors()
    }
}

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

const DAY: Duration = Duration::from_hours(24);

async fn until(what: &str, condition: impl Fn() -> bool) {
    let limit = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < limit, "{what}: not in time");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn many_callers_make_one_request() {
    let ca = CountingCa::new(DAY);
    let identities = Identities::new(Arc::<CountingCa>::clone(&ca));
    assert!(identities.current(&id("web")).is_none());
    let web = id("web");
    let (a, b, c) =
        tokio::join!(identities.ensure(&web), identities.ensure(&web), identities.ensure(&web));
    let (a, b, c) = (a.unwrap(), b.unwrap(), c.unwrap());
    assert!(Arc::ptr_eq(&a, &b) && Arc::ptr_eq(&b, &c));
    assert_eq!(ca.signed.load(Ordering::Relaxed), 1);
    assert!(a.is_valid() && a.serial().len() > 20);
    let half = a.renew_at().duration_since(SystemTime::now()).unwrap();
    assert!(half + Duration::from_mins(1) > DAY / 2 && half <= DAY / 2, "{half:?}");
    let cart = identities.ensure(&id("cart")).await.unwrap();
    assert_ne!(cart.serial(), a.serial());
    assert_eq!(identities.status().len(), 2);
}

#[tokio::test]
async fn a_cancelled_caller_leaves_its_turn_to_the_next() {
    let ca = CountingCa::new(DAY);
    let identities = Identities::new(Arc::<CountingCa>::clone(&ca));
    let web = id("web");
    tokio::select! {
        biased;
        result = identities.ensure(&web) => panic!("{result:?}"),
        () = std::future::ready(()) => {}
    }
    identities.ensure(&web).await.unwrap();
    assert_eq!(ca.signed.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_failure_is_named_and_the_next_caller_tries_again() {
    let ca = CountingCa::new(DAY);
    let identities = Identities::new(Arc::<CountingCa>::clone(&ca));
    let web = id("web");
    ca.away.store(true, Ordering::Relaxed);
    for attempt in 1..=3 {
        let error = identities.ensure(&web).await.unwrap_err();
        assert!(matches!(error, IdentityError::Signer(SignError::Unreachable { .. })), "{error}");
        let [status] = &identities.status()[..] else { panic!() };
        assert_eq!(status.failure.as_ref().unwrap().attempts, attempt);
        assert!(status.certificate.is_none());
    }
    ca.away.store(false, Ordering::Relaxed);
    identities.ensure(&web).await.unwrap();
    assert!(identities.status()[0].failure.is_none());
}

#[tokio::test]
async fn accounts_that_leave_are_forgotten_and_their_keys_with_them() {
    let ca = CountingCa::new(DAY);
    let identities = Arc::new(Identities::new(ca));
    let configs = TlsConfigs::new(Arc::clone(&identities));
    let (web, cart) = (id("web"), id("cart"));
    let gone = Arc::downgrade(&identities.ensure(&web).await.unwrap());
    identities.ensure(&cart).await.unwrap();
    configs.client(&web, Some(&cart)).unwrap();
    let key = Arc::downgrade(gone.upgrade().unwrap().certified_key());
    assert!(key.upgrade().is_some());
    identities.retain(&BTreeSet::from([cart.clone()]));
    assert!(identities.current(&web).is_none());
    assert!(gone.upgrade().is_none(), "the identity is still held");
    assert!(key.upgrade().is_none(), "the key is still held");
    assert!(configs.client(&web, None).is_err());
    assert!(configs.server(&cart).is_ok());
}

#[tokio::test]
async fn configurations_are_made_once_and_anew_with_a_new_certificate() {
    let ca = CountingCa::new(DAY);
    let identities = Arc::new(Identities::new(ca));
    let configs = TlsConfigs::new(Arc::clone(&identities));
    let (web, cart) = (id("web"), id("cart"));
    identities.ensure(&web).await.unwrap();
    let first = configs.client(&web, Some(&cart)).unwrap().config;
    assert!(Arc::ptr_eq(&first, &configs.client(&web, Some(&cart)).unwrap().config));
    assert!(!Arc::ptr_eq(&first, &configs.client(&web, None).unwrap().config));
    let server = configs.server(&web).unwrap().config;
    assert!(Arc::ptr_eq(&server, &configs.server(&web).unwrap().config));
    identities.issue(&web, issue::Occasion::Renewal).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &configs.client(&web, Some(&cart)).unwrap().config));
    assert!(!Arc::ptr_eq(&server, &configs.server(&web).unwrap().config));
}

#[tokio::test]
async fn certificates_are_renewed_at_half_of_their_life() {
    let ca = CountingCa::new(Duration::from_secs(2));
    let identities = Identities::new(Arc::<CountingCa>::clone(&ca));
    let web = id("web");
    let first = identities.ensure(&web).await.unwrap();
    let stop = CancellationToken::new();
    let watch = async {
        until("a renewal", || {
            identities.current(&web).is_some_and(|now| now.serial() != first.serial())
        })
        .await;
        assert!(first.is_valid(), "renewed only after the old one had ended");
        stop.cancel();
    };
    tokio::join!(watch, identities.renew_loop(stop.clone()));
}

#[tokio::test]
async fn while_the_ca_is_away_the_valid_certificate_stays_and_renewal_follows() {
    let ca = CountingCa::new(Duration::from_secs(6));
    let identities = Identities::new(Arc::<CountingCa>::clone(&ca));
    let web = id("web");
    let first = identities.ensure(&web).await.unwrap();
    ca.away.store(true, Ordering::Relaxed);
    let stop = CancellationToken::new();
    let watch = async {
        until("a failed renewal", || identities.status()[0].failure.is_some()).await;
        let now = identities.current(&web).unwrap();
        assert!(Arc::ptr_eq(&now, &first) && now.is_valid());
        ca.away.store(false, Ordering::Relaxed);
        until("a renewal", || !Arc::ptr_eq(&identities.current(&web).unwrap(), &first)).await;
        assert!(identities.status()[0].failure.is_none());
        stop.cancel();
    };
    tokio::join!(watch, identities.renew_loop(stop.clone()));
}

#[tokio::test]
async fn a_certificate_that_is_of_another_time_is_told_until_it_is_replaced() {
    let ca = CountingCa::new(Duration::from_secs(1));
    let identities = Identities::new(Arc::<CountingCa>::clone(&ca));
    let first = identities.ensure(&id("web")).await.unwrap();
    assert_eq!(identities.problems(), [""; 0]);
    ca.away.store(true, Ordering::Relaxed);
    let stop = CancellationToken::new();
    let watch = async {
        until("an end", || !first.is_valid()).await;
        let problems = identities.problems();
        let told = problems.first().unwrap();
        assert!(
            told.contains(id("web").as_str()) && told.contains("this node's clock says"),
            "{told}"
        );
        ca.away.store(false, Ordering::Relaxed);
        until("a renewal", || identities.problems().is_empty()).await;
        stop.cancel();
    };
    tokio::join!(watch, identities.renew_loop(stop.clone()));
}

#[tokio::test]
async fn a_renewal_does_not_bring_back_who_has_left() {
    let ca = CountingCa::new(DAY);
    let identities = Identities::new(ca);
    let web = id("web");
    identities.ensure(&web).await.unwrap();
    let renewal = identities.issue(&web, issue::Occasion::Renewal);
    let leaving = async { identities.retain(&BTreeSet::new()) };
    let (renewed, ()) = tokio::join!(renewal, leaving);
    renewed.unwrap();
    assert!(identities.current(&web).is_none());
}

/// The certificate of another identity is refused as the signer's answer.
#[tokio::test]
async fn an_answer_that_was_not_asked_for_is_refused() {
    struct Liar(FileCa, IssuedForSomebody);
    type IssuedForSomebody = crate::identity::IssuedCertificate;
    impl Signer for Liar {
        fn sign<'a>(&'a self, _csr: &'a [u8], _id: &'a SpiffeId) -> SignFuture<'a> {
            Box::pin(async { Ok(self.1.clone()) })
        }

        fn anchors(&self) -> Arc<Anchors> {
            self.0.anchors()
        }
    }
    let honest = CountingCa::new(DAY);
    let identities = Identities::new(Arc::<CountingCa>::clone(&honest));
    for (asked, given) in [(id("web"), id("cart")), (id("web"), id("web"))] {
        let of_somebody = identities.ensure(&given).await.unwrap();
        let issued = IssuedForSomebody {
            chain_der: of_somebody.certified_key().cert.clone(),
            not_before: SystemTime::now(),
            not_after: of_somebody.not_after(),
        };
        let ca = FileCa::open(honest.directory.path()).unwrap();
        let error = Identities::new(Arc::new(Liar(ca, issued))).ensure(&asked).await.unwrap_err();
        assert!(matches!(error, IdentityError::Answer { .. }), "{error}");
    }
}
