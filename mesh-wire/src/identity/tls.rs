//! What a TLS handshake needs: rustls configurations, made once per pair of identities.
//!
//! TLS 1.3 only, whatever features other crates switch on in rustls. Every builder names the
//! provider. Handshakes resume with tickets ([`super::tickets`]) and a fresh key exchange, never
//! with 0-RTT. A ticket goes with the configuration at either end, so it outlives neither a
//! certificate nor a change of anchors.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Weak};

use arc_swap::ArcSwap;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::aws_lc_rs::{self as provider, cipher_suite, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::ServerName;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, ServerConfig, SignatureScheme};

use super::tickets::{ShortTickets, Store, Tickets, TicketsOfConfig};
use super::{Anchors, Identities, Identity, PeerVerifier, SpiffeId};

/// The application protocol of RFC 7301 that both sides must agree on.
pub const ALPN: &[u8] = b"nodemesh/1";

/// The cryptography of every connection of the mesh, best first.
pub fn crypto() -> Arc<CryptoProvider> {
    static CRYPTO: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let kx_groups: Vec<&'static dyn SupportedKxGroup> =
            vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups,
            ..provider::default_provider()
        })
    });
    Arc::clone(&CRYPTO)
}

/// The client's side of a handshake: our identity and the expected one. Drop it after the
/// handshake, because it keeps the private key in memory.
#[derive(Debug, Clone)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) verifier: Arc<PeerVerifier>,
    /// Whose tickets may be used; by default those that came from the same address.
    pub(crate) node: Option<ServerName<'static>>,
    identity: Arc<Identity>,
}

/// The server's side of a handshake: our identity. A client may have any identity of the trust
/// domain. Drop it after the handshake, as [`ClientTls`].
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) verifier: Arc<PeerVerifier>,
    identity: Arc<Identity>,
}

impl ClientTls {
    /// Our own identity in this handshake.
    pub fn own(&self) -> &SpiffeId {
        self.identity.id()
    }

    /// For a peer on that node: its agent takes the tickets that it has given out, for any of its
    /// pods with the expected identity.
    #[must_use]
    pub fn on_node(self, name: &str) -> Self {
        Self { node: ServerName::try_from(name.to_owned()).ok(), ..self }
    }

    /// Whether our certificate may be shown now.
    pub(crate) fn is_valid(&self) -> bool {
        self.identity.is_valid()
    }
}

impl ServerTls {
    /// Our own identity in this handshake.
    pub fn own(&self) -> &SpiffeId {
        self.identity.id()
    }

    /// Whether our certificate may be shown now.
    pub(crate) fn is_valid(&self) -> bool {
        self.identity.is_valid()
    }
}

/// Makes configurations and keeps them while certificate and anchors stay the same.
#[derive(Debug, Clone)]
pub struct TlsConfigs {
    identities: Arc<Identities>,
    tickets: Arc<Tickets>,
}

impl TlsConfigs {
    /// Configurations for the identities in that store.
    pub fn new(identities: Arc<Identities>) -> Self {
        Self { identities, tickets: Arc::default() }
    }

    /// How many tickets there are, of all identities.
    #[cfg(test)]
    pub(crate) fn tickets(&self) -> usize {
        self.tickets.count()
    }

    /// For a connection from `own` to a peer that must be `expected` (any of the trust domain if
    /// `None`). Takes no lock if the same was asked for before.
    ///
    /// # Errors
    /// There is no certificate for `own` on this node now, or it cannot be used.
    pub fn client(
        &self,
        own: &SpiffeId,
        expected: Option<&SpiffeId>,
    ) -> Result<ClientTls, TlsConfigError> {
        let identity = self.identity(own)?;
        let anchors = self.identities.anchors();
        let configs = identity.tls.of(&anchors);
        if let Some(made) = configs.clients.load().get(&expected.cloned()) {
            let Made { config, verifier, .. } = made.clone();
            return Ok(ClientTls { config, verifier, node: None, identity });
        }
        let verifier = verifier(&anchors, &identity, expected.cloned());
        let tickets = self.tickets.of_new_config();
        let config = Arc::new(client_config(&identity, Arc::clone(&verifier), (&tickets).into())?);
        let made = Made { config, verifier, tickets: Some(tickets) };
        configs.clients.rcu(|known| {
            let mut next = HashMap::clone(known);
            if next.len() >= MAX_CLIENT_CONFIGS {
                next.clear();
            }
            next.insert(expected.cloned(), made.clone());
            next
        });
        let Made { config, verifier, .. } = made;
        Ok(ClientTls { config, verifier, node: None, identity })
    }

