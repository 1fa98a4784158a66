//! Connections that peers' agents dial: accepted from a pod's inbound listener and brought to the
//! application.
//!
//! What is awaited rarely or for a short time is boxed: else its room is part of each connection's
//! future for as long as that is open.

mod open;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_api::{Bytes, Direction, PlaintextReason, Reason, WirePort};
use mesh_common::{maps::DialOptions, ports, verdict::Verdict};
use mesh_wire::{Accepted, Open, Refusal, Refused, Session, SessionError};
use mesh_world::Peer;
use socket2::SockRef;
use tokio::{net::TcpStream, time::sleep};

use self::open::Asked;
use super::{
    Mesh,
    dial::{self, DialError, Leg, LegEnds},
    ended,
    kept::{self, Birth},
    limits::{Admitted, HandshakeSlot, LimitReached},
    look::{Looks, PEER_SILENCE, SILENCE, look},
    path,
    peer::{HANDSHAKE_TIMEOUT, PeerError},
    pod::Pod,
    relay::{self, AppStream, ByteCounts, CarryOptions},
    silence::{self, Silence},
    turns::TurnOwner,
    unless_gone,
};
use crate::{
    flows::{self, Ended, Flow, Party, Security},
    sys::sock::{self, OtherEnd},
};

/// How long a failed handshake keeps its place among those of its source. With 64 places, that
/// allows 64 failures a second. Each costs up to a millisecond of computing; a flood at full speed
/// made the slowest requests of other clients take three times as long.
const FAILED_REST: Duration = Duration::from_secs(1);

/// Resets a connection for which there is no room, and records it.
pub(super) fn refuse(
    mesh: &Mesh,
    pod: &Pod,
    stream: TcpStream,
    client: SocketAddr,
    reached: LimitReached,
) {
    let Ok(server) = stream.local_addr() else {
        return; // reset before we came
    };
    dial::reset(stream);
    record_limit(mesh, pod, (client, server), reached);
}

/// Records that there was no room for a connection.
fn record_limit(
    mesh: &Mesh,
    pod: &Pod,
    (client, server): (SocketAddr, SocketAddr),
    reached: LimitReached,
) {
    let (direction, outcome) = (Direction::Inbound, reached.reason().into());
    let (netns, verdict) = (pod.netns.cookie(), Verdict::InboundMesh);
    mesh.flows.refuse(
        flows::RefusedConnection { netns, direction, client, server, verdict, outcome },
        |client, server| {
            mesh.name(client);
            server.pod = Some(pod.name.clone());
            reached.to_string().into()
        },
    );
}

/// A connection as it arrived.
struct Arrival {
    stream: TcpStream,
    ends: SessionEnds,
    admitted: Admitted,
}

/// Carries a TCP connection to its end.
pub(super) async fn serve(
    mesh: Arc<Mesh>,
    pod: Arc<Pod>,
    stream: TcpStream,
    from: SocketAddr,
    admitted: Admitted,
) {
    let Ok(to) = stream.local_addr() else {
        return; // reset before we came
    };
    let slot = match admitted.handshake(HANDSHAKE_TIMEOUT).await {
        Ok(slot) => slot,
        Err(reached) => return refuse(&mesh, &pod, stream, from, reached),
    };
    let ends = SessionEnds { from, to };
    let arrival = Arrival { stream, ends, admitted };
    let begin = || ends.begin(&mesh, &pod);
    if ends.wire_port() == WirePort::Agents {
        return Box::pin(mutual_tls(&mesh, &pod, arrival, slot, begin())).await;
    }
    mesh.metrics.accepted_inbound.inc();
    let is_closed = || pod.is_strict() && !is_open_port(&mesh, to);
    let peer = announced(&mesh, from, to);
    if peer && is_closed() {
        return Box::pin(mutual_tls(&mesh, &pod, arrival, slot, begin())).await;
    }
    let silence = if peer { PEER_SILENCE } else { SILENCE };
    let mut looks = Box::pin(look(&arrival.stream, silence)).await;
    let closed = is_closed();
    let flow = begin();
    if closed && matches!(looks, Ok(Looks::Silent)) {
        // Only TLS could enter, and it may still come.
        looks = Box::pin(look(&arrival.stream, HANDSHAKE_TIMEOUT)).await;
    }
    match looks {
        Ok(Looks::LikeAgent) => Box::pin(mutual_tls(&mesh, &pod, arrival, slot, flow)).await,
        Ok(Looks::LikePlaintext | Looks::Silent) if closed => {
            dial::reset(arrival.stream);
            flow.end(Ended::refused(Verdict::RefusedStrict), Bytes::default());
            rest(slot).await;
        }
        Ok(looks) => {
            drop(slot); // no handshake, as far as can be seen
            Box::pin(perhaps_plaintext(&mesh, &pod, arrival, looks, flow)).await;
        }
        Err(error) => flow.end(client_gone(&error), Bytes::default()),
    }
}

