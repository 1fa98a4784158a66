//! Which peers are accepted and which are not, and that both sides know why.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::*;
use crate::identity::{ClientTls, ServerTls, SpiffeId};

type Change<'a> = &'a dyn Fn(&mut CertificateParams);
type Outcome = Result<(), (TlsReason, JudgedBy)>;

/// A handshake and the first exchange: how far either side got.
async fn attempt(client: ClientTls, server: ServerTls) -> (Outcome, Outcome) {
    let (near, far) = tcp_pair().await;
    let client = async {
        let mut session = Session::connect(near, &client, soon()).await.map_err(handshake_tls)?;
        session.send_open(&sample_open()).unwrap();
        session.recv_accepted(soon()).await.map_err(session_tls)?;
        Ok(())
    };
    let server = async {
        let mut session = Session::accept(far, &server, soon()).await.map_err(handshake_tls)?;
        session.recv_open(soon()).await.unwrap();
        session.send_accepted(&Accepted::default()).unwrap();
        session.flush().await.unwrap();
        Ok(())
    };
    in_time("the attempt", async { tokio::join!(client, server) }).await
}

fn handshake_tls(error: HandshakeError) -> (TlsReason, JudgedBy) {
    match error {
        HandshakeError::Tls { reason, judged_by, .. } => (reason, judged_by),
        other => panic!("{other:?}"),
    }
}

