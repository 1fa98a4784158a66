//! Connections that a pod dials: accepted from its outbound listener and carried to the peer's
//! agent.

use std::{
    io,
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr},
    num::NonZeroU16,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use mesh_api::{
    Bytes, Direction, Mode, Party, PlaintextReason, Reason, Security, TlsFacts, WirePort,
};
use mesh_common::{
    errno,
    maps::{FailedKey, FlowKey, Named},
    ports,
    verdict::Verdict,
};
use mesh_wire::{Open, Refusal, Refused, Session, SourcePod};
use mesh_world::{DialAs, Dispute, Endpoint, ServicePort, pick};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, time::Instant};

use super::{
    Mesh,
    dial::{self, DialError, Leg, LegHeld},
    ended,
    limits::{Admitted, LimitReached},
    load::Counted,
    path::{self, MeshedPeer},
    peer::PeerError,
    pod::Pod,
    relay::{self, AppStream, CarryOptions, Counters},
    source_ports::PortLease,
    turns::Claim,
};
use crate::{
    flows::{self, Ended, Flow},
    kernel::{MEMORY, MEMORY_OF_AGENT},
};

/// How long a TLS handshake with a peer may take.
pub(super) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a peer's agent may take to answer OPEN. Longer than it takes that agent to find out
/// that its application does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How many endpoints of a service are tried while each refuses the connection. Nothing has been
/// sent by then.
const ENDPOINTS_TRIED: usize = 3;

/// Why a connection could not be brought to what the pod dialled.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("no endpoint of service {0} is ready")]
    NoEndpoint(String),
    #[error("the application reset its connection before it was carried")]
    ClientGone,
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("{}", Reason::NoPeerIdentity.sentence())]
    NoIdentity,
    #[error(
        "{address} is said to be that of {dispute}; nothing decides between them, and it is not dialled; `status` says more"
    )]
    Disputed { address: IpAddr, dispute: Arc<Dispute> },
}

impl Failure {
    /// Whether the failure looks as if the path had changed the source. TLS then meets an
    /// application, which may speak TLS of its own, or the kernel of a strict pod, which takes it
    /// for plaintext. No data of the client has been sent by then.
    fn may_be_changed_source(&self) -> bool {
        matches!(
            self,
            Self::Peer(PeerError::Dial(DialError::Refused { .. }) | PeerError::Handshake(_))
        )
    }

    fn ended(&self) -> Ended {
        let reason = match self {
            Self::NoEndpoint(_) => Reason::NoEndpoint,
            Self::ClientGone => Reason::ClientGone,
            Self::Dial(error) => error.reason(),
            Self::Peer(error) => {
                return Ended::new(error.reason(), self.to_string()).with_fault(error.fault());
            }
            Self::NoIdentity => Reason::NoPeerIdentity,
            Self::Disputed { .. } => Reason::DisputedAddress,
        };
        Ended::new(reason, self.to_string())
    }

    /// The errno that the network would have given, and how long to remember it. `None` if the
    /// fault lies with us or with a certificate: such a failure is not remembered.
    fn errno(&self) -> Option<(u32, Duration)> {
        let dial = match self {
            Self::NoEndpoint(_) => return Some((errno::ECONNREFUSED, MEMORY)),
            Self::Peer(PeerError::Dial(DialError::Refused { .. })) => {
                return Some((errno::ECONNREFUSED, MEMORY_OF_AGENT));
            }
            Self::Dial(error) | Self::Peer(PeerError::Dial(error)) => error,
            Self::Peer(PeerError::Config(_) | PeerError::Handshake(_) | PeerError::Session(_))
            | Self::ClientGone
            | Self::NoIdentity
            | Self::Disputed { .. } => return None,
        };
        let errno = match dial {
            DialError::Refused { .. } => errno::ECONNREFUSED,
            DialError::TimedOut { .. } => errno::ETIMEDOUT,
            DialError::Unreachable { source, .. } => match source.kind() {
                io::ErrorKind::NetworkUnreachable => errno::ENETUNREACH,
                _ => errno::EHOSTUNREACH,
            },
            DialError::NoSourcePort { .. }
            | DialError::NoAddress { .. }
            | DialError::Socket(_)
            | DialError::Netns(_)
            | DialError::Leg(_) => return None,
        };
        Some((errno, MEMORY))
    }

