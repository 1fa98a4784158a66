//! No captured pod dials an announced address in plaintext, whatever objects, announcements and
//! restarts there have been, and however little room the kernel's tables have.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    AnnouncedPod, Announcements, Answer, Answers, Cover, DialAs, InForce, Memory, MeshNode,
    NodeName, NodePods, ObjectName, PodUid, ServicePort, Snapshot, World, add_pod, in_force,
    snapshot::changes::{Change, Told, change},
};
use mesh_common::{
    addr::{self, Addr},
    decide,
    maps::EnrolledPod,
    verdict::{Action, Verdict},
};
use proptest::prelude::*;

use super::{Room, Wanted, wanted};

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
    /// Whether, before the changes, the API server has said which pods of the nodes in question are
    /// there.
    answered: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let restart = prop_oneof![
        6 => Just(Restart::No),
        1 => Just(Restart::Remembering),
        1 => Just(Restart::Forgetting),
    ];
    (prop::collection::vec(change(), 1..6), restart, any::<bool>())
        .prop_map(|(changes, restart, answered)| Step { changes, restart, answered })
}

fn room() -> impl Strategy<Value = Room> {
    let little = (1..10usize, 0..5usize).prop_map(|(addresses, ports)| Room { addresses, ports });
    prop_oneof![Just(Room { addresses: 1000, ports: 1000 }), little]
}

/// What the programs see of a dial of a captured pod that is alone in its settings.
struct View<'a> {
    wanted: &'a Wanted,
    world: &'a Snapshot,
    to: addr::AddrPort,
}

impl decide::Dial for View<'_> {
    fn by_agent(&self) -> bool {
        false
    }
    fn pod(&self) -> Option<EnrolledPod> {
        let [v4, v6] = ["10.9.9.9", "fd99::9"].map(|text| text.parse::<IpAddr>().unwrap().into());
        Some(EnrolledPod { v4, v6 })
    }
    fn held(&self) -> Option<EnrolledPod> {
        None
    }
    fn is_refused_as_unclassified(&self) -> bool {
        false
    }
    fn destination(&self) -> addr::AddrPort {
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
    fn port_flags(&self, endpoint: &addr::AddrPort) -> u32 {
        self.wanted.ports.get(endpoint).copied().unwrap_or(0)
    }
    fn has_room(&self) -> bool {
        true
    }
}

/// Whether the kernel lets a dial go as it is.
fn passes(wanted: &Wanted, world: &Snapshot, to: SocketAddr) -> bool {
    let to = addr::AddrPort::new(to.ip().into(), to.port());
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

/// The promise, kept by other means than the code's. Each node's last word holds. While the node
/// speaks in the boot that its Node object says (or no Node object says one), all of the word
/// holds. Else it holds for the addresses of pods that no Pod object has contradicted since.
#[derive(Default)]
struct Model(BTreeMap<NodeName, Word>);

struct Word {
    said: Arc<MeshNode>,
    /// What Pod objects have contradicted.
    gone: BTreeSet<(PodUid, IpAddr)>,
}

impl Model {
    fn hear(&mut self, told: &Told) {
        for (node, said) in &told.announcements {
            let boot = boot_of(told, node);
            let known = self.0.get(node);
            let is_present = |said: &MeshNode| boot.as_ref() == Some(&said.boot_id);
            // A word of another boot than the present one takes nothing back.
            let counts = boot.is_none()
                || is_present(said)
                || known.is_none_or(|known| !is_present(&known.said));
            if counts && known.is_none_or(|known| known.said != *said) {
                let word = Word { said: Arc::clone(said), gone: BTreeSet::new() };
                self.0.insert(node.clone(), word);
            }
        }
        for (node, word) in &mut self.0 {
            let boot = boot_of(told, node);
            let is_told = told.announcements.get(node) == Some(&word.said);
            if is_told && boot.is_none_or(|boot| boot == word.said.boot_id) {
                word.gone.clear();
                continue;
            }
            for pod in &word.said.pods {
                let of_node = told.objects.pods().filter(|it| it.node.as_ref() == Some(node));
                let object = of_node.filter(|it| it.uid == pod.uid && !it.completed).last();
                for address in &pod.addresses {
                    let is_there =
                        object.is_some_and(|it| it.ips.is_empty() || it.ips.contains(address));
                    if !is_there {
                        word.gone.insert((pod.uid.clone(), *address));
                    }
                }
            }
        }
    }

    /// What nodes hold to, by address.
    fn held(&self) -> impl Iterator<Item = (&NodeName, &AnnouncedPod, IpAddr)> {
        self.0.iter().flat_map(|(node, Word { said, gone })| {
            let all =
                said.pods.iter().flat_map(|pod| pod.addresses.iter().map(move |it| (pod, *it)));
            let is_held = |(pod, address): &(&AnnouncedPod, IpAddr)| {
                !gone.contains(&(pod.uid.clone(), *address))
            };
            all.filter(is_held).map(move |(pod, address)| (node, pod, address))
        })
    }

    /// The pods that others announce at an address.
    fn at(&self, told: &Told, address: IpAddr) -> Vec<&AnnouncedPod> {
        let speaks_for_itself = |node: &NodeName| self.0[node].said.node == *node;
        let others = self.held().filter(|(node, _, at)| {
            *at == address && **node != told.local.name && speaks_for_itself(node)
        });
        others.map(|(_, pod, _)| pod).collect()
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.held().map(|(.., address)| address)
    }
}

fn boot_of(told: &Told, node: &NodeName) -> Option<String> {
    told.objects.node(node.as_str())?.boot_id.clone()
}

/// What the API server says to questions that were asked long ago; others have no answer yet.
fn answer(questions: &Announcements, told: &Told, answers: &mut Answers) {
    for (node, about) in questions {
        let mut pods = NodePods::new();
        let of_node = told.objects.pods().filter(|pod| pod.node.as_ref() == Some(node));
        of_node.for_each(|pod| add_pod(&mut pods, pod));
        answers.insert(node.clone(), Answer { about: Arc::clone(about), pods });
    }
}

/// Where the node's service proxy may lead a dial to a service's address, whatever it makes of
/// readiness, nodes and hints.
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
        has_all_pods in any::<bool>(),
    ) {
        let mut told = Told::nothing();
        let mut model = Model::default();
        let mut before = Arc::new(Announcements::new());
        let mut followed: Option<World> = None;
        let (mut questions, mut answers) = (Announcements::new(), Answers::new());
        for Step { changes, restart, answered } in &steps {
            if *answered {
                answer(&questions, &told, &mut answers);
            }
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
            if !matches!(restart, Restart::No) {
                answers.clear();
            }
            let known = (!has_all_pods).then_some(&answers);
            let InForce { announcements, in_question, .. } =
                in_force(&told.announcements, &before, &objects, known);
            let announcements = Arc::new(announcements.into_owned());
            questions = in_question;
            answers.retain(|node, answer| questions.get(node) == Some(&answer.about));
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
