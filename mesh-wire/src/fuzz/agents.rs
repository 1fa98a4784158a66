//! Two agents with certificates of one CA, made once per process.

use std::sync::{Arc, LazyLock};

use crate::Channel;
use crate::handshake::memory::Side;
use crate::identity::{
    ClientTls, FileCa, Identities, ServerTls, SpiffeId, TlsConfigs, TrustDomain, file_ca,
};

/// The calling agent `web` and the called agent `cart`.
pub(super) struct Agents {
    pub(super) web: SpiffeId,
    pub(super) cart: SpiffeId,
    pub(super) client: ClientTls,
    pub(super) server: ServerTls,
}

/// Both agents.
pub(super) fn agents() -> &'static Agents {
    static AGENTS: LazyLock<Agents> = LazyLock::new(|| match make() {
        Ok(agents) => agents,
        Err(error) => panic!("no agents: {error}"),
    });
    &AGENTS
}

impl Agents {
    /// A session between the two, as both see it: the client's end and the server's.
    pub(super) fn session(&self) -> (Channel, Channel) {
        let (mut client, mut server) = (Side::client(&self.client), Side::server(&self.server));
        let mut heard: Vec<u8> = Vec::new();
        loop {
            let client_is_done = matches!(client.hear(&heard), Ok(true));
            let server_is_done = matches!(server.hear(&client.said()), Ok(true));
            heard = server.said();
            if client_is_done && server_is_done {
                break;
            }
            assert!(!heard.is_empty(), "two agents of one mesh do not finish the handshake");
        }
        let (Ok(client), Ok(server)) = (client.established(), server.established()) else {
            panic!("a handshake between two agents leads to no session");
        };
        assert_eq!((&client.peer, &server.peer), (&self.cart, &self.web));
        (client.channel, server.channel)
    }
}

fn make() -> Result<Agents, Box<dyn std::error::Error>> {
    let trust_domain: TrustDomain = "cluster.local".parse()?;
    let directory = std::env::temp_dir().join(format!("nodemesh-fuzz-{}", std::process::id()));
    file_ca::init(&directory, &trust_domain, true)?;
    let ca = FileCa::open(&directory)?;
    std::fs::remove_dir_all(&directory)?;
    let web = SpiffeId::new(&trust_domain, "shop", "web")?;
    let cart = SpiffeId::new(&trust_domain, "shop", "cart")?;
    let identities = Arc::new(Identities::new(Arc::new(ca)));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        identities.ensure(&web).await?;
        identities.ensure(&cart).await
    })?;
    let configs = TlsConfigs::new(identities);
    let (mut client, mut server) = (configs.client(&web, Some(&cart))?, configs.server(&cart)?);
    // Every run begins as the first: what it does must not depend on the runs before.
    Arc::make_mut(&mut client.config).resumption = rustls::client::Resumption::disabled();
    Arc::make_mut(&mut server.config).send_tls13_tickets = 0;
    Ok(Agents { web, cart, client, server })
}