fn session_tls(error: SessionError) -> (TlsReason, JudgedBy) {
    match error {
        SessionError::Tls { reason, judged_by } => (reason, judged_by),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn two_agents_know_each_other_and_what_they_agreed_on() {
    let mesh = Mesh::new().await;
    let (client, server) = mesh.sessions().await;
    assert_eq!(client.peer_identity(), &mesh.cart);
    assert_eq!(client.own_identity(), &mesh.web);
    assert_eq!(server.peer_identity(), &mesh.web);
    assert_eq!(server.own_identity(), &mesh.cart);
    for info in [client.tls(), server.tls()] {
        assert_eq!(info.version, "TLSv1_3");
        assert_eq!(info.cipher, "TLS13_AES_128_GCM_SHA256");
        assert_eq!(info.key_exchange, "X25519MLKEM768");
    }
}

#[tokio::test]
async fn a_server_that_is_another_service_account_is_refused() {
    let mesh = Mesh::new().await;
    let db = SpiffeId::new(mesh.web.trust_domain(), "shop", "db").unwrap();
    let client = mesh.configs.client(&mesh.web, Some(&db)).unwrap();
    let (near, far) = tcp_pair().await;
    let tls = mesh.server();
    let (client, server) =
        tokio::join!(Session::connect(near, &client, soon()), Session::accept(far, &tls, soon()));
    let (client, server) = (client.unwrap_err(), server.unwrap_err());
    assert_eq!(client.reason().code(), "wrong_identity");
    assert_eq!(server.reason().code(), "wrong_identity");
    let text = client.to_string();
    assert!(text.contains(mesh.cart.as_str()) && text.contains(db.as_str()), "{text}");
    assert_eq!(handshake_tls(client).1, JudgedBy::Us);
    assert_eq!(handshake_tls(server).1, JudgedBy::Peer);
}

/// Certificates that the mesh's own CA has signed and that must be refused nevertheless. The client
/// and the server show each, and both sides know the same reason.
#[tokio::test]
async fn each_bad_certificate_is_refused_with_its_reason_known_on_both_sides() {
    let mesh = Mesh::new().await;
    let hour = Duration::from_hours(1);
    let now = SystemTime::now();
    let cases: [(&str, Change<'_>, TlsReason, TlsReason); 9] = [
        (
            "expired",
            &|p| (p.not_before, p.not_after) = ((now - 2 * hour).into(), (now - hour).into()),
            TlsReason::CertificateExpired,
            TlsReason::CertificateExpired,
        ),
        (
            "not yet valid",
            &|p| (p.not_before, p.not_after) = ((now + hour).into(), (now + 2 * hour).into()),
            TlsReason::CertificateNotYetValid,
            TlsReason::CertificateExpired, // one alert for both
        ),
        (
            "another trust domain",
            &|p| p.subject_alt_names = vec![uri("spiffe://evil.example/ns/shop/sa/cart")],
            TlsReason::ForeignTrustDomain,
            TlsReason::ForeignTrustDomain,
        ),
        (
            "no URI",
            &|p| p.subject_alt_names = vec![],
            TlsReason::MalformedIdentity,
            TlsReason::MalformedIdentity,
        ),
        (
            "two URIs",
            &|p| {
                p.subject_alt_names = vec![
                    uri("spiffe://cluster.local/ns/shop/sa/cart"),
                    uri("spiffe://cluster.local/ns/shop/sa/web"),
                ];
            },
            TlsReason::MalformedIdentity,
            TlsReason::MalformedIdentity,
        ),
        (
            "not a SPIFFE id",
            &|p| p.subject_alt_names = vec![uri("https://cluster.local/ns/shop/sa/cart")],
            TlsReason::MalformedIdentity,
            TlsReason::MalformedIdentity,
        ),
        (
            "a SPIFFE id with a query",
            &|p| p.subject_alt_names = vec![uri("spiffe://cluster.local/ns/shop/sa/cart?x")],
            TlsReason::MalformedIdentity,
            TlsReason::MalformedIdentity,
        ),
        (
            "for e-mail only",
            &|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection],
            TlsReason::WrongPurpose,
            TlsReason::WrongPurpose,
        ),
        (
            "a CA",
            &|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            TlsReason::WrongPurpose,
            TlsReason::WrongPurpose,
        ),
    ];
    for (name, change, judge, judged) in cases {
        let key = mesh.forged(|params| {
            params.subject_alt_names = vec![uri(mesh.cart.as_str())];
            change(params);
        });
        let outcome = attempt(mesh.client(), mesh.server_with(Arc::clone(&key))).await;
        let expected = (Err((judge, JudgedBy::Us)), Err((judged, JudgedBy::Peer)));
        assert_eq!(outcome, expected, "the server's certificate is {name}");

        let outcome = attempt(mesh.client_with(key), mesh.server()).await;
        let expected = (Err((judged, JudgedBy::Peer)), Err((judge, JudgedBy::Us)));
        assert_eq!(outcome, expected, "the client's certificate is {name}");
    }
}

#[tokio::test]
async fn a_foreign_anchor_is_refused_and_both_sides_know() {
    let (ours, theirs) = (Mesh::new().await, Mesh::new().await);
    let key = theirs.forged(|params| params.subject_alt_names = vec![uri(ours.cart.as_str())]);
    let unknown = TlsReason::UnknownAnchor;
    assert_eq!(
        attempt(ours.client(), ours.server_with(Arc::<CertifiedKey>::clone(&key))).await,
        (Err((unknown, JudgedBy::Us)), Err((unknown, JudgedBy::Peer)))
    );
    assert_eq!(
        attempt(ours.client_with(key), ours.server()).await,
        (Err((unknown, JudgedBy::Peer)), Err((unknown, JudgedBy::Us)))
    );
}

#[tokio::test]
async fn during_rotation_either_of_two_anchors_will_do() {
    let (old, new) = (Mesh::new().await, Mesh::new().await);
    let key = new.forged(|params| params.subject_alt_names = vec![uri(old.cart.as_str())]);
    let read = |mesh: &Mesh| std::fs::read(mesh.directory().join("anchors.pem")).unwrap();
    let both = [read(&old), read(&new)].concat();
    std::fs::write(old.directory().join("anchors.pem"), both).unwrap();
    let before = old.client();
    old.reload_anchors();
    let server = old.server_with(key);
    assert_eq!(
        attempt(before, server.clone()).await.0,
        Err((TlsReason::UnknownAnchor, JudgedBy::Us)),
        "a configuration made before does not know the new anchor"
    );
    assert_eq!(attempt(old.client(), server).await, (Ok(()), Ok(())));
    assert_eq!(attempt(old.client(), old.server()).await, (Ok(()), Ok(())));
}

#[tokio::test]
async fn a_client_without_certificate_is_refused() {
    let mesh = Mesh::new().await;
    let without_key = altered_client(&mesh.client(), |config| {
        config.client_auth_cert_resolver = Arc::new(NoCertificate);
    });
    let reason = TlsReason::NoCertificate;
    assert_eq!(
        attempt(without_key, mesh.server()).await,
        (Err((reason, JudgedBy::Peer)), Err((reason, JudgedBy::Us)))
    );
}

#[derive(Debug)]
struct NoCertificate;

impl rustls::client::ResolvesClientCert for NoCertificate {
    fn resolve(
        &self,
        _hints: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn without_our_alpn_there_is_no_session() {
    let mesh = Mesh::new().await;
    let no_alpn = TlsReason::NoAlpn;
    for protocols in [vec![], vec![b"h2".to_vec()], vec![b"nodemesh/2".to_vec()]] {
        let (for_client, for_server) = (protocols.clone(), protocols.clone());
        let client = altered_client(&mesh.client(), |config| config.alpn_protocols = for_client);
        let (seen_by_client, seen_by_server) = attempt(client, mesh.server()).await;
        assert_eq!(seen_by_server, Err((no_alpn, JudgedBy::Us)), "client offers {protocols:?}");
        // A client that offered nothing finds that out itself, before the server's alert comes.
        assert!(matches!(seen_by_client, Err((reason, _)) if reason == no_alpn));

        let server = altered_server(&mesh.server(), |config| config.alpn_protocols = for_server);
        let (seen_by_client, seen_by_server) = attempt(mesh.client(), server).await;
        assert!(matches!(seen_by_client, Err((reason, _)) if reason == no_alpn));
        assert!(matches!(seen_by_server, Err((reason, _)) if reason == no_alpn));
    }
}

#[tokio::test]
async fn tls_1_2_is_refused_by_name() {
    let mesh = Mesh::new().await;
    let (mut near, far) = tcp_pair().await;
    near.write_all(&tls12_client_hello()).await.unwrap();
    let server = mesh.server();
    let error = Session::accept(far, &server, soon());
    let mut answer = Vec::new();
    let (error, _) = in_time("the answer", async {
        tokio::join!(error, async {
            near.shutdown().await.unwrap();
            near.read_to_end(&mut answer).await.unwrap()
        })
    })
    .await;
    assert_eq!(handshake_tls(error.unwrap_err()), (TlsReason::TlsVersion, JudgedBy::Us));
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70], "a plaintext alert: protocol_version");
}

/// What an OpenSSL of 2010 says: version 3.3, two cipher suites, no `supported_versions`.
fn tls12_client_hello() -> Vec<u8> {
    let extensions = [
        &[0, 10, 0, 4, 0, 2, 0, 23][..],  // groups: secp256r1
        &[0, 11, 0, 2, 1, 0],             // point formats
        &[0, 13, 0, 6, 0, 4, 4, 1, 4, 3], // signatures
        &[0, 16, 0, 13, 0, 11, 10],       // ALPN
        b"nodemesh/1",
        &[0, 23, 0, 0], // extended master secret
    ]
    .concat();
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &[0, 4, 0xc0, 0x2f, 0xc0, 0x2b],
        &[1, 0],
        &(extensions.len() as u16).to_be_bytes(),
        &extensions,
    ]
    .concat();
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

#[tokio::test]
async fn what_is_no_tls_is_named_so() {
    let mesh = Mesh::new().await;
    for first in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"SSH-2.0-OpenSSH_9.2\r\n",
        &[0x80, 0x2e, 1, 3, 1], // SSL 2
        &[0],
        &[23, 3, 3, 0, 1, 0], // application data before any handshake
    ] {
        let (mut near, far) = tcp_pair().await;
        near.write_all(first).await.unwrap();
        match Session::accept(far, &mesh.server(), soon()).await.unwrap_err() {
            HandshakeError::NotTls { first: shown } => assert!(first.starts_with(&shown)),
            other => panic!("{other:?}"),
        }
        // The other way: an application, not an agent, answers our ClientHello.
        let (near, mut far) = tcp_pair().await;
        far.write_all(first).await.unwrap();
        let error = Session::connect(near, &mesh.client(), soon()).await.unwrap_err();
        assert_eq!(error.reason().code(), "not_tls");
    }
}

#[tokio::test]
async fn garbage_that_begins_like_tls_is_refused() {
    let mesh = Mesh::new().await;
    let hello = tls12_client_hello();
    let mut many: Vec<Vec<u8>> =
        (0..64).map(|n| [&[22, 3, 1, 0, n + 1][..], &[n; 65]].concat()).collect();
    many.push([&[22, 3, 3, 0xff, 0xff][..], &[1; 100]].concat()); // longer than a record may be
    many.push(vec![22, 3, 3, 0, 0]); // an empty handshake record
    many.push([&[21, 3, 3, 0, 2, 2, 40][..]].concat()); // an alert
    for cut in (6..hello.len()).step_by(5) {
        let mut broken = hello[..cut].to_vec();
        broken.extend_from_slice(&[0xff; 300]);
        many.push(broken);
    }
    for garbage in many {
        let (mut near, far) = tcp_pair().await;
        near.write_all(&garbage).await.unwrap();
        near.shutdown().await.unwrap();
        let error = in_time("an error", Session::accept(far, &mesh.server(), soon())).await;
        assert!(
            matches!(error, Err(HandshakeError::Tls { .. } | HandshakeError::PeerClosed)),
            "{error:?} after {garbage:02x?}"
        );
    }
}

#[tokio::test]
async fn a_peer_that_closes_or_is_silent_is_told_apart() {
    let mesh = Mesh::new().await;
    for bytes in [0, 1, 5, 90] {
        let (mut near, far) = tcp_pair().await;
        near.write_all(&tls12_client_hello()[..bytes]).await.unwrap();
        near.shutdown().await.unwrap();
        let error = Session::accept(far, &mesh.server(), soon()).await.unwrap_err();
        assert!(matches!(error, HandshakeError::PeerClosed), "{error:?} after {bytes}");

        let (mut near, far) = tcp_pair().await;
        near.write_all(&tls12_client_hello()[..bytes]).await.unwrap();
        let shortly = Instant::now() + Duration::from_millis(30);
        let error = Session::accept(far, &mesh.server(), shortly).await.unwrap_err();
        assert!(matches!(error, HandshakeError::TimedOut), "{error:?} after {bytes}");
        near.set_zero_linger().unwrap();
    }
    let (near, far) = tcp_pair().await;
    far.set_zero_linger().unwrap();
    drop(far);
    let error = Session::connect(near, &mesh.client(), soon()).await.unwrap_err();
    assert!(matches!(error, HandshakeError::Io(_)), "{error:?}");
}