    /// For connections that arrive for `own`.
    ///
    /// # Errors
    /// As [`TlsConfigs::client`].
    pub fn server(&self, own: &SpiffeId) -> Result<ServerTls, TlsConfigError> {
        let identity = self.identity(own)?;
        let anchors = self.identities.anchors();
        let configs = identity.tls.of(&anchors);
        if let Some(made) = configs.server.load().as_ref() {
            let Made { config, verifier, .. } = made.clone();
            return Ok(ServerTls { config, verifier, identity });
        }
        let verifier = verifier(&anchors, &identity, None);
        let config = Arc::new(server_config(&identity, Arc::clone(&verifier))?);
        let made = Made { config, verifier, tickets: None };
        configs.server.store(Arc::new(Some(made.clone())));
        let Made { config, verifier, .. } = made;
        Ok(ServerTls { config, verifier, identity })
    }

    fn identity(&self, own: &SpiffeId) -> Result<Arc<Identity>, TlsConfigError> {
        self.identities.current(own).ok_or_else(|| TlsConfigError::NoIdentity(own.clone()))
    }
}

/// One per peer identity; a node talks to fewer peers. Beyond it, the set is emptied.
const MAX_CLIENT_CONFIGS: usize = 4096;

/// Why there is no configuration for a handshake.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsConfigError {
    /// No certificate for that service account on this node.
    #[error("this node has no certificate for {0} yet; see the CA in `mesh-agent status`")]
    NoIdentity(SpiffeId),
    /// rustls does not accept what we give it.
    #[error("the certificate of {id} cannot be used: {detail}")]
    Unusable {
        /// The identity whose certificate it is.
        id: SpiffeId,
        /// What rustls said.
        detail: String,
    },
}

/// The configurations made from one certificate. They are dropped with it.
#[derive(Debug, Default)]
pub(super) struct TlsCache(ArcSwap<Option<(Arc<Anchors>, Arc<Configs>)>>);

#[derive(Debug, Default)]
struct Configs {
    clients: ArcSwap<HashMap<Option<SpiffeId>, Made<ClientConfig>>>,
    server: ArcSwap<Option<Made<ServerConfig>>>,
}

/// A configuration, its judge of peers, and a client's tickets.
#[derive(Debug)]
struct Made<C> {
    config: Arc<C>,
    verifier: Arc<PeerVerifier>,
    tickets: Option<Arc<TicketsOfConfig>>,
}

impl<C> Clone for Made<C> {
    fn clone(&self) -> Self {
        let Self { config, verifier, tickets } = self;
        let (config, verifier) = (Arc::clone(config), Arc::clone(verifier));
        Self { config, verifier, tickets: tickets.clone() }
    }
}

impl TlsCache {
    /// The configurations under these anchors, empty if the anchors have changed.
    fn of(&self, anchors: &Arc<Anchors>) -> Arc<Configs> {
        if let Some((known, configs)) = self.0.load().as_ref()
            && Arc::ptr_eq(known, anchors)
        {
            return Arc::clone(configs);
        }
        let configs = Arc::new(Configs::default());
        self.0.store(Arc::new(Some((Arc::clone(anchors), Arc::clone(&configs)))));
        configs
    }
}

fn verifier(
    anchors: &Arc<Anchors>,
    identity: &Identity,
    expected: Option<SpiffeId>,
) -> Arc<PeerVerifier> {
    let trust_domain = identity.id().trust_domain().clone();
    let verifier = PeerVerifier::new(Arc::clone(anchors), trust_domain, expected, &crypto());
    Arc::new(verifier.noting(Arc::clone(identity.clocks())))
}

fn client_config(
    identity: &Identity,
    verifier: Arc<PeerVerifier>,
    tickets: Store,
) -> Result<ClientConfig, TlsConfigError> {
    let mut config = ClientConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(identity, &e))?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(resolver(identity));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::store(Arc::new(tickets));
    config.enable_sni = false;
    config.enable_secret_extraction = true; // the record layer is ours, wire/record.rs
    Ok(config)
}

fn server_config(
    identity: &Identity,
    verifier: Arc<PeerVerifier>,
) -> Result<ServerConfig, TlsConfigError> {
    let mut config = ServerConfig::builder_with_provider(crypto())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| unusable(identity, &e))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(resolver(identity));
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {}); // no peer can fill it
    let ticketer = provider::Ticketer::new().map_err(|e| unusable(identity, &e))?;
    config.ticketer = Arc::new(ShortTickets(ticketer));
    config.send_tls13_tickets = 1; // each handshake brings the next one's
    config.enable_secret_extraction = true;
    Ok(config)
}

fn resolver(identity: &Identity) -> Arc<Shown> {
    Arc::new(Shown(Arc::downgrade(identity.certified_key())))
}

/// Shows an identity's certificate and signs with its key, but does not keep the key. rustls holds
/// a client's configuration for as long as the connection is open, and the key must go with the
/// identity.
#[derive(Debug)]
struct Shown(Weak<CertifiedKey>);

impl ResolvesClientCert for Shown {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.upgrade()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _client_hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.upgrade()
    }
}

fn unusable(identity: &Identity, error: &rustls::Error) -> TlsConfigError {
    TlsConfigError::Unusable { id: identity.id().clone(), detail: error.to_string() }
}
