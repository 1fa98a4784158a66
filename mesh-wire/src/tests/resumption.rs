//! Handshakes that an earlier one shortens, and what must make the next one a full one.

use std::time::{Duration, SystemTime};

use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use super::*;
use crate::identity::{ClientTls, ServerTls, SpiffeId};

const NODE: &str = "node-7.example";

/// A handshake and the first exchange. Returns the client's session, if both sides agree that there
/// is one.
async fn meet(client: &ClientTls, server: &ServerTls) -> Result<Session, HandshakeError> {
    let (near, far) = tcp_pair().await;
    let client = async {
        let mut session = Session::connect(near, client, soon()).await?;
        session.send_open(&sample_open()).unwrap();
        Ok(session)
    };
    let server = async { Session::accept(far, server, soon()).await };
    let both = async {
        let (client, server) = tokio::join!(flushed(client), server);
        let (mut client, mut server) = (client?, server?);
        assert_eq!(server.recv_open(soon()).await.unwrap(), sample_open());
        server.send_accepted(&Accepted::default()).unwrap();
        server.flush().await.unwrap();
        client.recv_accepted(soon()).await.unwrap();
        assert_eq!(client.is_resumed(), server.is_resumed());
        assert_eq!(client.peer_identity(), server.own_identity());
        assert_eq!(server.peer_identity(), client.own_identity());
        assert_eq!(client.tls().key_exchange, "X25519MLKEM768", "with a fresh key");
        Ok(client)
    };
    in_time("the handshake", both).await
}

async fn flushed(
    client: impl Future<Output = Result<Session, HandshakeError>>,
) -> Result<Session, HandshakeError> {
    let mut session = client.await?;
    session.flush().await.unwrap();
    Ok(session)
}

async fn is_resumed(client: &ClientTls, server: &ServerTls) -> bool {
    meet(client, server).await.unwrap().is_resumed()
}

fn web(mesh: &Mesh) -> ClientTls {
    mesh.client().on_node(NODE)
}

#[tokio::test]
async fn accounts_that_have_met_resume_and_go_on_resuming() {
    let mesh = Mesh::new().await;
    assert!(!is_resumed(&web(&mesh), &mesh.server()).await, "the first");
    for _ in 0..20 {
        assert!(is_resumed(&web(&mesh), &mesh.server()).await, "each later one");
    }
}

/// At the same time, as many as there are tickets; then there are more tickets.
#[tokio::test]
async fn handshakes_at_the_same_time_do_not_share_a_ticket() {
    let mesh = Mesh::new().await;
    meet(&web(&mesh), &mesh.server()).await.unwrap();
    let (client, server) = (web(&mesh), mesh.server());
    let pair = || async { tokio::join!(meet(&client, &server), meet(&client, &server)) };
    for resumed in [1, 2, 2] {
        let (a, b) = pair().await;
        let both = [a.unwrap().is_resumed(), b.unwrap().is_resumed()];
        assert_eq!(both.into_iter().filter(|it| *it).count(), resumed);
    }
}

#[tokio::test]
async fn a_ticket_is_good_for_one_pair_of_accounts_and_one_node() {
    let mesh = Mesh::new().await;
    let db = SpiffeId::new(mesh.web.trust_domain(), "shop", "db").unwrap();
    mesh.ensure(&db).await;
    meet(&web(&mesh), &mesh.server()).await.unwrap();
    let another = mesh.client().on_node("node-8.example");
    assert!(!is_resumed(&another, &mesh.server()).await, "another node");
    let another = mesh.configs.client(&db, Some(&mesh.cart)).unwrap().on_node(NODE);
    assert!(!is_resumed(&another, &mesh.server()).await, "another account of ours");
    let another = mesh.configs.client(&mesh.web, Some(&db)).unwrap().on_node(NODE);
    let server = mesh.configs.server(&db).unwrap();
    assert!(!is_resumed(&another, &server).await, "another account of the peer");
    assert!(is_resumed(&web(&mesh), &mesh.server()).await);
    // A ticket of `cart` does not help one that is `db` now.
    assert!(meet(&web(&mesh), &server).await.is_err(), "not the expected account");
}

