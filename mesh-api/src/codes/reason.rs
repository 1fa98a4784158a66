//! How a connection ended.

use mesh_common::verdict::Verdict;

use super::{Fault, about_verdict, codes};

/// How a connection ended: the outcome of a flow record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The kernel's programs refused it.
    Refused(Verdict),
    /// An agent or an application ended it.
    Ended(Reason),
}

impl Outcome {
    /// Stable `snake_case` code.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Refused(verdict) => verdict.code(),
            Self::Ended(reason) => reason.code(),
        }
    }

    /// The party at fault, if there is a fault.
    pub const fn fault(self) -> Option<Fault> {
        match self {
            Self::Refused(verdict) => about_verdict(verdict).fault,
            Self::Ended(reason) => reason.fault(),
        }
    }
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        Self::Refused(verdict)
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        Self::Ended(reason)
    }
}

codes! {
    /// Why a connection that an agent has accepted is over. The fault is that which the agent sees
    /// that found the reason itself.
    Reason {
    Closed "closed" none
        "both sides have ended it",
        "", "";
    ClientGone "client_gone" Application
        "the application gave up before the connection was carried",
        "a time limit of the client", "give the client more time, if it should have been carried";
    OriginalDestinationUnknown "original_destination_unknown" Application
        "the kernel does not know what was dialled; the application may have given up before the agent came",
        "a time limit of the client", "if it lasts, see the agent's log";
    NoEndpoint "no_endpoint" Application
        "no endpoint of the service is ready",
        "the service's pods are not ready, or its selector matches none", "look at the service's EndpointSlices";
    ConnectionRefused "connection_refused" Application
        "nothing listens at the destination, or a firewall answers in its place",
        "the application is not up, or a NetworkPolicy rejects", "start the application, or allow the port";
    ConnectionTimedOut "connection_timed_out" Platform
        "the destination answered no SYN in time",
        "its host is down, or a firewall or NetworkPolicy drops the packets", "allow the port between the pods";
    Unreachable "unreachable" Platform
        "there is no route, or a router said so",
        "the cluster's network", "try the route from the node; the record has the system's error";
    NoSourcePort "no_source_port" Application
        "the pod has all of the mesh's source ports in use to that destination",
        "too many connections to one destination, or a process in the pod holds the ports", "have the application keep fewer connections open to it";
    NoAddressOfFamily "no_address_of_family" Configuration
        "the pod has no address of the destination's family",
        "an IPv6 destination and a pod with IPv4 only, or the other way round", "give the pod an address of that family";
    NoSocket "no_socket" Platform
        "the agent could make no socket",
        "descriptors or memory are used up", "raise the agent's limits; the record has the system's error";
    NoNetworkNamespace "no_network_namespace" Platform
        "the pod's network namespace cannot be entered any more",
        "the pod is being deleted", "none, if it is; else see the system's error in the record";
    LegNotAnnounced "leg_not_announced" Platform
        "the kernel had no room for the note by which the application sees the real client",
        "the node is short of memory", "give the node more memory, or fewer pods";
    NoCertificate "no_certificate" Configuration
        "the identity's certificate could not be had",
        "the CA does not sign", "`status` has the CA's error";
    NoPeerIdentity "no_peer_identity" Configuration
        "the names of the destination's namespace and service account make no SPIFFE id",
        "", "rename the service account";
    DisputedAddress "disputed_address" Configuration
        "several identities are said to be at the destination's address, and nothing decides between them",
        "a stale or false announcement", "`status` has a problem of the same code";
    LateClientHello "late_client_hello" Peer
        "what was taken for plaintext turned out to be a peer's TLS",
        "a segment was lost on the way, or the peer's agent is starved", "dial again; if it lasts, look at the CPU of the peer's agent";
    LimitConnections "limit_connections" Application
        "the pod, or all pods together, have as many connections as the agent can spare",
        "a pod opens connections without end", "find it by its flows; raise the agent's descriptor limit if all are needed";
    LimitConnectionsOfClient "limit_connections_of_client" Application
        "one client of the pod has as many connections as the agent can spare for one",
        "a client opens connections without end", "look at that client";
    LimitHandshakes "limit_handshakes" Peer
        "64 earlier connections of this client have not finished their handshakes for 10 s",
        "the client begins handshakes and does not finish them", "look at that client";
    DrainDeadline "drain_deadline" Us
        "the agent was told to stop, and the connection had not ended in time",
        "a long connection, and an agent that stopped for good", "connect again; a longer drain lets connections end";
    AgentStopped "agent_stopped" Us
        "the agent ended the connection: it is stopping, or the pod is gone",
        "the agent or the pod is deleted", "connect again";
    AgentPanicked "agent_panicked" Us
        "the agent failed at this connection, and it alone was cut",
        "a defect of the agent", "report it, with the panic from the agent's log";

    // REFUSED, docs/wire.md. The fault is that which the refusing agent sees.
    PolicyDenied "policy_denied" Configuration
        "a policy of the destination does not allow this connection",
        "", "the record names the rule";
    DestinationNotEnrolled "destination_not_enrolled" Peer
        "the destination pod is not in the mesh on its node; it may just have left",
        "the client's agent has not heard of it yet", "dial again; if it lasts, see `mesh-agent status` of the destination's node";
    WrongDestination "wrong_destination" Peer
        "the destination's node does not have that address; the pod may have been replaced",
        "the client's agent has not heard of it yet", "dial again; if it lasts, find out what has the address";
    SourceMismatch "source_mismatch" Peer
        "what the source says of itself does not fit its certificate or address",
        "the destination's agent has not heard of the source pod yet", "if it lasts, find out what runs as the source's agent";
    ApplicationRefused "application_refused" Application
        "nothing listens on that port of the destination pod",
        "the application is not up, or listens on loopback only", "start it, or have it listen on the pod's address";
    ApplicationUnreachable "application_unreachable" Application
        "the destination pod's own address cannot be reached inside it",
        "a firewall or missing address in the pod", "look at the pod's interfaces and firewall; the record has the system's error";
    ApplicationTimedOut "application_timed_out" Application
        "the application did not accept in time; its accept queue may be full",
        "the application is overloaded or stuck", "give it more CPU or replicas";
    AgentDraining "agent_draining" Us
        "the destination's agent is being replaced or stopped; try again",
        "", "dial again";
    AgentOverloaded "agent_overloaded" Us
        "the destination's agent carries as many connections as it may",
        "", "see `limit_connections` and `limit_connections_of_client` in its flows";
    AgentFailure "agent_failure" Us
        "the destination's agent failed to set up the connection",
        "", "its log and flows say why";
    RefusedForNewerReason "refused_for_newer_reason" Peer
        "the destination's agent refused it for a reason that only a newer agent knows",
        "", "upgrade the older agent";

    // RESET, docs/wire.md. The fault is that which the resetting agent sees.
    ApplicationReset "application_reset" Application
        "the application reset its connection, or closed it without reading everything",
        "the application chose to, or crashed", "look at the application's log";
    ApplicationConnectionTimedOut "application_connection_timed_out" Application
        "the application's connection timed out",
        "TCP user timeout or keep-alive", "look at what stalls the application";
    ApplicationConnectionFailed "application_connection_failed" Application
        "the application's connection failed",
        "an error of its socket", "look at the application's log";
    AgentStopping "agent_stopping" Us
        "the agent stopped before the connection had ended",
        "it is stopped for good, not replaced", "connect again";
    NoLongerAllowed "no_longer_allowed" Configuration
        "policy or membership changed, and the connection was ended",
        "a change of policy, or a pod that left", "allow the connection again, if it is meant to be";
    NotAnswered "not_answered" Peer
        "the destination's agent did not answer in time",
        "it is overloaded or stuck", "look at the agent of the destination's node";
    ResetForNewerReason "reset_for_newer_reason" Peer
        "the peer's agent reset it for a reason that only a newer agent knows",
        "", "upgrade the older agent";
    ResetCutOff "reset_cut_off" Application
        "the application reset its connection while the peer took no data, so the session was cut off",
        "the other application does not read", "look at both applications' logs";

    // TLS, docs/wire.md. The fault is that which the judging agent sees.
    WrongIdentity "wrong_identity" Configuration
        "the certificate shown is valid but names another identity than the one expected; the address may have passed to another pod",
        "", "if it lasts, find out what has the address";
    ForeignTrustDomain "foreign_trust_domain" Configuration
        "the certificate shown belongs to another trust domain",
        "agents with different --trust-domain", "install all agents with one trust domain";
    MalformedIdentity "malformed_identity" Configuration
        "the certificate shown does not carry exactly one SPIFFE id of the mesh",
        "it was not signed for this mesh", "find out what runs as the peer's agent";
    CertificateExpired "certificate_expired" Configuration
        "the certificate shown is outside its dates; it could not be renewed, or a clock is wrong",
        "", "compare the nodes' clocks; look at the CA in `status`";
    CertificateNotYetValid "certificate_not_yet_valid" Configuration
        "the certificate shown is not valid yet; a clock is wrong",
        "", "compare the nodes' clocks";
    UnknownAnchor "unknown_anchor" Configuration
        "the certificate shown leads to no trust anchor; two CAs, or an anchor is missing",
        "", "see `ca_differs` in `status`";
    WrongCertificatePurpose "wrong_certificate_purpose" Configuration
        "the certificate shown is not made for this side of TLS",
        "extended key usage, or a CA's certificate", "find out what runs as the peer's agent";
    BadSignature "bad_signature" Peer
        "a signature in the handshake was not accepted",
        "it was altered on the way, or an algorithm is not accepted", "dial again; if it lasts, look for what changes traffic between the nodes";
    NoClientCertificate "no_client_certificate" Configuration
        "the client showed no certificate; it is no agent of this mesh",
        "another TLS client dialled from the mesh's port range", "none, if it is no agent; else find out what runs as the peer's agent";
    TlsVersion "tls_version" Configuration
        "the peer does not speak TLS 1.3; it is no agent of this mesh",
        "another TLS client or server", "none, if it is no agent; else find out what runs as the peer's agent";
    NoAlpn "no_alpn" Configuration
        "the peer speaks TLS but not nodemesh/1; it is no agent of this mesh",
        "another TLS client or server", "none, if it is no agent; else find out what runs as the peer's agent";
    NoTlsParametersInCommon "no_tls_parameters_in_common" Configuration
        "no cipher suite or key exchange in common",
        "agents of very different versions, or no agent", "upgrade the older agent";
    BadRecord "bad_record" Peer
        "a TLS record did not decrypt; it was altered on the way",
        "something on the path changes packets", "dial again; if it lasts, look for what changes traffic between the nodes";
    OversizedRecord "oversized_record" Peer
        "a TLS record was longer than allowed",
        "a defect of the sender", "report it";
    MalformedMessage "malformed_message" Peer
        "a message could not be read",
        "one of the agents is newer than the other, or has a defect", "upgrade the older agent";
    UnexpectedMessage "unexpected_message" Peer
        "a message came that may not come now",
        "a defect of the sender", "report it";
    IllegalParameter "illegal_parameter" Peer
        "a message contradicted the protocol",
        "a defect of the sender", "report it";
    TlsInternal "tls_internal" Us
        "the TLS library failed; see the log of the agent that says so",
        "", "report it";
    OtherAlert "other_alert" Peer
        "a TLS alert without a meaning in the protocol",
        "a foreign TLS implementation", "find out what runs at that address";

    // Without an alert, docs/wire.md.
    NotTls "not_tls" Peer
        "the peer does not speak TLS; no agent of the mesh, or its agent is gone and the application answered",
        "a plaintext client in the mesh's port range, or an application that answers a ClientHello", "if its agent should be there, look at the agent of the peer's node";
    HandshakeTimedOut "handshake_timed_out" Peer
        "the TLS handshake did not finish in time; the peer's agent may be overloaded or stuck",
        "", "look at the agent of the peer's node";
    ClosedInHandshake "closed_in_handshake" Peer
        "the peer closed the connection during the handshake",
        "its agent stopped", "dial again; if it lasts, look at the agent of the peer's node";
    ConnectionFailedInHandshake "connection_failed_in_handshake" Peer
        "the connection failed during the handshake",
        "its agent died, or the network between the nodes", "the record has the system's error";
    MalformedFrame "malformed_frame" Peer
        "the peer broke the protocol: a record is not a frame",
        "a defect of the peer's agent", "report it";
    UnexpectedFrame "unexpected_frame" Peer
        "the peer broke the protocol: a frame came that may not come now",
        "a defect of the peer's agent", "report it";
    SessionClosed "session_closed" Peer
        "the peer has closed the session",
        "the session's end and the next OPEN crossed", "dial again";
    SessionTruncated "session_truncated" Peer
        "the session was cut off; the peer's agent may have died",
        "", "look at the agent of the peer's node";
    SessionTimedOut "session_timed_out" Peer
        "the peer did not answer in time",
        "its agent is overloaded or stuck", "look at the agent of the peer's node";
    PeerSilent "peer_silent" Platform
        "nothing came from the peer's node for too long, not even acknowledgements, so the connection was ended on this side",
        "the node or its network has failed", "look at the peer's node and at the network between";
    SessionConnectionFailed "session_connection_failed" Peer
        "the connection to the peer failed",
        "the network between the nodes", "the record has the system's error";
    }
}

codes! {
    /// Why a connection that an agent carried went in plaintext.
    PlaintextReason {
    ClientNotMeshed "client_not_meshed" none
        "its source port is of the mesh's range, but it is no TLS of an agent's; the pod, or its port, takes plaintext",
        "a client outside the mesh happened to use that source port", "";
    EndpointNotMeshed "endpoint_not_meshed" none
        "the endpoint that was chosen for the service is not in the mesh",
        "", "enrol the service's pods";
    NotMeshed "not_meshed" none
        "the destination is not in the mesh; the agent carried the connection because the pod was held when it dialled",
        "", "";
    PortExcluded "port_excluded" none
        "nodemesh.dev/exclude-ports of one of the two pods names the port; the agent carried the connection because the pod was held when it dialled",
        "", "";
    OwnAddress "own_address" none
        "a service led back to the pod that dialled it",
        "", "";
    }
}
