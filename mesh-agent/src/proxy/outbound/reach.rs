//! Brings a pod's dial to one of the places that it may mean.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use mesh_api::{Mode, PlaintextReason, Reason, WirePort};
use mesh_common::{errno, ports};
use mesh_wire::{Open, SessionError};
use mesh_world::{DialAs, Dispute, Endpoint, ObjectName, ServicePort, pick};

use super::{
    ANSWER_TIMEOUT, Dialled,
    neighbour::{self, Neighbour},
};
use crate::{
    flows::{Ended, Flow, Party, Security},
    proxy::{
        Mesh,
        dial::{self, DialError, Leg, LegEnds, LegHeld, PEER_TIMEOUT},
        failure::{Failed, Retry},
        kept::{self, Purpose, Reuse, ToPeer},
        limits::LimitReached,
        load::Counted,
        path::{self, MeshedPeer},
        peer::PeerError,
        pod::Pod,
        relay::AppStream,
        silence,
        upstream::{Target, Upstream},
    },
};

/// How many endpoints of a service are tried while each refuses the connection. Nothing has been
/// sent by then.
const ENDPOINTS_TRIED: usize = 3;

/// Why a connection could not be brought to what the pod dialled.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReachError {
    #[error("no endpoint of service {0} is ready")]
    NoEndpoint(ObjectName),
    #[error("the application reset its connection before it was carried")]
    ClientGone,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("a pod of this node takes no connection: {0}")]
    Limit(#[from] LimitReached),
    #[error("{}", Reason::NoPeerIdentity.sentence())]
    NoIdentity,
    #[error(
        "{address} is said to be that of {dispute}; nothing decides between them, and it is not dialled; `status` says more"
    )]
    Disputed { address: IpAddr, dispute: Arc<Dispute> },
}

impl ReachError {
    /// Whether the failure looks as if the path had changed the source. TLS then meets an
    /// application, which may speak TLS of its own, or the kernel of a strict pod, which takes it
    /// for plaintext. No data of the client has been sent by then.
    fn may_be_changed_source(&self) -> bool {
        matches!(
            self,
            Self::Peer(
                PeerError::Dial(DialError::Refused { .. } | DialError::Elsewhere { .. })
                    | PeerError::Handshake(_)
            )
        )
    }

    pub(super) fn ended(&self) -> Ended {
        let reason = match self {
            Self::NoEndpoint(_) => Reason::NoEndpoint,
            Self::ClientGone => Reason::ClientGone,
            Self::Dial(error) => error.reason(),
            Self::Peer(error) => {
                return Ended::new(error.reason(), self.to_string()).with_fault(error.fault());
            }
            Self::Limit(reached) => reached.reason(),
            Self::NoIdentity => Reason::NoPeerIdentity,
            Self::Disputed { .. } => Reason::DisputedAddress,
        };
        Ended::new(reason, self.to_string())
    }

    /// Which side failed, and whether another try is safe.
    pub(super) fn failed(&self) -> Failed {
        match self {
            Self::NoEndpoint(_) => Failed::network(Retry::No, errno::ECONNREFUSED),
            Self::ClientGone => Failed::Client,
            Self::Dial(error) => error.into(),
            Self::Peer(error) => error.into(),
            Self::NoIdentity => Failed::Us,
            Self::Limit(_) | Self::Disputed { .. } => Failed::peer(Retry::Yes),
        }
    }
}

/// A connection to the place to which the application's is carried.
pub(super) struct Reached {
    pub(super) way: Way,
    pub(super) _counted: Counted,
}

pub(super) enum Way {
    /// To a peer's agent.
    Mesh(Box<ToPeer>),
    /// To an application of another pod of this node, as it is.
    Local(AppStream, Box<Neighbour>),
    /// To an application, as it is.
    Plain(AppStream, Option<LegHeld>),
}

/// Reaches what was dialled. If that is a service, tries another endpoint when one refuses the
/// connection.
pub(super) async fn reach(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    dialled: Dialled,
    flow: &Flow,
) -> Result<Reached, ReachError> {
    if dialled.was_held && is_excluded(mesh, pod, dialled.to.port()) {
        let counted = mesh.load.count(dialled.to);
        let way =
            plain(mesh, pod, dialled, dialled.to, flow, PlaintextReason::PortExcluded).await?;
        return Ok(Reached { way, _counted: counted });
    }
    let service = mesh.world.load().service(dialled.to.ip(), dialled.to.port()).cloned();
    let Some(service) = service else {
        return reach_one(mesh, pod, dialled, dialled.to, flow).await;
    };
    let (namespace, name) = (Arc::clone(&service.namespace), Arc::clone(&service.name));
    let name = ObjectName { namespace, name };
    flow.note(|record| record.service = Some(name.clone()));
    let client = dialled.from.ip();
    let mut tried = Vec::new();
    loop {
        let kept = mesh.affinities.of(client, &service).filter(|kept| !tried.contains(kept));
        let Some(target) = kept.or_else(|| endpoint(mesh, &service, &tried)) else {
            return Err(ReachError::NoEndpoint(name));
        };
        tried.push(target);
        match reach_one(mesh, pod, dialled, target, flow).await {
            Err(error)
                if error.failed().retry() == Retry::Yes
                    && tried.len() < service.endpoints.len().min(ENDPOINTS_TRIED) => {}
            Ok(reached) => {
                mesh.affinities.keep(client, &service, target);
                return Ok(reached);
            }
            Err(error) => return Err(error),
        }
    }
}

