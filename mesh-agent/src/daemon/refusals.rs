//! What the programs tell: connections that they refuse become flow records, dials that wait are
//! carried, their lines become log lines.

use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::Direction;
use tokio::time::{MissedTickBehavior, interval};

use crate::flows::RefusedConnection;
use crate::kernel::{ProgramLog, Questions, Refusal, Refusals};
use crate::proxy::{self, Mesh};

/// A connection that the kernel refused becomes a record like any other, or one of many that are
/// counted.
pub(super) async fn record(refusals: Refusals, mesh: Arc<Mesh>) {
    let each = |refusal: Refusal| {
        let inbound = refusal.verdict.is_inbound();
        let direction = if inbound { Direction::Inbound } else { Direction::Outbound };
        let (server, verdict) = (refusal.server, refusal.verdict);
        let client = dialling(&refusal, &mesh);
        let netns = refusal.netns;
        let outcome = verdict.into();
        let refused = RefusedConnection { netns, direction, client, server, verdict, outcome };
        mesh.flows.refuse(refused, |client, server| {
            client.pod = mesh.pod_at(client.address);
            server.pod = mesh.pod_at(server.address);
            verdict.sentence().into()
        });
    };
    if let Err(error) = refusals.run(each).await {
        tracing::error!(%error, "the kernel's refusals are not recorded any more");
    }
}

/// Reaches what dials wait for. A panic costs one dial. If the questions cannot be read any more,
/// the agent ends, to be started again: until then dials are refused instead of waiting for ever.
pub(super) async fn answer(questions: Questions, mesh: Arc<Mesh>) {
    let each = |question| {
        if catch_unwind(AssertUnwindSafe(|| proxy::answer(&mesh, question))).is_err() {
            tracing::error!("a question about a dial led to a panic; the dial goes on waiting");
        }
    };
    if let Err(error) = questions.run(each).await {
        tracing::error!(%error, "questions about dials cannot be read any more; the agent ends itself, to be started again");
        std::process::abort();
    }
}

/// What the programs log, in the agent's log.
pub(super) async fn log(lines: ProgramLog) {
    if let Err(error) = lines.run().await {
        tracing::error!(%error, "the programs' lines are not logged any more");
    }
}

/// The address that dialled. A socket that was bound to no address has none yet: it is the pod's
/// own.
fn dialling(refusal: &Refusal, mesh: &Mesh) -> SocketAddr {
    let client = refusal.client;
    if !client.ip().is_unspecified() {
        return client;
    }
    let pod = mesh.kernel.tables().enrolled.get(&refusal.netns);
    let own = pod.map(|pod| if refusal.server.is_ipv4() { pod.v4 } else { pod.v6 });
    own.filter(|own| !own.is_none()).map_or(client, |own| {
        SocketAddr::from(mesh_common::addr::AddrPort::new(own, client.port()))
    })
}

/// Reports, once a second, the connections that were too many to be recorded one by one.
pub(super) async fn tell_of_floods(mesh: Arc<Mesh>) {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        second.tick().await;
        mesh.flows.sweep();
    }
}
