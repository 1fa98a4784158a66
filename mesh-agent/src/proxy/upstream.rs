//! The one way to a peer's agent: dial, TLS, OPEN.

use std::net::SocketAddr;

use mesh_api::WirePort;
use mesh_common::{maps::DialOptions, ports};
use mesh_wire::{
    Open, Session,
    identity::{SpiffeId, TlsConfigs},
};
use tokio::time::Instant;

use super::{
    dial::{self, DialError, DialledPeer},
    peer::{HANDSHAKE_TIMEOUT, PeerError},
    pod::Pod,
    source_ports::PortLease,
};
use crate::netns::Factory;

/// What it takes to connect.
#[derive(Clone, Copy)]
pub(super) struct Connector<'a> {
    /// Makes the sockets.
    pub(super) factory: &'a Factory,
    /// The pods' certificates.
    pub(super) tls: &'a TlsConfigs,
}

/// The pod that is connected to.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    /// Its address, and the application's port.
    pub(super) address: SocketAddr,
    /// The port that is dialled there.
    pub(super) wire_port: WirePort,
    /// The identity that it must prove.
    pub(super) expected: &'a SpiffeId,
    /// What the connection's socket gets.
    pub(super) options: DialOptions,
}

/// A session with a peer's agent, on which OPEN is sealed.
pub(super) struct Upstream {
    /// OPEN is not written yet: it goes out with the first data, or with [`Session::flush`].
    pub(super) session: Box<Session>,
    /// Where the connection comes from, as the pod's kernel says.
    pub(super) from: SocketAddr,
    /// Keep it as long as the session.
    pub(super) lease: PortLease,
    /// What its answer says of its kernel ([`mesh_wire::Accepted::acknowledges_drops`]), if it has
    /// answered.
    pub(super) acknowledges_drops: Option<bool>,
}

impl Target<'_> {
    /// The address that is dialled.
    pub(super) fn on_the_wire(&self) -> SocketAddr {
        match self.wire_port {
            WirePort::Application => self.address,
            WirePort::Agents => SocketAddr::new(self.address.ip(), ports::AGENTS),
        }
    }
}

impl Connector<'_> {
    /// Connects from inside a pod to where another pod's agent accepts.
    ///
    /// # Errors
    /// See [`DialError`].
    ///
    /// # Cancel safety
    /// If dropped, the connection is given up and its port returned.
    pub(super) async fn dial(
        self,
        pod: &Pod,
        target: Target<'_>,
    ) -> Result<DialledPeer, DialError> {
        dial::to_peer(self.factory, pod, target.on_the_wire(), target.options).await
    }

    /// Asks a peer's agent for what `open` says. `open` is called once the peer is known, with the
    /// session and the address that it comes from. The peer has not yet judged our certificate when
    /// this returns, nor read OPEN.
    ///
    /// # Errors
    /// See [`PeerError`]. Nothing that `open` says has been sent.
    ///
    /// # Cancel safety
    /// That of [`Self::dial`].
    pub(super) async fn open(
        self,
        pod: &Pod,
        target: Target<'_>,
        DialledPeer { stream, from, lease }: DialledPeer,
        open: impl FnOnce(&Session, SocketAddr) -> Open,
    ) -> Result<Upstream, PeerError> {
        let tls = self.tls.client(&pod.identity, Some(target.expected))?;
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let mut session = Session::connect(stream, &tls, deadline).await?;
        let open = open(&session, from);
        session.send_open(&open)?;
        Ok(Upstream { session: Box::new(session), from, lease, acknowledges_drops: None })
    }
}