/// Keeps the place of a failed handshake for a while, so that no peer can make us compute many of
/// them.
async fn rest(slot: HandshakeSlot) {
    sleep(FAILED_REST).await;
    drop(slot);
}

/// Whether an announced peer dials a port that is not excluded. Then TLS follows, unless the peer
/// has just left the mesh.
fn announced(mesh: &Mesh, from: SocketAddr, to: SocketAddr) -> bool {
    !is_excluded(mesh, to) && mesh.world.load().believed(from.ip()).is_some()
}

/// Whether the pod takes plaintext on this port although it may be strict.
fn is_open_port(mesh: &Mesh, to: SocketAddr) -> bool {
    let is_open = |port: u16, own: &Peer| {
        own.exclude_ports.contains(port) || own.permissive_ports.contains(port)
    };
    mesh.world.load().believed(to.ip()).is_some_and(|own| is_open(to.port(), own))
}

fn is_excluded(mesh: &Mesh, to: SocketAddr) -> bool {
    mesh.world.load().believed(to.ip()).is_some_and(|own| own.exclude_ports.contains(to.port()))
}

fn client_gone(error: &std::io::Error) -> Ended {
    let sentence = format!("the client was gone before it said anything: {error}");
    Ended::new(Reason::ClientGone, sentence)
}

/// The addresses of a session.
#[derive(Clone, Copy)]
struct SessionEnds {
    from: SocketAddr,
    to: SocketAddr,
}

/// A connection that a peer's agent asks for, and the session that is to carry it.
struct AskedFor {
    session: Session,
    open: Open,
    admitted: Admitted,
    flow: Flow,
}

impl SessionEnds {
    fn wire_port(self) -> WirePort {
        if self.to.port() == ports::AGENTS { WirePort::Agents } else { WirePort::Application }
    }

    fn begin(self, mesh: &Mesh, pod: &Pod) -> Flow {
        let verdict = match self.wire_port() {
            WirePort::Agents => Verdict::InboundAgentsPort,
            WirePort::Application => Verdict::InboundMesh,
        };
        let (mut client, mut server) = (Party::at(self.from), Party::at(self.to));
        mesh.name(&mut client);
        server.pod = Some(pod.name.clone());
        mesh.flows.begin(pod.netns.cookie(), Direction::Inbound, client, server, verdict)
    }

    fn note_session(self, flow: &Flow, session: &Session) {
        flow.note(|record| {
            record.security = Security::Mtls(session.tls(), self.wire_port());
            record.client.identity = Some(session.peer_identity().clone());
            record.server.identity = Some(session.own_identity().clone());
        });
    }
}

async fn mutual_tls(mesh: &Mesh, pod: &Pod, arrival: Arrival, slot: HandshakeSlot, flow: Flow) {
    let (ends, birth) = (arrival.ends, pod.birth());
    let mut asked_for = Box::pin(first(mesh, pod, arrival, slot, flow)).await;
    while let Some(asked) = asked_for {
        let carried = Box::pin(carry(mesh, pod, ends, asked)).await;
        let Some((idle, admitted)) = carried else { return };
        asked_for = Box::pin(next(mesh, pod, ends, birth, idle, admitted)).await;
    }
}

