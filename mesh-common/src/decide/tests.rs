use super::{arrival as arrival_in, errno as told, *};
use crate::{
    errno,
    maps::{ADDRESS_KNOWN, ADDRESS_PEER},
};

const A: Addr = Addr::from_v4_word(u32::from_ne_bytes([10, 244, 1, 2]));
const B: Addr = Addr::from_v4_word(u32::from_ne_bytes([10, 244, 2, 2]));
const VIP: Addr = Addr::from_v4_word(u32::from_ne_bytes([10, 96, 0, 10]));
const V6: Addr = Addr([0xfd, 0, 0, 7]);

/// Now, for the tests.
const NOW: u64 = 5_000_000_000;

struct World {
    agent: bool,
    unclassified: bool,
    pod: Option<EnrolledPod>,
    held: Option<EnrolledPod>,
    to: AddrPort,
    source: Addr,
    peers: Vec<Addr>,
    known: Vec<Addr>,
    services: Vec<AddrPort>,
    excluded: Vec<AddrPort>,
    full: bool,
    incomplete: bool,
}

fn world(to: Addr, port: u16) -> World {
    World {
        agent: false,
        unclassified: false,
        pod: Some(EnrolledPod { v4: A, v6: Addr::NONE }),
        held: None,
        to: AddrPort::new(to, port),
        source: Addr::NONE,
        peers: vec![A, B, V6],
        known: vec![],
        services: vec![AddrPort::new(VIP, 80)],
        excluded: vec![],
        full: false,
        incomplete: false,
    }
}

impl Dial for World {
    fn by_agent(&self) -> bool {
        self.agent
    }
    fn pod(&self) -> Option<EnrolledPod> {
        self.pod
    }
    fn held(&self) -> Option<EnrolledPod> {
        self.held
    }
    fn is_refused_as_unclassified(&self) -> bool {
        self.unclassified
    }
    fn destination(&self) -> AddrPort {
        self.to
    }
    fn bound_source(&self) -> Addr {
        self.source
    }
    fn address_flags(&self, addr: &Addr) -> u32 {
        let known = self.peers.contains(addr) || self.known.contains(addr);
        let peer = if self.peers.contains(addr) { ADDRESS_PEER } else { 0 };
        peer | if known { ADDRESS_KNOWN } else { 0 }
    }
    fn may_be_missing(&self, addr: &Addr) -> bool {
        // All but the service's address is in the ranges of pod addresses.
        self.incomplete && *addr != VIP
    }
    fn port_flags(&self, endpoint: &AddrPort) -> u32 {
        let service = if self.services.contains(endpoint) { PORT_SERVICE } else { 0 };
        let excluded = if self.excluded.contains(endpoint) { PORT_EXCLUDED } else { 0 };
        service | excluded
    }
    fn has_room(&self) -> bool {
        !self.full
    }
}

fn verdict(world: &World) -> Verdict {
    dial(world).0
}

#[test]
fn a_pod_that_has_its_share_is_refused_what_would_be_redirected_and_nothing_else() {
    let full = |to, port| World { full: true, ..world(to, port) };
    for to in [(B, 8080), (VIP, 80)] {
        let view = full(to.0, to.1);
        assert_eq!(verdict(&view), Verdict::RefusedPendingShare);
        assert_eq!(told(Verdict::RefusedPendingShare), errno::EADDRNOTAVAIL);
    }
    for to in [A, Addr::LOCALHOST_V6, Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1]))] {
        assert_ne!(verdict(&full(to, 443)), Verdict::RefusedPendingShare);
    }
}

#[test]
fn greedy_pods_have_their_share_and_leave_a_rest() {
    let all = limits::PENDING as u64;
    // One after the other: each takes all that it may have before the next one begins.
    let mut taken = 0;
    for greedy in 1..=6 {
        let own = (0..=all).find(|own| !has_room(*own, taken + own)).unwrap();
        taken += own;
        let free = all - taken;
        assert!(own <= limits::PENDING_OF_POD && has_room(0, taken), "{greedy}: {own}");
        assert!(greedy > 3 || free == all - greedy * limits::PENDING_OF_POD, "{greedy}: {free}");
        assert!(free >= 100, "{greedy} leave {free}");
    }
    // All at once.
    let greedy = 50;
    let each = (0..=all).find(|each| !has_room(*each, greedy * each)).unwrap();
    let free = all - greedy * each;
    assert!(free + greedy >= all / (4 * greedy + 1), "{greedy} leave {free}");
    assert!(!has_room(0, all) && !has_room(0, all + 5));
    assert!(has_room(u64::MAX, u64::MAX), "less than none is none");
}

