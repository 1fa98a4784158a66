//! Dials that wait in `connect()`: to destinations of which the agent does not know that they
//! answer. The kernel takes their first packet in silence and hands it to the agent. The agent
//! reaches the destination, tells the kernel how it went, and sends the packet again: the dialling
//! socket is then established, or has the error that the network would have given.
//!
//! No packet is sent for a destination that does not answer. The application's kernel sends its own
//! again, and the agent tries again.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::SocketAddr,
    sync::{Arc, Weak},
    time::Duration,
};

use mesh_api::{Bytes, Direction};
use mesh_common::{
    errno,
    maps::{DestinationKey, FlowKey, Named},
    verdict::Verdict,
};
use parking_lot::Mutex;
use tokio::time::sleep;

use super::{Dialled, ReachError, Ready, begin, packet, reach_in_turn};
use crate::{
    flows,
    kernel::Question,
    proxy::{
        Mesh,
        limits::{Admitted, LimitReached},
        pod::Pod,
    },
};

/// How long after its packet was sent again a dial may take to be accepted.
const ACCEPT_WITHIN: Duration = Duration::from_secs(5);
/// How long the kernel knows the answer for a dial that is refused.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How often a dial that waits is looked for: an application may give up.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The dials that wait.
#[derive(Default)]
pub(crate) struct Waiting {
    dials: Mutex<HashMap<FlowKey, Dial>>,
    /// The pods whose dials may wait, by their namespaces' cookies.
    pods: Mutex<HashMap<u64, Weak<Pod>>>,
}

/// One dial.
struct Dial {
    id: u64,
    /// Once the destination is reached.
    ready: Option<(Ready, Admitted)>,
}

impl Waiting {
    /// From here on the pod's dials may wait.
    pub(crate) fn add(&self, pod: &Arc<Pod>) {
        self.pods.lock().insert(pod.netns.cookie(), Arc::downgrade(pod));
    }

    fn pod(&self, netns: u64) -> Option<Arc<Pod>> {
        let mut pods = self.pods.lock();
        let pod = pods.get(&netns)?.upgrade();
        if pod.is_none() {
            pods.remove(&netns);
        }
        pod
    }

    /// Whether this dial was not waiting yet.
    fn begin(&self, question: &Question) -> bool {
        let new = Dial { id: question.id, ready: None };
        match self.dials.lock().entry(question.flow) {
            Entry::Occupied(waiting) if waiting.get().id == question.id => false,
            Entry::Occupied(mut earlier) => {
                earlier.insert(new);
                true
            }
            Entry::Vacant(none) => {
                none.insert(new);
                true
            }
        }
    }

    fn is_ready(&self, question: &Question, ready: (Ready, Admitted)) {
        if let Some(dial) = self.dials.lock().get_mut(&question.flow)
            && dial.id == question.id
        {
            dial.ready = Some(ready);
        }
    }

    fn forget(&self, question: &Question) -> Option<Dial> {
        let mut dials = self.dials.lock();
        match dials.entry(question.flow) {
            Entry::Occupied(dial) if dial.get().id == question.id => Some(dial.remove()),
            _ => None,
        }
    }

    /// Takes what was reached for a dial that has now been accepted.
    pub(super) fn take(&self, flow: &FlowKey, id: u64) -> Option<Ready> {
        let mut dials = self.dials.lock();
        let dial = dials.get_mut(flow).filter(|dial| dial.id == id)?;
        dial.ready.take().map(|(ready, _admitted)| ready)
    }
}

/// Begins to reach what a dial waits for.
pub(crate) fn answer(mesh: &Arc<Mesh>, question: Question) {
    // Without the pod, its socket is not ours any more: the packet comes again, to whose it is.
    let Some(pod) = mesh.waiting.pod(question.flow.netns) else { return };
    if !mesh.waiting.begin(&question) {
        return;
    }
    match mesh.limits.admit(&pod.outbound, None) {
        Ok(admitted) => {
            let (mesh, task) = (Arc::clone(mesh), Arc::clone(&pod));
            pod.connections.spawn("waiting", async move {
                serve(&mesh, &task, &question, admitted).await;
                mesh.waiting.forget(&question);
            });
        }
        Err(reached) => {
            let (mesh, task) = (Arc::clone(mesh), Arc::clone(&pod));
            pod.connections.spawn("waiting", async move {
                record_limit(&mesh, &task, &question, reached);
                refuse(&mesh, &task, &question, errno::EADDRNOTAVAIL).await;
                mesh.waiting.forget(&question);
            });
        }
    }
}