/// Makes a session over a connection, and waits for what the peer's agent asks for first. `None` if
/// it is no connection: the record says why.
async fn first(
    mesh: &Mesh,
    pod: &Pod,
    arrival: Arrival,
    slot: HandshakeSlot,
    flow: Flow,
) -> Option<AskedFor> {
    let Arrival { stream, ends, admitted } = arrival;
    // From here on TLS ends the connection itself, and a slow reader gets all data.
    if let Err(error) = SockRef::from(&stream).set_linger(None) {
        flow.end(client_gone(&error), Bytes::default());
        return None;
    }
    let claim = TurnOwner { pod: pod.netns.cookie(), peer: mesh.client(ends.from.ip()) };
    let begun = Instant::now();
    let authenticated = |session: &Session| ends.note_session(&flow, session);
    let accepting = Box::pin(mesh.acceptor().accept(pod, claim, stream, authenticated));
    let (session, open) = match accepting.await {
        Ok(accepted) => accepted,
        Err(error) => {
            let ended = Ended::new(error.reason(), error.to_string()).with_fault(error.fault());
            flow.end(ended, Bytes::default());
            if let PeerError::Handshake(_) = error {
                rest(slot).await;
            }
            return None;
        }
    };
    drop(slot);
    if open::asked(&open, ends.to) == Ok(Asked::Seen) {
        match Box::pin(path::answer(session, ends.from)).await {
            Ok(()) => flow.forget(),
            Err(error) => flow.end(session_ended(&error), Bytes::default()),
        }
        return None;
    }
    mesh.metrics.handshake_inbound.observe(begun.elapsed().as_secs_f64());
    mesh.metrics.resumed_inbound.inc_by(session.is_resumed().into());
    if ends.wire_port() == WirePort::Agents {
        mesh.metrics.accepted_inbound.inc();
    }
    Some(AskedFor { session, open, admitted, flow })
}

/// The application that OPEN asks for, and the client that it is shown.
///
/// # Errors
/// No such connection is made; tell the peer.
fn judge(
    mesh: &Mesh,
    ends: SessionEnds,
    session: &Session,
    open: &Open,
) -> Result<LegEnds, Refused> {
    let Asked::Application(application) = open::asked(open, ends.to)? else {
        let text = "a question about the path, after a connection".to_owned();
        return Err(Refused { reason: Refusal::WrongDestination, text });
    };
    let identity = |namespace: &str, account: &str| mesh.identity(namespace, account);
    let (proven, world) = (session.peer_identity(), mesh.world.load());
    let client = open::client(&world, identity, open.source, ends.from, proven)?;
    Ok(LegEnds { application, client })
}

/// Carries a connection to its end. Returns the session, if it may carry the next one, and the
/// connection's place.
async fn carry(
    mesh: &Mesh,
    pod: &Pod,
    ends: SessionEnds,
    asked: AskedFor,
) -> Option<(Session, Admitted)> {
    let AskedFor { mut session, open, mut admitted, mut flow } = asked;
    let from = ends.from;
    let leg_ends = match judge(mesh, ends, &session, &open) {
        Ok(leg_ends) => leg_ends,
        Err(refused) => {
            Box::pin(refuse_open(session, refused, flow)).await;
            return None;
        }
    };
    let LegEnds { application: to, client } = leg_ends;
    flow.note(|record| {
        let identity = record.client.identity.take();
        record.client = Party { identity, ..Party::at(client) };
        mesh.name(&mut record.client);
        record.server.port = to.port();
        record.original_destination = open.original_destination;
    });
    if client.ip() != from.ip().to_canonical()
        && let Err(reached) = admitted.count_behind(mesh.client(client.ip()))
    {
        let refused = Refused { reason: Refusal::Overloaded, text: reached.to_string() };
        drop(Box::pin(session.refuse(refused)).await); // if the peer does not hear, nothing changes
        flow.end(limited(reached), Bytes::default());
        return None;
    }
    let dialling = dial_application(mesh, pod, leg_ends, &session.tcp, |peer| peer.has_closed);
    let Leg { stream: app, held: _held } = match Box::pin(dialling).await {
        Some(Ok(leg)) => leg,
        None => {
            flow.end(client_gave_up(), Bytes::default());
            return None;
        }
        Some(Err(error)) => {
            let reason = refusal(&error);
            drop(Box::pin(session.refuse(Refused { reason, text: error.to_string() })).await);
            flow.end(Ended::new(reason.reason(), error.to_string()), Bytes::default());
            return None;
        }
    };
    let acknowledges_drops = silence::acknowledges_drops();
    let accepted = Accepted { acknowledges_drops, keeps_session: true, ..Accepted::default() };
    if let Err(error) = session.send_accepted(&accepted) {
        flow.end(session_ended(&error), Bytes::default());
        return None;
    }
    let counters = counted(&mut flow);
    let options = CarryOptions {
        memory: Some(mesh.memory(pod, Silence::of_client(open.acknowledges_drops))),
        ..CarryOptions::default()
    };
    let carried = Box::pin(relay::carry(session, app, &counters, options)).await;
    mesh.finish(
        flow,
        ended(&carried.end),
        Bytes { sent: counters.from_peer(), received: counters.to_peer() },
    );
    carried.session.map(|session| (session, admitted))
}

