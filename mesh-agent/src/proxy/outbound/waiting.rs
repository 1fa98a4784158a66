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

use mesh_api::Bytes;
use mesh_common::{
    errno,
    maps::{FlowKey, Pending},
    ports,
    verdict::Verdict,
};
use mesh_world::PodUid;
use parking_lot::Mutex;
use tokio::{sync::Notify, time::sleep};

use super::{Dialled, ReachError, Ready, begin, note_reached, packet, reach_in_turn, record_limit};
use crate::{
    kernel::Question,
    proxy::{Mesh, limits::Admitted, pod::Pod, unless_gone},
};

/// How long after its packet was sent again a dial may take to be accepted.
const ACCEPT_WITHIN: Duration = Duration::from_secs(5);
/// The longest pause between two looks for a dial that was refused. Something in its pod keeps it
/// from ending. It counts as a connection until then.
const LAST_LOOK: Duration = Duration::from_secs(8);
/// When a dial that was refused is looked for first: as a rule it has ended by then.
const FIRST_LOOK: Duration = Duration::from_millis(20);

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
    /// Its place among the agent's connections, until the accepted connection takes it.
    admitted: Option<Admitted>,
    /// What was reached, until the accepted connection takes it.
    ready: Option<Ready>,
    /// Told when it is accepted.
    accepted: Arc<Notify>,
}

impl Waiting {
    /// From here on the pod's dials may wait.
    pub(crate) fn add(&self, pod: &Arc<Pod>) {
        self.pods.lock().insert(pod.netns.cookie(), Arc::downgrade(pod));
    }

    /// No dials of the pod are reached any more.
    pub(crate) fn remove(&self, pod: u64) {
        self.pods.lock().remove(&pod);
    }

    fn pod(&self, netns: u64) -> Option<Arc<Pod>> {
        self.pods.lock().get(&netns)?.upgrade()
    }

    /// The pod with this UID.
    pub(super) fn pod_of(&self, uid: &PodUid) -> Option<Arc<Pod>> {
        self.pods.lock().values().filter_map(Weak::upgrade).find(|pod| pod.uid == *uid)
    }

    /// Whether this dial waits already.
    fn has(&self, question: &Question) -> bool {
        self.dials.lock().get(&question.flow).is_some_and(|dial| dial.id == question.id)
    }

    fn of(&self, question: &Question, change: impl FnOnce(&mut Dial)) {
        if let Some(dial) = self.dials.lock().get_mut(&question.flow)
            && dial.id == question.id
        {
            change(dial);
        }
    }

    /// Takes the place of a dial that is being accepted.
    pub(super) fn take_admitted(&self, flow: &FlowKey) -> Option<Admitted> {
        self.dials.lock().get_mut(flow)?.admitted.take()
    }

    /// Takes what was reached for a dial that has been accepted.
    pub(super) fn take(&self, flow: &FlowKey, id: u64) -> Option<Ready> {
        let mut dials = self.dials.lock();
        let dial = dials.get_mut(flow).filter(|dial| dial.id == id)?;
        dial.accepted.notify_one();
        dial.ready.take()
    }
}

/// A dial as long as it waits, and for a moment after. Dropped, also by a task that is stopped, it
/// leaves nothing behind.
struct Waits {
    mesh: Arc<Mesh>,
    pod: Arc<Pod>,
    question: Question,
    accepted: Arc<Notify>,
}

impl Waits {
    fn begin(mesh: &Arc<Mesh>, pod: Arc<Pod>, question: Question, admitted: Admitted) -> Self {
        let accepted = Arc::new(Notify::new());
        let dial = Dial {
            id: question.id,
            admitted: Some(admitted),
            ready: None,
            accepted: Arc::clone(&accepted),
        };
        let earlier = mesh.waiting.dials.lock().insert(question.flow, dial);
        // An earlier dial of the same addresses and ports has ended.
        if let Some(Ready { flow, .. }) = earlier.and_then(|dial| dial.ready) {
            mesh.finish(flow, ReachError::ClientGone.ended(), Bytes::default());
        }
        Self { mesh: Arc::clone(mesh), pod, question, accepted }
    }
}

impl Drop for Waits {
    fn drop(&mut self) {
        let Self { mesh, pod, question, .. } = self;
        let dial = match mesh.waiting.dials.lock().entry(question.flow) {
            Entry::Occupied(dial) if dial.get().id == question.id => Some(dial.remove()),
            _ => return, // a later dial of the same addresses and ports
        };
        if let Err(error) = mesh.kernel.tables().drop_answer(&question.flow) {
            tracing::warn!(pod = %pod.name, %error, "cannot take back the answer for a dial");
        }
        if let Some(Ready { flow, .. }) = dial.and_then(|dial| dial.ready) {
            mesh.finish(flow, ReachError::ClientGone.ended(), Bytes::default());
        }
    }
}

