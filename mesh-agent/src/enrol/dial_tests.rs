//! No captured pod dials an announced address in plaintext, whatever objects, announcements and restarts there have been, and
//! however little room the kernel's tables have.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use mesh_common::{
    addr::{self, Addr},
    decide,
    maps::{EnrolledPod, Failed},
    verdict::{Action, Verdict},
};
use proptest::prelude::*;

use super::tables::{Room, Wanted, wanted};
use crate::world::{
    AnnouncedPod, Announcements, Cover, DialAs, Memory, ObjectName, ServicePort, Snapshot, World,
    changes::{Change, Told, change},
    of_this_boot,
};

/// Ports that pods exclude, and one that none does.
const PORTS: [u16; 3] = [80, 8080, 443];

#[derive(Clone, Copy, Debug)]
enum Restart {
    No,
    /// What the agent has written down can be read.
    Remembering,
    Forgetting,
}

#[derive(Clone, Debug)]
struct Step {
    changes: Vec<Change>,
    restart: Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let restart = prop_oneof![
        6 => Just(Restart::No),
        1 => Just(Restart::Remembering),
        1 => Just(Restart::Forgetting),
    ];
    (prop::collection::vec(change(), 1..6), restart)
        .prop_map(|(changes, restart)| Step { changes, restart })
}

fn room() -> impl Strategy<Value = Room> {
    let little = (1..10usize, 0..5usize).prop_map(|(addresses, ports)| Room { addresses, ports });
    prop_oneof![Just(Room { addresses: 1000, ports: 1000 }), little]
}

/// What the programs see of a dial of a captured pod that is alone in its settings.
struct View<'a> {
    wanted: &'a Wanted,
    world: &'a Snapshot,
    to: addr::Endpoint,
}

impl decide::Dial for View<'_> {
    fn by_agent(&self) -> bool {
        false
    }
    fn pod(&self) -> Option<EnrolledPod> {
        let [v4, v6] = ["10.9.9.9", "fd99::9"].map(|text| text.parse::<IpAddr>().unwrap().into());
        Some(EnrolledPod { v4, v6 })
    }
    fn is_refused_as_unclassified(&self) -> bool {
        false
    }
    fn destination(&self) -> addr::Endpoint {
        self.to
    }
    fn bound_source(&self) -> Addr {
        Addr::NONE
    }
    fn address_flags(&self, addr: &Addr) -> u32 {
        self.wanted.addresses.get(addr).copied().unwrap_or(0)
    }
    fn may_be_missing(&self, addr: &Addr) -> bool {
        let address = IpAddr::from(*addr);
        let in_range = Cover::of(self.world.pod_cidrs()).contains(address);
        self.wanted.incomplete && (self.wanted.anywhere || in_range)
    }
    fn port_flags(&self, endpoint: &addr::Endpoint) -> u32 {
        self.wanted.ports.get(endpoint).copied().unwrap_or(0)
    }
    fn failed(&self) -> Option<Failed> {
        None
    }
    fn boot_ns(&self) -> u64 {
        0
    }
    fn has_room(&self) -> bool {
        true
    }
}

/// Whether the kernel lets a dial go as it is.
fn passes(wanted: &Wanted, world: &Snapshot, to: SocketAddr) -> bool {
    let to = addr::Endpoint::new(to.ip().into(), to.port());
    let (verdict, _) = decide::dial(&View { wanted, world, to });
    assert!(matches!(
        verdict,
        Verdict::DestinationNotMeshed
            | Verdict::OutboundExcluded
            | Verdict::RedirectPeer
            | Verdict::RedirectService
            | Verdict::RefusedTableFull
    ));
    verdict.action() == Action::Pass
}

/// What is in force by the rule, kept by other means than the code's: every node's last word, until it is in another boot or,
/// without its MeshNode, nobody says that it is still in this one.
#[derive(Default)]
struct Model(Announcements);

impl Model {
    fn hear(&mut self, told: &Told) {
        let boot = |node: &str| told.objects.nodes().find(|it| *it.name == *node)?.boot_id.clone();
        for (node, said) in &told.announcements {
            self.0.insert(node.clone(), Arc::clone(said));
        }
        self.0.retain(|node, said| match boot(node.as_str()) {
            Some(boot) => boot == said.boot_id,
            None => told.announcements.contains_key(node),
        });
    }

