//! The kernel's tables of addresses and ports, out of a snapshot.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use mesh_common::{
    addr::{Addr, Endpoint},
    maps::{
        ADDRESS_KNOWN, ADDRESS_NODE, ADDRESS_PEER, LOCAL_STRICT, LocalPod, PORT_EXCLUDED,
        PORT_PERMISSIVE, PORT_SERVICE, limits,
    },
};

use super::shares::{Claim, Excess, Ports, share_out};
use crate::{
    kernel::{KernelError, Tables},
    world::{KernelAddress, Mode, PortSet, Snapshot},
};

/// What has become of the tables.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// How many entries were written or removed.
    pub entries: usize,
    /// Who has asked for more than there is room for. If anybody has, the tables are not at what the snapshot says.
    pub lost: Vec<Excess>,
}

/// Brings `ADDRESSES` and `PORTS` to what a snapshot says, as far as there is room. If they are known to be at what an earlier
/// one said, this takes time in proportion to what differs.
///
/// # Errors
/// The first entry that the kernel refused: the tables are then at neither.
pub fn write_world(
    tables: &Tables,
    before: Option<&Snapshot>,
    world: &Snapshot,
) -> Result<Written, KernelError> {
    if let Some(before) = before
        && let Ok(entries) = write_difference(tables, before, world)
    {
        return Ok(Written { entries, lost: Vec::new() });
    }
    // Also if the difference found no room: who asks for too much is to lose, and not who asks last.
    write_all(tables, world)
}

fn write_all(tables: &Tables, world: &Snapshot) -> Result<Written, KernelError> {
    let mut addresses: HashMap<Addr, u32> = HashMap::new();
    let mut claims = Vec::new();
    for row in world.kernel_addresses() {
        addresses.insert(row.address.into(), address_bits(&row));
        let Some(peer) = world.believed(row.address) else { continue };
        let sets = [(row.exclude_ports, PORT_EXCLUDED), (row.permissive_ports, PORT_PERMISSIVE)];
        for (ports, bit) in sets {
            if let Some(ports) = ports.filter(|ports| !ports.is_empty()) {
                let (namespace, ports) = (&peer.namespace, Ports::Of(ports));
                claims.push(Claim { namespace, address: row.address, ports, bit });
            }
        }
    }
    for address in world.node_addresses() {
        addresses.entry((*address).into()).or_insert(ADDRESS_NODE);
    }
    for row in world.kernel_services().filter(|row| row.has_meshed_endpoint) {
        let Some(service) = world.service(row.address, row.port) else { continue };
        let (namespace, ports) = (&service.namespace, Ports::Only(row.port));
        claims.push(Claim { namespace, address: row.address, ports, bit: PORT_SERVICE });
    }
    let (ports, lost) = share_out(claims, limits::PORTS);
    let (addresses, ports) = (tables.addresses.sync(&addresses), tables.ports.sync(&ports));
    Ok(Written { entries: addresses? + ports?, lost })
}

fn write_difference(
    tables: &Tables,
    before: &Snapshot,
    world: &Snapshot,
) -> Result<usize, KernelError> {
    let mut addresses: HashMap<Addr, Option<u32>> = HashMap::new();
    let mut ports: HashSet<(IpAddr, u16)> = world.changed_services(before).into_iter().collect();
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
    let (addresses, ports) =
        (tables.addresses.apply(&addresses), tables.ports.apply(&ports.collect()));
    Ok(addresses? + ports?)
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
    (if excluded { PORT_EXCLUDED } else { 0 })
        | (if permissive { PORT_PERMISSIVE } else { 0 })
        | (if service { PORT_SERVICE } else { 0 })
}

/// The value of `LOCAL` for a pod.
pub(super) fn local(netns: u64, flags: u32) -> LocalPod {
    LocalPod { netns, flags, zero: 0 }
}

/// The `LOCAL_*` bits of an enrolled pod.
pub(super) fn local_flags(mode: Mode) -> u32 {
    if mode == Mode::Strict { LOCAL_STRICT } else { 0 }
}

/// Whether `LOCAL_*` bits say that only mutual TLS may enter.
pub(super) fn is_strict(flags: u32) -> bool {
    flags & LOCAL_STRICT != 0
}

fn endpoint(address: IpAddr, port: u16) -> Endpoint {
    Endpoint::new(address.into(), port)
}
