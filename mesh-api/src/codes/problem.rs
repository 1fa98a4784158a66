//! What is wrong with the node, the objects or the agent.

use super::codes;

codes! {
    /// A kind of problem, as `status` shows it.
    ProblemCode {
    AddressTaken "address_taken" Configuration
        "two pods have one address",
        "in a cluster: an address that is used again, and it passes", "in file mode: give each its own; one that is captured has it, else the older one";
    NamespaceMissing "namespace_missing" Configuration
        "a pod's Namespace object is not there",
        "file mode, and the object is missing", "add the object; the pod is not enrolled until then";
    InvalidSetting "invalid_setting" Configuration
        "a label or annotation cannot be read",
        "a misspelling", "correct it; what was said before stays in force, if anything was, except for `permissive-ports`: docs/enrol.md";
    UnknownSetting "unknown_setting" Configuration
        "a label or annotation begins with `nodemesh.dev/` and is none that is known",
        "a misspelling", "correct it; it is not in force, and the problem says what may have been meant";
    MisplacedSetting "misplaced_setting" Configuration
        "a label that should be an annotation, or the other way round",
        "", "move it; it is not in force";
    StrictNotInForce "strict_not_in_force" Configuration
        "an unknown or misplaced setting asks for strict, and the pods are *not* strict",
        "a misspelling", "run the commands that the problem has";
    MeshNamespace "mesh_namespace" Configuration
        "a label would put the mesh's own pods into the mesh",
        "", "remove it; it has no effect";
    ServiceAddressTaken "service_address_taken" Configuration
        "two services have one address and port",
        "", "give each its own; the first by namespace and name has it";
    AnnouncementRefused "announcement_refused" Peer
        "a node announces a service's address, or speaks for another node",
        "a defective or malicious agent", "find out what runs as that node's agent; the announcement counts for nothing";
    AnnouncementDoubted "announcement_doubted" Peer
        "an EndpointSlice, a Node, a Pod object or a range contradicts what a node announces; or its Node says another boot",
        "news that cross, or an agent that is stuck", "if it lasts, look at that node's agent; its pods are dialled over TLS as the sentence says, or not at all";
    AnnouncementMissing "announcement_missing" Peer
        "a node's MeshNode is not there any more, and the node has not withdrawn it",
        "it was deleted by hand", "look at that node's agent; its pods are dialled over TLS, or not at all, as long as their objects are there with these addresses";
    AnnouncementConflict "announcement_conflict" Peer
        "several nodes announce one address",
        "an address that is used again, or a false announcement", "if it lasts, look at those nodes; it is dialled over TLS: as the one that no Pod and no range contradicts, else as the one that was first";
    DisputedAddress "disputed_address" Peer
        "several identities are said to be at one address, and nothing decides between them",
        "a stale or false announcement", "look at the nodes that are named; pods of the mesh cannot dial it";
    PlaintextBeforeStrict "plaintext_before_strict" Application
        "connections of a strict pod are older than that and go on in plaintext",
        "the pod joined, or became strict, while they were open", "wait until they end, or run `mesh-agent reset NAMESPACE/POD`";
    AnnouncementNotWritten "announcement_not_written" Platform
        "this node's announcement cannot be written",
        "the API server does not answer, or the Node object is gone", "none at once: it is tried again every second; others go by what it announced before";
    BadFile "bad_file" Configuration
        "a file of objects cannot be read",
        "", "correct it; what it said before stays in force";
    BadObject "bad_object" Configuration
        "an object of the API server cannot be read",
        "", "correct it; what it said before stays in force";
    ApiServerAway "api_server_away" Platform
        "the API server cannot be watched",
        "it is down, or the network to it", "docs/kubernetes.md#while-the-api-server-is-away";
    WorldFromDisk "world_from_disk" Platform
        "the agent goes by what an earlier agent wrote down",
        "the API server has not answered since the agent began", "docs/kubernetes.md#while-the-api-server-is-away";
    WorldFileUnusable "world_file_unusable" Platform
        "the agent cannot go by what an earlier agent wrote down",
        "the file is damaged, another node's or another boot's", "docs/kubernetes.md#while-the-api-server-is-away";
    AdmissionNotInForce "admission_not_in_force" Configuration
        "the admission policy that holds agents to their own node is not there",
        "it was deleted", "apply the manifest again: until then, one agent's token can speak for all nodes";
    CaMissing "ca_missing" Configuration
        "the CA's Secret is gone, or is of another trust domain than the manifest says",
        "it was deleted, or the manifest changed", "agents that run go on with the CA that they have, and no other is made: docs/kubernetes.md#the-interim-ca";
    CaChanged "ca_changed" Configuration
        "another CA has been put in the place of the one in use",
        "", "wait: both are trusted, and nothing fails; the problem names the nodes that are waited for";
    CaDiffers "ca_differs" Configuration
        "this node and others have different CAs",
        "", "give all nodes one CA: until then, connections with their pods fail";
    ClocksDiffer "clocks_differ" Configuration
        "peers show certificates that are not valid yet by this node's clock",
        "a clock is wrong", "set the clocks: connections with these peers fail; the problem has their identities, and by how much";
    CertificateNotValid "certificate_not_valid" Configuration
        "a certificate in use is of another time than the node's clock",
        "it has expired, or was signed while the clock was wrong", "see that the CA signs: then it is replaced at once";
    BadCa "bad_ca" Configuration
        "the CA's directory cannot be used",
        "", "correct it; certificates in use stay";
    MasqueradedPath "masqueraded_path" Configuration
        "something changes source addresses or ports on the way to a node",
        "MASQUERADE or SNAT", "exempt traffic between pods; nothing is lost: mutual TLS goes to the agents' port there ([ARCHITECTURE](../ARCHITECTURE.md#when-the-path-changes-the-source))";
    AgentsPortBlocked "agents_port_blocked" Configuration
        "a pod answers at its application's port, but not at the agents' port 60998",
        "a NetworkPolicy or firewall that names ports one by one", "allow port 60998 between pods of the mesh, unless your policies tell ports apart ([enrol.md](enrol.md)); until then a change of source addresses on the way is noticed only when a connection fails";
    TableFull "table_full" Platform
        "a table of the kernel's is full",
        "the cluster, or what is announced in it, is too large", "dials to what may be missing in it are refused; it is tried again every two seconds";
    TableNearlyFull "table_nearly_full" Platform
        "a table of the kernel's is four fifths full",
        "the cluster, or what is announced in it, is nearly too large", "nothing fails yet";
    PortsOverShare "ports_over_share" Configuration
        "a namespace asks for more ports than there is room for",
        "long port lists in annotations, or very many services", "name fewer ports: docs/security.md";
    AddressesOverShare "addresses_over_share" Peer
        "a node announces more addresses than there is room for",
        "a defective or malicious agent, or the cluster is too large", "find out what runs as that node's agent; pods of the mesh cannot dial what may be among those that found none (`refused_table_full`)";
    KernelRefused "kernel_refused" Platform
        "the kernel's tables are not up to date",
        "", "the problem has the system's error; it is tried again every two seconds, and what the tables do not know is refused meanwhile";
    KubeletNotFound "kubelet_not_found" Platform
        "the node's kubelet is not recognised, and strict pods refuse its probes",
        "", "use exec probes, or name their ports in nodemesh.dev/permissive-ports";
    KubeletNotHooked "kubelet_not_hooked" Platform
        "programs cannot be put on the kubelet's cgroup, and strict pods refuse its probes",
        "", "the problem has the system's error";
    SocketMemoryShare "socket_memory_share" Application
        "a pod's connections hold its share of the kernel's memory for sockets",
        "what is sent is not read", "have it read; connections that stand still get small buffers until there is room: docs/security.md";
    MetricsCrowded "metrics_crowded" Configuration
        "one client has most of the 64 connections that may ask for metrics",
        "", "bound the clients by a NetworkPolicy; the oldest are ended for others', and the problem is gone 10 s after the last";
    PendingShare "pending_share" Application
        "a pod has most of the dials that it may have under way through the mesh",
        "it dials without end, or keeps its handshakes from ending", "beyond its share its dials are refused (`refused_pending_share`); others' are not";
    ListenerLost "listener_lost" Application
        "something in a pod that has `CAP_NET_ADMIN` destroys the agent's listeners there",
        "", "find it; they are made anew, and the pod's own connections are refused meanwhile";
    MetricsNotServed "metrics_not_served" Configuration
        "the port for metrics cannot be had",
        "another program has it", "set another address by --metrics; it is tried again every second";
    }
}