    /// Whether another endpoint may be tried: nothing was sent to this one.
    fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Dial(DialError::Refused { .. })
                | Self::Peer(PeerError::Dial(DialError::Refused { .. }))
                | Self::Disputed { .. }
        )
    }
}

/// Whether the application has reset its connection and left nothing to read. Checked early, so
/// that a pod that only dials and resets costs little.
pub(super) fn is_gone(app: &AppStream) -> bool {
    let peeked = SockRef::from(app.tcp()).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock)
}

/// Resolves once [`is_gone`] holds; never, if there is something to read.
async fn gone(app: &AppStream) {
    if app.tcp().ready(Interest::ERROR).await.is_ok() && !is_gone(app) {
        std::future::pending::<()>().await;
    }
}

/// Records that the pod has too many connections open for one more. Asks for the original
/// destination all the same, which removes the kernel's note of it.
pub(super) fn refuse(
    mesh: &Mesh,
    pod: &Pod,
    app: &AppStream,
    client: SocketAddr,
    reached: LimitReached,
) {
    let original = original_destination(mesh, pod, app.tcp(), client);
    let server = original.map_or(client, |original| SocketAddr::from(original.endpoint));
    let (direction, outcome) = (Direction::Outbound, reached.reason().into());
    let (netns, verdict) = (pod.netns.cookie(), Verdict::OutboundSteered);
    mesh.flows.refuse(
        flows::Refused { netns, direction, client, server, verdict, outcome },
        |client, server| {
            client.pod = Some(pod.name.to_string());
            mesh.name(server);
            reached.to_string()
        },
    );
}

/// Carries one connection to its end.
pub(super) async fn serve(
    mesh: Arc<Mesh>,
    pod: Arc<Pod>,
    app: AppStream,
    from: SocketAddr,
    _admitted: Admitted,
) {
    let original = original_destination(&mesh, &pod, app.tcp(), from);
    let to = original.map_or(from, |original| SocketAddr::from(original.endpoint));
    let verdict = original.and_then(|original| Verdict::from_number(original.verdict));
    let verdict = verdict.unwrap_or(Verdict::OutboundSteered);
    let mut client = Party::at(from);
    client.pod = Some(pod.name.to_string());
    let netns = pod.netns.cookie();
    let flow = mesh.flows.begin(netns, Direction::Outbound, client, Party::at(to), verdict);
    if original.is_none() {
        let reason = Reason::OriginalDestinationUnknown;
        return flow.end(&Ended::new(reason, reason.sentence()), Bytes::default());
    }
    Box::pin(carry(&mesh, &pod, app, Dialled { from, to }, flow)).await;
}

/// The addresses of the application's dial.
#[derive(Clone, Copy)]
struct Dialled {
    from: SocketAddr,
    to: SocketAddr,
}

/// Asks the kernel what the application dialled. If the kernel does not know, the connection is
/// reset and never guessed at: the application may have given up before the agent came.
fn original_destination(
    mesh: &Mesh,
    pod: &Pod,
    app: &TcpStream,
    from: SocketAddr,
) -> Option<Named> {
    let here = app.local_addr().ok()?;
    let flow = FlowKey {
        netns: pod.netns.cookie(),
        local: from.ip().into(),
        remote: here.ip().into(),
        local_port: from.port(),
        remote_port: here.port(),
        zero: 0,
    };
    match mesh.kernel.tables().take_pending(&flow) {
        Ok(Some(named)) => Some(named),
        Ok(None) => {
            tracing::debug!(pod = %pod.name, %from, "a redirected connection whose destination the kernel does not know; reset");
            None
        }
        Err(error) => {
            tracing::error!(pod = %pod.name, %error, "cannot ask the kernel for an original destination");
            None
        }
    }
}

