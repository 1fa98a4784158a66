//! Keys and values of the maps, and the events. Fixed in size, no padding: keys are compared byte
//! by byte.

use crate::{
    addr::{Addr, AddrPort},
    verdict::VERDICT_SLOTS,
    verdict::Verdict,
};

/// One socket's view of a connection inside one network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    /// `SO_NETNS_COOKIE` of the namespace.
    pub netns: u64,
    /// The socket's own address.
    pub local: Addr,
    /// Its peer's address.
    pub remote: Addr,
    /// Its own port, host order.
    pub local_port: u16,
    /// Its peer's port, host order.
    pub remote_port: u16,
    /// Always zero.
    pub zero: u32,
}

/// The value in a socket's own storage, and in the maps that hand it over: what the application is
/// to be told, and what the agent needs to know.
///
/// In `LEGS`, the verdict of a leg from another pod of the node says how far it is: [`LEG_NOTED`],
/// [`LEG_ARRIVED`], [`LEG_ACCEPTED`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// Outbound: the original destination. Inbound: the real client.
    pub endpoint: AddrPort,
    /// The [`crate::verdict::Verdict`] that led here, as its number.
    pub verdict: u32,
}

/// The leg has been noted, and no packet of it has come. Such a leg is let in.
pub const LEG_NOTED: u32 = Verdict::InboundMesh as u32;
/// Its first packet has come where it was meant to. It may come again.
pub const LEG_ARRIVED: u32 = Verdict::InboundLocal as u32;
/// The application has it. Nothing is let in by the note any more.
pub const LEG_ACCEPTED: u32 = Verdict::InboundOwnAddress as u32;

/// Value of `PENDING`: a dial that waits for the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// What was dialled.
    pub named: Named,
    /// [`Share::since_ns`] of the share from which its place was taken, and to which it goes back.
    pub share_since_ns: u64,
    /// When it was noted, `CLOCK_BOOTTIME` in nanoseconds. It tells the dial from an earlier one of
    /// the same addresses and ports.
    pub id: u64,
    /// When the agent was last asked to reach the destination, on the same clock; 0 before.
    pub asked_ns: u64,
    /// 1 if the connection waits until the agent has reached its destination, else 0.
    pub waits: u32,
    /// What the application has set on its socket.
    pub options: DialOptions,
}

/// Options of a dialling socket, which the agent's own connection in its place gets, too. A zero
/// says that the application has not set it, or that the kernel does not say (before 6.1 all but
/// [`DialOptions::tos`]).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DialOptions {
    /// `IP_TOS` or `IPV6_TCLASS`.
    pub tos: u32,
    /// How long keep-alive bears the peer's silence while nothing is to be sent, in seconds:
    /// `TCP_KEEPIDLE` and the time of all probes.
    pub keepalive_s: u32,
    /// How long data may stay without an acknowledgement, in milliseconds: `TCP_USER_TIMEOUT`.
    pub user_timeout_ms: u32,
}

/// Value of `STEERED`, keyed by namespace cookie: the ports of a pod at which connections have been
/// given to the agent. A bit each.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SteeredPorts(pub [u64; PORT_WORDS]);

/// Words of a [`SteeredPorts`].
pub const PORT_WORDS: usize = 65_536 / 64;

impl SteeredPorts {
    /// No port.
    pub const EMPTY: Self = Self([0; PORT_WORDS]);

    /// A port's word, and its bit there.
    #[inline(always)]
    pub const fn place(port: u16) -> (usize, u64) {
        ((port >> 6) as usize & (PORT_WORDS - 1), 1 << (port & 63))
    }
}

/// Value of `ANSWERED`: the agent's answer for a dial that waits.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answered {
    /// [`Pending::id`] of the dial.
    pub id: u64,
    /// 1 if it goes on to the agent, 0 if it is refused.
    pub goes_on: u32,
    /// Always zero.
    pub zero: u32,
}

/// A dial's first packet, as the programs hand it to the agent through a ring buffer: the agent is
/// to reach the destination and then to send the packet once more.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuestionEvent {
    /// Cookie of the pod's namespace.
    pub netns: u64,
    /// [`Pending::id`] of the dial.
    pub id: u64,
    /// The network header as it lies in memory: 20 bytes of IPv4, or 40 of IPv6.
    pub ip: [u64; 5],
    /// The TCP header as it lies in memory, of which the first [`QuestionEvent::tcp_len`] bytes
    /// count.
    pub tcp: [u64; 8],
    /// The length of the TCP header, in bytes.
    pub tcp_len: u64,
}

