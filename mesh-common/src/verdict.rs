//! What the kernel programs decided about a connection, and why: one enum, one stable code and one
//! sentence each.

/// What a verdict does to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Goes on untouched; no userspace sees it.
    Pass,
    /// Goes to the agent.
    Redirect,
    /// Ends here.
    Refuse,
}

/// The first number of the verdicts about what arrives at a pod; those before are about what a pod
/// dials.
const FIRST_INBOUND: u32 = 32;

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal, $action:ident, $code:literal, $sentence:literal;)+) => {
        /// A decision of one of the kernel programs, naming its reason.
        ///
        /// The number is part of the pinned layout ([`crate::ABI`]); the code is what flows,
        /// metrics and logs show.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Verdict { $($(#[$doc])* $name = $number,)+ }

        impl Verdict {
            /// Every verdict.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The verdict with this number, if there is one.
            pub const fn from_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$name),)+ _ => None }
            }

            /// What becomes of the connection.
            #[inline(always)]
            pub const fn action(self) -> Action {
                match self { $(Self::$name => Action::$action,)+ }
            }

            /// Whether the verdict is about a dialled pod.
            pub const fn is_inbound(self) -> bool {
                self as u32 >= FIRST_INBOUND
            }

            /// Stable `snake_case` code.
            pub const fn code(self) -> &'static str {
                match self { $(Self::$name => $code,)+ }
            }

            /// One sentence for people, with the likely cause.
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$name => $sentence,)+ }
            }
        }
    };
}

