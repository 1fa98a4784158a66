//! What the tests of this crate and of the agent's relay share: a CA, identities, connected
//! sockets, sessions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "for tests alone")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rcgen::{CertificateParams, Issuer, KeyPair, SanType};
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig};

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::record::Content;
use super::{Accepted, Open, Session};
use crate::identity::{
    Anchors, ClientTls, FileCa, Identities, ServerTls, Signer as _, SpiffeId, TlsConfigs, file_ca,
};

/// A mesh in a directory: a CA, two service accounts, their configurations.
pub struct Mesh {
    pub configs: TlsConfigs,
    pub web: SpiffeId,
    pub cart: SpiffeId,
    identities: Arc<Identities>,
    ca: Arc<FileCa>,
    directory: Directory,
}

impl Mesh {
    pub async fn new() -> Self {
        Self::of("cluster.local").await
    }

    pub async fn of(trust_domain: &str) -> Self {
        let directory = Directory::new();
        let trust_domain = trust_domain.parse().unwrap();
        file_ca::init(&directory.0, &trust_domain, false).unwrap();
        let ca = Arc::new(FileCa::open(&directory.0).unwrap());
        let identities = Arc::new(Identities::new(Arc::<FileCa>::clone(&ca)));
        let web = SpiffeId::new(&trust_domain, "shop", "web").unwrap();
        let cart = SpiffeId::new(&trust_domain, "shop", "cart").unwrap();
        identities.ensure(&web).await.unwrap();
        identities.ensure(&cart).await.unwrap();
        let configs = TlsConfigs::new(Arc::clone(&identities));
        Self { configs, web, cart, identities, ca, directory }
    }

    /// Has a certificate for another service account.
    pub async fn ensure(&self, id: &SpiffeId) {
        self.identities.ensure(id).await.unwrap();
    }

    /// The configurations of another agent under the same CA, which knows nothing of this one.
    pub async fn of_another_agent(&self) -> TlsConfigs {
        let identities = Arc::new(Identities::new(Arc::<FileCa>::clone(&self.ca)));
        identities.ensure(&self.web).await.unwrap();
        identities.ensure(&self.cart).await.unwrap();
        TlsConfigs::new(identities)
    }

    /// Has another certificate for a service account.
    pub async fn renew(&self, id: &SpiffeId) {
        let others = [&self.web, &self.cart].into_iter().filter(|other| *other != id).cloned();
        self.identities.retain(&others.collect());
        self.ensure(id).await;
    }

    /// The CA's directory.
    pub fn directory(&self) -> &Path {
        &self.directory.0
    }

    /// The anchors in force.
    pub fn anchors(&self) -> Arc<Anchors> {
        self.ca.anchors()
    }

    /// Reloads the file of anchors.
    pub fn reload_anchors(&self) {
        self.ca.reload().unwrap();
    }

    /// A certificate that the CA would never issue, and its key.
    pub fn forged(&self, change: impl FnOnce(&mut CertificateParams)) -> Arc<CertifiedKey> {
        let read = |name| std::fs::read_to_string(self.directory().join(name)).unwrap();
        let ca_key = KeyPair::from_pem(&read(file_ca::CA_KEY)).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&read(file_ca::CA_CERTIFICATE), ca_key).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![uri(self.web.as_str())];
        change(&mut params);
        let leaf = params.signed_by(&key, &issuer).unwrap();
        certified(vec![leaf.into()], &key)
    }

    /// The client `web` (or a client that claims to be `web`), with that certificate, calling
    /// `cart`.
    pub fn client_with(&self, key: Arc<CertifiedKey>) -> ClientTls {
        altered_client(&self.client(), |config| {
            config.client_auth_cert_resolver = Arc::new(SingleCertAndKey::from(key));
        })
    }

    /// The server `cart` (or a server that claims to be `cart`), with that certificate.
    pub fn server_with(&self, key: Arc<CertifiedKey>) -> ServerTls {
        altered_server(&self.server(), |config| {
            config.cert_resolver = Arc::new(SingleCertAndKey::from(key));
        })
    }

    /// The client `web`, calling `cart`.
    pub fn client(&self) -> ClientTls {
        self.configs.client(&self.web, Some(&self.cart)).unwrap()
    }

    /// The server `cart`.
    pub fn server(&self) -> ServerTls {
        self.configs.server(&self.cart).unwrap()
    }

    /// A session between the two over loopback, client first.
    pub async fn sessions(&self) -> (Session, Session) {
        let (near, far) = tcp_pair().await;
        let (client_tls, server_tls) = (self.client(), self.server());
        let client = async {
            let mut session = Session::connect(near, &client_tls, soon()).await.unwrap();
            session.flush().await.unwrap();
            session
        };
        let server = async { Session::accept(far, &server_tls, soon()).await.unwrap() };
        tokio::join!(client, server)
    }

    /// As [`Mesh::sessions`], with a connection opened and accepted.
    pub async fn connection(&self) -> (Session, Session) {
        let (mut client, mut server) = self.sessions().await;
        open(&mut client, &mut server).await;
        (client, server)
    }
}

/// A directory that is deleted with its last user. (tempfile would be a dependency of the agent.)
struct Directory(PathBuf);

impl Directory {
    fn new() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(format!("mesh-wire-{process}-{number}"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).ok();
    }
}

/// A copy with one thing changed, to play a misbehaving client.
pub fn altered_client(tls: &ClientTls, change: impl FnOnce(&mut ClientConfig)) -> ClientTls {
    let mut altered = tls.clone();
    change(Arc::make_mut(&mut altered.config));
    altered
}

/// A copy with one thing changed, to play a misbehaving server.
pub fn altered_server(tls: &ServerTls, change: impl FnOnce(&mut ServerConfig)) -> ServerTls {
    let mut altered = tls.clone();
    change(Arc::make_mut(&mut altered.config));
    altered
}

/// A URI name in a certificate.
pub fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// A chain and its key as rustls wants them.
pub fn certified(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Arc<CertifiedKey> {
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    Arc::new(CertifiedKey::new(chain, any_supported_type(&der).unwrap()))
}

/// Opens a connection on an idle session.
pub async fn open(client: &mut Session, server: &mut Session) {
    client.send_open(&sample_open()).unwrap();
    client.flush().await.unwrap();
    assert_eq!(server.recv_open(soon()).await.unwrap(), sample_open());
    server.send_accepted(&Accepted::default()).unwrap();
    server.flush().await.unwrap();
    client.recv_accepted(soon()).await.unwrap();
}

pub fn sample_open() -> Open {
    Open {
        source: "10.1.2.3:40000".parse().unwrap(),
        original_destination: "10.96.0.7:80".parse().unwrap(),
        destination_port: None,
        acknowledges_drops: false,
    }
}

/// Two ends of one loopback connection, the dialling one first.
pub async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A deadline that only a hang can miss, also on a busy machine.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Fails the test if `what` takes longer than a hang can explain.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_mins(1);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}

/// A small generator of reproducible bytes and choices (xorshift64*).
#[derive(Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.number() % limit
    }

    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let word = self.number().to_le_bytes();
            chunk.copy_from_slice(&word[..chunk.len()]);
        }
    }
}

/// Seals a record of any kind and content, to play a peer that breaks the protocol.
pub(super) fn send_raw(session: &mut Session, content: Content, body: &[u8]) {
    let channel = &mut session.channel;
    channel.outbox.seal(&mut channel.traffic, content, body).unwrap();
}

/// Seals a record of application data, whatever frame it may be.
pub fn send_frame(session: &mut Session, body: &[u8]) {
    send_raw(session, Content::Data, body);
}