/// Value of `SHARES`, keyed by namespace cookie: a pod's part of what all pods have together.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// When counting began, `CLOCK_BOOTTIME` in nanoseconds. A place that was taken earlier is not
    /// given back to this share.
    pub since_ns: u64,
    /// Its entries in `PENDING`. For a moment also one that is about to be made or has just been
    /// taken out.
    pub dials: u64,
    /// The last second in which a refusal was reported: see [`crate::decide::report_window`].
    pub window: u64,
    /// How many refusals were reported in that second.
    pub reports: u64,
    /// The last second in which the agent was asked to reach a destination.
    pub questions_window: u64,
    /// How often it was asked in that second.
    pub questions: u64,
}

/// Key in `SHARES` of what all pods have together, and of the reports about pods that are not
/// enrolled. No namespace has it.
pub const ALL_PODS: u64 = 0;

/// Value of `ENROLLED`, keyed by namespace cookie: a pod whose connects are decided about. Value of
/// `HELD`: a pod that is not enrolled yet, and whose dials wait.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnrolledPod {
    /// The pod's IPv4 address, or [`Addr::NONE`].
    pub v4: Addr,
    /// The pod's IPv6 address, or [`Addr::NONE`].
    pub v6: Addr,
}

/// Value of `LOCAL`, keyed by pod address: a pod of this node whose incoming connections are
/// decided about.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalEntry {
    /// Cookie of its network namespace.
    pub netns: u64,
    /// `LOCAL_*` bits.
    pub flags: u32,
    /// Always zero.
    pub zero: u32,
}

/// [`LocalEntry::flags`]: only mutual TLS may enter.
pub const LOCAL_STRICT: u32 = 1;
/// [`LocalEntry::flags`]: the pod has left; only the rule about agents' source ports stays.
pub const LOCAL_LEFT: u32 = 2;

/// Value bits of `ADDRESSES`, keyed by address: a pod of the cluster is known to have it.
pub const ADDRESS_KNOWN: u32 = 1;
/// Value bits of `ADDRESSES`: that pod is captured by its node's agent, so it is dialled over TLS.
pub const ADDRESS_PEER: u32 = 2;
/// Value bits of `ADDRESSES`: a node's own address, from which no agent dials for a pod. A pod's
/// address is never one.
pub const ADDRESS_NODE: u32 = 4;

/// Value bits of `PORTS`, keyed by address and port: a service of the mesh.
pub const PORT_SERVICE: u32 = 1;
/// Value bits of `PORTS`: excluded from the mesh by annotation of the pod that has the address.
pub const PORT_EXCLUDED: u32 = 2;
/// Value bits of `PORTS`: a strict pod of this node takes on this port what a permissive one would,
/// by its annotation.
pub const PORT_PERMISSIVE: u32 = 4;

/// Key of `KUBELET_DIALS`: a connection that the node's kubelet dials, as it leaves the kubelet's
/// socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DialKey {
    /// The kubelet's end.
    pub from: AddrPort,
    /// What it dials.
    pub to: AddrPort,
}

/// Key of `REACHED`: what one pod has reached says nothing of another.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationKey {
    /// Cookie of the namespace that dials.
    pub netns: u64,
    /// What it dials.
    pub to: AddrPort,
    /// Always zero.
    pub zero: u32,
}

impl DestinationKey {
    /// A key from its parts.
    #[inline(always)]
    pub const fn new(netns: u64, to: AddrPort) -> Self {
        Self { netns, to, zero: 0 }
    }
}

/// Key of `LISTENERS`. It contains the namespace, so that an address that passes from one pod to
/// another never leads to a listener of the first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerKey {
    /// Cookie of the namespace that the socket is in.
    pub netns: u64,
    /// The pod's address.
    pub addr: Addr,
    /// [`OUTBOUND`], [`INBOUND`] or [`ASKING`].
    pub direction: u32,
    /// Always zero.
    pub zero: u32,
}

impl ListenerKey {
    /// A key from its parts.
    #[inline(always)]
    pub const fn new(netns: u64, addr: Addr, direction: u32) -> Self {
        Self { netns, addr, direction, zero: 0 }
    }
}

/// [`ListenerKey::direction`]: takes what the pod dials.
pub const OUTBOUND: u32 = 0;
/// [`ListenerKey::direction`]: takes what peers' agents dial.
pub const INBOUND: u32 = 1;
/// [`ListenerKey::direction`]: takes in silence the packets of dials that wait until the agent has
/// reached the destination.
pub const ASKING: u32 = 2;

/// Index in `NODE`: when the agent last said that it is well, `CLOCK_BOOTTIME` in nanoseconds; 0 if
/// it never did.
pub const NODE_HEARTBEAT: u32 = 0;
/// Index in `NODE`: 1 if cgroups that the agent has not classified are refused, else 0.
pub const NODE_REFUSE_UNCLASSIFIED: u32 = 1;
/// Index in `NODE`: cookie of the node's own network namespace, which has no pod of the mesh.
pub const NODE_OWN_NETNS: u32 = 2;
/// Index in `NODE`: id of the cgroup that the node's kubelet is in itself, not of those below; 0 if
/// it is not known.
pub const NODE_KUBELET_CGROUP: u32 = 3;
/// Index in `NODE`: 1 if `ADDRESSES` has no room for all captured pods, so that an address that it
/// does not contain may be captured.
pub const NODE_ADDRESSES_INCOMPLETE: u32 = 4;