#[test]
fn peers_and_services_are_redirected_to_the_pods_own_address() {
    assert_eq!(dial(&world(B, 8080)), (Verdict::RedirectPeer, A));
    assert_eq!(dial(&world(VIP, 80)), (Verdict::RedirectService, A));
    assert_eq!(dial(&World { source: A, ..world(B, 8080) }), (Verdict::RedirectPeer, A));
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let stranger = Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1]));
    assert_eq!(verdict(&world(stranger, 443)), Verdict::DestinationNotMeshed);
    assert_eq!(verdict(&world(VIP, 81)), Verdict::DestinationNotMeshed);
    assert_eq!(verdict(&World { pod: None, ..world(B, 8080) }), Verdict::NotEnrolled);
    assert_eq!(verdict(&World { agent: true, ..world(B, 8080) }), Verdict::AgentOwn);
    assert_eq!(verdict(&world(Addr::LOCALHOST_V6, 80)), Verdict::Loopback);
    assert_eq!(verdict(&world(A, 8080)), Verdict::OwnAddress);
}

#[test]
fn a_full_table_refuses_what_it_does_not_know_and_may_have_forgotten() {
    let stranger = Addr::from_v4_word(u32::from_ne_bytes([10, 244, 3, 3]));
    let full = |to: Addr, port| World { incomplete: true, ..world(to, port) };
    assert_eq!(verdict(&full(stranger, 443)), Verdict::RefusedTableFull);
    let refused = Verdict::RefusedTableFull;
    assert_eq!(told(refused), errno::ECONNREFUSED);
    assert_eq!(verdict(&full(B, 443)), Verdict::RedirectPeer);
    assert_eq!(verdict(&full(VIP, 80)), Verdict::RedirectService);
    assert_eq!(verdict(&full(VIP, 81)), Verdict::DestinationNotMeshed, "no pod's address");
    let known = World { known: vec![stranger], ..full(stranger, 443) };
    assert_eq!(verdict(&known), Verdict::DestinationNotMeshed, "known not to be captured");
    let excluded = World { excluded: vec![AddrPort::new(A, 443)], ..full(stranger, 443) };
    assert_eq!(verdict(&excluded), Verdict::OutboundExcluded, "by the pod's own annotation");
    assert_eq!(verdict(&World { pod: None, ..full(stranger, 443) }), Verdict::NotEnrolled);
}

#[test]
fn a_node_may_refuse_whom_nobody_has_classified() {
    let unknown = World { pod: None, unclassified: true, ..world(B, 8080) };
    assert_eq!(verdict(&unknown), Verdict::RefusedUnclassified);
    let itself = World { to: AddrPort::new(Addr::LOCALHOST_V6, 80), ..unknown };
    assert_eq!(verdict(&itself), Verdict::NotEnrolled);
    let enrolled = World { unclassified: true, ..world(B, 8080) };
    assert_eq!(verdict(&enrolled), Verdict::RedirectPeer, "an enrolled pod is classified");
}

#[test]
fn a_held_pods_dials_wait_except_to_itself() {
    let held = |to: Addr, port| World { held: world(to, port).pod, pod: None, ..world(to, port) };
    let stranger = Addr::from_v4_word(u32::from_ne_bytes([192, 0, 2, 1]));
    for to in [held(B, 8080), held(VIP, 80), held(stranger, 443)] {
        assert_eq!(dial(&to), (Verdict::RedirectHeld, A));
        assert_eq!(verdict(&World { source: A, ..to }), Verdict::RedirectHeld);
    }
    assert_eq!(verdict(&World { agent: true, ..held(B, 8080) }), Verdict::NotEnrolled);
    assert_eq!(verdict(&held(A, 8080)), Verdict::OwnAddress);
    assert_eq!(verdict(&held(Addr::LOCALHOST_V6, 80)), Verdict::Loopback);
    let foreign = World { source: VIP, ..held(B, 8080) };
    for to in [held(A, ports::MAGIC_FIRST), held(V6, 80), foreign] {
        assert_eq!(verdict(&to), Verdict::RefusedHeld);
    }
    let full = World { full: true, ..held(B, 8080) };
    assert_eq!(verdict(&full), Verdict::RefusedPendingShare);
}

#[test]
fn an_agent_is_silent_only_after_it_has_spoken() {
    let late = HEARTBEAT_STALE_NS + 1;
    assert!(!is_silent(0, late) && !is_silent(1, HEARTBEAT_STALE_NS) && !is_silent(late, 1));
    assert!(is_silent(1, late + 1));
    assert_eq!(silent(Verdict::OutboundSteered), Verdict::RefusedAgentSilent);
    assert_eq!(silent(Verdict::OutboundWaits), Verdict::RefusedAgentSilent);
    assert_eq!(silent(Verdict::InboundMesh), Verdict::RefusedAgentSilentInbound);
}