async fn reach_one(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    dialled: Dialled,
    target: SocketAddr,
    flow: &Flow,
) -> Result<Reached, ReachError> {
    let counted = mesh.load.count(target);
    flow.note(|record| {
        record.server = Party::at(target);
        mesh.name(&mut record.server);
    });
    let way = if pod.addresses().any(|own| own == target.ip()) {
        // A service that led back to the pod that dialled it.
        flow.note(|record| record.security = Security::Plaintext(PlaintextReason::OwnAddress));
        let client = canonical(dialled.from);
        let ends = LegEnds { application: target, client };
        let leg = dial::application(&mesh.kernel, &mesh.factory, pod, ends).await?;
        let Leg { stream, held } = leg;
        Way::Plain(stream, Some(held))
    } else if let Some(peer) = meshed_peer(mesh, target)? {
        to_meshed(mesh, pod, dialled, &peer, flow).await?
    } else {
        let is_endpoint = target != dialled.to;
        let reason = if is_endpoint || !dialled.was_held {
            PlaintextReason::EndpointNotMeshed
        } else if mesh.world.load().believed(target.ip()).is_some() {
            PlaintextReason::PortExcluded
        } else {
            PlaintextReason::NotMeshed
        };
        plain(mesh, pod, dialled, target, flow, reason).await?
    };
    Ok(Reached { way, _counted: counted })
}

/// Whether the pod's own annotation keeps a port out of the mesh.
fn is_excluded(mesh: &Mesh, pod: &Pod, port: u16) -> bool {
    let world = mesh.world.load();
    pod.addresses()
        .filter_map(|own| world.believed(own))
        .any(|own| own.exclude_ports.contains(port))
}

async fn plain(
    mesh: &Mesh,
    pod: &Pod,
    dialled: Dialled,
    target: SocketAddr,
    flow: &Flow,
    reason: PlaintextReason,
) -> Result<Way, ReachError> {
    flow.note(|record| record.security = Security::Plaintext(reason));
    Ok(Way::Plain(dial::plain(&mesh.factory, pod, target, dialled.options).await?, None))
}

/// The less loaded of two endpoints drawn at random. Prefers one that has not been tried, as long
/// as there is one.
fn endpoint(mesh: &Mesh, service: &ServicePort, tried: &[SocketAddr]) -> Option<SocketAddr> {
    let draws = (fastrand::u64(..), fastrand::u64(..));
    let chosen = pick(service, draws, |endpoint| mesh.load.of(endpoint))?;
    let mut others = service.endpoints.iter().map(Endpoint::socket_addr);
    let chosen = chosen.socket_addr();
    if !tried.contains(&chosen) {
        return Some(chosen);
    }
    Some(others.find(|other| !tried.contains(other)).unwrap_or(chosen))
}

/// The peer that must answer at an address and port; `None` if it is not in the mesh.
fn meshed_peer(mesh: &Mesh, target: SocketAddr) -> Result<Option<MeshedPeer>, ReachError> {
    let world = mesh.world.load();
    let peer = match world.dial_as(target) {
        DialAs::Plain => return Ok(None),
        DialAs::Tls(peer) => peer,
        DialAs::Refused(dispute) => {
            return Err(ReachError::Disputed {
                address: target.ip(),
                dispute: Arc::clone(dispute),
            });
        }
    };
    let expected = mesh.identity_of(peer).ok_or(ReachError::NoIdentity)?;
    let strict = peer.mode == Mode::Strict;
    let only_tls = strict && !peer.permissive_ports.contains(target.port());
    let (uid, node) = (peer.uid.clone(), peer.node.clone());
    Ok(Some(MeshedPeer { uid, target, expected, node, only_tls }))
}

