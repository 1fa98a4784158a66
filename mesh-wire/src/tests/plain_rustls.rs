//! Plain rustls as the other side judges our record layer, key updates, alerts and ends.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream as StdTcpStream};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::{
    ClientConfig, ClientConnection, Connection, ServerConfig, ServerConnection,
    SupportedCipherSuite,
};
use tokio::task::spawn_blocking;

use super::*;
use crate::identity::PeerVerifier;
use crate::identity::tls::crypto;

/// A rustls connection and its socket, blocking, one record at a time.
struct Plain {
    tls: Connection,
    tcp: StdTcpStream,
}

impl Plain {
    fn new(tls: Connection, tcp: tokio::net::TcpStream) -> Self {
        let tcp = tcp.into_std().unwrap();
        tcp.set_nonblocking(false).unwrap();
        tcp.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        Self { tls, tcp }
    }

    fn client(config: Arc<ClientConfig>, tcp: tokio::net::TcpStream) -> Self {
        let name = tcp.peer_addr().unwrap().ip().into();
        Self::new(ClientConnection::new(config, name).unwrap().into(), tcp)
    }

    fn server(config: Arc<ServerConfig>, tcp: tokio::net::TcpStream) -> Self {
        Self::new(ServerConnection::new(config).unwrap().into(), tcp)
    }

    fn flush(&mut self) {
        while self.tls.wants_write() {
            self.tls.write_tls(&mut self.tcp).unwrap();
        }
    }

    /// One frame, one record.
    fn send(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.send_raw(&bytes);
    }

    fn send_raw(&mut self, bytes: &[u8]) {
        self.tls.writer().write_all(bytes).unwrap();
        self.flush();
    }

    /// The content of the next record with application data. Completes the handshake on the way.
    fn receive(&mut self) -> Result<Vec<u8>, rustls::Error> {
        loop {
            self.flush();
            let mut content = Vec::new();
            // `WouldBlock` while there is nothing yet; 0 after close_notify.
            if self.tls.reader().read_to_end(&mut content).is_ok() || !content.is_empty() {
                return Ok(content);
            }
            let mut record = vec![0; 5];
            self.tcp.read_exact(&mut record).unwrap();
            let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
            record.resize(5 + length, 0);
            self.tcp.read_exact(&mut record[5..]).unwrap();
            let mut rest = record.as_slice();
            while !rest.is_empty() {
                self.tls.read_tls(&mut rest).unwrap();
            }
            let outcome = self.tls.process_new_packets();
            self.flush();
            outcome?;
        }
    }

    fn finish_handshake(&mut self) {
        self.flush();
        while self.tls.is_handshaking() {
            let mut tcp = &self.tcp;
            self.tls.complete_io(&mut tcp).unwrap();
        }
    }
}

impl Deref for Plain {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.tls
    }
}

impl DerefMut for Plain {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.tls
    }
}

fn bytes_of(frame: &Frame<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn with_crypto(
    suite: SupportedCipherSuite,
    groups: Vec<&'static dyn SupportedKxGroup>,
) -> Arc<CryptoProvider> {
    let ours = crypto();
    let provider = CryptoProvider {
        cipher_suites: vec![suite],
        kx_groups: groups,
        ..CryptoProvider::clone(&ours)
    };
    Arc::new(provider)
}

/// A client like ours, but with another provider.
fn client_config(mesh: &Mesh, provider: Arc<CryptoProvider>) -> Arc<ClientConfig> {
    let ours = mesh.client().config;
    let verifier =
        PeerVerifier::new(mesh.anchors(), mesh.cart.trust_domain().clone(), None, &crypto());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::clone(&ours.client_auth_cert_resolver));
    config.alpn_protocols.clone_from(&ours.alpn_protocols);
    Arc::new(config)
}

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// Plays the accepting side of one connection: echoes `frames` DATA frames, then FIN both ways.
async fn echo(session: &mut Session, frames: usize) {
    session.recv_open(soon()).await.unwrap();
    session.send_accepted(&Accepted::default()).unwrap();
    for _ in 0..frames {
        let place = match session.next().await.unwrap() {
            Received::Data(place) => place,
            other => panic!("{other:?}"),
        };
        let data = session.channel.data(place).to_vec();
        session.channel.send(&Frame::Data(&data)).unwrap();
        session.flush().await.unwrap();
    }
    assert!(matches!(session.next().await.unwrap(), Received::Fin));
    session.channel.send(&Frame::Fin).unwrap();
    session.flush().await.unwrap();
    assert!(session.is_idle());
}

