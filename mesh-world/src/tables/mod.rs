//! The content of the kernel's tables of addresses and ports (`ADDRESSES`, `PORTS`), from a
//! snapshot. The agent writes it there.

#[cfg(test)]
mod dial_tests;
mod shares;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use mesh_api::PortSet;
use mesh_common::addr::{Addr, AddrPort};
use mesh_common::maps::{
    ADDRESS_KNOWN, ADDRESS_NODE, ADDRESS_PEER, PORT_EXCLUDED, PORT_PERMISSIVE, PORT_SERVICE,
};

pub use self::shares::{By, Excess};
use self::shares::{EntryRequest, Ports, level, share_out};
use crate::cidr::{Cidr, Cover};
use crate::names::NodeName;
use crate::snapshot::{KernelAddress, KernelService, Snapshot};

/// How many entries there is room for.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// In `ADDRESSES`.
    pub addresses: usize,
    /// In `PORTS`.
    pub ports: usize,
}

/// All that the tables are to hold, as far as there is room.
pub struct Wanted {
    /// The entries of `ADDRESSES`.
    pub addresses: HashMap<Addr, u32>,
    /// The entries of `PORTS`.
    pub ports: HashMap<AddrPort, u32>,
    /// Whether the address of a captured pod found no room: an address that is not in the table may
    /// then be one.
    pub incomplete: bool,
    /// Whether it may then be anywhere, and not only in the ranges of pod addresses.
    pub anywhere: bool,
    /// The namespaces and nodes that asked for more than there is room for.
    pub lost: Vec<Excess>,
}

/// What has to change in tables that hold an earlier snapshot. `None` removes an entry.
pub struct Difference {
    /// Of `ADDRESSES`.
    pub addresses: HashMap<Addr, Option<u32>>,
    /// Of `PORTS`.
    pub ports: HashMap<AddrPort, Option<u32>>,
}

impl Difference {
    /// From one snapshot to a later one, as if there were room for all of it. Takes time in
    /// proportion to what has changed.
    pub fn of(before: &Snapshot, world: &Snapshot) -> Self {
        let mut addresses: HashMap<Addr, Option<u32>> = HashMap::new();
        let mut ports: HashSet<(IpAddr, u16)> =
            world.changed_services(before).into_iter().collect();
        for address in world.changed_addresses(before) {
            let (old, new) = (before.kernel_address(address), world.kernel_address(address));
            let of_node = world.is_node_address(address).then_some(ADDRESS_NODE);
            addresses.insert(address.into(), new.as_ref().map(address_bits).or(of_node));
            let rows = [old, new].into_iter().flatten();
            let sets = rows.flat_map(|row| [row.exclude_ports, row.permissive_ports]).flatten();
            ports.extend(sets.flat_map(PortSet::iter).map(|port| (address, port)));
        }
        let ports = ports.into_iter().map(|(address, port)| {
            let bits = port_bits(world, address, port);
            (endpoint(address, port), (bits != 0).then_some(bits))
        });
        Self { addresses, ports: ports.collect() }
    }
}

/// Whether an address that is to be captured, a pod's or a service's, is neither captured in the
/// kernel nor in any of the ranges.
pub fn is_captured_outside<'a>(
    ranges: &BTreeSet<Cidr>,
    wanted: impl IntoIterator<Item = (&'a Addr, &'a u32)>,
    in_kernel: impl Fn(&Addr) -> Option<u32>,
) -> bool {
    let ranges = Cover::of(ranges);
    let is_captured = |bits: u32| bits & ADDRESS_PEER != 0;
    let mut missing = wanted.into_iter().filter(|(address, bits)| {
        is_captured(**bits) && !in_kernel(address).is_some_and(is_captured)
    });
    missing.any(|(address, _)| !ranges.contains(IpAddr::from(*address)))
}

