//! A connection's life from accept to close.
//!
//! The kernel brings a pod's dials to its outbound listener and peers' dials to its inbound
//! listener. `outbound.rs` and `inbound.rs` take over from there. Both speak with peers' agents
//! through `upstream.rs` and `downstream.rs`. Decisions that need no sockets are left to the world.

mod affinity;
mod dial;
mod downstream;
mod failure;
mod inbound;
mod kept;
mod limits;
mod listen;
mod load;
mod look;
mod lost;
mod memory;
mod metrics;
mod outbound;
mod path;
mod peer;
pub mod pod;
pub mod relay;
mod silence;
mod socket_memory;
mod source_ports;
mod stock;
mod turns;
mod upstream;

use std::{
    net::IpAddr,
    pin::pin,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use arc_swap::ArcSwap;
pub use dial::DialError;
pub use limits::{Account, LimitReached, Limits, capacity_of};
pub use listen::{ListenError, Listening, Steered, owns};
pub use metrics::Metrics;
pub(crate) use outbound::answer;
pub use pod::Pod;
use tokio::time::timeout;

use mesh_api::{Bytes, SessionCounters};
use mesh_wire::identity::{SpiffeId, TlsConfigs, TrustDomain};
use mesh_world::{ObjectName, Peer, Snapshot};

use self::{
    affinity::Affinities,
    downstream::Acceptor,
    limits::kept_capacity_of,
    load::Load,
    lost::Lost,
    memory::Spare,
    outbound::Waiting,
    path::Paths,
    silence::Silence,
    socket_memory::{Meter, SocketMemory},
    turns::Turns,
    upstream::Connector,
};
use crate::{
    client_key::ClientKey,
    flows::{Ended, Flow, FlowStore, Party},
    kernel::Kernel,
    netns::Factory,
};

/// All that a connection may need. One per agent.
pub struct Mesh {
    /// The kernel's tables.
    pub kernel: Arc<Kernel>,
    /// The world, as of now.
    pub world: ArcSwap<Snapshot>,
    /// What a TLS handshake needs.
    pub tls: TlsConfigs,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Makes sockets in pods' namespaces.
    pub factory: Factory,
    /// The records.
    pub flows: FlowStore,
    /// What it counts and measures of connections.
    pub metrics: Metrics,
    /// What else the agent has done.
    pub counters: Counters,
    /// What all pods together may have open.
    pub limits: Arc<Limits>,
    /// What all pods together may keep: sessions that they dialled.
    kept_outbound: Arc<Limits>,
    /// What all pods together may keep: sessions that others dialled.
    kept_inbound: Arc<Limits>,
    load: Load,
    affinities: Affinities,
    turns: Turns,
    spare: Spare,
    socket_memory: Arc<SocketMemory>,
    paths: Paths,
    lost: Lost,
    waiting: Waiting,
}

/// What the agent has done beside carrying connections, for `status` alone.
#[derive(Debug, Default)]
pub struct Counters {
    /// Pods, announced pods and service ports that were judged while following the world.
    pub judged: AtomicU64,
    /// Entries of the kernel's tables of addresses and ports that were written or removed.
    pub table_writes: AtomicU64,
    /// Kubernetes Events that were written.
    pub events_written: AtomicU64,
    /// Attempts to write one that failed.
    pub events_failed: AtomicU64,
    /// Problems with objects that have not been reported yet, by an Event or, without an API
    /// server, in the log.
    pub events_waiting: AtomicU64,
}

impl Mesh {
    /// Puts the parts together, over an empty world. `capacity` is how many connections may be open
    /// at once.
    pub fn new(
        kernel: Arc<Kernel>,
        tls: TlsConfigs,
        trust_domain: TrustDomain,
        factory: Factory,
        flows: FlowStore,
        capacity: usize,
        metrics: Metrics,
    ) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let kept =
            || Arc::new(Limits::new(kept_capacity_of(capacity), metrics.sessions_not_kept.clone()));
        Self {
            kernel,
            world: ArcSwap::from_pointee(Snapshot::default()),
            tls,
            trust_domain,
            factory,
            flows,
            limits: Arc::new(Limits::new(capacity, metrics.refused_by_limits.clone())),
            kept_outbound: kept(),
            kept_inbound: kept(),
            metrics,
            counters: Counters::default(),
            load: Load::default(),
            affinities: Affinities::default(),
            turns: Turns::new(threads),
            spare: Spare::default(),
            socket_memory: Arc::default(),
            paths: Paths::default(),
            lost: Lost::default(),
            waiting: Waiting::default(),
        }
    }

    /// What it takes to connect to a peer's agent.
    fn connector(&self) -> Connector<'_> {
        Connector { factory: &self.factory, tls: &self.tls }
    }

    /// What it takes to accept a peer's agent.
    fn acceptor(&self) -> Acceptor<'_> {
        Acceptor { tls: &self.tls, turns: &self.turns }
    }

    /// The identity that a peer must prove; `None` if its names make none.
    fn identity_of(&self, peer: &Peer) -> Option<SpiffeId> {
        self.identity(&peer.namespace, &peer.service_account)
    }

    fn identity(&self, namespace: &str, service_account: &str) -> Option<SpiffeId> {
        SpiffeId::new(&self.trust_domain, namespace, service_account).ok()
    }

    /// The client whose share the connections from an address count against.
    pub fn client(&self, address: IpAddr) -> ClientKey {
        let world = self.world.load();
        if world.workload(address).is_some() || world.believed(address).is_some() {
            ClientKey::of_pod(address)
        } else {
            ClientKey::of_stranger(address)
        }
    }

    /// Fills in the pod that has the party's address.
    fn name(&self, party: &mut Party) {
        party.pod = self.pod_at(party.address);
    }

    /// The pod that has an address.
    pub fn pod_at(&self, address: IpAddr) -> Option<ObjectName> {
        let world = self.world.load();
        let known = world.workload(address).map(|pod| (&pod.namespace, &pod.name));
        let believed = || world.believed(address).map(|peer| (&peer.namespace, &peer.name));
        let (namespace, name) = known.or_else(believed)?;
        Some(ObjectName { namespace: Arc::clone(namespace), name: Arc::clone(name) })
    }

    /// What a connection of a pod may take beyond its first records. `silence` is its peer's.
    fn memory(&self, pod: &Pod, silence: Silence) -> relay::Memory {
        let records = [self.spare.lease(&pod.records), self.spare.lease(&pod.records)];
        let sockets =
            Meter::new(&self.socket_memory, &pod.name, &pod.socket_memory, silence).into();
        relay::Memory { records, sockets }
    }

    /// The sessions with peers' agents, in numbers.
    pub fn sessions(&self) -> SessionCounters {
        let Metrics { handshake_outbound, handshake_inbound, .. } = &self.metrics;
        SessionCounters {
            kept_outbound: self.kept_outbound.open(),
            kept_inbound: self.kept_inbound.open(),
            capacity: self.kept_outbound.capacity(),
            handshakes_outbound: handshake_outbound.get_sample_count(),
            handshakes_inbound: handshake_inbound.get_sample_count(),
            resumed_outbound: self.metrics.resumed_outbound.get(),
            resumed_inbound: self.metrics.resumed_inbound.get(),
            reused_outbound: self.metrics.reused_outbound.get(),
            reused_inbound: self.metrics.reused_inbound.get(),
            stale: self.metrics.sessions_stale.get(),
            not_kept: self.metrics.sessions_not_kept.get(),
        }
    }

    /// Memory that the kernel holds for sockets of connections that cannot go on, and its limit, in
    /// bytes.
    pub fn socket_memory(&self) -> (usize, usize) {
        self.socket_memory.usage()
    }

    /// Pods whose sockets have used up their share of that memory, one sentence each.
    pub fn socket_memory_shares(&self) -> Vec<String> {
        let (_, budget) = self.socket_memory();
        let sentence = |(pod, bytes): (String, usize)| {
            let [has, most] = [bytes, budget].map(|bytes| bytes / (1024 * 1024));
            format!(
                "the connections of {pod} hold {has} MiB of the kernel's memory, of {most} MiB that all pods of the node share: what is sent to them or by them is not read. Those that stand still get small buffers until there is room"
            )
        };
        self.socket_memory.over().into_iter().map(sentence).collect()
    }

    /// Paths that change source addresses or ports, one sentence for each peer's node and address
    /// family.
    pub fn masqueraded_paths(&self) -> Vec<String> {
        self.paths.problems(tokio::time::Instant::now())
    }

    /// Pods that are reached, but not at the agents' port: one sentence for each of ours.
    pub fn blocked_agents_ports(&self) -> Vec<String> {
        self.paths.blocked(tokio::time::Instant::now())
    }

    /// Pods that destroy the agent's listeners, one sentence each.
    pub fn lost_listeners(&self) -> Vec<String> {
        self.lost.problems(tokio::time::Instant::now())
    }

    /// Completes a record and counts its bytes.
    fn finish(&self, flow: Flow, ended: Ended, bytes: Bytes) {
        self.metrics.bytes_sent.inc_by(bytes.sent);
        self.metrics.bytes_received.inc_by(bytes.received);
        flow.end(ended, bytes);
    }
}

/// A relay's end, for the record.
fn ended(end: &relay::End) -> Ended {
    Ended::new(end.reason(), end.to_string()).with_fault(end.fault())
}

/// How often it is checked that a client still waits: it may give up.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Does some work for a client that waits for it. `None`: it does not any more.
///
/// # Cancel safety
/// That of the work.
async fn unless_gone<T>(work: impl Future<Output = T>, is_gone: impl Fn() -> bool) -> Option<T> {
    let mut work = pin!(work);
    loop {
        match timeout(LOOK_EVERY, work.as_mut()).await {
            Ok(done) => return Some(done),
            Err(_elapsed) if is_gone() => return None,
            Err(_elapsed) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<A, B, C, D, E, F>(_: impl FnOnce(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    /// Much of a quiet connection's memory are its futures.
    #[test]
    fn a_connections_outer_future_is_small() {
        let [outbound, inbound] = [bytes(outbound::serve), bytes(inbound::serve)];
        println!("the futures of a connection: outbound {outbound}, inbound {inbound} bytes");
        assert!(outbound < 1024 && inbound < 1536);
    }
}
