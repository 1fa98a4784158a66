//! What a CA directory may be, what it may not be, and what is signed from it.

use std::fs;

use rustls::pki_types::UnixTime;

use super::*;
use crate::identity::PeerVerifier;
use crate::identity::tls::crypto;
use crate::identity::verifier::{PeerRejection, Purpose};

fn domain() -> TrustDomain {
    "cluster.local".parse().unwrap()
}

fn id(account: &str) -> SpiffeId {
    SpiffeId::new(&domain(), "shop", account).unwrap()
}

fn new_ca() -> (tempfile::TempDir, FileCa) {
    let directory = tempfile::tempdir().unwrap();
    init(directory.path(), &domain(), false).unwrap();
    let ca = FileCa::open(directory.path()).unwrap();
    (directory, ca)
}

fn request(names: Vec<SanType>) -> (Vec<u8>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    (params.serialize_request(&key).unwrap().der().to_vec(), key)
}

#[test]
fn init_makes_a_ca_that_opens_and_keeps_its_key_to_itself() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path().join("deep/er");
    let info = init(&at, &domain(), false).unwrap();
    assert_eq!(fs::metadata(&info.key).unwrap().permissions().mode() & 0o777, 0o600);
    let ca = FileCa::open(&at).unwrap();
    assert_eq!(ca.trust_domain(), &domain());
    let pem = fs::read(&info.certificate).unwrap();
    let der = CertificateDer::from_pem_slice(&pem).unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).unwrap();
    let constraints = parsed.basic_constraints().unwrap().unwrap().value;
    assert!(constraints.ca);
    assert_eq!(constraints.path_len_constraint, Some(0));
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    let years = parsed.validity().time_to_expiration().unwrap().whole_days() / 365;
    assert!((9..=10).contains(&years));
}

