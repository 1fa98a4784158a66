//! `sk_lookup`, on each pod's network namespace: it decides which listener an arriving connection
//! finds. The pod's own dials find the outbound listener, peers' agents the inbound one. Plaintext
//! reaches the application of a permissive pod. It reaches that of a strict pod only from the
//! kubelet, from the pod itself, and on ports that an annotation opens. Runs again for a
//! retransmitted SYN. Kernel 5.9.
//!
//! Every process in a namespace can have the kernel run these programs, with addresses of any
//! choice and without a packet (`sock_diag`, nft). So each namespace has a copy of its own, which
//! answers for its pod only.

use aya_ebpf::{
    bindings::BPF_SK_LOOKUP_F_NO_REUSEPORT, macros::sk_lookup, programs::SkLookupContext,
};
use mesh_common::{
    addr::{Addr, AddrPort},
    decide::{self, Namespace},
    maps::{ASKING, FlowKey, INBOUND, ListenerKey, LocalEntry, NODE_HEARTBEAT, OUTBOUND},
    verdict::{Action, Verdict},
};

use crate::{
    ctx::SkLookup,
    legs,
    maps::{self, Dialled},
};

const PASS: u32 = 1;
/// The client gets a reset.
const DROP: u32 = 0;

struct Arrival {
    /// Cookie of the namespace.
    netns: u64,
    local: AddrPort,
    remote: AddrPort,
}

impl Arrival {
    /// The connection as the socket sees it that has sent the packet, if that is the pod's own.
    #[inline(always)]
    fn flow(&self) -> FlowKey {
        FlowKey {
            netns: self.netns,
            local: self.remote.addr,
            remote: self.local.addr,
            local_port: self.remote.port,
            remote_port: self.local.port,
            zero: 0,
        }
    }
}

impl decide::Arrival for Arrival {
    #[inline(always)]
    fn local(&self) -> AddrPort {
        self.local
    }
    #[inline(always)]
    fn remote(&self) -> AddrPort {
        self.remote
    }
    #[inline(always)]
    fn pod(&self) -> Option<LocalEntry> {
        // SAFETY: the value is copied at once.
        let pod = unsafe { maps::LOCAL.get(&self.local.addr) }.copied();
        pod.filter(|pod| pod.netns == self.netns)
    }
    #[inline(always)]
    fn address_flags(&self, addr: &Addr) -> u32 {
        // SAFETY: the value is copied at once.
        unsafe { maps::ADDRESSES.get(addr) }.copied().unwrap_or(0)
    }
    #[inline(always)]
    fn is_in_pod_cidr(&self, addr: &Addr) -> bool {
        maps::is_in_pod_cidr(addr)
    }
    #[inline(always)]
    fn port_flags(&self, endpoint: &AddrPort) -> u32 {
        // SAFETY: the value is copied at once.
        unsafe { maps::PORTS.get(endpoint) }.copied().unwrap_or(0)
    }
    #[inline(always)]
    fn is_redirected(&self) -> bool {
        maps::is_noted(&self.flow())
    }
    #[inline(always)]
    fn is_local_leg(&self) -> bool {
        // What an agent has left that is gone lets nothing in.
        !decide::is_silent(maps::node(NODE_HEARTBEAT), maps::boot_ns())
            && legs::arrives(&self.flow())
    }
    #[inline(always)]
    fn is_kubelets(&self) -> bool {
        maps::is_kubelets(self.remote, self.local)
    }
}

/// For a permissive pod: leaves alone what arrives at addresses that are not in `LOCAL`.
#[sk_lookup]
pub(crate) fn nm_lookup(context: SkLookupContext) -> u32 {
    sk_lookup::<false>(&context)
}

/// For a strict pod: refuses what arrives at addresses that are not in `LOCAL`, unless it comes
/// from the same address.
#[sk_lookup]
pub(crate) fn nm_lookup_strict(context: SkLookupContext) -> u32 {
    sk_lookup::<true>(&context)
}

#[inline(always)]
fn sk_lookup<const STRICT: bool>(context: &SkLookupContext) -> u32 {
    let lookup = SkLookup(context.lookup);
    if !lookup.is_tcp() {
        return PASS;
    }
    let netns = maps::here();
    let view = Arrival { netns, local: lookup.local(), remote: lookup.remote() };
    let namespace = if STRICT { Namespace::Strict } else { Namespace::Permissive };
    let wanted = decide::arrival(&view, namespace);
    let verdict = match wanted {
        Verdict::OutboundSteered => steer_dial(context, &view),
        Verdict::InboundMesh | Verdict::InboundAgentsPort => steer(context, &view, wanted, INBOUND),
        other => other,
    };
    let of_pod = !matches!(verdict, Verdict::NotEnrolled | Verdict::Loopback);
    maps::count(verdict, if of_pod { netns } else { 0 });
    if verdict.action() == Action::Refuse {
        // The agent has a record of a dial that it could not carry out. Packets that belong to no
        // dial do not wake it.
        if !matches!(verdict, Verdict::RefusedUnreached | Verdict::RefusedNotNoted) {
            maps::report(verdict, netns, view.remote, view.local);
        }
        return DROP;
    }
    PASS
}

/// Leads a packet of a redirected connection on. While the agent has not reached the destination,
/// the packet is given to a socket that takes it in silence, and the dialling socket waits.
#[inline(always)]
fn steer_dial(context: &SkLookupContext, view: &Arrival) -> Verdict {
    match maps::dialled(&view.flow()) {
        Dialled::GoesOn => steer(context, view, Verdict::OutboundSteered, OUTBOUND),
        Dialled::Waits => steer(context, view, Verdict::OutboundWaits, ASKING),
        Dialled::Refused => Verdict::RefusedUnreached,
        Dialled::Unknown => Verdict::RefusedNotNoted,
    }
}

/// Gives the packet to the agent's listener. Without a listener, or while the agent is silent, the
/// packet is refused in every mode, because only the agent can handle it.
#[inline(always)]
fn steer(context: &SkLookupContext, view: &Arrival, wanted: Verdict, direction: u32) -> Verdict {
    if decide::is_silent(maps::node(NODE_HEARTBEAT), maps::boot_ns()) {
        return decide::silent(wanted);
    }
    let key = ListenerKey::new(view.netns, view.local.addr, direction);
    // This socket, and no other that listens at the same address and port.
    let flags = u64::from(BPF_SK_LOOKUP_F_NO_REUSEPORT);
    match maps::LISTENERS.redirect_sk_lookup(context, key, flags) {
        Ok(()) => {
            if direction == INBOUND {
                maps::note_steered(view.netns, view.local.port);
            }
            wanted
        }
        Err(_) => Verdict::RefusedNoListener,
    }
}
