//! An enrolled pod, as the data path knows it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering},
    },
};

use mesh_api::SameNode;
use mesh_common::maps::FlowKey;
use mesh_wire::identity::SpiffeId;
use mesh_world::{ObjectName, PodUid};
use tokio::sync::{Notify, Semaphore};

use crate::{
    netns::Netns,
    proxy::{
        kept::KeptSessions, limits::Account, memory::Used, source_ports::SourcePorts, stock::Stock,
    },
    tasks::Tasks,
};

/// Sockets that the threads which enter namespaces may have to make for one pod at once, each in
/// some 20 µs. Without a limit, a pod that dialled and reset at full speed had thousands waiting
/// there, and requests of other pods took 270 ms.
const SOCKETS_AT_ONCE: usize = 8;

/// What a connection needs to know of its pod. Lives as long as the pod is enrolled or has
/// connections.
pub struct Pod {
    /// Its UID.
    pub uid: PodUid,
    /// Its namespace and name.
    pub name: ObjectName,
    /// The identity that the agent shows for it.
    pub identity: SpiffeId,
    /// Its network namespace.
    pub netns: Netns,
    /// Its IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// Its IPv6 address.
    pub v6: Option<Ipv6Addr>,
    /// Its listeners' accept loops.
    pub accepting: Tasks,
    /// Its connections.
    pub connections: Tasks,
    pub(super) source_ports: SourcePorts,
    /// Its open connections that it dialled itself.
    pub(super) outbound: Arc<Account>,
    /// Its dials that took no handshake, since an accept loop of its dials asked last.
    warm_dials: AtomicI32,
    /// Its open connections that others dialled.
    pub(super) inbound: Arc<Account>,
    /// Its sessions that carry nothing, and that it dialled.
    pub(super) kept: KeptSessions,
    /// Its sessions that carry nothing, and that others dialled.
    pub(super) kept_inbound: Arc<Account>,
    /// How often its sessions have been given up.
    pub(super) epoch: AtomicU64,
    /// Sockets that are ready for its next connections.
    pub(super) stock: Stock,
    /// Told when it begins to keep something ready.
    pub(super) busy: Notify,
    /// Limits the sockets that are made for it at once.
    pub(super) sockets: Semaphore,
    /// Records that its busy streams have room for.
    pub(super) records: Used,
    /// Bytes of kernel memory that its connections hold.
    pub(super) socket_memory: Used,
    strict: AtomicBool,
    goes_local: AtomicBool,
}

impl Pod {
    /// A pod without connections. `accepting` and `connections` are its task groups.
    pub fn new(
        uid: PodUid,
        name: ObjectName,
        identity: SpiffeId,
        netns: Netns,
        addresses: &[IpAddr],
        (accepting, connections): (Tasks, Tasks),
    ) -> Self {
        let v4 =
            addresses.iter().find_map(|ip| if let IpAddr::V4(v4) = ip { Some(*v4) } else { None });
        let v6 =
            addresses.iter().find_map(|ip| if let IpAddr::V6(v6) = ip { Some(*v6) } else { None });
        Self {
            uid,
            name,
            identity,
            netns,
            v4,
            v6,
            accepting,
            connections,
            source_ports: SourcePorts::default(),
            outbound: Arc::default(),
            warm_dials: AtomicI32::default(),
            inbound: Arc::default(),
            kept: KeptSessions::default(),
            kept_inbound: Arc::default(),
            epoch: AtomicU64::default(),
            stock: Stock::default(),
            busy: Notify::new(),
            sockets: Semaphore::new(SOCKETS_AT_ONCE),
            records: Used::default(),
            socket_memory: Used::default(),
            strict: AtomicBool::new(true), // until the mode is known
            goes_local: AtomicBool::new(false),
        }
    }

    /// Whether only mutual TLS may enter.
    pub fn is_strict(&self) -> bool {
        self.strict.load(Ordering::Relaxed)
    }

    /// Sets whether only mutual TLS may enter.
    pub fn set_strict(&self, strict: bool) {
        if self.strict.swap(strict, Ordering::Relaxed) != strict {
            self.give_up_sessions();
        }
    }

    /// Whether connections with pods of the same node go without TLS, if the other pod agrees.
    pub fn goes_local(&self) -> bool {
        self.goes_local.load(Ordering::Relaxed)
    }

    /// Sets how connections with pods of the same node go. Open ones go on as they are.
    pub fn set_same_node(&self, way: SameNode) {
        self.goes_local.store(way == SameNode::Local, Ordering::Relaxed);
    }

    /// One of its dials takes no handshake; or, after all, it does.
    pub(super) fn note_warm_dial(&self, is_warm: bool) {
        self.warm_dials.fetch_add(if is_warm { 1 } else { -1 }, Ordering::Relaxed);
    }

    /// How many there were since the last call, less those that it took for warm ones before.
    pub(super) fn take_warm_dials(&self) -> u32 {
        let taken = self.warm_dials.swap(0, Ordering::Relaxed);
        let debt = taken.min(0);
        self.warm_dials.fetch_add(debt, Ordering::Relaxed);
        u32::try_from(taken).unwrap_or(0)
    }

    /// How many connections it has open, in both directions.
    pub fn open_connections(&self) -> usize {
        self.outbound.open() + self.inbound.open()
    }

    /// Its address of the same family as `other`.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        match other {
            IpAddr::V4(_) => self.v4.map(IpAddr::V4),
            IpAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    /// A connection as the socket in the pod sees it that has the first address.
    pub(crate) fn flow_key(&self, local: SocketAddr, remote: SocketAddr) -> FlowKey {
        FlowKey {
            netns: self.netns.cookie(),
            local: local.ip().into(),
            remote: remote.ip().into(),
            local_port: local.port(),
            remote_port: remote.port(),
            zero: 0,
        }
    }

    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}
