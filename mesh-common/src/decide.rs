//! The decisions, as pure functions over what a hook can look up. The programs implement the two
//! traits over maps and contexts, the tests over plain values. A look-up happens only if the
//! decision needs it.

use crate::{
    addr::{Addr, AddrPort},
    errno,
    maps::{
        ADDRESS_KNOWN, ADDRESS_NODE, ADDRESS_PEER, EnrolledPod, LOCAL_LEFT, LOCAL_STRICT,
        LocalEntry, PORT_EXCLUDED, PORT_PERMISSIVE, PORT_SERVICE, limits,
    },
    ports,
    verdict::Verdict,
};

/// What `cgroup/connect4` and `connect6` can find out about a dial.
pub trait Dial {
    /// Whether the agent itself dials.
    fn by_agent(&self) -> bool;
    /// The dialling pod, if its namespace is enrolled.
    fn pod(&self) -> Option<EnrolledPod>;
    /// The held pod whose dials wait. Asked only if the namespace is not enrolled.
    fn held(&self) -> Option<EnrolledPod>;
    /// Whether the node refuses unclassified cgroups, and the dialling one is such. Asked only if
    /// the namespace is not enrolled.
    fn is_refused_as_unclassified(&self) -> bool;
    /// What is dialled.
    fn destination(&self) -> AddrPort;
    /// The address the socket is bound to, or an unspecified one.
    fn bound_source(&self) -> Addr;
    /// `ADDRESS_*` bits.
    fn address_flags(&self, addr: &Addr) -> u32;
    /// Whether an address that `ADDRESSES` does not contain may be that of a captured pod for which
    /// the map has no room.
    fn may_be_missing(&self, addr: &Addr) -> bool;
    /// `PORT_*` bits.
    fn port_flags(&self, endpoint: &AddrPort) -> u32;
    /// Whether the pod's share has room for one more dial. Asked last.
    fn has_room(&self) -> bool;
}

/// Decides about a dial. The second value is the pod's own address of the destination's family, to
/// which a redirected dial is rewritten.
#[inline(always)]
pub fn dial(view: &impl Dial) -> (Verdict, Addr) {
    let to = view.destination();
    let Some(pod) = view.pod() else {
        if !view.by_agent()
            && let Some(pod) = view.held()
        {
            return held_dial(view, &pod);
        }
        let refused = view.is_refused_as_unclassified() && !to.addr.is_loopback_or_unspecified();
        let verdict = if refused { Verdict::RefusedUnclassified } else { Verdict::NotEnrolled };
        return (verdict, Addr::NONE);
    };
    if view.by_agent() {
        return (Verdict::AgentOwn, Addr::NONE);
    }
    if to.addr.is_loopback_or_unspecified() {
        return (Verdict::Loopback, Addr::NONE);
    }
    let own = if to.addr.is_v4() { pod.v4 } else { pod.v6 };
    if to.addr == own {
        let verdict =
            if ports::is_magic(to.port) { Verdict::RefusedMagicPort } else { Verdict::OwnAddress };
        return (verdict, Addr::NONE);
    }
    let port_flags = view.port_flags(&to);
    let service = port_flags & PORT_SERVICE != 0;
    let address_flags = if service { ADDRESS_PEER } else { view.address_flags(&to.addr) };
    // An address in the map is not missing, also if it is not captured.
    let missing = address_flags == 0 && view.may_be_missing(&to.addr);
    if address_flags & ADDRESS_PEER == 0 && !missing {
        return (Verdict::DestinationNotMeshed, Addr::NONE);
    }
    if port_flags & PORT_EXCLUDED != 0
        || view.port_flags(&AddrPort::new(own, to.port)) & PORT_EXCLUDED != 0
    {
        return (Verdict::OutboundExcluded, Addr::NONE);
    }
    if missing {
        return (Verdict::RefusedTableFull, Addr::NONE);
    }
    if own.is_none() {
        return (Verdict::RefusedNoAddress, Addr::NONE);
    }
    let source = view.bound_source();
    if source != own && !is_unspecified(&source) {
        return (Verdict::RefusedForeignSource, Addr::NONE);
    }
    if !view.has_room() {
        return (Verdict::RefusedPendingShare, Addr::NONE);
    }
    (if service { Verdict::RedirectService } else { Verdict::RedirectPeer }, own)
}