async fn carry(mesh: &Mesh, pod: &Pod, app: AppStream, dialled: Dialled, mut flow: Flow) {
    let counters = Arc::new(Counters::default());
    let counted = Arc::clone(&counters);
    flow.measure(move || Bytes { sent: counted.to_peer(), received: counted.from_peer() });
    let mut idle = None;
    let memory = Some(mesh.memory(pod));
    let claim = Claim { pod: pod.netns.cookie(), peer: mesh.client(dialled.to.ip()) };
    let reaching = Box::pin(mesh.turns.run(claim, reach(mesh, pod, dialled, &flow)));
    let reached = tokio::select! {
        biased;
        reached = reaching => reached,
        () = gone(&app) => Err(Unreached { failure: Failure::ClientGone, nothing_else: false }),
    };
    let ended = match reached {
        Err(Unreached { failure, nothing_else }) => {
            if nothing_else && let Some((errno, memory)) = failure.errno() {
                remember(mesh, pod, dialled.to, errno, memory);
            }
            drop(app); // a reset: it has not been carried
            failure.ended()
        }
        Ok(Reached { way: Way::Mesh(session, _lease, by), nothing_else, .. }) => {
            let answer_by = Some(Instant::now() + ANSWER_TIMEOUT);
            let refused = |refused: &Refused| {
                if nothing_else && let Some(errno) = application_errno(refused.reason) {
                    remember(mesh, pod, dialled.to, errno, MEMORY);
                }
            };
            let options = CarryOptions { answer_by, memory, refused: Some(&refused), stop: None };
            let carried = Box::pin(relay::carry(*session, app, &counters, options)).await;
            idle = carried.session;
            ended_by(&carried.end, by)
        }
        Ok(Reached { way: Way::Plain(stream, _held), .. }) => {
            let options = CarryOptions { memory, ..CarryOptions::default() };
            ended(&Box::pin(relay::relay_plain(app, stream, &counters, options)).await)
        }
    };
    let bytes = Bytes { sent: counters.to_peer(), received: counters.from_peer() };
    mesh.finish(flow, &ended, bytes);
    // A session carries one connection, until sessions are kept for the next one.
    if let Some(session) = idle {
        session.close().await;
    }
}

/// Tells the kernel that the next dial will fail too, before the application sees this failure. A
/// program that retries at once then gets the real error.
fn remember(mesh: &Mesh, pod: &Pod, to: SocketAddr, errno: u32, memory: Duration) {
    let key = FailedKey::new(pod.netns.cookie(), to.into());
    if let Err(error) = mesh.kernel.tables().failed.remember(key, errno, memory) {
        tracing::warn!(pod = %pod.name, %to, %error, "cannot remember that a destination was not reached; the next dial is tried");
    }
}

/// The errno that the network would have given, if the peer agent's refusal is about the
/// application.
fn application_errno(reason: Refusal) -> Option<u32> {
    match reason {
        Refusal::ApplicationRefused => Some(errno::ECONNREFUSED),
        Refusal::ApplicationUnreachable => Some(errno::EHOSTUNREACH),
        Refusal::ApplicationTimedOut => Some(errno::ETIMEDOUT),
        Refusal::PolicyDenied
        | Refusal::NotEnrolled
        | Refusal::WrongDestination
        | Refusal::SourceMismatch
        | Refusal::Draining
        | Refusal::Overloaded
        | Refusal::AgentFailure
        | Refusal::Newer(_) => None,
    }
}

/// A connection to the place to which the application's is carried.
struct Reached {
    way: Way,
    /// No other endpoint is left to try: a pod was dialled, or the service has only one endpoint.
    nothing_else: bool,
    _counted: Counted,
}

/// Why there is no connection.
struct Unreached {
    failure: Failure,
    /// Every endpoint has failed.
    nothing_else: bool,
}

enum Way {
    Mesh(Box<Session>, PortLease, WirePort),
    Plain(AppStream, Option<LegHeld>),
}