/// What the tables are to hold. Captured addresses come before those that are only known, and no
/// node gets more than its share. The address of a service whose port found no room is captured as
/// a whole: the agent knows its ports.
pub fn wanted(world: &Snapshot, room: Room) -> Wanted {
    let mut captured: Vec<Captured<'_>> = Vec::new();
    let mut known: Vec<(Addr, u32)> = Vec::new();
    let mut claims = Vec::new();
    for row in world.kernel_addresses() {
        let bits = address_bits(&row);
        let Some(standing) = world.standing(row.address) else {
            known.push((row.address.into(), bits));
            continue;
        };
        let peer = standing.believed();
        let node = peer.filter(|peer| !peer.local).map(|peer| &peer.node);
        let (address, is_ours) = (row.address, peer.is_some_and(|peer| peer.local));
        captured.push(Captured { address, bits, node, is_ours });
        let Some(peer) = peer else { continue };
        let sets = [(row.exclude_ports, PORT_EXCLUDED), (row.permissive_ports, PORT_PERMISSIVE)];
        for (ports, bit) in sets {
            if let Some(ports) = ports.filter(|ports| !ports.is_empty()) {
                let (namespace, ports) = (&peer.namespace, Ports::Of(ports));
                claims.push(EntryRequest { namespace, address: row.address, ports, bit });
            }
        }
    }
    let services: Vec<_> = world.kernel_services().filter(|row| row.has_meshed_endpoint).collect();
    for row in &services {
        let Some(service) = world.service(row.address, row.port) else { continue };
        let (namespace, ports) = (&service.namespace, Ports::Only(row.port));
        claims.push(EntryRequest { namespace, address: row.address, ports, bit: PORT_SERVICE });
    }
    let (mut ports, mut lost) = share_out(claims, room.ports);
    ports.retain(|endpoint, bits| {
        if world.is_meshed_service(endpoint.addr.into(), endpoint.port) {
            *bits &= !PORT_EXCLUDED;
        }
        *bits != 0
    });
    if !lost.is_empty() {
        let is_there = |row: &&KernelService| {
            let bits = ports.get(&endpoint(row.address, row.port)).copied().unwrap_or(0);
            bits & PORT_SERVICE != 0
        };
        let left_out = services.iter().filter(|row| !is_there(row)).map(|row| row.address);
        for address in left_out.collect::<HashSet<_>>() {
            captured.push(Captured { address, bits: ADDRESS_PEER, node: None, is_ours: true });
        }
    }
    let nodes = world.node_addresses().map(|address| ((*address).into(), ADDRESS_NODE));
    known.extend(nodes);
    let left_out = if captured.len() > room.addresses {
        let (left_out, nodes) = share_out_addresses(&mut captured, world, room.addresses);
        lost.extend(nodes);
        left_out
    } else {
        Vec::new()
    };
    let mut addresses: HashMap<Addr, u32> = HashMap::with_capacity(captured.len());
    for Captured { address, bits, .. } in captured {
        *addresses.entry(address.into()).or_default() |= bits;
    }
    // A known address counts as not captured: it must not stand there for a captured one that found
    // no room.
    let missing: HashSet<Addr> = left_out.iter().map(|address| (*address).into()).collect();
    for (address, bits) in known.into_iter().filter(|(address, _)| !missing.contains(address)) {
        if addresses.len() < room.addresses || addresses.contains_key(&address) {
            addresses.entry(address).or_insert(bits);
        }
    }
    let ranges = Cover::of(world.pod_cidrs());
    let anywhere = left_out.iter().any(|address| !ranges.contains(*address));
    Wanted { addresses, ports, incomplete: !left_out.is_empty(), anywhere, lost }
}

/// An address that is dialled through the agent.
struct Captured<'a> {
    address: IpAddr,
    bits: u32,
    /// The other node that announces it; `None` if several do.
    node: Option<&'a NodeName>,
    /// Whether it is a service's, or a pod's of this node: these get room before all others.
    is_ours: bool,
}

/// Leaves in `captured` what there is room for, and returns the others. Each node gets what it asks
/// for up to one common number.
fn share_out_addresses(
    captured: &mut Vec<Captured<'_>>,
    world: &Snapshot,
    room: usize,
) -> (Vec<IpAddr>, Vec<Excess>) {
    let mut asked: BTreeMap<Option<&NodeName>, usize> = BTreeMap::new();
    for it in captured.iter().filter(|it| !it.is_ours) {
        *asked.entry(it.node).or_default() += 1;
    }
    let ours = captured.iter().filter(|it| it.is_ours).count();
    let most = level(asked.values().copied(), room.saturating_sub(ours));
    // Addresses in no range stay first: what is in no range can then be dialled as before.
    let ranges = Cover::of(world.pod_cidrs());
    captured.sort_by_cached_key(|it| (ranges.contains(it.address), it.address));
    let (mut given, mut all) = (BTreeMap::<Option<&NodeName>, usize>::new(), 0);
    let mut left_out = Vec::new();
    captured.retain(|it| {
        let of_node = given.entry(it.node).or_default();
        let stays = (it.is_ours || *of_node < most) && all < room;
        if stays {
            all += 1;
            *of_node += usize::from(!it.is_ours);
        } else {
            left_out.push(it.address);
        }
        stays
    });
    let greedy = asked.into_iter().filter(|(_, wanted)| *wanted > most);
    let excess = greedy.map(|(node, wanted)| {
        let node = node.map_or("several", NodeName::as_str).into();
        Excess { by: By::Node(node), wanted, given: most }
    });
    let excess = excess.collect();
    (left_out, excess)
}