/// Decides about a dial of a pod that is held. It is not known yet what the mesh carries of it, so
/// all goes to the agent, which finds that out once the pod is enrolled.
#[inline(always)]
fn held_dial(view: &impl Dial, pod: &EnrolledPod) -> (Verdict, Addr) {
    let to = view.destination();
    let own = if to.addr.is_v4() { pod.v4 } else { pod.v6 };
    if to.addr.is_loopback_or_unspecified() {
        return (Verdict::Loopback, Addr::NONE);
    }
    if to.addr == own && !ports::is_magic(to.port) {
        return (Verdict::OwnAddress, Addr::NONE);
    }
    let source = view.bound_source();
    let is_ours = source == own || is_unspecified(&source);
    if own.is_none() || to.addr == own || !is_ours {
        return (Verdict::RefusedHeld, Addr::NONE);
    }
    if !view.has_room() {
        return (Verdict::RefusedPendingShare, Addr::NONE);
    }
    (Verdict::RedirectHeld, own)
}

/// How long a held pod's dial waits, in nanoseconds. The first SYN after that passes the guard and
/// is refused: nothing listens where it goes.
pub const HELD_DIAL_NS: u64 = 10_000_000_000;

/// What the application sees of a dial that [`dial`] refused, from [`mod@errno`]: what the network
/// would say or, where that has no word for it, "refused", which applications know how to retry.
#[inline(always)]
pub const fn errno(verdict: Verdict) -> u32 {
    match verdict {
        // What a pod sees that dials without end, once its ports are used up.
        Verdict::RefusedForeignSource
        | Verdict::RefusedPendingShare
        | Verdict::RefusedBoundPort => errno::EADDRNOTAVAIL,
        Verdict::RefusedNoAddress => errno::ENETUNREACH,
        Verdict::RefusedNoMemory => errno::ENOMEM,
        _ => errno::ECONNREFUSED,
    }
}

/// How many dials a pod may have, given how many all pods have together.
#[inline(always)]
pub const fn dials_allowed(all: u64) -> u64 {
    let allowed = limits::PENDING_SHARE * (limits::PENDING as u64).saturating_sub(counted(all));
    if allowed < limits::PENDING_OF_POD { allowed } else { limits::PENDING_OF_POD }
}

/// Whether a pod that has `own` dials of `all` may have one more.
#[inline(always)]
pub const fn has_room(own: u64, all: u64) -> bool {
    counted(own) < dials_allowed(all)
}

/// The value of a counter that several CPUs change; zero, if it was decremented once too often.
#[inline(always)]
pub const fn counted(count: u64) -> u64 {
    if count.cast_signed() < 0 { 0 } else { count }
}

/// Whether a pod's dial waits until the agent has reached the destination: unless that is known to
/// answer until a time that is to come.
#[inline(always)]
pub const fn waits(answers_until_ns: u64, boot_ns: u64) -> bool {
    answers_until_ns <= boot_ns
}

/// The number of the second, approximately, in which reports are counted.
#[inline(always)]
pub const fn report_window(boot_ns: u64) -> u64 {
    boot_ns >> 30
}

#[inline(always)]
fn is_unspecified(addr: &Addr) -> bool {
    addr.is_none() || (addr.is_v4() && addr.v4_word() == 0)
}

/// What `sk_lookup` can find out about a packet that looks for a listener.
pub trait Arrival {
    /// Where it came to.
    fn local(&self) -> AddrPort;
    /// Where it came from.
    fn remote(&self) -> AddrPort;
    /// The namespace's pod, if it has the local address.
    fn pod(&self) -> Option<LocalEntry>;
    /// `ADDRESS_*` bits.
    fn address_flags(&self, addr: &Addr) -> u32;
    /// Whether an address is in one of the nodes' ranges of pod addresses; always true if no range
    /// is known.
    fn is_in_pod_cidr(&self, addr: &Addr) -> bool;
    /// `PORT_*` bits.
    fn port_flags(&self, endpoint: &AddrPort) -> u32;
    /// Whether it belongs to a redirected dial that is noted in `PENDING`. Asked only where the
    /// ports leave it open.
    fn is_redirected(&self) -> bool;
    /// Whether this node's agent has noted that it dials so, for another pod of the node. Asked
    /// only of what looks like an agent's dial.
    fn is_local_leg(&self) -> bool;
    /// Whether it comes from a socket of this node's kubelet, which the kernel noted before the
    /// packet left. Asked only where it makes a difference.
    fn is_kubelets(&self) -> bool;
}

/// What the program knows of the namespace that it is attached to. It cannot look that up:
/// `sk_lookup` has no cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Namespace {
    /// Arrivals at addresses that are not in `LOCAL` are left alone.
    Permissive,
    /// Arrivals at addresses that are not in `LOCAL` are refused, except from the address itself.
    Strict,
}