#[test]
fn a_port_is_excluded_by_either_side() {
    let by_server = World { excluded: vec![AddrPort::new(B, 6379)], ..world(B, 6379) };
    let by_client = World { excluded: vec![AddrPort::new(A, 6379)], ..world(B, 6379) };
    let other = World { excluded: vec![AddrPort::new(B, 6380)], ..world(B, 6379) };
    assert_eq!(verdict(&by_server), Verdict::OutboundExcluded);
    assert_eq!(verdict(&by_client), Verdict::OutboundExcluded);
    assert_eq!(verdict(&other), Verdict::RedirectPeer);
}

#[test]
fn nobody_dials_the_agents_ports_and_nobody_lies_about_the_source() {
    assert_eq!(verdict(&world(A, ports::MAGIC_FIRST)), Verdict::RefusedMagicPort);
    assert_eq!(verdict(&world(A, ports::MAGIC_FIRST + ports::MAGIC_COUNT)), Verdict::OwnAddress);
    assert_eq!(verdict(&World { source: VIP, ..world(B, 8080) }), Verdict::RefusedForeignSource);
    assert_eq!(verdict(&world(V6, 8080)), Verdict::RefusedNoAddress);
}

#[test]
fn a_dial_waits_unless_its_destination_is_known_to_answer_now() {
    assert!(waits(0, 5), "never reached");
    assert!(waits(5, 5) && waits(4, 5), "a while ago");
    assert!(!waits(6, 5));
}

#[test]
fn every_refusal_of_a_dial_is_told_as_an_error_of_the_network() {
    for &refusal in Verdict::ALL {
        if refusal.action() == crate::verdict::Action::Refuse && !refusal.is_inbound() {
            let errno = told(refusal);
            assert!((2..4096).contains(&errno), "{refusal:?}: {errno}"); // 1 is EPERM
        }
    }
    assert_eq!(told(Verdict::RefusedNoAddress), errno::ENETUNREACH);
    assert_eq!(told(Verdict::RefusedMagicPort), errno::ECONNREFUSED);
}

fn arrival(packet: &Packet) -> Verdict {
    let in_both =
        [Namespace::Permissive, Namespace::Strict].map(|namespace| arrival_in(packet, namespace));
    assert_eq!(in_both[0], in_both[1], "only unknown addresses differ");
    in_both[0]
}

struct Packet {
    local: AddrPort,
    remote: AddrPort,
    flags: Option<u32>,
    peer: bool,
    node: bool,
    in_pod_cidr: bool,
    excluded: bool,
    permissive_port: bool,
    kubelets: bool,
    redirected: bool,
    local_leg: bool,
}

fn packet(local_port: u16, remote: Addr, remote_port: u16) -> Packet {
    Packet {
        local: AddrPort::new(B, local_port),
        remote: AddrPort::new(remote, remote_port),
        flags: Some(0),
        peer: true,
        node: false,
        in_pod_cidr: true,
        excluded: false,
        permissive_port: false,
        kubelets: false,
        redirected: false,
        local_leg: false,
    }
}

impl Arrival for Packet {
    fn local(&self) -> AddrPort {
        self.local
    }
    fn remote(&self) -> AddrPort {
        self.remote
    }
    fn pod(&self) -> Option<LocalEntry> {
        self.flags.map(|flags| LocalEntry { netns: 1, flags, zero: 0 })
    }
    fn address_flags(&self, _: &Addr) -> u32 {
        let pod = if self.peer { ADDRESS_KNOWN | ADDRESS_PEER } else { 0 };
        pod | if self.node { ADDRESS_NODE } else { 0 }
    }
    fn is_in_pod_cidr(&self, _: &Addr) -> bool {
        self.in_pod_cidr
    }
    fn is_redirected(&self) -> bool {
        self.redirected
    }
    fn is_local_leg(&self) -> bool {
        self.local_leg
    }
    fn port_flags(&self, _: &AddrPort) -> u32 {
        let permissive = if self.permissive_port { PORT_PERMISSIVE } else { 0 };
        permissive | if self.excluded { PORT_EXCLUDED } else { 0 }
    }
    fn is_kubelets(&self) -> bool {
        self.kubelets
    }
}

