//! Connections that a pod dials: accepted from its outbound listener and carried to the peer's
//! agent.

mod neighbour;
mod packet;
mod reach;
mod waiting;

use std::{io, mem::MaybeUninit, net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::{Bytes, Direction, Reason, WirePort};
use mesh_common::{
    maps::{DestinationKey, DialOptions, FlowKey, Pending},
    verdict::Verdict,
};
use mesh_wire::SessionError;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, time::Instant};

use self::reach::{ReachError, Reached, Way, begin_again, reach};
pub(super) use self::waiting::Waiting;
pub(crate) use self::waiting::answer;
use super::{
    Mesh,
    dial::PEER_TIMEOUT,
    ended,
    kept::{self, Reuse, ToPeer},
    limits::{Admitted, LimitReached},
    pod::Pod,
    relay::{self, AppStream, ByteCounts, CarryOptions, FirstData},
    silence::Silence,
    turns::TurnOwner,
    upstream::Upstream,
};
use crate::flows::{self, Ended, Flow, Party};

/// How long a peer's agent may take to answer OPEN. Longer than its kernel takes to find out that
/// its application does not answer (`tcp_syn_retries`, 131 s).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(140);

/// A session that has carried more to the server than this is not kept: both sides may have ended
/// while the server's application has not read everything, and the next connection would wait
/// behind it. So much fits into the buffer of any application's socket.
const MOST_BYTES_BEHIND: u64 = 32 * 1024;

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

/// A place among the agent's connections for one that is being accepted. A dial that has waited has
/// one already.
///
/// # Errors
/// There are too many.
pub(super) fn admit(
    mesh: &Mesh,
    pod: &Pod,
    dial: Option<&FlowKey>,
) -> Result<Admitted, LimitReached> {
    let waited = dial.and_then(|dial| mesh.waiting.take_admitted(dial));
    waited.map_or_else(|| mesh.limits.admit(&pod.outbound, None), Ok)
}

/// The dial of an accepted connection, as the dialling socket sees it. `None` if it is gone.
pub(super) fn dial_of(pod: &Pod, app: &TcpStream, from: SocketAddr) -> Option<FlowKey> {
    Some(pod.flow_key(from, app.local_addr().ok()?))
}

/// Records that the pod has too many connections open for one more. Asks for the original
/// destination all the same, which removes the kernel's note of it.
pub(super) fn refuse(
    mesh: &Mesh,
    pod: &Pod,
    client: SocketAddr,
    dial: Option<&FlowKey>,
    reached: LimitReached,
) {
    let original = original_destination(mesh, pod, dial);
    let server = original.map_or(client, |original| original.named.endpoint.into());
    record_limit(mesh, pod, (client, server), Verdict::OutboundSteered, reached);
}

/// Records that there was no room for a dial.
fn record_limit(
    mesh: &Mesh,
    pod: &Pod,
    (client, server): (SocketAddr, SocketAddr),
    verdict: Verdict,
    reached: LimitReached,
) {
    let (direction, outcome) = (Direction::Outbound, reached.reason().into());
    let netns = pod.netns.cookie();
    mesh.flows.refuse(
        flows::RefusedConnection { netns, direction, client, server, verdict, outcome },
        |client, server| {
            client.pod = Some(pod.name.clone());
            mesh.name(server);
            reached.to_string().into()
        },
    );
}

/// Carries one connection to its end.
pub(super) async fn serve(
    mesh: Arc<Mesh>,
    pod: Arc<Pod>,
    app: AppStream,
    (from, dial): (SocketAddr, Option<FlowKey>),
    _admitted: Admitted,
) {
    let original = original_destination(&mesh, &pod, dial.as_ref());
    if let (Some(dial), Some(original)) = (&dial, &original)
        && let Some(reached) = mesh.waiting.take(dial, original.id)
    {
        return Box::pin(carry(&mesh, &pod, app, reached)).await;
    }
    let options = original.map_or_else(DialOptions::default, |original| original.options);
    let named = original.map(|original| original.named);
    let to = named.map_or(from, |named| SocketAddr::from(named.endpoint));
    let verdict = named.and_then(|named| Verdict::from_number(named.verdict));
    let flow = begin(&mesh, &pod, (from, to), verdict.unwrap_or(Verdict::OutboundSteered));
    if named.is_none() {
        let reason = Reason::OriginalDestinationUnknown;
        return flow.end(Ended::new(reason, reason.sentence()), Bytes::default());
    }
    let was_held = verdict == Some(Verdict::RedirectHeld);
    let dialled = Dialled { from, to, waits: false, was_held, options };
    let reaching = Box::pin(reach_in_turn(&mesh, &pod, dialled, &flow));
    let reached = tokio::select! {
        biased;
        reached = reaching => reached,
        () = gone(&app) => Err(ReachError::ClientGone),
    };
    match reached {
        Ok(reached) => {
            let ready = Ready { dialled, flow, reached };
            Box::pin(carry(&mesh, &pod, app, ready)).await;
        }
        Err(error) => {
            note_reached(&mesh, &pod, to, false);
            drop(app); // a reset: it has not been carried
            mesh.finish(flow, error.ended(), Bytes::default());
        }
    }
}