#[tokio::test]
async fn every_cipher_suite_and_group_against_a_plain_client() {
    let mesh = Mesh::new().await;
    let groups: [&'static dyn SupportedKxGroup; 3] =
        [kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
    for (suite, group) in SUITES.into_iter().zip(groups) {
        let config = client_config(&mesh, with_crypto(suite, vec![group]));
        let (near, far) = tcp_pair().await;
        let client = spawn_blocking(move || {
            let mut plain = Plain::client(config, near);
            plain.finish_handshake();
            for round in 0..2u8 {
                plain.send(&Frame::Open(sample_open()));
                assert_eq!(plain.receive().unwrap(), [frame::kind::ACCEPTED]);
                for n in 0..300usize {
                    let size = 1 + n * 53 % frame::MAX_PAYLOAD_BYTES;
                    let data = vec![round ^ (n as u8); size];
                    plain.send(&Frame::Data(&data));
                    assert_eq!(plain.receive().unwrap(), bytes_of(&Frame::Data(&data)));
                }
                let largest = vec![0; frame::MAX_PAYLOAD_BYTES];
                plain.send(&Frame::Data(&largest));
                assert_eq!(plain.receive().unwrap().len(), 16_384);
                plain.send(&Frame::Fin);
                assert_eq!(plain.receive().unwrap(), [frame::kind::FIN]);
            }
            plain.send_close_notify();
            plain.flush();
        });
        let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
        assert_eq!(Some(session.tls().cipher), suite.suite().as_str());
        assert_eq!(Some(session.tls().key_exchange), group.name().as_str());
        for _ in 0..2 {
            in_time("the echo", echo(&mut session, 301)).await;
        }
        assert!(matches!(session.ended().await, SessionError::Closed));
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_hello_retry_request_is_answered() {
    let mesh = Mesh::new().await;
    let groups: Vec<&'static dyn SupportedKxGroup> = vec![kx_group::SECP384R1, kx_group::X25519];
    let config = client_config(&mesh, with_crypto(SUITES[0], groups));
    let (near, far) = tcp_pair().await;
    let client = spawn_blocking(move || {
        let mut plain = Plain::client(config, near);
        plain.finish_handshake();
        let kind = plain.handshake_kind();
        assert_eq!(kind, Some(rustls::HandshakeKind::FullWithHelloRetryRequest));
        plain.send(&Frame::Open(sample_open()));
    });
    let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
    assert_eq!(session.recv_open(soon()).await.unwrap(), sample_open());
    client.await.unwrap();

    // And our own client against a server that wants another group.
    let only = with_crypto(SUITES[0], vec![kx_group::SECP256R1]);
    let ours = mesh.server().config;
    let mut config = ServerConfig::builder_with_provider(only)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::clone(&ours.cert_resolver));
    config.alpn_protocols.clone_from(&ours.alpn_protocols);
    let (near, far) = tcp_pair().await;
    let server = spawn_blocking(move || {
        let mut plain = Plain::server(Arc::new(config), far);
        assert_eq!(plain.receive().unwrap(), bytes_of(&Frame::Open(sample_open())));
        assert_eq!(plain.receive().unwrap(), bytes_of(&Frame::Data(b"early")));
    });
    let mut session = Session::connect(near, &mesh.client(), soon()).await.unwrap();
    assert_eq!(session.tls().key_exchange, "secp256r1");
    session.send_open(&sample_open()).unwrap();
    session.channel.send(&Frame::Data(b"early")).unwrap();
    session.flush().await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn tickets_are_ignored_and_a_plain_server_is_served() {
    let mesh = Mesh::new().await;
    let config = altered_server(&mesh.server(), |config| {
        config.send_tls13_tickets = 4;
        config.ticketer = Arc::new(FakeTicketer);
    });
    let (near, far) = tcp_pair().await;
    let server = spawn_blocking(move || {
        let mut plain = Plain::server(config.config, far);
        assert_eq!(plain.receive().unwrap(), bytes_of(&Frame::Open(sample_open())));
        plain.send(&Frame::Accepted(Accepted::default()));
        plain.send(&Frame::Refused(Refused { reason: Refusal::Draining, text: String::new() }));
    });
    let mut session = Session::connect(near, &mesh.client(), soon()).await.unwrap();
    session.send_open(&sample_open()).unwrap();
    session.recv_accepted(soon()).await.unwrap();
    let error = session.recv_accepted(soon()).await.unwrap_err();
    assert!(matches!(error, SessionError::State(StateError::Answer)), "{error:?}");
    server.await.unwrap();
}

#[derive(Debug)]
struct FakeTicketer;

impl rustls::server::ProducesTickets for FakeTicketer {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        3600
    }

    fn encrypt(&self, _plain: &[u8]) -> Option<Vec<u8>> {
        Some(vec![42; 200])
    }

    fn decrypt(&self, _cipher: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

#[tokio::test]
async fn key_updates_go_both_ways() {
    let mesh = Mesh::new().await;
    let config = client_config(&mesh, crypto());
    let (near, far) = tcp_pair().await;
    let client = spawn_blocking(move || {
        let mut plain = Plain::client(config, near);
        plain.finish_handshake();
        plain.send(&Frame::Open(sample_open()));
        assert_eq!(plain.receive().unwrap(), [frame::kind::ACCEPTED]);
        for n in 0..100u8 {
            if n % 3 == 0 {
                plain.refresh_traffic_keys().unwrap(); // asks for ours as well
            }
            plain.send(&Frame::Data(&[n; 1000]));
            assert_eq!(plain.receive().unwrap(), bytes_of(&Frame::Data(&[n; 1000])));
        }
        plain.send(&Frame::Fin);
        assert_eq!(plain.receive().unwrap(), [frame::kind::FIN]);
        // Now the other side asks: rustls must answer with its own update.
        for n in 0..40u8 {
            assert_eq!(plain.receive().unwrap(), [0x80]);
            plain.send_raw(&[0x80 + n]);
        }
    });
    let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
    in_time("the echo", echo(&mut session, 100)).await;
    let traffic = &session.channel.traffic;
    let sent_with_this_key = traffic.limit - traffic.sealer.remaining();
    assert!(sent_with_this_key < 10, "asked 34 times, and still sent {sent_with_this_key}");
    for n in 0..40u8 {
        session.channel.update_keys(n % 2 == 0).unwrap();
        send_raw(&mut session, record::Content::Data, &[0x80]);
        session.flush().await.unwrap();
    }
    client.await.unwrap();
}

/// A new key comes by itself before a key has protected as many records as it may.
#[tokio::test]
async fn a_key_is_changed_before_its_limit() {
    let mesh = Mesh::new().await;
    let config = client_config(&mesh, crypto());
    let (near, far) = tcp_pair().await;
    let client = spawn_blocking(move || {
        let mut plain = Plain::client(config, near);
        plain.finish_handshake();
        plain.send(&Frame::Open(sample_open()));
        assert_eq!(plain.receive().unwrap(), [frame::kind::ACCEPTED]);
        for n in 0..200u8 {
            plain.send(&Frame::Data(&[n; 10]));
            assert_eq!(plain.receive().unwrap(), bytes_of(&Frame::Data(&[n; 10])));
        }
        plain.send(&Frame::Fin);
        assert_eq!(plain.receive().unwrap(), [frame::kind::FIN]);
    });
    let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
    session.channel.traffic.limit = 40;
    session.channel.traffic.sealer.limit = 40;
    in_time("the echo", echo(&mut session, 200)).await;
    let sent_with_this_key = 40 - session.channel.traffic.sealer.remaining();
    assert!(sent_with_this_key < 30, "{sent_with_this_key} of 203 records");
    client.await.unwrap();
}

#[tokio::test]
async fn our_alerts_and_ends_are_understood() {
    let mesh = Mesh::new().await;
    let frames: [(&[u8], u8); 4] =
        [(&[frame::kind::FIN], 10), (&[0x7f], 50), (&[frame::kind::DATA], 50), (&[6, 0, 1], 10)];
    for (bytes, alert) in frames {
        let config = client_config(&mesh, crypto());
        let (near, far) = tcp_pair().await;
        let client = spawn_blocking(move || {
            let mut plain = Plain::client(config, near);
            plain.finish_handshake();
            plain.send_raw(bytes);
            plain.receive().unwrap_err()
        });
        let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
        session.recv_open(soon()).await.unwrap_err();
        let error = client.await.unwrap();
        assert_eq!(error, rustls::Error::AlertReceived(alert.into()), "after {bytes:02x?}");
    }

    // A proper close, seen as such; and a close that only cuts the socket.
    for proper in [true, false] {
        let config = client_config(&mesh, crypto());
        let (near, far) = tcp_pair().await;
        let client = spawn_blocking(move || {
            let mut plain = Plain::client(config, near);
            plain.finish_handshake();
            if proper {
                assert_eq!(plain.receive().unwrap(), b"", "close_notify reads as the end");
                plain.send_close_notify();
                plain.flush();
            }
            plain.tcp.shutdown(Shutdown::Both).unwrap();
        });
        let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
        if proper {
            session.close().await;
        } else {
            assert!(matches!(session.ended().await, SessionError::Truncated));
        }
        client.await.unwrap();
    }
}

/// A chain of some 30 KB: the Certificate message takes two records and many segments. Then the
/// same in records of 64 bytes.
#[tokio::test]
async fn large_and_fragmented_handshakes() {
    let mesh = Mesh::new().await;
    for fragment in [None, Some(64), Some(512)] {
        let real = mesh.client().config;
        let resolver = Arc::clone(&real.client_auth_cert_resolver);
        let key = resolver.resolve(&[], &[rustls::SignatureScheme::ECDSA_NISTP256_SHA256]).unwrap();
        let mut chain = key.cert.clone();
        for n in 0..40 {
            let stranger = rcgen::KeyPair::generate().unwrap();
            let mut params = rcgen::CertificateParams::default();
            params.subject_alt_names =
                (0..12).map(|m| uri(&format!("spiffe://x/{n}/{m}"))).collect();
            chain.push(params.self_signed(&stranger).unwrap().into());
        }
        let long = Arc::new(rustls::sign::CertifiedKey::new(chain, Arc::clone(&key.key)));
        let config =
            altered_client(&mesh.client_with(long), |config| config.max_fragment_size = fragment);
        let (near, far) = tcp_pair().await;
        let client = spawn_blocking(move || {
            let mut plain = Plain::client(config.config, near);
            plain.finish_handshake();
            plain.send(&Frame::Fin);
        });
        let mut session = Session::accept(far, &mesh.server(), soon()).await.unwrap();
        let error = session.recv_open(soon()).await.unwrap_err();
        assert!(matches!(error, SessionError::State(StateError::Fin)), "{error:?}");
        client.await.unwrap();
    }
}