verdicts! {
    // --- outbound, decided in cgroup/connect4 and connect6
    /// The dialling socket's namespace is not enrolled.
    NotEnrolled = 0, Pass, "not_enrolled", "The client is not in the mesh; its connection is left alone.";
    /// The agent itself dials.
    AgentOwn = 1, Pass, "agent_own", "The agent's own connection.";
    /// A pod talks to itself over loopback.
    Loopback = 2, Pass, "loopback", "The destination is the pod's own loopback.";
    /// A pod dials its own address.
    OwnAddress = 3, Pass, "own_address", "The pod dials its own address.";
    /// The port is excluded by annotation, on either side.
    OutboundExcluded = 4, Pass, "outbound_excluded", "The port is excluded from the mesh by nodemesh.dev/exclude-ports.";
    /// No pod of the mesh is at the destination.
    DestinationNotMeshed = 5, Pass, "destination_not_meshed", "The destination is not in the mesh; the connection goes there directly, unencrypted by us.";
    /// The destination is a captured pod.
    RedirectPeer = 6, Redirect, "redirect_peer", "The destination is a pod in the mesh; the agent carries the connection over mutual TLS.";
    /// The destination is a service with captured endpoints.
    RedirectService = 7, Redirect, "redirect_service", "The destination is a service with endpoints in the mesh; the agent picks one and carries the connection.";
    /// A pod dialled one of the agent's internal ports.
    RefusedMagicPort = 8, Refuse, "refused_magic_port", "The pod dialled a port of its own address that only redirected connections may carry.";
    /// The socket is bound to an address that is not the pod's.
    RefusedForeignSource = 9, Refuse, "refused_foreign_source", "The socket is bound to an address that is not the pod's, so the mesh cannot carry its connection; bind to the pod's address or to none.";
    /// The pod has no address of the destination's family.
    RefusedNoAddress = 10, Refuse, "refused_no_address", "The pod has no address of the destination's family.";
    /// The kernel had no memory for the original destination.
    RefusedNoMemory = 11, Refuse, "refused_no_memory", "The kernel could not keep the original destination; the node is short of memory.";
    /// The pod must not send plaintext and is not enrolled yet.
    RefusedHeld = 12, Refuse, "refused_held", "The pod is held until the agent has enrolled it.";
    /// The agent has not classified this cgroup yet, and the node refuses such cgroups.
    RefusedUnclassified = 13, Refuse, "refused_unclassified", "The agent has not yet classified the pod, and this node refuses unclassified pods.";
    /// Both pods are on this node and may be connected directly.
    Direct = 14, Pass, "direct", "Both pods are on this node; identity and policy were checked and the kernel connects them directly.";
    /// As `Direct`, with bytes moved by the socket map.
    DirectSockmap = 15, Pass, "direct_sockmap", "Both pods are on this node and the kernel moves the bytes between their sockets.";
    /// The agent does not answer, and a redirected dial would hang.
    RefusedAgentSilent = 17, Refuse, "refused_agent_silent", "The node's agent has not said for seconds that it is well; it is stuck or starved, and the dial would hang.";
    /// A connection of the kubelet could not be noted. Decided in sockops.
    KubeletNotNoted = 18, Pass, "kubelet_not_noted", "Too many connections of the kubelet are noted at once; a strict pod refuses this one as it would any plaintext.";
    /// The pod has its share of `PENDING`. Decided in connect, and once more in sockops.
    RefusedPendingShare = 19, Refuse, "refused_pending_share", "The pod has as many dials under way through the mesh as the node can spare for it; they are too many, or other pods of the node have as many.";
    /// The destination may be a captured pod for which the kernel's table has no room.
    RefusedTableFull = 20, Refuse, "refused_table_full", "The kernel's table of addresses has no room for all pods of the mesh, and the destination may be one of those that it does not know.";

    /// Too many redirected connections have the source port that the socket is bound to.
    RefusedBoundPort = 21, Refuse, "refused_bound_port", "The socket is bound to a source port that has too many connections through the mesh; no free destination port was found for one more.";
    /// The pod is held, and its dial waits until it is enrolled.
    RedirectHeld = 22, Redirect, "redirect_held", "The pod is held; the connection waits in connect() until the agent has enrolled it.";

    // --- inbound, decided in sk_lookup and, before a pod is enrolled, in cgroup_skb
    /// A peer's agent dials: TLS follows.
    InboundMesh = 32, Redirect, "inbound_mesh", "The source port says that an agent is dialling; the connection goes to this node's agent.";
    /// Plaintext to a permissive pod.
    InboundPlaintext = 33, Pass, "inbound_plaintext", "Plaintext from outside the mesh to a permissive pod.";
    /// The port is excluded by annotation.
    InboundExcluded = 34, Pass, "inbound_excluded", "The port is excluded from the mesh by nodemesh.dev/exclude-ports.";
    /// A redirected connection arrives at the outbound listener.
    OutboundSteered = 35, Redirect, "outbound_steered", "A redirected connection reached the agent's outbound listener.";
    /// Plaintext to a strict pod.
    RefusedStrict = 36, Refuse, "refused_strict", "The pod accepts only mutual TLS from the mesh (nodemesh.dev/mode: strict), and the client is not in the mesh.";
    /// An agent dials but no socket listens: this node's agent is away.
    RefusedNoListener = 37, Refuse, "refused_no_listener", "A peer's agent dialled while this node's agent was not listening; it is stopped or being replaced.";
    /// A client outside the pod dialled an internal port.
    RefusedForeignMagicPort = 38, Refuse, "refused_foreign_magic_port", "A client outside the pod dialled a port that only redirected connections may carry.";
    /// A client dialled the agent's listener itself.
    RefusedAgentListener = 39, Refuse, "refused_agent_listener", "A client dialled the agent's listener directly.";
    /// A peer's agent dials a pod that has left the mesh.
    RefusedLeft = 40, Refuse, "refused_left", "A peer's agent dialled a pod that has left the mesh; its news is stale.";
    /// The agent's leg to the application, or the pod dialling itself.
    InboundOwnAddress = 41, Pass, "inbound_own_address", "From the pod's own address: the agent's leg to the application, or the pod itself.";
    /// Something dials a held pod.
    RefusedHeldInbound = 42, Refuse, "refused_held_inbound", "The pod is held until the agent has enrolled it; the client's packet was dropped and will be sent again.";
    /// An agent dials while this node's agent does not answer.
    RefusedAgentSilentInbound = 43, Refuse, "refused_agent_silent_inbound", "A peer's agent dialled while this node's agent had not said for seconds that it is well.";
    /// A client dials a pod that the agent has not classified.
    RefusedUnclassifiedInbound = 44, Refuse, "refused_unclassified_inbound", "The agent has not yet classified the pod, and this node refuses unclassified pods; the client's packet was dropped and will be sent again.";
    /// A peer's agent dials the agents' port.
    InboundAgentsPort = 45, Redirect, "inbound_agents_port", "A peer's agent dialled the agents' port: to ask from where it is seen, or to bring a connection over a path that changes source addresses or ports.";
    /// The kubelet dials a pod.
    InboundKubelet = 46, Pass, "inbound_kubelet", "The node's own kubelet probes the pod, or calls one of its lifecycle hooks.";
    /// Plaintext to a port on which a strict pod takes it.
    InboundPermissivePort = 47, Pass, "inbound_permissive_port", "Plaintext from outside the mesh to a port that nodemesh.dev/permissive-ports leaves open on a strict pod.";
    /// A redirected connection waits for the agent.
    OutboundWaits = 48, Redirect, "outbound_waits", "The connection waits in connect() until the agent has reached its destination.";
    /// The agent has not reached the destination of a redirected connection.
    RefusedUnreached = 49, Refuse, "refused_unreached", "The agent could not reach the destination, and connect() says so; the record of the dial says why.";
    /// A packet to a redirected connection's port without a dial.
    RefusedNotNoted = 50, Refuse, "refused_not_noted", "Nothing is noted of what the connection was to reach: there was no room, or the pod sent the packet by itself.";
    /// The node's agent brings a connection of another of its pods.
    InboundLocal = 51, Pass, "inbound_local", "This node's agent brings a connection of another pod of the node, which both pods let go without TLS (nodemesh.dev/same-node: local).";
}

/// Slots in a counter array: every verdict's number is below it.
pub const VERDICT_SLOTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_codes_and_slots_agree() {
        let mut codes = std::collections::BTreeSet::new();
        for &verdict in Verdict::ALL {
            assert_eq!(Verdict::from_number(verdict as u32), Some(verdict));
            assert!((verdict as usize) < VERDICT_SLOTS);
            assert!(codes.insert(verdict.code()), "{} twice", verdict.code());
            assert_eq!(verdict.code().starts_with("refused_"), verdict.action() == Action::Refuse);
        }
        assert_eq!(Verdict::from_number(VERDICT_SLOTS as u32 - 1), None);
    }
}