/// Keeps a session until the peer's agent asks for the next connection. `None` if it ends instead:
/// after a while, when the pod accepts nothing more, or when there is no room. It is closed as well
/// if it is not what a new one would be, although it has been asked: the peer's agent then asks
/// on a new one. The place of the last connection is given back once there is one among the kept.
async fn next(
    mesh: &Mesh,
    pod: &Pod,
    ends: SessionEnds,
    birth: Birth,
    mut session: Session,
    last: Admitted,
) -> Option<AskedFor> {
    let client = mesh.client(ends.from.ip());
    let Ok(room) = mesh.kept_inbound.admit(&pod.kept_inbound, Some(client)) else {
        Box::pin(session.close()).await;
        return None;
    };
    drop(last);
    let over = tokio::time::Instant::now() + kept::IDLE_TIME_OF_SERVER;
    let stopped = pod.accepting.stopped();
    let open = match stopped.run_until_cancelled(Box::pin(session.recv_open(over))).await {
        Some(Ok(open)) => open,
        Some(Err(SessionError::TimedOut)) | None => {
            Box::pin(session.close()).await;
            return None;
        }
        Some(Err(_)) => return None, // the peer has closed it, or it is broken
    };
    let now = mesh.tls.server(&pod.identity);
    let is_as_new = pod.may_reuse(birth) && now.is_ok_and(|now| session.matches_server(&now));
    if stopped.is_cancelled() || !is_as_new {
        Box::pin(session.close()).await;
        return None;
    }
    match mesh.limits.admit(&pod.inbound, Some(client)) {
        Ok(admitted) => {
            drop(room);
            mesh.metrics.accepted_inbound.inc();
            mesh.metrics.reused_inbound.inc();
            let flow = ends.begin(mesh, pod);
            ends.note_session(&flow, &session);
            Some(AskedFor { session, open, admitted, flow })
        }
        Err(reached) => {
            record_limit(mesh, pod, (ends.from, ends.to), reached);
            let refused = Refused { reason: Refusal::Overloaded, text: reached.to_string() };
            drop(Box::pin(session.refuse(refused)).await); // if it does not hear, nothing changes
            None
        }
    }
}

/// Dials the application as long as the client waits for it. `None`: it does not any more.
async fn dial_application(
    mesh: &Mesh,
    pod: &Pod,
    ends: LegEnds,
    client: &TcpStream,
    is_gone: impl Fn(OtherEnd) -> bool,
) -> Option<Result<Leg, DialError>> {
    let dialling = dial::application(&mesh.kernel, &mesh.factory, pod, ends);
    unless_gone(dialling, || sock::other_end(client).is_ok_and(&is_gone)).await
}

fn client_gave_up() -> Ended {
    let sentence = "the client gave up before the application had accepted its connection";
    Ended::new(Reason::ClientGone, sentence)
}

/// A connection's counters, which its record shows if it is cut off.
fn counted(flow: &mut Flow) -> Arc<ByteCounts> {
    let counters = Arc::new(ByteCounts::default());
    let counted = Arc::clone(&counters);
    flow.measure(move || Bytes { sent: counted.from_peer(), received: counted.to_peer() });
    counters
}