/// Begins the record of a dial.
fn begin(mesh: &Mesh, pod: &Pod, (from, to): (SocketAddr, SocketAddr), verdict: Verdict) -> Flow {
    let mut client = Party::at(from);
    client.pod = Some(pod.name.clone());
    mesh.flows.begin(pod.netns.cookie(), Direction::Outbound, client, Party::at(to), verdict)
}

/// Reaches what was dialled, when it is this dial's turn.
async fn reach_in_turn(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    dialled: Dialled,
    flow: &Flow,
) -> Result<Reached, ReachError> {
    mesh.turns.run(turn_owner(mesh, pod, dialled), reach(mesh, pod, dialled, flow)).await
}

fn turn_owner(mesh: &Mesh, pod: &Pod, dialled: Dialled) -> TurnOwner {
    TurnOwner { pod: pod.netns.cookie(), peer: mesh.client(dialled.to.ip()) }
}

/// The addresses of the application's dial.
#[derive(Clone, Copy)]
struct Dialled {
    from: SocketAddr,
    to: SocketAddr,
    /// Whether `connect()` waits, so that the peer's answer counts and no data goes with OPEN.
    waits: bool,
    /// Whether the pod was held when it dialled, so that the kernel could not say what the mesh
    /// carries.
    was_held: bool,
    /// What the application has set on its socket.
    options: DialOptions,
}

/// A dial whose destination is reached.
struct Ready {
    dialled: Dialled,
    flow: Flow,
    reached: Reached,
}

/// Asks the kernel what the application dialled. If the kernel does not know, the connection is
/// reset and never guessed at: the application may have given up before the agent came.
fn original_destination(mesh: &Mesh, pod: &Pod, dial: Option<&FlowKey>) -> Option<Pending> {
    let dial = dial?;
    match mesh.kernel.tables().take_pending(dial) {
        Ok(Some(pending)) => Some(pending),
        Ok(None) => {
            let from = dial.local_port;
            tracing::debug!(pod = %pod.name, %from, "a redirected connection whose destination the kernel does not know; reset");
            None
        }
        Err(error) => {
            tracing::error!(pod = %pod.name, %error, "cannot ask the kernel for an original destination");
            None
        }
    }
}

async fn carry(mesh: &Arc<Mesh>, pod: &Arc<Pod>, app: AppStream, ready: Ready) {
    let Ready { dialled, mut flow, reached } = ready;
    let counters = Arc::new(ByteCounts::default());
    let counted = Arc::clone(&counters);
    let bytes = move || Bytes { sent: counted.to_peer(), received: counted.from_peer() };
    flow.measure(bytes.clone());
    let Reached { way, _counted: _open } = reached;
    let (ended, idle) = match way {
        Way::Mesh(to) => {
            Box::pin(carry_to_peer(mesh, pod, app, dialled, to, (&flow, &counters))).await
        }
        Way::Local(stream, mut neighbour) => {
            neighbour.begin(bytes.clone());
            let silence = Silence::of_server(dialled.options, None);
            let memory = Some(mesh.memory(pod, silence));
            let end = Box::pin(relay::relay_plain(app, stream, &counters, memory)).await;
            let there = ended(&end);
            neighbour.finish(mesh, end, bytes());
            (there, None)
        }
        Way::Plain(stream, _held) => {
            let memory = Some(mesh.memory(pod, Silence::of_stranger(dialled.options)));
            (ended(&Box::pin(relay::relay_plain(app, stream, &counters, memory)).await), None)
        }
    };
    mesh.finish(flow, ended, bytes());
    if let Some(to) = idle {
        kept::keep(mesh, pod, to);
    }
}

