//! The kernel's verdicts: code and sentence are in `mesh_common::verdict`, the rest is here.

use mesh_common::verdict::Verdict;

use super::{About, fault::party};

macro_rules! verdicts {
    ($($name:ident $fault:ident $cause:literal, $remedy:literal;)+) => {
        /// All that is known of a verdict.
        pub const fn about_verdict(verdict: Verdict) -> About {
            let (fault, cause, remedy) = match verdict {
                $(Verdict::$name => (party!($fault), $cause, $remedy),)+
            };
            About { code: verdict.code(), sentence: verdict.sentence(), cause, remedy, fault }
        }
    };
}

verdicts! {
    NotEnrolled none "", "";
    AgentOwn none "", "";
    Loopback none "", "";
    OwnAddress none "", "";
    OutboundExcluded none "", "";
    DestinationNotMeshed none "", "";
    RedirectPeer none "", "";
    RedirectService none "", "";
    RefusedMagicPort Application "a port scan, or one of the ports 60990 to 60997, chosen for an application", "use another port";
    RefusedForeignSource Application "", "bind to the pod's address or to none";
    RefusedNoAddress Configuration "an IPv6 destination and a pod with IPv4 only, or the other way round", "give the pod an address of that family";
    RefusedNoMemory Platform "", "give the node more memory, or fewer pods";
    RefusedHeld Configuration "enrolment has not succeeded yet", "`status` says why the pod is not enrolled";
    RefusedUnclassified Platform "the pod has just started, or the agent is away", "look at the node's agent";
    Direct none "", "";
    DirectSockmap none "", "";
    RefusedAgentSilent Us "", "look at the agent's log, and at its CPU limit";
    RefusedTableFull Platform "the cluster is too large for the table", "see `table_full` and `addresses_over_share` in `status`";
    KubeletNotNoted Platform "", "let probes of strict pods be fewer or less frequent";
    RefusedPendingShare Application "a pod dials without end, or keeps its handshakes from ending", "see `pending_share` in `status`";
    RefusedBoundPort Application "hundreds of connections through the mesh from one source port", "let the application use more source ports";
    RedirectHeld none "", "";
    InboundMesh none "", "";
    InboundPlaintext none "", "";
    InboundExcluded none "", "";
    OutboundSteered none "", "";
    RefusedStrict Configuration "the client's pod has not joined the mesh, or the port should be open", "enrol the client, or name the port in nodemesh.dev/permissive-ports";
    RefusedNoListener Us "", "wait for the agent, or look why it does not start";
    RefusedForeignMagicPort Application "a port scan", "find out what runs at the client's address";
    RefusedAgentListener Application "a port scan", "find out what runs at the client's address";
    RefusedLeft Peer "the pod has just left", "dial again; if it lasts, look at the agent of the client's node";
    InboundOwnAddress none "", "";
    RefusedHeldInbound Configuration "enrolment has not succeeded yet", "`status` says why the pod is not enrolled";
    RefusedAgentSilentInbound Us "it is stuck or starved", "look at the agent's log, and at its CPU limit";
    RefusedUnclassifiedInbound Platform "the pod has just started, or the agent is away", "look at the node's agent";
    InboundAgentsPort none "", "";
    InboundKubelet none "", "";
    InboundPermissivePort none "", "";
    OutboundWaits none "", "";
    RefusedUnreached none "", "see the record of the dial";
    InboundLocal none "", "";
    RefusedNotNoted Application "the pod makes packets of its own, or has `refused_pending_share` too", "look at what the pod runs";
}