fn address_bits(row: &KernelAddress<'_>) -> u32 {
    let known = if row.known_pod { ADDRESS_KNOWN } else { 0 };
    let peer = if row.peer { ADDRESS_PEER } else { 0 };
    known | peer
}

fn port_bits(world: &Snapshot, address: IpAddr, port: u16) -> u32 {
    let row = world.kernel_address(address);
    let has = |ports: Option<&PortSet>| ports.is_some_and(|ports| ports.contains(port));
    let excluded = row.is_some_and(|row| has(row.exclude_ports));
    let permissive = row.is_some_and(|row| has(row.permissive_ports));
    let service = world.is_meshed_service(address, port);
    // A pod that is said to have a service's address excludes nothing of the service's.
    (if excluded && !service { PORT_EXCLUDED } else { 0 })
        | (if permissive { PORT_PERMISSIVE } else { 0 })
        | (if service { PORT_SERVICE } else { 0 })
}

fn endpoint(address: IpAddr, port: u16) -> AddrPort {
    AddrPort::new(address.into(), port)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::{Announcements, Incumbents, LocalNode, MeshNode, Objects};

    /// A node that announces pods of one account, at `10.NODE.0.1` and up.
    fn announcing(node: u8, pods: u8) -> Arc<MeshNode> {
        let pods = (1..=pods).map(|pod| {
            json!({"uid": format!("{node}-{pod}"), "namespace": "shop", "name": format!("pod-{pod}"),
                "serviceAccount": "cart", "addresses": [format!("10.{node}.0.{pod}")],
                "mode": "permissive"})
        });
        let said: MeshNode = serde_json::from_value(json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode",
            "metadata": {"name": format!("node{node}")},
            "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": pods.collect::<Vec<_>>()},
        }))
        .unwrap();
        Arc::new(said)
    }

    #[test]
    fn nodes_that_announce_too_much_lose_addresses_and_the_others_none() {
        const ROOM: Room = Room { addresses: 100, ports: 10 };
        let (mad, honest) = ((1..=16).map(|node| announcing(node, 50)), announcing(17, 5));
        let said = mad.chain([honest]).map(|it| (it.node.clone(), it));
        let local = LocalNode {
            name: NodeName::parse("node0").unwrap(),
            enrolled: BTreeSet::new(),
            mesh_namespace: None,
        };
        let announcements: Announcements = said.collect();
        let (objects, incumbents) = (Objects::default(), Incumbents::default());
        let world = Snapshot::build(&objects, &announcements, &local, &incumbents);
        let wanted = wanted(&world, ROOM);
        let has = |pod: u8| wanted.addresses.get(&IpAddr::from([10, 17, 0, pod]).into());
        let is_captured = |pod| has(pod).is_some_and(|bits| bits & ADDRESS_PEER != 0);
        assert!((1..=5).all(is_captured), "{:?}", wanted.addresses);
        assert!(wanted.addresses.len() <= ROOM.addresses && wanted.incomplete);
        let lost: Vec<_> =
            wanted.lost.iter().map(|it| (it.by.code().code(), it.wanted, it.given)).collect();
        assert_eq!(lost, [("addresses_over_share", 50, 5); 16]);
    }

    #[test]
    fn what_the_kernel_lacks_may_be_anywhere_if_it_is_in_no_range() {
        let ranges = BTreeSet::from([Cidr::parse("10.1.0.0/16").unwrap()]);
        let address = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let wanted = HashMap::from([
            (address("10.1.0.1"), ADDRESS_PEER),
            (address("10.2.0.1"), ADDRESS_KNOWN),
            (address("10.96.0.1"), ADDRESS_PEER), // a service's
        ]);
        let is_outside = |bits| is_captured_outside(&ranges, &wanted, |_| bits);
        assert!(is_outside(None) && is_outside(Some(ADDRESS_KNOWN)));
        assert!(!is_outside(Some(ADDRESS_PEER)));
        let elsewhere = address("10.96.0.1");
        assert!(
            !is_captured_outside(&ranges, &wanted, |it| (*it == elsewhere).then_some(ADDRESS_PEER))
        );
    }
}