#[test]
fn init_overwrites_nothing_unless_forced() {
    let (directory, ca) = new_ca();
    let before = fs::read(directory.path().join(CA_KEY)).unwrap();
    let error = init(directory.path(), &domain(), false).unwrap_err();
    assert!(matches!(error, CaError::Exists { .. }), "{error}");
    assert!(error.to_string().contains("--force"));
    // Also if only one of the three files is there.
    fs::remove_file(directory.path().join(CA_CERTIFICATE)).unwrap();
    fs::remove_file(directory.path().join(ANCHORS)).unwrap();
    assert!(matches!(init(directory.path(), &domain(), false), Err(CaError::Exists { .. })));
    assert_eq!(fs::read(directory.path().join(CA_KEY)).unwrap(), before);

    init(directory.path(), &domain(), true).unwrap();
    let new = FileCa::open(directory.path()).unwrap();
    assert_ne!(new.anchors(), ca.anchors());
    let mode = fs::metadata(directory.path().join(CA_KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

/// A warning, not a refusal: people that try the mesh on a laptop unpack keys from archives.
#[test]
fn a_key_that_others_can_read_is_used_nevertheless() {
    let (directory, _) = new_ca();
    let open = fs::Permissions::from_mode(0o644);
    fs::set_permissions(directory.path().join(CA_KEY), open).unwrap();
    FileCa::open(directory.path()).unwrap();
}

/// Each error names the file and what to do.
#[test]
fn each_fault_of_the_directory_is_named_with_its_remedy() {
    type Damage = fn(&Path);
    fn fault(damage: Damage) -> (CaError, String) {
        let (directory, _) = new_ca();
        damage(directory.path());
        let error = FileCa::open(directory.path()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&directory.path().display().to_string()), "{text}");
        (error, text)
    }
    let other: Damage = |at| {
        let (other, _) = new_ca();
        fs::copy(other.path().join(CA_KEY), at.join(CA_KEY)).unwrap();
    };
    let (error, text) = fault(other);
    assert!(matches!(error, CaError::KeyMismatch { .. }), "{text}");
    assert!(text.contains("ca.key") && text.contains("ca.crt"), "{text}");

    for name in [CA_CERTIFICATE, CA_KEY, ANCHORS] {
        let damages: [(Damage, &str); 3] = match name {
            CA_CERTIFICATE => [
                (|at| fs::remove_file(at.join(CA_CERTIFICATE)).unwrap(), "ca init"),
                (|at| fs::write(at.join(CA_CERTIFICATE), "").unwrap(), "PEM certificate"),
                (|at| fs::write(at.join(CA_CERTIFICATE), [0xff; 99]).unwrap(), "PEM certificate"),
            ],
            CA_KEY => [
                (|at| fs::remove_file(at.join(CA_KEY)).unwrap(), "ca init"),
                (|at| fs::write(at.join(CA_KEY), "").unwrap(), "PKCS #8"),
                (|at| fs::write(at.join(CA_KEY), [0xff; 99]).unwrap(), "private key"),
            ],
            _ => [
                (|at| fs::remove_file(at.join(ANCHORS)).unwrap(), "ca init"),
                (|at| fs::write(at.join(ANCHORS), "").unwrap(), "no certificate"),
                (
                    |at| {
                        let text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
                        fs::write(at.join(ANCHORS), text).unwrap();
                    },
                    "certificate 1",
                ),
            ],
        };
        for (damage, expected) in damages {
            let (_, text) = fault(damage);
            assert!(text.contains(name) && text.contains(expected), "{text}");
        }
    }

    let (error, text) = fault(|at| {
        fs::remove_file(at.join(CA_KEY)).unwrap();
        fs::create_dir(at.join(CA_KEY)).unwrap();
    });
    assert!(matches!(error, CaError::Unreadable { .. }), "{text}");

    let (error, text) = fault(|at| replace_ca(at, |_| (), false));
    assert!(matches!(error, CaError::NotAnAnchor { .. }), "{text}");
    let (error, text) = fault(|at| replace_ca(at, |p| p.is_ca = IsCa::ExplicitNoCa, false));
    assert!(matches!(error, CaError::NotACa { .. }), "{text}");
    let (error, text) = fault(|at| replace_ca(at, |p| p.subject_alt_names.clear(), true));
    assert!(matches!(error, CaError::NoTrustDomain { .. }), "{text}");
    for with_anchor in [true, false] {
        let damage: Damage = if with_anchor {
            |at| replace_ca(at, |p| p.not_after = SystemTime::UNIX_EPOCH.into(), true)
        } else {
            |at| replace_ca(at, |p| p.not_after = SystemTime::UNIX_EPOCH.into(), false)
        };
        let (error, text) = fault(damage);
        assert!(matches!(error, CaError::Expired { .. }), "{text}");
        assert!(text.contains(if with_anchor { ANCHORS } else { CA_CERTIFICATE }), "{text}");
    }
}

/// Puts another CA (changed by `change`) into the directory, and into the anchors if asked.
fn replace_ca(at: &Path, change: fn(&mut CertificateParams), anchor: bool) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(domain().uri().try_into().unwrap())];
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap().pem();
    fs::write(at.join(CA_CERTIFICATE), &certificate).unwrap();
    fs::write(at.join(CA_KEY), key.serialize_pem()).unwrap();
    if anchor {
        fs::write(at.join(ANCHORS), &certificate).unwrap();
    }
}

#[tokio::test]
async fn a_leaf_is_what_was_asked_for_and_no_more() {
    let (_directory, ca) = new_ca();
    let web = id("web");
    let (csr, key) = request(vec![uri_name(&web).unwrap()]);
    let issued = ca.sign(&csr, &web).await.unwrap();
    let lifetime = issued.not_after.duration_since(issued.not_before).unwrap();
    assert_eq!(lifetime, LEAF_LIFETIME + BACKDATE);
    let [leaf] = issued.chain_der.as_slice() else { panic!("{:?}", issued.chain_der) };
    let verifier = PeerVerifier::new(ca.anchors(), domain(), Some(web.clone()), &crypto());
    for purpose in [Purpose::Server, Purpose::Client] {
        assert_eq!(verifier.verify(leaf, &[], UnixTime::now(), purpose).as_ref(), Ok(&web));
    }
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).unwrap();
    assert!(!parsed.is_ca());
    assert_eq!(parsed.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    let names = parsed.subject_alternative_name().unwrap().unwrap().value;
    assert_eq!(names.general_names.len(), 1);
    let usage = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.server_auth && usage.client_auth && !usage.any && !usage.code_signing);

    let later = UnixTime::since_unix_epoch(
        issued.not_after.duration_since(SystemTime::UNIX_EPOCH).unwrap() + Duration::from_secs(1),
    );
    let expired = verifier.verify(leaf, &[], later, Purpose::Client);
    assert!(matches!(expired, Err(PeerRejection::Expired { .. })), "{expired:?}");
}