/// Decides about an arrival. A `Redirect` for which the agent has no listener becomes
/// [`Verdict::RefusedNoListener`], in any mode: it can only be TLS, and no agent is there to look.
#[inline(always)]
pub fn arrival(view: &impl Arrival, namespace: Namespace) -> Verdict {
    let local = view.local();
    if ports::is_listener(&local.addr, local.port) {
        return Verdict::RefusedAgentListener;
    }
    if local.addr.is_loopback_or_unspecified() {
        return Verdict::Loopback;
    }
    let remote = view.remote();
    let Some(pod) = view.pod() else {
        // An address that is not the pod's as Kubernetes knows it: link-local, of another
        // interface, or another pod's.
        let closed = matches!(namespace, Namespace::Strict) && remote.addr != local.addr;
        return if closed { Verdict::RefusedStrict } else { Verdict::NotEnrolled };
    };
    let left = pod.flags & LOCAL_LEFT != 0;
    if ports::is_magic(local.port) && !left {
        return if remote.addr == local.addr {
            Verdict::OutboundSteered
        } else {
            Verdict::RefusedForeignMagicPort
        };
    }
    if remote.addr == local.addr {
        let is_dial = !left && ports::may_be_redirected(local.port) && view.is_redirected();
        return if is_dial { Verdict::OutboundSteered } else { Verdict::InboundOwnAddress };
    }
    // The kubelet dials from such a port where the node's ephemeral range was widened. It dials
    // from an address among the pods' where that is the bridge's.
    let from_agent =
        ports::is_mesh_source(remote.port) && may_be_pod(view, &remote.addr) && !view.is_kubelets();
    if left {
        // The peer's agent may not have heard that the pod has left, nor this agent of the peer.
        return if from_agent { Verdict::RefusedLeft } else { Verdict::NotEnrolled };
    }
    if local.port == ports::AGENTS {
        return Verdict::InboundAgentsPort;
    }
    if from_agent {
        if view.is_local_leg() {
            return Verdict::InboundLocal;
        }
        // Also to an excluded port: a pod's agent may not have heard of the exclusion, and TLS must
        // not reach the application. The agent looks at such connections.
        return Verdict::InboundMesh;
    }
    let port_flags = view.port_flags(&local);
    if port_flags & PORT_EXCLUDED != 0 {
        return Verdict::InboundExcluded;
    }
    plaintext(view, &pod, port_flags)
}

/// How long after its first SYN a connection of the kubelet is known as such, in nanoseconds: as
/// long as Linux repeats the SYN by default (`tcp_syn_retries` 6: 127 s), and a little more. For an
/// established connection this is not asked.
pub const KUBELET_DIAL_NS: u64 = 130_000_000_000;

/// Whether a connection of the kubelet that was noted at `noted_ns` is still known as such. Both in
/// nanoseconds of `CLOCK_BOOTTIME`.
#[inline(always)]
pub const fn is_fresh(noted_ns: u64, now_ns: u64) -> bool {
    now_ns.saturating_sub(noted_ns) <= KUBELET_DIAL_NS
}

/// The age at which the agent's heartbeat counts as silence, in nanoseconds: ten beats. A
/// connection that was steered to a stuck agent hangs as long as the agent does; a refused one can
/// be tried again.
pub const HEARTBEAT_STALE_NS: u64 = 5_000_000_000;

/// Whether the agent is silent: it has had a heartbeat, but not lately. Both in nanoseconds of
/// `CLOCK_BOOTTIME`.
#[inline(always)]
pub const fn is_silent(heartbeat_ns: u64, now_ns: u64) -> bool {
    heartbeat_ns != 0 && now_ns.saturating_sub(heartbeat_ns) > HEARTBEAT_STALE_NS
}

/// The verdict for an arrival that should have gone to the agent, while the agent is silent.
#[inline(always)]
pub const fn silent(wanted: Verdict) -> Verdict {
    match wanted {
        Verdict::OutboundSteered | Verdict::OutboundWaits => Verdict::RefusedAgentSilent,
        _ => Verdict::RefusedAgentSilentInbound,
    }
}

/// Whether an address may be that of a pod, known or not: only then can an agent dial from it.
#[inline(always)]
fn may_be_pod(view: &impl Arrival, addr: &Addr) -> bool {
    let flags = view.address_flags(addr);
    flags & ADDRESS_KNOWN != 0 || (flags & ADDRESS_NODE == 0 && view.is_in_pod_cidr(addr))
}

#[inline(always)]
fn plaintext(view: &impl Arrival, pod: &LocalEntry, port_flags: u32) -> Verdict {
    // Also for a permissive pod: its plaintext is watched before it becomes strict, and probes
    // would only be noise there.
    if view.is_kubelets() {
        Verdict::InboundKubelet
    } else if pod.flags & LOCAL_STRICT == 0 {
        Verdict::InboundPlaintext
    } else if port_flags & PORT_PERMISSIVE != 0 {
        Verdict::InboundPermissivePort
    } else {
        Verdict::RefusedStrict
    }
}

#[cfg(test)]
mod tests;
