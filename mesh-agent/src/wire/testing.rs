//! What the tests of wire and relay share: a CA, identities, connected sockets, sessions.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use super::{Accepted, Open, Session};
use crate::identity::{ClientTls, FileCa, Identities, ServerTls, SpiffeId, TlsConfigs, file_ca};

/// A mesh in a directory: a CA, two service accounts, their configurations.
pub(crate) struct Mesh {
    pub(crate) ca: Arc<FileCa>,
    pub(crate) configs: TlsConfigs,
    pub(crate) web: SpiffeId,
    pub(crate) cart: SpiffeId,
    directory: tempfile::TempDir,
}

impl Mesh {
    pub(crate) async fn new() -> Self {
        Self::of("cluster.local").await
    }

    pub(crate) async fn of(trust_domain: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let trust_domain = trust_domain.parse().unwrap();
        file_ca::init(directory.path(), &trust_domain, false).unwrap();
        let ca = Arc::new(FileCa::open(directory.path()).unwrap());
        let identities = Arc::new(Identities::new(Arc::<FileCa>::clone(&ca)));
        let web = SpiffeId::new(&trust_domain, "shop", "web").unwrap();
        let cart = SpiffeId::new(&trust_domain, "shop", "cart").unwrap();
        identities.ensure(&web).await.unwrap();
        identities.ensure(&cart).await.unwrap();
        let configs = TlsConfigs::new(identities);
        Self { ca, configs, web, cart, directory }
    }

    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// `web` calling `cart`.
    pub(crate) fn client(&self) -> ClientTls {
        self.configs.client(&self.web, Some(&self.cart)).unwrap()
    }

    /// `cart` being called.
    pub(crate) fn server(&self) -> ServerTls {
        self.configs.server(&self.cart).unwrap()
    }

    /// A session between the two over loopback, client first.
    pub(crate) async fn sessions(&self) -> (Session, Session) {
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
    pub(crate) async fn connection(&self) -> (Session, Session) {
        let (mut client, mut server) = self.sessions().await;
        open(&mut client, &mut server).await;
        (client, server)
    }
}

/// Opens a connection on an idle session.
pub(crate) async fn open(client: &mut Session, server: &mut Session) {
    client.send_open(&sample_open()).unwrap();
    client.flush().await.unwrap();
    assert_eq!(server.recv_open(soon()).await.unwrap(), sample_open());
    server.send_accepted(&Accepted::default()).unwrap();
    server.flush().await.unwrap();
    client.recv_accepted(soon()).await.unwrap();
}

pub(crate) fn sample_open() -> Open {
    Open {
        source: "10.1.2.3:40000".parse().unwrap(),
        original_destination: "10.96.0.7:80".parse().unwrap(),
        source_pod: None,
        trace_id: None,
    }
}

/// Two ends of one loopback connection, the dialling one first.
pub(crate) async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// A deadline that only a hang can miss, also on a busy machine.
pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// Fails the test if `what` takes longer than a hang can explain.
pub(crate) async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(60);
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("{what}: not in time"))
}