#[tokio::test]
async fn only_the_identity_asked_for_is_signed() {
    let (_directory, ca) = new_ca();
    let (web, cart) = (id("web"), id("cart"));
    for names in [
        vec![],
        vec![uri_name(&cart).unwrap()],
        vec![uri_name(&web).unwrap(), uri_name(&cart).unwrap()],
        vec![uri_name(&web).unwrap(), SanType::DnsName("web".try_into().unwrap())],
    ] {
        let (csr, _) = request(names);
        let error = ca.sign(&csr, &web).await.unwrap_err();
        assert!(matches!(error, SignError::Request { .. }), "{error}");
    }
    let (mut csr, _) = request(vec![uri_name(&web).unwrap()]);
    let last = csr.len() - 1;
    csr[last] ^= 1; // the requester's own signature
    assert!(matches!(ca.sign(&csr, &web).await, Err(SignError::Request { .. })));
    assert!(matches!(ca.sign(b"no request", &web).await, Err(SignError::Request { .. })));

    let foreign = SpiffeId::new(&"other".parse().unwrap(), "shop", "web").unwrap();
    let (csr, _) = request(vec![uri_name(&foreign).unwrap()]);
    assert!(matches!(ca.sign(&csr, &foreign).await, Err(SignError::Refused { .. })));
}

#[tokio::test]
async fn no_leaf_outlives_its_ca() {
    let (directory, _) = new_ca();
    let web = id("web");
    let (csr, _) = request(vec![uri_name(&web).unwrap()]);
    for lifetime in [CA_LIFETIME * 2, Duration::MAX] {
        let ca = FileCa::open(directory.path()).unwrap().with_leaf_lifetime(lifetime);
        assert_eq!(ca.sign(&csr, &web).await.unwrap().not_after, ca.not_after());
    }
}

#[test]
fn anchors_come_and_go_one_by_one_and_a_ca_follows_another() {
    let (directory, ca) = new_ca();
    let (next, _) = new_ca();
    let at = directory.path();
    let old = fs::read(at.join(CA_CERTIFICATE)).unwrap();
    let old_file = next.path().join("old.crt");
    fs::write(&old_file, &old).unwrap();
    let next_file = next.path().join(CA_CERTIFICATE);

    let error = use_ca(at, next.path()).unwrap_err();
    assert!(matches!(error, CaError::NotAnAnchor { .. }), "{error}");
    assert!(matches!(remove_anchor(at, &next_file), Err(CaError::NoAnchor { .. })));
    assert_eq!(add_anchor(at, &next_file).unwrap(), 1);
    assert_eq!(add_anchor(at, &next_file).unwrap(), 0, "it is there already");
    assert!(matches!(remove_anchor(at, &old_file), Err(CaError::AnchorInUse { .. })));
    assert!(!ca.reload().unwrap(), "the same CA still signs");
    assert_eq!(ca.anchors().certificates().len(), 2);

    use_ca(at, next.path()).unwrap();
    assert!(ca.reload().unwrap());
    let mode = fs::metadata(at.join(CA_KEY)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    remove_anchor(at, &old_file).unwrap();
    assert!(!ca.reload().unwrap());
    assert_eq!(fs::read(at.join(ANCHORS)).unwrap(), fs::read(&next_file).unwrap());
}

#[test]
fn a_ca_of_another_trust_domain_is_not_taken() {
    let (directory, ca) = new_ca();
    let other = tempfile::tempdir().unwrap();
    init(other.path(), &"other.example".parse().unwrap(), false).unwrap();
    let before = ca.anchors();
    let added = add_anchor(directory.path(), &other.path().join(CA_CERTIFICATE));
    assert!(matches!(added, Err(CaError::OtherTrustDomain { .. })), "{added:?}");
    for file in [CA_CERTIFICATE, CA_KEY, ANCHORS] {
        fs::copy(other.path().join(file), directory.path().join(file)).unwrap();
    }
    let reloaded = ca.reload();
    assert!(matches!(reloaded, Err(CaError::OtherTrustDomain { .. })), "{reloaded:?}");
    assert_eq!(ca.anchors(), before, "what was in force stays so");
}