#[test]
fn the_kubelets_connections_are_told_from_other_plaintext_in_any_mode() {
    for flags in [0, LOCAL_STRICT] {
        let kubelets = Packet { flags: Some(flags), kubelets: true, ..packet(8080, A, 40_000) };
        assert_eq!(arrival(&kubelets), Verdict::InboundKubelet);
        let excluded = Packet { excluded: true, ..kubelets };
        assert_eq!(arrival(&excluded), Verdict::InboundExcluded, "that port is not judged");
    }
    assert_eq!(arrival(&packet(8080, A, 40_000)), Verdict::InboundPlaintext);
}

#[test]
fn a_strict_pod_takes_its_kubelets_connections_and_plaintext_on_ports_that_are_left_open() {
    let strict = |port| Packet { flags: Some(LOCAL_STRICT), ..packet(8080, A, port) };
    let kubelets = Packet { kubelets: true, ..strict(40_000) };
    assert_eq!(arrival(&kubelets), Verdict::InboundKubelet);
    let permissive_port = Packet { permissive_port: true, ..strict(40_000) };
    assert_eq!(arrival(&permissive_port), Verdict::InboundPermissivePort);
    // Arrivals from the mesh go to the agent there as everywhere.
    let from_mesh = Packet { permissive_port: true, ..strict(61_000) };
    assert_eq!(arrival(&from_mesh), Verdict::InboundMesh);
    // Addresses that are not in LOCAL stay closed to every client, and only the agent has its
    // ports.
    let unknown = Packet { flags: None, kubelets: true, ..packet(8080, A, 40_000) };
    assert_eq!(arrival_in(&unknown, Namespace::Strict), Verdict::RefusedStrict);
    let magic = Packet { kubelets: true, ..packet(ports::MAGIC_FIRST, A, 40_000) };
    assert_eq!(arrival(&magic), Verdict::RefusedForeignMagicPort);
}

#[test]
fn the_kubelet_is_no_agent_whatever_its_port() {
    let kubelets = |flags| Packet {
        flags: Some(flags),
        kubelets: true,
        peer: false,
        ..packet(8080, A, ports::MESH_FIRST)
    };
    assert_eq!(arrival(&kubelets(LOCAL_STRICT)), Verdict::InboundKubelet);
    assert_eq!(arrival(&kubelets(0)), Verdict::InboundKubelet);
    assert_eq!(arrival(&kubelets(LOCAL_LEFT)), Verdict::NotEnrolled);
}

#[test]
fn a_connection_of_the_kubelet_is_known_as_long_as_its_syn_is_sent_again() {
    assert!(is_fresh(NOW, NOW) && is_fresh(NOW, NOW + 127_000_000_000));
    assert!(!is_fresh(NOW, NOW + KUBELET_DIAL_NS + 1));
    // Noted by another processor, with a clock read a moment later.
    assert!(is_fresh(NOW + 1, NOW));
}

#[test]
fn the_source_port_says_that_tls_follows() {
    assert_eq!(arrival(&packet(8080, A, ports::MESH_FIRST)), Verdict::InboundMesh);
    assert_eq!(arrival(&packet(8080, A, u16::MAX)), Verdict::InboundMesh);
    assert_eq!(arrival(&packet(8080, A, ports::MESH_FIRST - 1)), Verdict::InboundPlaintext);
}

/// Only what looks like an agent's dial can be one for a pod of the node, in every mode.
#[test]
fn a_noted_dial_of_the_nodes_agent_needs_no_tls() {
    for flags in [0, LOCAL_STRICT] {
        let noted = |port| Packet { flags: Some(flags), local_leg: true, ..packet(8080, A, port) };
        assert_eq!(arrival(&noted(ports::MESH_FIRST)), Verdict::InboundLocal);
        assert_ne!(arrival(&noted(ports::MESH_FIRST - 1)), Verdict::InboundLocal);
        let stranger = Packet { in_pod_cidr: false, peer: false, ..noted(ports::MESH_FIRST) };
        assert_ne!(arrival(&stranger), Verdict::InboundLocal);
        let left = Packet { flags: Some(flags | LOCAL_LEFT), ..noted(ports::MESH_FIRST) };
        assert_eq!(arrival(&left), Verdict::RefusedLeft);
    }
}

#[test]
fn strict_refuses_plaintext_but_not_its_own_legs_or_excluded_ports() {
    let strict = Some(LOCAL_STRICT);
    assert_eq!(
        arrival(&Packet { flags: strict, ..packet(8080, A, 40_000) }),
        Verdict::RefusedStrict
    );
    assert_eq!(
        arrival(&Packet { flags: strict, ..packet(8080, B, 40_000) }),
        Verdict::InboundOwnAddress
    );
    assert_eq!(
        arrival(&Packet { flags: strict, excluded: true, ..packet(8080, A, 40_000) }),
        Verdict::InboundExcluded
    );
    assert_eq!(arrival(&Packet { flags: strict, ..packet(8080, A, 61_000) }), Verdict::InboundMesh);
}