/// Counters by [`crate::verdict::Verdict`] number.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictCounts(pub [u64; VERDICT_SLOTS]);

/// A refusal, as the programs report it through the ring buffer. The map `EVENTS_LOST` exists for
/// the full ring: the refusal still happens, and only its report is lost and counted.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RefusalEvent {
    /// `CLOCK_BOOTTIME` in nanoseconds (`bpf_ktime_get_boot_ns`).
    pub boot_ns: u64,
    /// Cookie of the pod's namespace.
    pub netns: u64,
    /// The dialling end. The port is 0 where the kernel has not chosen one yet.
    pub client: AddrPort,
    /// The dialled end.
    pub server: AddrPort,
    /// The [`crate::verdict::Verdict`], as its number.
    pub verdict: u32,
    /// Always zero.
    pub zero: u32,
}

/// Names of the maps, as both sides call them, and their sizes.
pub mod limits {
    /// Pods on one node. Kubernetes' default is 110; the largest setups run some 500.
    pub const LOCAL_PODS: usize = 1024;
    /// Addresses of pods in the cluster: 100,000 pods, dual stack, with room.
    pub const ADDRESSES: usize = 262_144;
    /// Ranges of pod addresses in the cluster: 5,000 nodes (what Kubernetes is tested with), dual
    /// stack, with room.
    pub const POD_CIDRS: usize = 16_384;
    /// Service ports and excluded ports in the cluster.
    pub const PORTS: usize = 131_072;
    /// Connections between `connect()` and the agent's `accept()`.
    pub const PENDING: usize = 65_536;
    /// Connections of the kubelet that are not closed, except those that the agent has swept: many
    /// more than the probes of [`LOCAL_PODS`] at a time, and room for an API server in the same
    /// process (k3s).
    pub const KUBELET_DIALS: usize = 16_384;
    /// What the agent tells the programs about the node: the `NODE_*` indices.
    pub const NODE: usize = 5;
    /// How many levels of cgroups between the root and a process of a pod are searched for the
    /// pod's own. The kubelet makes four, and some nine where a node is itself a container.
    pub const CGROUP_LEVELS: u32 = 12;
    /// How many destinations of one pod are known to answer, at a time. A dial to another one waits
    /// until the agent has reached it.
    pub const REACHED_PER_POD: usize = 256;
    /// The same for all pods.
    pub const REACHED: usize = LOCAL_PODS * REACHED_PER_POD;
    /// The most of [`PENDING`] that one pod may have: as many as the agent carries at most for all.
    pub const PENDING_OF_POD: u64 = 16_384;
    /// A pod's share is used up when it has this many times what is free. The agent's
    /// `proxy/limits.rs` gives the reason.
    pub const PENDING_SHARE: u64 = 4;
    /// How many refusals of one pod are reported in a second although the ring is half full, so
    /// that there is room for others.
    pub const REPORTS_WHEN_CROWDED: u64 = 64;
    /// Ring buffer for refusals: 256 KiB, some 3,000 events.
    pub const EVENTS_BYTES: usize = 256 * 1024;
    /// Ring buffer for dials that wait: 256 KiB, some 2,000.
    pub const QUESTIONS_BYTES: usize = 256 * 1024;
    /// How many dials of one pod may begin to wait in a second: as many as are accepted from one
    /// pod (the agent's `proxy/listen.rs`). The packets of others come again.
    pub const QUESTIONS_PER_SECOND: u64 = 2_000;
    /// How long the agent is not asked again about a dial whose packet comes again, in nanoseconds.
    pub const ASK_AGAIN_NS: u64 = 200_000_000;
}

const _: () = assert!(size_of::<FlowKey>() == 48);
const _: () = assert!(size_of::<Named>() == 24);
const _: () = assert!(size_of::<Pending>() == 64);
const _: () = assert!(size_of::<SteeredPorts>() == 8192);
const _: () = assert!(size_of::<Answered>() == 16);
const _: () = assert!(size_of::<QuestionEvent>() == 128);
const _: () = assert!(size_of::<Share>() == 48);
const _: () = assert!(size_of::<EnrolledPod>() == 32);
const _: () = assert!(size_of::<LocalEntry>() == 16);
const _: () = assert!(size_of::<DialKey>() == 40);
const _: () = assert!(size_of::<DestinationKey>() == 32);
const _: () = assert!(size_of::<ListenerKey>() == 32);
const _: () = assert!(size_of::<RefusalEvent>() == 64);