/// Carries a connection to a peer's agent. Over a new session, if a kept one turns out to be closed
/// before the agent has read OPEN. Returns also the session, if it may carry the next one.
async fn carry_to_peer(
    mesh: &Arc<Mesh>,
    pod: &Arc<Pod>,
    mut app: AppStream,
    dialled: Dialled,
    mut to: Box<ToPeer>,
    (flow, counters): (&Flow, &ByteCounts),
) -> (Ended, Option<Box<ToPeer>>) {
    let answered = |accepted| note_reached(mesh, pod, dialled.to, accepted);
    if to.upstream.reuse != Reuse::New {
        pod.note_warm_dial(true);
    }
    let (mut first, mut patience) = match to.upstream.reuse {
        Reuse::Warm if !dialled.waits => (FirstData::Remembered, ANSWER_TIMEOUT),
        // A peer that has vanished is found out as soon as a dial would find it out.
        Reuse::Cold if !dialled.waits => (FirstData::HeldBack, PEER_TIMEOUT),
        _ => (FirstData::Unread, ANSWER_TIMEOUT),
    };
    loop {
        let ToPeer { upstream, purpose } = *to;
        let Upstream { session, from, lease, birth, reuse, answer } = upstream;
        let drops = answer.as_ref().map(|it| it.acknowledges_drops);
        let options = CarryOptions {
            answer_by: Some(Instant::now() + patience),
            memory: Some(mesh.memory(pod, Silence::of_server(dialled.options, drops))),
            first,
            accepted: Some(&answered),
        };
        let carried = Box::pin(relay::carry(*session, app, counters, options)).await;
        if let Some((again, sent)) = carried.again {
            mesh.metrics.sessions_stale.inc();
            pod.note_warm_dial(false);
            if !matches!(carried.end, relay::End::PeerFailed(SessionError::Closed)) {
                kept::forget(pod, &purpose);
            }
            let owner = turn_owner(mesh, pod, dialled);
            let beginning = Box::pin(begin_again(mesh, pod, dialled, purpose, flow));
            let anew = async {
                tokio::select! {
                    biased;
                    anew = mesh.turns.run(owner, beginning) => anew,
                    () = gone(&again) => Err(ReachError::ClientGone),
                }
            };
            match Box::pin(anew).await {
                Ok(anew) => {
                    (app, to) = (again, anew);
                    (first, patience) = (FirstData::Again(sent), ANSWER_TIMEOUT);
                }
                Err(error) => {
                    answered(false);
                    drop(again); // a reset: it has not been carried
                    return (error.ended(), None);
                }
            }
            continue;
        }
        let ended = ended_by(&carried.end, purpose.by);
        if reuse != Reuse::New && (dialled.waits || carried.accepted.is_some()) {
            mesh.metrics.reused_outbound.inc();
        }
        let answer = carried.accepted.or(answer);
        let is_small = counters.to_peer() <= MOST_BYTES_BEHIND;
        let keeps = is_small && answer.as_ref().is_some_and(|it| it.keeps_session);
        let Some(session) = carried.session.map(Box::new) else { return (ended, None) };
        if !keeps {
            session.close_at_once();
            return (ended, None);
        }
        let upstream = Upstream { session, from, lease, birth, reuse, answer };
        return (ended, Some(Box::new(ToPeer { upstream, purpose })));
    }
}

/// Has the next dial there succeed at once; or wait, before the application sees this one fail: a
/// program that tries again at once is told the network's error.
fn note_reached(mesh: &Mesh, pod: &Pod, to: SocketAddr, is_reached: bool) {
    let key = DestinationKey::new(pod.netns.cookie(), to.into());
    let reached = &mesh.kernel.tables().reached;
    if is_reached {
        if let Err(error) = reached.remember(key) {
            tracing::warn!(pod = %pod.name, %to, %error, "cannot remember that a destination was reached; the next dial there waits, too");
        }
    } else if let Err(error) = reached.forget(&key) {
        tracing::warn!(pod = %pod.name, %to, %error, "cannot forget that a destination was reached; dials there may succeed and be reset");
    }
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