/// Reaches what was dialled. If that is a service, tries another endpoint when one refuses the
/// connection.
async fn reach(
    mesh: &Mesh,
    pod: &Pod,
    dialled: Dialled,
    flow: &Flow,
) -> Result<Reached, Unreached> {
    let service = mesh.world.load().service(dialled.to.ip(), dialled.to.port()).cloned();
    let Some(service) = service else {
        let reached = reach_one(mesh, pod, dialled, dialled.to, flow).await;
        return reached.map_err(|failure| Unreached { failure, nothing_else: true });
    };
    let name = format!("{}/{}", service.namespace, service.name);
    flow.note(|record| record.service = Some(name.clone()));
    let client = dialled.from.ip();
    let mut tried = Vec::new();
    loop {
        let kept = mesh.affinities.of(client, &service).filter(|kept| !tried.contains(kept));
        let Some(target) = kept.or_else(|| endpoint(mesh, &service, &tried)) else {
            let failure = Failure::NoEndpoint(name);
            return Err(Unreached { failure, nothing_else: true });
        };
        tried.push(target);
        let nothing_else = tried.len() == service.endpoints.len();
        match reach_one(mesh, pod, dialled, target, flow).await {
            Err(failure)
                if failure.is_refusal() && !nothing_else && tried.len() < ENDPOINTS_TRIED => {}
            Ok(reached) => {
                mesh.affinities.keep(client, &service, target);
                let nothing_else = service.endpoints.len() == 1;
                return Ok(Reached { nothing_else, ..reached });
            }
            Err(failure) => return Err(Unreached { failure, nothing_else }),
        }
    }
}

async fn reach_one(
    mesh: &Mesh,
    pod: &Pod,
    dialled: Dialled,
    target: SocketAddr,
    flow: &Flow,
) -> Result<Reached, Failure> {
    let counted = mesh.load.count(target);
    flow.note(|record| {
        record.server = Party::at(target);
        mesh.name(&mut record.server);
    });
    let way = if pod.addresses().any(|own| own == target.ip()) {
        // A service that led back to the pod that dialled it.
        let security = Security::plaintext(PlaintextReason::OwnAddress);
        flow.note(|record| record.security = security);
        let client = canonical(dialled.from);
        let Leg { stream, held } = dial::application(mesh, pod, target, client).await?;
        Way::Plain(stream, Some(held))
    } else if let Some(peer) = meshed_peer(mesh, target)? {
        to_meshed(mesh, pod, dialled, &peer, flow).await?
    } else {
        let security = Security::plaintext(PlaintextReason::EndpointNotMeshed);
        flow.note(|record| record.security = security);
        Way::Plain(dial::plain(mesh, pod, target).await?, None)
    };
    Ok(Reached { way, nothing_else: true, _counted: counted })
}

/// The less loaded of two endpoints drawn at random. Prefers one that has not been tried, as long
/// as there is one.
fn endpoint(mesh: &Mesh, service: &ServicePort, tried: &[SocketAddr]) -> Option<SocketAddr> {
    let chosen = pick(service, (random(), random()), |endpoint| mesh.load.of(endpoint))?;
    let mut others = service.endpoints.iter().map(Endpoint::socket_addr);
    let chosen = chosen.socket_addr();
    if !tried.contains(&chosen) {
        return Some(chosen);
    }
    Some(others.find(|other| !tried.contains(other)).unwrap_or(chosen))
}

