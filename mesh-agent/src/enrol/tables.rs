//! The kernel's tables of addresses and ports, out of a snapshot.

use std::{collections::HashMap, net::IpAddr};

use mesh_common::{
    addr::{Addr, Endpoint},
    maps::{
        ADDRESS_KNOWN, ADDRESS_NODE, ADDRESS_PEER, LOCAL_STRICT, LocalPod, PORT_EXCLUDED,
        PORT_SERVICE,
    },
};

use crate::{
    kernel::{KernelError, Tables},
    world::{Mode, PortSet, Snapshot},
};

/// Brings `ADDRESSES` and `PORTS` to what a snapshot says.
///
/// # Errors
/// The first entry that the kernel refused.
pub(super) fn sync(tables: &Tables, world: &Snapshot) -> Result<(), KernelError> {
    let mut addresses: HashMap<Addr, u32> = HashMap::new();
    let mut ports: HashMap<Endpoint, u32> = HashMap::new();
    for row in world.kernel_addresses() {
        let known = if row.known_pod { ADDRESS_KNOWN } else { 0 };
        let peer = if row.peer { ADDRESS_PEER } else { 0 };
        addresses.insert(row.address.into(), known | peer);
        for port in row.exclude_ports.into_iter().flat_map(PortSet::iter) {
            *ports.entry(endpoint(row.address, port)).or_insert(0) |= PORT_EXCLUDED;
        }
    }
    for address in world.node_addresses() {
        addresses.entry((*address).into()).or_insert(ADDRESS_NODE);
    }
    for row in world.kernel_services().filter(|row| row.has_meshed_endpoint) {
        *ports.entry(endpoint(row.address, row.port)).or_insert(0) |= PORT_SERVICE;
    }
    tables.addresses.sync(&addresses)?;
    tables.ports.sync(&ports)
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