#[tokio::test]
async fn a_new_certificate_or_anchor_or_agent_makes_the_next_handshake_a_full_one() {
    let mesh = Mesh::new().await;
    meet(&web(&mesh), &mesh.server()).await.unwrap();
    assert!(is_resumed(&web(&mesh), &mesh.server()).await);
    mesh.renew(&mesh.web).await;
    assert!(!is_resumed(&web(&mesh), &mesh.server()).await, "our certificate is another one");
    assert!(is_resumed(&web(&mesh), &mesh.server()).await);
    mesh.renew(&mesh.cart).await;
    assert!(!is_resumed(&web(&mesh), &mesh.server()).await, "the peer's is another one");
    assert!(is_resumed(&web(&mesh), &mesh.server()).await);
    let another = mesh.of_another_agent().await;
    let client = another.client(&mesh.web, Some(&mesh.cart)).unwrap().on_node(NODE);
    assert!(!is_resumed(&client, &mesh.server()).await, "our agent is another one");
    let server = another.server(&mesh.cart).unwrap();
    assert!(!is_resumed(&web(&mesh), &server).await, "the peer's is another one");
    assert!(is_resumed(&web(&mesh), &server).await, "and gives tickets of its own");
    let other = Mesh::new().await;
    let read = |mesh: &Mesh| std::fs::read(mesh.directory().join("anchors.pem")).unwrap();
    std::fs::write(mesh.directory().join("anchors.pem"), [read(&mesh), read(&other)].concat())
        .unwrap();
    mesh.reload_anchors();
    assert!(!is_resumed(&web(&mesh), &mesh.server()).await, "the anchors are others");
    assert!(is_resumed(&web(&mesh), &mesh.server()).await);
}

/// The server's agent has forgotten the key of its tickets; the client's has not forgotten them.
#[tokio::test]
async fn a_ticket_that_the_peer_cannot_read_costs_nothing_but_a_full_handshake() {
    let mesh = Mesh::new().await;
    let client = web(&mesh);
    meet(&client, &mesh.server()).await.unwrap();
    let server = altered_server(&mesh.server(), |config| {
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    });
    assert!(!is_resumed(&client, &server).await);
    assert!(is_resumed(&client, &server).await);
}

/// An open session keeps neither the private key nor a ticket of an identity that has gone.
#[tokio::test]
async fn tickets_go_with_their_certificate_also_under_an_open_session() {
    let mesh = Mesh::new().await;
    let open = meet(&web(&mesh), &mesh.server()).await.unwrap();
    let renewed = web(&mesh);
    assert_eq!(mesh.configs.tickets(), 1);
    mesh.renew(&mesh.web).await;
    drop(renewed);
    assert_eq!(mesh.configs.tickets(), 0);
    drop(open);
}

/// Both ways, with certificates that end in the middle.
#[tokio::test]
async fn no_session_is_resumed_once_a_certificate_has_ended() {
    let mesh = Mesh::new().await;
    for is_clients in [true, false] {
        let until = SystemTime::now() + Duration::from_secs(3);
        let ending = mesh.forged(|params| {
            let id = if is_clients { &mesh.web } else { &mesh.cart };
            params.subject_alt_names = vec![uri(id.as_str())];
            params.not_after = until.into();
        });
        let (client, server) = if is_clients {
            (mesh.client_with(ending).on_node("a.example"), mesh.server())
        } else {
            (mesh.client().on_node("b.example"), mesh.server_with(ending))
        };
        assert!(!is_resumed(&client, &server).await);
        assert!(is_resumed(&client, &server).await, "as long as it is valid");
        while SystemTime::now() < until + Duration::from_secs(1) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let error = meet(&client, &server).await.unwrap_err();
        let HandshakeError::Tls { reason, .. } = &error else { panic!("{error:?}") };
        assert_eq!(*reason, TlsReason::CertificateExpired, "{error}");
    }
}

#[tokio::test]
async fn no_ticket_allows_data_before_the_handshake() {
    let mesh = Mesh::new().await;
    let client = altered_client(&web(&mesh), |config| config.enable_early_data = true);
    meet(&client, &mesh.server()).await.unwrap();
    assert!(is_resumed(&client, &mesh.server()).await, "there is a ticket");
    let name = ServerName::try_from(NODE).unwrap();
    let mut next = ClientConnection::new(client.config, name).unwrap();
    assert!(next.early_data().is_none());
}