/// Dials the application's port, or the agents' port where the path changes source addresses or
/// ports. Uses TLS in both cases.
async fn to_meshed(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    dialled: Dialled,
    peer: &MeshedPeer,
    flow: &Flow,
) -> Result<Way, ReachError> {
    let refused = || DialError::Refused { to: peer.target };
    if [0, ports::AGENTS].contains(&peer.target.port()) {
        return Err(refused().into()); // no application can be reached there
    }
    let to_peer = async |by| {
        if by == WirePort::Application
            && let Some(there) = neighbour::of(mesh, pod, peer)
        {
            let (stream, held) = neighbour::to(mesh, pod, there, dialled, peer, flow).await?;
            return Ok(Way::Local(stream, held));
        }
        let purpose = Purpose { peer: peer.clone(), by, options: dialled.options };
        let way = to_peer(mesh, pod, dialled, purpose, flow).await?;
        if by == WirePort::Agents {
            mesh.metrics.by_agents_port.inc();
        }
        Ok::<_, ReachError>(way)
    };
    let by = path::judge(mesh, pod, peer).await;
    match to_peer(by).await {
        Ok(way) if by == WirePort::Application => {
            path::note_reached(mesh, pod, peer);
            Ok(way)
        }
        Err(error) if by == WirePort::Application && error.may_be_changed_source() => {
            match path::judge_again(mesh, pod, peer).await {
                WirePort::Application => Err(error),
                by @ WirePort::Agents => to_peer(by).await,
            }
        }
        outcome => outcome,
    }
}

async fn to_peer(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    dialled: Dialled,
    purpose: Purpose,
    flow: &Flow,
) -> Result<Way, ReachError> {
    let expected = Some(&purpose.peer.expected);
    let tls = mesh.tls.client(&pod.identity, expected).map_err(PeerError::from)?;
    while let Some(mut kept) = kept::take(mesh, pod, &purpose, &tls) {
        match open_on(&mut kept.upstream, dialled, &purpose, flow).await {
            Ok(()) => return Ok(Way::Mesh(kept)),
            Err(error @ SessionError::Refused(_)) => return Err(PeerError::from(error).into()),
            Err(SessionError::Closed) => mesh.metrics.sessions_stale.inc(),
            // The others may have gone the same way. No data has been sent: a new one may be asked.
            Err(_) => {
                mesh.metrics.sessions_stale.inc();
                kept::forget(pod, &purpose);
                break;
            }
        }
    }
    drop(tls); // it would keep the private key in memory
    to_peer_anew(mesh, pod, dialled, purpose, flow).await.map(Way::Mesh)
}

/// Brings a connection, whose kept session has not carried it, to its peer on a new one.
pub(super) async fn begin_again(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    dialled: Dialled,
    purpose: Purpose,
    flow: &Flow,
) -> Result<Box<ToPeer>, ReachError> {
    let peer = purpose.peer.clone();
    let may_change = purpose.by == WirePort::Application;
    match to_peer_anew(mesh, pod, dialled, purpose, flow).await {
        Err(error) if may_change && error.may_be_changed_source() => {
            match path::judge_again(mesh, pod, &peer).await {
                WirePort::Application => Err(error),
                by @ WirePort::Agents => {
                    let purpose = Purpose { peer, by, options: dialled.options };
                    to_peer_anew(mesh, pod, dialled, purpose, flow).await
                }
            }
        }
        outcome => outcome,
    }
}

/// Makes a session for a connection.
async fn to_peer_anew(
    mesh: &Mesh,
    pod: &Pod,
    dialled: Dialled,
    purpose: Purpose,
    flow: &Flow,
) -> Result<Box<ToPeer>, ReachError> {
    let target = Target::of(&purpose.peer, purpose.by, dialled.options);
    let begun = Instant::now();
    let mut upstream = mesh.connector().connect(pod, target).await?;
    mesh.metrics.handshake_outbound.observe(begun.elapsed().as_secs_f64());
    mesh.metrics.resumed_outbound.inc_by(upstream.session.is_resumed().into());
    open_on(&mut upstream, dialled, &purpose, flow).await.map_err(PeerError::from)?;
    Ok(Box::new(ToPeer { upstream, purpose }))
}

/// Asks for a connection. If `connect()` waits for it, waits for the answer.
async fn open_on(
    upstream: &mut Upstream,
    dialled: Dialled,
    purpose: &Purpose,
    flow: &Flow,
) -> Result<(), SessionError> {
    let session = &mut upstream.session;
    flow.note(|record| {
        record.security = Security::Mtls(session.tls(), purpose.by);
        record.client.identity = Some(session.own_identity().clone());
        record.server.identity = Some(session.peer_identity().clone());
    });
    session.send_open(&Open {
        source: canonical(dialled.from),
        original_destination: dialled.to,
        destination_port: purpose.port_in_open(),
        acknowledges_drops: silence::acknowledges_drops(),
    })?;
    if dialled.waits {
        // A peer that has vanished is found out as soon as a dial would find it out.
        let is_new = upstream.reuse == Reuse::New;
        let patience = if is_new { ANSWER_TIMEOUT } else { PEER_TIMEOUT };
        let deadline = tokio::time::Instant::now() + patience;
        upstream.answer = Some(session.recv_accepted(deadline).await?);
    }
    Ok(())
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}