fn record_limit(mesh: &Mesh, pod: &Pod, question: &Question, reached: LimitReached) {
    let client = question.client();
    let named = noted(mesh, question).ok().flatten();
    let server = named.map_or(client, |named| named.endpoint.into());
    let (netns, verdict) = (pod.netns.cookie(), Verdict::OutboundWaits);
    let (direction, outcome) = (Direction::Outbound, reached.reason().into());
    mesh.flows.refuse(
        flows::RefusedConnection { netns, direction, client, server, verdict, outcome },
        |client, server| {
            client.pod = Some(pod.name.clone());
            mesh.name(server);
            reached.to_string().into()
        },
    );
}

fn noted(mesh: &Mesh, question: &Question) -> io::Result<Option<Named>> {
    mesh.kernel.tables().pending(&question.flow, question.id)
}

async fn serve(mesh: &Mesh, pod: &Pod, question: &Question, admitted: Admitted) {
    let Ok(Some(named)) = noted(mesh, question) else { return };
    let (from, to) = (question.client(), SocketAddr::from(named.endpoint));
    let verdict = Verdict::from_number(named.verdict).unwrap_or(Verdict::OutboundWaits);
    let flow = begin(mesh, pod, (from, to), verdict);
    let dialled = Dialled { from, to, waits: true };
    let reached = {
        let mut reaching = Box::pin(reach_in_turn(mesh, pod, dialled, &flow));
        loop {
            tokio::select! {
                biased;
                reached = &mut reaching => break reached,
                () = sleep(LOOK_EVERY) => {
                    if let Ok(None) = noted(mesh, question) {
                        break Err(ReachError::ClientGone);
                    }
                }
            }
        }
    };
    match reached {
        Ok(reached) => {
            let key = DestinationKey::new(question.flow.netns, to.into());
            if let Err(error) = mesh.kernel.tables().reached.remember(key) {
                tracing::warn!(pod = %pod.name, %to, %error, "cannot remember that a destination was reached; the next dial waits, too");
            }
            mesh.waiting.is_ready(question, (Ready { to, flow, reached }, admitted));
            go_on(mesh, pod, question).await;
        }
        Err(error) => {
            let errno = error.failed().errno();
            let is_gone = matches!(error, ReachError::ClientGone);
            mesh.finish(flow, error.ended(), Bytes::default());
            if !is_gone {
                refuse(mesh, pod, question, errno).await;
            }
        }
    }
}

/// Lets a dial go on: its packet, sent again, finds the agent's listener.
async fn go_on(mesh: &Mesh, pod: &Pod, question: &Question) {
    let Question { flow, id, packet } = question;
    if let Err(error) = mesh.kernel.tables().answer(flow, *id, true) {
        tracing::error!(pod = %pod.name, %error, "cannot let a dial go on");
    }
    let (packet, to) = (packet.clone(), question.client());
    send(mesh, pod, move || packet::send_again(&packet, to)).await;
    sleep(ACCEPT_WITHIN).await;
    drop_answer(mesh, pod, question);
    if let Some((Ready { flow, .. }, _)) = mesh.waiting.forget(question).and_then(|it| it.ready) {
        mesh.finish(flow, ReachError::ClientGone.ended(), Bytes::default());
    }
}

/// Tells a dial that its destination is not reached. It then fails, or, if there was no answer,
/// goes on waiting until its application gives up.
async fn refuse(mesh: &Mesh, pod: &Pod, question: &Question, errno: u32) {
    let (packet, to) = (question.packet.clone(), question.client());
    match errno {
        errno::ETIMEDOUT => {}
        errno::EHOSTUNREACH | errno::ENETUNREACH => {
            send(mesh, pod, move || packet::send_unreachable(&packet, to, errno)).await;
        }
        _ => {
            if let Err(error) = mesh.kernel.tables().answer(&question.flow, question.id, false) {
                tracing::error!(pod = %pod.name, %error, "cannot refuse a dial");
            }
            send(mesh, pod, move || packet::send_again(&packet, to)).await;
            sleep(REFUSED_FOR).await;
            drop_answer(mesh, pod, question);
        }
    }
}

fn drop_answer(mesh: &Mesh, pod: &Pod, question: &Question) {
    if let Err(error) = mesh.kernel.tables().drop_answer(&question.flow) {
        tracing::warn!(pod = %pod.name, %error, "cannot take back the answer for a dial");
    }
}

/// Sends a packet inside the pod's namespace. If it cannot be sent, the packet that the
/// application's kernel sends again has the same effect, a second later.
async fn send(mesh: &Mesh, pod: &Pod, job: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let sent = pod.netns.run(&mesh.factory, job).await;
    if let Err(error) = sent.map_err(io::Error::other).flatten() {
        tracing::warn!(pod = %pod.name, %error, "a dial that waits cannot be told at once how it went");
    }
}
