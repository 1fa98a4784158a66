//! The one way to a peer's agent: dial, TLS. What it is asked for (OPEN) is the caller's.

use std::net::SocketAddr;

use mesh_api::WirePort;
use mesh_common::{maps::DialOptions, ports};
use mesh_wire::{
    Accepted, Session,
    identity::{SpiffeId, TlsConfigs},
};
use tokio::time::Instant;

use super::{
    dial::{self, DialError, DialledPeer},
    kept::{Birth, Reuse},
    path::MeshedPeer,
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
    /// Its node, whose agent may have given us a ticket.
    pub(super) node: &'a str,
    /// What the connection's socket gets.
    pub(super) options: DialOptions,
}

/// A session with a peer's agent.
pub(super) struct Upstream {
    /// What is sealed on it goes out with what follows, or with [`Session::flush`].
    pub(super) session: Box<Session>,
    /// Where the connection comes from, as the pod's kernel says.
    pub(super) from: SocketAddr,
    /// Keep it as long as the session.
    pub(super) lease: PortLease,
    /// When it was made.
    pub(super) birth: Birth,
    /// Whether it has carried connections before.
    pub(super) reuse: Reuse,
    /// What its last answer to an OPEN says, if it has answered.
    pub(super) answer: Option<Accepted>,
}

impl<'a> Target<'a> {
    /// That pod, by one of the two ports.
    pub(super) fn of(peer: &'a MeshedPeer, wire_port: WirePort, options: DialOptions) -> Self {
        let MeshedPeer { target, expected, node, .. } = peer;
        let (address, node) = (*target, node.as_str());
        Self { address, wire_port, expected, node, options }
    }

    /// The address that is dialled.
    pub(super) fn on_the_wire(&self) -> SocketAddr {
        match self.wire_port {
            WirePort::Application => self.address,
            WirePort::Agents => SocketAddr::new(self.address.ip(), ports::AGENTS),
        }
    }
}

impl Connector<'_> {
    /// Dials a peer's agent and makes a session: [`Self::dial`], then [`Self::secure`].
    ///
    /// # Errors
    /// See [`PeerError`].
    ///
    /// # Cancel safety
    /// That of [`Self::dial`].
    pub(super) async fn connect(
        self,
        pod: &Pod,
        target: Target<'_>,
    ) -> Result<Upstream, PeerError> {
        let dialled = self.dial(pod, target).await?;
        self.secure(pod, target, dialled).await
    }

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

    /// Makes a session over a connection. The peer has not yet judged our certificate when this
    /// returns.
    ///
    /// # Errors
    /// See [`PeerError`].
    ///
    /// # Cancel safety
    /// That of [`Self::dial`].
    pub(super) async fn secure(
        self,
        pod: &Pod,
        target: Target<'_>,
        DialledPeer { stream, from, lease }: DialledPeer,
    ) -> Result<Upstream, PeerError> {
        let birth = pod.birth();
        let tls = self.tls.client(&pod.identity, Some(target.expected))?.on_node(target.node);
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let session = Box::new(Session::connect(stream, &tls, deadline).await?);
        Ok(Upstream { session, from, lease, birth, reuse: Reuse::New, answer: None })
    }
}