#[test]
fn an_excluded_port_takes_stale_agents_too() {
    let excluded = Packet { excluded: true, ..packet(8080, A, ports::MESH_FIRST) };
    assert_eq!(arrival(&excluded), Verdict::InboundMesh);
    let unknown = Packet { peer: false, ..excluded };
    assert_eq!(arrival(&unknown), Verdict::InboundMesh);
    let stranger = Packet { in_pod_cidr: false, ..unknown };
    assert_eq!(arrival(&stranger), Verdict::InboundExcluded);
}

#[test]
fn the_agents_ports_answer_only_to_the_pod_itself() {
    assert_eq!(arrival(&packet(ports::MAGIC_FIRST, B, 40_000)), Verdict::OutboundSteered);
    assert_eq!(arrival(&packet(ports::MAGIC_FIRST, A, 40_000)), Verdict::RefusedForeignMagicPort);
    for addr in [ports::LISTENER_V4, Addr::LOCALHOST_V6] {
        for port in [ports::OUTBOUND_LISTENER, ports::INBOUND_LISTENER] {
            let direct = Packet { local: AddrPort::new(addr, port), ..packet(0, addr, 40_000) };
            assert_eq!(arrival(&direct), Verdict::RefusedAgentListener);
        }
        let other = Packet { local: AddrPort::new(addr, 8080), ..packet(0, addr, 40_000) };
        assert_eq!(arrival(&other), Verdict::Loopback);
    }
}

#[test]
fn a_pod_that_left_takes_plaintext_and_refuses_stale_agents() {
    let left = Some(LOCAL_LEFT | LOCAL_STRICT);
    assert_eq!(arrival(&Packet { flags: left, ..packet(8080, A, 40_000) }), Verdict::NotEnrolled);
    assert_eq!(arrival(&Packet { flags: left, ..packet(8080, A, 61_000) }), Verdict::RefusedLeft);
    assert_eq!(
        arrival(&Packet { flags: left, peer: false, ..packet(8080, A, 61_000) }),
        Verdict::RefusedLeft
    );
    let stranger = Packet { peer: false, in_pod_cidr: false, ..packet(8080, A, 61_000) };
    assert_eq!(arrival(&Packet { flags: left, ..stranger }), Verdict::NotEnrolled);
}

#[test]
fn only_what_may_be_a_pod_is_taken_for_an_agent() {
    let unknown = || Packet { peer: false, ..packet(8080, A, 61_000) };
    assert_eq!(arrival(&unknown()), Verdict::InboundMesh);
    let stranger = || Packet { in_pod_cidr: false, ..unknown() };
    assert_eq!(arrival(&stranger()), Verdict::InboundPlaintext);
    assert_eq!(
        arrival(&Packet { flags: Some(LOCAL_STRICT), ..stranger() }),
        Verdict::RefusedStrict
    );
    // A node has addresses in its own range of pod addresses, too: its bridge's.
    assert_eq!(arrival(&Packet { node: true, ..unknown() }), Verdict::InboundPlaintext);
    // A pod is a pod wherever its address lies.
    assert_eq!(
        arrival(&Packet { in_pod_cidr: false, ..packet(8080, A, 61_000) }),
        Verdict::InboundMesh
    );
}

#[test]
fn the_agents_port_leads_to_the_agent_from_any_source() {
    for flags in [0, LOCAL_STRICT] {
        for (peer, port) in [(true, 61_000), (false, 61_000), (false, 1024)] {
            let probe = packet(ports::AGENTS, A, port);
            let probe = Packet { flags: Some(flags), peer, ..probe };
            assert_eq!(arrival(&probe), Verdict::InboundAgentsPort);
        }
    }
    let left = Packet { flags: Some(LOCAL_LEFT), ..packet(ports::AGENTS, A, 1024) };
    assert_eq!(arrival(&left), Verdict::NotEnrolled);
}

#[test]
fn a_strict_namespace_is_closed_on_every_address() {
    let unknown = Packet { flags: None, ..packet(8080, A, 40_000) };
    assert_eq!(arrival_in(&unknown, Namespace::Permissive), Verdict::NotEnrolled);
    assert_eq!(arrival_in(&unknown, Namespace::Strict), Verdict::RefusedStrict);
    let itself = Packet { flags: None, ..packet(8080, B, 40_000) };
    assert_eq!(arrival_in(&itself, Namespace::Strict), Verdict::NotEnrolled);
}