/// Begins to reach what a dial waits for.
pub(crate) fn answer(mesh: &Arc<Mesh>, question: Question) {
    // Without the pod, its socket is not ours any more: the packet comes again, to whose it is.
    let Some(pod) = mesh.waiting.pod(question.flow.netns) else { return };
    if !is_a_dial(&pod, &question) || mesh.waiting.has(&question) {
        return;
    }
    let Ok(Some(pending)) = noted(mesh, &question) else { return };
    match mesh.limits.admit(&pod.outbound, None) {
        Ok(admitted) => {
            let waits = Waits::begin(mesh, Arc::clone(&pod), question, admitted);
            pod.connections.spawn("waiting", async move { serve(&waits, pending).await });
        }
        // It goes on waiting. Its packet comes again, and may find room then.
        Err(reached) => {
            let ends = (question.client(), pending.named.endpoint.into());
            record_limit(mesh, &pod, ends, Verdict::OutboundWaits, reached);
        }
    }
}

/// Whether a question is about what only a redirected dial sends: a pod may be able to have the
/// kernel give other packets to the socket.
fn is_a_dial(pod: &Pod, question: &Question) -> bool {
    let FlowKey { local, remote, remote_port, .. } = question.flow;
    local == remote
        && ports::may_be_redirected(remote_port)
        && pod.addresses().any(|own| local == own.into())
}

fn noted(mesh: &Mesh, question: &Question) -> io::Result<Option<Pending>> {
    mesh.kernel.tables().pending(&question.flow, question.id)
}

async fn serve(waits: &Waits, Pending { named, options, .. }: Pending) {
    let Waits { mesh, pod, question, .. } = waits;
    let (from, to) = (question.client(), SocketAddr::from(named.endpoint));
    let verdict = Verdict::from_number(named.verdict).unwrap_or(Verdict::OutboundWaits);
    let flow = begin(mesh, pod, (from, to), verdict);
    let was_held = verdict == Verdict::RedirectHeld;
    let dialled = Dialled { from, to, waits: true, was_held, options };
    let reaching = Box::pin(reach_in_turn(mesh, pod, dialled, &flow));
    let reached = unless_gone(reaching, || matches!(noted(mesh, question), Ok(None))).await;
    let reached = reached.unwrap_or(Err(ReachError::ClientGone));
    match reached {
        Ok(reached) => {
            note_reached(mesh, pod, to, true);
            let ready = Ready { dialled, flow, reached };
            mesh.waiting.of(question, |dial| dial.ready = Some(ready));
            go_on(waits).await;
        }
        Err(error) => {
            let errno = error.failed().errno();
            let is_gone = matches!(error, ReachError::ClientGone);
            mesh.finish(flow, error.ended(), Bytes::default());
            if !is_gone {
                refuse(waits, errno).await;
            }
        }
    }
}

/// Lets a dial go on: its packet, sent again, finds the agent's listener.
async fn go_on(waits: &Waits) {
    let Question { flow, id, packet } = &waits.question;
    if let Err(error) = waits.mesh.kernel.tables().answer(flow, *id, true) {
        tracing::error!(pod = %waits.pod.name, %error, "cannot let a dial go on");
    }
    let (packet, to) = (packet.clone(), waits.question.client());
    send(waits, move || packet::send_again(&packet, to)).await;
    tokio::select! {
        () = waits.accepted.notified() => {}
        () = sleep(ACCEPT_WITHIN) => {}
    }
}

/// Tells a dial that its destination is not reached. It then fails, or, if there was no answer,
/// goes on waiting until its application gives up.
async fn refuse(waits: &Waits, errno: u32) {
    let Question { flow, id, packet } = &waits.question;
    let (packet, to) = (packet.clone(), waits.question.client());
    match errno {
        errno::ETIMEDOUT => {}
        errno::EHOSTUNREACH | errno::ENETUNREACH => {
            send(waits, move || packet::send_unreachable(&packet, to, errno)).await;
        }
        _ => {
            if let Err(error) = waits.mesh.kernel.tables().answer(flow, *id, false) {
                tracing::error!(pod = %waits.pod.name, %error, "cannot refuse a dial");
            }
            send(waits, move || packet::send_again(&packet, to)).await;
            // If it could not be sent, the kernel sends it again, at its own time.
            let mut pause = FIRST_LOOK;
            while let Ok(Some(_)) = noted(&waits.mesh, &waits.question) {
                sleep(pause).await;
                pause = (pause * 2).min(LAST_LOOK);
            }
        }
    }
}

/// Sends a packet inside the pod's namespace. If it cannot be sent, the packet that the
/// application's kernel sends again has the same effect, later.
async fn send(waits: &Waits, job: impl FnOnce() -> io::Result<()> + Send + 'static) {
    let _turn = waits.pod.sockets.acquire().await;
    let sent = waits.pod.netns.run(&waits.mesh.factory, job).await;
    if let Err(error) = sent.map_err(io::Error::other).flatten() {
        // Not louder: the pod's own firewall can bring it about for each dial.
        tracing::debug!(pod = %waits.pod.name, %error, "a dial that waits cannot be told at once how it went");
    }
}
