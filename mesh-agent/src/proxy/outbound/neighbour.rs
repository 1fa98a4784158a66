//! Dials between two pods of this node that both let go without TLS (`nodemesh.dev/same-node:
//! local`). The agent dials the application itself: it knows from the kernel who dials, and the
//! kernel lets in what the agent has noted. Both ends have a record, as if there were two agents.

use std::sync::Arc;

use mesh_api::{Bytes, Direction};
use mesh_common::verdict::Verdict;

use super::{
    Dialled,
    reach::{ReachError, canonical},
};
use crate::{
    flows::{Flow, Party, Security},
    proxy::{
        Mesh,
        dial::{self, Leg, LegEnds, LegHeld, NotReached},
        ended,
        limits::Admitted,
        path::MeshedPeer,
        peer::PeerError,
        pod::Pod,
        relay::{AppStream, End},
    },
};

/// What a connection to a pod of this node holds at that pod. Keep it as long as the connection. If
/// it is dropped before the connection is carried, the client was gone.
pub(super) struct Neighbour {
    flow: Flow,
    _held: LegHeld,
    _admitted: Admitted,
    _pod: Arc<Pod>,
}

impl Neighbour {
    /// The connection begins to be carried. The pod's record shows how much has come until now.
    pub(super) fn begin(&mut self, bytes: impl Fn() -> Bytes + Send + Sync + 'static) {
        self.flow.client_waits(false);
        self.flow.measure(bytes);
    }

    /// Completes the pod's record.
    pub(super) fn finish(self, mesh: &Mesh, end: End, bytes: Bytes) {
        mesh.finish(self.flow, ended(&end.from_the_other_side()), bytes);
    }
}

/// The pod to which a dial goes without TLS. `None` if it is on another node or not in the mesh
/// yet, or if one of the two does not say so.
pub(super) fn of(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer) -> Option<Arc<Pod>> {
    if !pod.goes_local() {
        return None;
    }
    let neighbour = mesh.waiting.pod_of(&peer.uid)?;
    let is_there = neighbour.addresses().any(|own| own == peer.target.ip().to_canonical());
    let is_it = is_there && neighbour.identity == peer.expected;
    (is_it && neighbour.goes_local() && !neighbour.accepting.stopped().is_cancelled())
        .then_some(neighbour)
}

/// Brings a dial to the application of a pod of this node.
pub(super) async fn to(
    mesh: &Mesh,
    pod: &Pod,
    neighbour: Arc<Pod>,
    dialled: Dialled,
    peer: &MeshedPeer,
    flow: &Flow,
) -> Result<(AppStream, Box<Neighbour>), ReachError> {
    let ends = LegEnds { application: peer.target, client: canonical(dialled.from) };
    let mut there = begin(mesh, [pod, &neighbour], dialled, ends);
    there.client_waits(true);
    let client = mesh.client(ends.client.ip());
    let admitted = match mesh.limits.admit(&neighbour.inbound, Some(client)) {
        Ok(admitted) => admitted,
        Err(reached) => {
            let error = ReachError::from(reached);
            there.end(error.ended(), Bytes::default());
            return Err(error);
        }
    };
    let (kernel, factory) = (&mesh.kernel, &mesh.factory);
    let dialling = dial::neighbour(kernel, factory, [pod, &neighbour], ends, dialled.options);
    pod.note_warm_dial(true);
    let Leg { stream, held } = match Box::pin(dialling).await {
        Ok(leg) => leg,
        Err(NotReached { error, has_arrived }) => {
            pod.note_warm_dial(false); // what comes of it may cost a handshake
            if has_arrived {
                let error = ReachError::Dial(error); // the pod itself has refused it
                there.end(error.ended(), Bytes::default());
                return Err(error);
            }
            there.forget(); // it has not come to that pod
            return Err(PeerError::Dial(error).into());
        }
    };
    mesh.metrics.accepted_inbound.inc();
    mesh.metrics.local.inc();
    flow.note(|record| {
        record.security = Security::Local;
        record.client.identity = Some(pod.identity.clone());
        record.server.identity = Some(neighbour.identity.clone());
    });
    let held = Neighbour { flow: there, _held: held, _admitted: admitted, _pod: neighbour };
    Ok((stream, Box::new(held)))
}

/// Begins the record of the pod that is dialled.
fn begin(mesh: &Mesh, [pod, there]: [&Pod; 2], dialled: Dialled, ends: LegEnds) -> Flow {
    let mut client = Party::at(ends.client);
    (client.pod, client.identity) = (Some(pod.name.clone()), Some(pod.identity.clone()));
    let mut server = Party::at(ends.application);
    (server.pod, server.identity) = (Some(there.name.clone()), Some(there.identity.clone()));
    let (netns, verdict) = (there.netns.cookie(), Verdict::InboundLocal);
    let flow = mesh.flows.begin(netns, Direction::Inbound, client, server, verdict);
    flow.note(|record| {
        record.security = Security::Local;
        record.original_destination = dialled.to;
    });
    flow
}
