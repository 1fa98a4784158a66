//! Connections that a pod dials: accepted from its outbound listener and carried to the peer's
//! agent.

mod reach;

use std::{io, mem::MaybeUninit, net::SocketAddr, sync::Arc, time::Duration};

use mesh_api::{Bytes, Direction, Reason, WirePort};
use mesh_common::{
    maps::{FailedKey, FlowKey, Named},
    verdict::Verdict,
};
use mesh_wire::Refused;
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream, time::Instant};

use self::reach::{ReachError, Reached, Unreached, Way, reach};
use super::{
    Mesh, ended,
    failure::{Failed, Remembered},
    limits::{Admitted, LimitReached},
    pod::Pod,
    relay::{self, AppStream, ByteCounts, CarryOptions},
    turns::TurnOwner,
    upstream::Upstream,
};
use crate::flows::{self, Ended, Flow, Party};

/// How long a peer's agent may take to answer OPEN. Longer than it takes that agent to find out
/// that its application does not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

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
    from: SocketAddr,
    _admitted: Admitted,
) {
    let original = original_destination(&mesh, &pod, app.tcp(), from);
    let to = original.map_or(from, |original| SocketAddr::from(original.endpoint));
    let verdict = original.and_then(|original| Verdict::from_number(original.verdict));
    let verdict = verdict.unwrap_or(Verdict::OutboundSteered);
    let mut client = Party::at(from);
    client.pod = Some(pod.name.clone());
    let netns = pod.netns.cookie();
    let flow = mesh.flows.begin(netns, Direction::Outbound, client, Party::at(to), verdict);
    if original.is_none() {
        let reason = Reason::OriginalDestinationUnknown;
        return flow.end(Ended::new(reason, reason.sentence()), Bytes::default());
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
    let counters = Arc::new(ByteCounts::default());
    let counted = Arc::clone(&counters);
    flow.measure(move || Bytes { sent: counted.to_peer(), received: counted.from_peer() });
    let mut idle = None;
    let memory = Some(mesh.memory(pod));
    let claim = TurnOwner { pod: pod.netns.cookie(), peer: mesh.client(dialled.to.ip()) };
    let reaching = Box::pin(mesh.turns.run(claim, reach(mesh, pod, dialled, &flow)));
    let reached = tokio::select! {
        biased;
        reached = reaching => reached,
        () = gone(&app) => {
            Err(Unreached { error: ReachError::ClientGone, is_last_candidate: false })
        }
    };
    let ended = match reached {
        Err(Unreached { error, is_last_candidate }) => {
            if is_last_candidate && let Some(remembered) = error.failed().remembered() {
                remember(mesh, pod, dialled.to, remembered);
            }
            drop(app); // a reset: it has not been carried
            error.ended()
        }
        Ok(Reached { way: Way::Mesh(upstream, by), is_last_candidate, .. }) => {
            let Upstream { session, lease: _lease, .. } = upstream;
            let answer_by = Some(Instant::now() + ANSWER_TIMEOUT);
            let refused = |refused: &Refused| {
                let remembered = Failed::from(refused.reason).remembered();
                if is_last_candidate && let Some(remembered) = remembered {
                    remember(mesh, pod, dialled.to, remembered);
                }
            };
            let options = CarryOptions { answer_by, memory, refused: Some(&refused) };
            let carried = Box::pin(relay::carry(*session, app, &counters, options)).await;
            idle = carried.session;
            ended_by(&carried.end, by)
        }
        Ok(Reached { way: Way::Plain(stream, _held), .. }) => {
            ended(&Box::pin(relay::relay_plain(app, stream, &counters, memory)).await)
        }
    };
    let bytes = Bytes { sent: counters.to_peer(), received: counters.from_peer() };
    mesh.finish(flow, ended, bytes);
    // A session carries one connection, until sessions are kept for the next one.
    if let Some(session) = idle {
        session.close().await;
    }
}

/// Tells the kernel that the next dial will fail too, before the application sees this failure. A
/// program that retries at once then gets the real error.
fn remember(mesh: &Mesh, pod: &Pod, to: SocketAddr, Remembered { errno, time }: Remembered) {
    let key = FailedKey::new(pod.netns.cookie(), to.into());
    if let Err(error) = mesh.kernel.tables().failed.remember(key, errno, time) {
        tracing::warn!(pod = %pod.name, %to, %error, "cannot remember that a destination was not reached; the next dial is tried");
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