    /// The pods that others announce at an address.
    fn at(&self, told: &Told, address: IpAddr) -> Vec<&AnnouncedPod> {
        let others =
            self.0.iter().filter(|(node, said)| **node != told.local.name && said.node == **node);
        let pods = others.flat_map(|(_, said)| &said.pods);
        pods.filter(|pod| pod.addresses.contains(&address)).collect()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.0.values().flat_map(|said| &said.pods).flat_map(|pod| pod.addresses.clone())
    }
}

/// Where the node's service proxy may lead a dial to a service's address, whatever it thinks of readiness, nodes and hints.
fn anywhere(
    told: &Told,
    service: &ServicePort,
    address: IpAddr,
) -> impl Iterator<Item = SocketAddr> {
    let name = ObjectName::new(&service.namespace, &service.name);
    let slices = told.objects.slices().filter(move |slice| slice.service.as_ref() == Some(&name));
    let targets = slices.flat_map(move |slice| {
        let ports = slice.ports.iter().filter(move |port| port.name == service.port_name);
        let addresses = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        ports.flat_map(move |port| addresses.clone().map(|it| SocketAddr::new(*it, port.port)))
    });
    targets.filter(move |target| target.is_ipv4() == address.is_ipv4())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn no_dial_to_an_announced_address_is_plaintext(
        steps in prop::collection::vec(step(), 1..16),
        room in room(),
    ) {
        let mut told = Told::nothing();
        let mut model = Model::default();
        let mut before = Arc::new(Announcements::new());
        let mut followed: Option<World> = None;
        for Step { changes, restart } in &steps {
            for change in changes {
                told.apply(change);
            }
            model.hear(&told);
            let mut memory = Memory::default();
            match (restart, &followed) {
                (Restart::Remembering, Some(world)) => {
                    memory.announcements = Arc::clone(&before);
                    memory.incumbents = world.incumbents().clone();
                }
                (Restart::Forgetting, _) => {
                    before = Arc::default();
                    model = Model::default();
                    model.hear(&told);
                }
                _ => {}
            }
            let objects = Arc::new(told.objects.clone());
            let announcements =
                of_this_boot(&told.announcements, &before, &objects).announcements.into_owned();
            let announcements = Arc::new(announcements);
            before = Arc::clone(&announcements);
            let world = match (restart, &mut followed) {
                (Restart::No, Some(world)) => {
                    world.update(&objects, &announcements, &told.local).clone()
                }
                (_, followed) => {
                    let Memory { announcements: earlier, incumbents } = memory;
                    let incumbents = incumbents.after(&earlier, &announcements, &told.local.name);
                    let world = World::new(&objects, &announcements, &told.local, incumbents);
                    followed.insert(world).snapshot().clone()
                }
            };
            let wanted = wanted(&world, room);
            prop_assert!(wanted.addresses.len() <= room.addresses);
            prop_assert!(wanted.ports.len() <= room.ports);
            let is_of_service = |address: IpAddr| {
                told.objects.services().any(|service| service.cluster_ips.contains(&address))
            };
            let must_be_tls = |to: SocketAddr| {
                let claims = model.at(&told, to.ip());
                let here = world.believed(to.ip()).filter(|peer| peer.local);
                let excluded = match here {
                    Some(peer) => peer.exclude_ports.contains(to.port()),
                    None => claims.iter().all(|pod| pod.exclude_ports.contains(to.port())),
                };
                !claims.is_empty() && !is_of_service(to.ip()) && !excluded
            };
            let is_plain = |to: SocketAddr| matches!(world.dial_as(to), DialAs::Plain);
            for address in model.addresses() {
                for port in PORTS {
                    let to = SocketAddr::new(address, port);
                    if must_be_tls(to) {
                        prop_assert!(!passes(&wanted, &world, to), "the kernel lets {to} go");
                        prop_assert!(!is_plain(to), "the agent dials {to} in plaintext");
                    }
                }
            }
            for row in world.kernel_services() {
                let service = world.service(row.address, row.port).unwrap();
                let meshed: Vec<_> = anywhere(&told, service, row.address)
                    .filter(|target| must_be_tls(*target))
                    .collect();
                let to = SocketAddr::new(row.address, row.port);
                prop_assert!(
                    meshed.is_empty() || !passes(&wanted, &world, to),
                    "the kernel leaves service {to} to kube-proxy, which may take {meshed:?}"
                );
                prop_assert!(!meshed.iter().any(|target| is_plain(*target)), "{meshed:?}");
            }
        }
    }
}