/// Random enough to spread connections: the standard library's per-process keys over a counter.
fn random() -> u64 {
    use std::{
        hash::{BuildHasher as _, RandomState},
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static DRAWS: AtomicU64 = AtomicU64::new(0);
    KEYS.hash_one(DRAWS.fetch_add(1, Ordering::Relaxed))
}

/// The peer that must answer at an address and port; `None` if it is not in the mesh.
fn meshed_peer(mesh: &Mesh, target: SocketAddr) -> Result<Option<MeshedPeer>, Failure> {
    let world = mesh.world.load();
    let peer = match world.dial_as(target) {
        DialAs::Plain => return Ok(None),
        DialAs::Tls(peer) => peer,
        DialAs::Refused(dispute) => {
            return Err(Failure::Disputed { address: target.ip(), dispute: Arc::clone(dispute) });
        }
    };
    let expected = mesh.identity_of(peer).ok_or(Failure::NoIdentity)?;
    let strict = peer.mode == Mode::Strict;
    let only_tls = strict && !peer.permissive_ports.contains(target.port());
    Ok(Some(MeshedPeer { target, expected, node: peer.node.clone(), only_tls }))
}

/// Dials the application's port, or the agents' port where the path changes source addresses or
/// ports. Uses TLS in both cases.
async fn to_meshed(
    mesh: &Mesh,
    pod: &Pod,
    dialled: Dialled,
    peer: &MeshedPeer,
    flow: &Flow,
) -> Result<Way, Failure> {
    let refused = || DialError::Refused { to: peer.target };
    let port = NonZeroU16::new(peer.target.port()).ok_or_else(refused)?;
    if port.get() == ports::AGENTS {
        return Err(refused().into()); // no application can be reached there
    }
    let to_peer = |by| to_peer(mesh, pod, dialled, peer, (port, by), flow);
    let by = path::judge(mesh, pod, peer).await;
    match to_peer(by).await {
        Err(failure) if by == WirePort::Application && failure.may_be_changed_source() => {
            match path::judge_again(mesh, pod, peer).await {
                WirePort::Application => Err(failure),
                by @ WirePort::Agents => to_peer(by).await,
            }
        }
        outcome => outcome,
    }
}

async fn to_peer(
    mesh: &Mesh,
    pod: &Pod,
    dialled: Dialled,
    peer: &MeshedPeer,
    (port, by): (NonZeroU16, WirePort),
    flow: &Flow,
) -> Result<Way, Failure> {
    let tls = mesh.tls.client(&pod.identity, Some(&peer.expected)).map_err(PeerError::from)?;
    let (to, destination_port) = match by {
        WirePort::Application => (peer.target, None),
        WirePort::Agents => (SocketAddr::new(peer.target.ip(), ports::AGENTS), Some(port)),
    };
    let (stream, lease) = dial::to_peer(mesh, pod, to).await.map_err(PeerError::from)?;
    let handshake = Session::connect(stream, &tls, Instant::now() + HANDSHAKE_TIMEOUT).await;
    let mut session = handshake.map_err(PeerError::from)?;
    flow.note(|record| {
        record.security = Security::Mtls(facts(&session, by));
        record.client.identity = Some(session.own_identity().to_string());
        record.server.identity = Some(session.peer_identity().to_string());
    });
    let open = Open {
        source: canonical(dialled.from),
        original_destination: dialled.to,
        destination_port,
        source_pod: Some(SourcePod {
            uid: pod.uid.to_string(),
            namespace: pod.name.namespace.to_string(),
            name: pod.name.name.to_string(),
        }),
        trace_id: None,
    };
    session.send_open(&open).map_err(PeerError::from)?;
    if by == WirePort::Agents {
        mesh.counters.by_agents_port.fetch_add(1, Ordering::Relaxed);
    }
    Ok(Way::Mesh(Box::new(session), lease, by))
}

fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

/// How a connection over the mesh ended, for the record.
fn ended_by(end: &relay::End, by: WirePort) -> Ended {
    let mut ended = ended(end);
    if let (WirePort::Agents, relay::End::PeerFailed(error)) = (by, end)
        && error.is_not_understood()
    {
        ended.sentence +=
            "; the peer's agent is older and takes no connections at the agents' port: upgrade it";
    }
    ended
}

/// What TLS agreed on, for the record.
pub(super) fn facts(session: &Session, wire_port: WirePort) -> TlsFacts {
    let info = session.tls();
    TlsFacts {
        version: info.version.to_owned(),
        cipher_suite: info.cipher.to_owned(),
        key_exchange: info.key_exchange.to_owned(),
        wire_port,
    }
}