/// Tells the peer why its OPEN is refused.
async fn refuse_open(session: Session, refused: Refused, flow: Flow) {
    let sentence = format!("{}: {}", refused.reason, refused.text);
    let ended = Ended::new(refused.reason.reason(), sentence);
    drop(session.refuse(refused).await); // if the peer does not hear, nothing changes
    flow.end(ended, Bytes::default());
}

fn refusal(error: &DialError) -> Refusal {
    match error {
        DialError::Refused { .. } => Refusal::ApplicationRefused,
        DialError::TimedOut { .. } => Refusal::ApplicationTimedOut,
        DialError::Unreachable { .. }
        | DialError::Elsewhere { .. }
        | DialError::NoAddress { .. } => Refusal::ApplicationUnreachable,
        DialError::NoSourcePort { .. }
        | DialError::Socket(_)
        | DialError::Netns(_)
        | DialError::Leg(_) => Refusal::AgentFailure,
    }
}

fn limited(reached: LimitReached) -> Ended {
    Ended::new(reached.reason(), reached.to_string())
}

fn session_ended(error: &SessionError) -> Ended {
    Ended::new(error.reason(), error.to_string()).with_fault(error.fault())
}

/// A connection from the mesh's source ports that, as far as can be seen, comes from an ordinary
/// client and not from an agent. A silent client may wait for the server to speak first. Until the
/// server does, it may still turn out to be an agent whose first segment was lost. One that turns
/// out to be an agent after the server has spoken is reset: the application reads nothing of it.
async fn perhaps_plaintext(
    mesh: &Mesh,
    pod: &Pod,
    arrival: Arrival,
    mut looks: Looks,
    mut flow: Flow,
) {
    let SessionEnds { from, to } = arrival.ends;
    let ends = LegEnds { application: to, client: from };
    let leg = dial_application(mesh, pod, ends, &arrival.stream, |client| client.has_reset).await;
    let leg = match leg {
        Some(Ok(leg)) => leg,
        None => return flow.end(client_gave_up(), Bytes::default()),
        Some(Err(error)) => {
            dial::reset(arrival.stream);
            return flow.end(Ended::new(error.reason(), error.to_string()), Bytes::default());
        }
    };
    if looks == Looks::Silent && client_speaks_first(&arrival.stream, leg.stream.tcp()).await {
        let slot = match arrival.admitted.handshake(HANDSHAKE_TIMEOUT).await {
            Ok(slot) => slot,
            Err(reached) => {
                dial::reset(arrival.stream);
                return flow.end(limited(reached), Bytes::default());
            }
        };
        match look(&arrival.stream, SILENCE).await {
            Ok(Looks::LikeAgent) => {
                drop(leg); // the application has seen a connection without a byte
                return Box::pin(mutual_tls(mesh, pod, arrival, slot, flow)).await;
            }
            Ok(now) => looks = now,
            Err(error) => return flow.end(client_gone(&error), Bytes::default()),
        }
    }
    let Arrival { stream, admitted: _admitted, .. } = arrival;
    let keepalive = silence::keepalive_with_stranger(DialOptions::default());
    if let Err(error) = SockRef::from(&stream).set_tcp_keepalive(&keepalive) {
        return flow.end(client_gone(&error), Bytes::default());
    }
    let client = AppStream::prepared(stream);
    flow.note(|record| {
        record.security = Security::Plaintext(PlaintextReason::ClientNotMeshed);
    });
    let counters = counted(&mut flow);
    let memory = Some(mesh.memory(pod, Silence::of_stranger(DialOptions::default())));
    let end = if looks == Looks::Silent {
        Box::pin(relay::relay_plain_held(client, leg.stream, &counters, memory)).await
    } else {
        Box::pin(relay::relay_plain(client, leg.stream, &counters, memory)).await
    };
    let bytes = Bytes { sent: counters.to_peer(), received: counters.from_peer() };
    mesh.finish(flow, ended(&end), bytes);
}

/// Whether the client sends something, or ends, before the server does.
async fn client_speaks_first(client: &TcpStream, server: &TcpStream) -> bool {
    tokio::select! {
        biased;
        _ = client.readable() => true,
        _ = server.readable() => false,
    }
}
