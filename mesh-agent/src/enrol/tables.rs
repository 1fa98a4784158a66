//! Fills the kernel's tables of addresses and ports from a snapshot.

use std::{collections::HashMap, net::IpAddr};

use mesh_api::Mode;
use mesh_common::{
    addr::{Addr, AddrPort},
    maps::{
        ADDRESS_PEER, EnrolledPod, LOCAL_STRICT, LocalEntry, NODE_ADDRESSES_INCOMPLETE, limits,
    },
};
use mesh_world::{
    Cidr, Snapshot,
    tables::{Difference, Excess, Room, Wanted, is_captured_outside, wanted},
};

use crate::kernel::{KernelError, Tables};

/// As much as the kernel has.
const KERNEL: Room = Room { addresses: limits::ADDRESSES, ports: limits::PORTS };

/// What became of the tables.
#[derive(Debug, PartialEq, Eq)]
pub struct Written {
    /// How many entries were written or removed.
    pub entries: usize,
    /// The namespaces and nodes that asked for more than there is room for. If there are any, the
    /// tables do not match the snapshot.
    pub lost: Vec<Excess>,
    /// Whether a captured address that found no room lies outside the ranges of pod addresses. The
    /// ranges in the kernel are then all addresses.
    pub anywhere: bool,
    /// How full they are.
    pub filled: Vec<Filled>,
}

/// What the kernel refused, and what is in force until it has been written.
#[derive(Debug)]
pub struct Unwritten {
    /// The first entry that it refused.
    pub error: KernelError,
    /// As in [`Written`].
    pub anywhere: bool,
}

/// How full a table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// Its name.
    pub table: &'static str,
    /// Its entries. For a table that falls back to a coarser content (`POD_CIDRS`), those that it
    /// should have.
    pub used: usize,
    /// How many it can have.
    pub room: usize,
    /// What happens when there is no room.
    pub when_full: &'static str,
}

/// A pod with these addresses, as the connect programs know it.
pub(super) fn enrolled(addresses: impl IntoIterator<Item = IpAddr>) -> EnrolledPod {
    let mut pod = EnrolledPod { v4: Addr::NONE, v6: Addr::NONE };
    for address in addresses {
        let of_family = if address.is_ipv4() { &mut pod.v4 } else { &mut pod.v6 };
        if of_family.is_none() {
            *of_family = address.into();
        }
    }
    pod
}

/// Brings `ADDRESSES` and `PORTS` to what a snapshot says, as far as there is room. If they are
/// known to match an earlier snapshot, this takes time in proportion to the difference.
///
/// # Errors
/// The first entry that the kernel refused: the tables then match neither snapshot.
pub fn write_world(
    tables: &Tables,
    before: Option<&Snapshot>,
    world: &Snapshot,
) -> Result<Written, Unwritten> {
    if let Some(before) = before
        && let Some(Ok(entries)) = write_difference(tables, before, world)
    {
        let (lost, anywhere, filled) = (Vec::new(), false, filled(tables));
        return Ok(Written { entries, lost, anywhere, filled });
    }
    // Also if the difference found no room: the namespace or node that asks for too much is to
    // lose, not the one that asks last.
    write_all(tables, world)
}

fn write_all(tables: &Tables, world: &Snapshot) -> Result<Written, Unwritten> {
    let mut wanted = wanted(world, KERNEL);
    let entries = write_wanted(tables, world, &mut wanted);
    let Wanted { anywhere, lost, .. } = wanted;
    let entries = entries.map_err(|error| Unwritten { error, anywhere })?;
    Ok(Written { entries, lost, anywhere, filled: filled(tables) })
}

/// Returns how many entries were written or removed. If the kernel refuses any, `wanted.anywhere`
/// says whether captured addresses may be missing outside the ranges.
fn write_wanted(
    tables: &Tables,
    world: &Snapshot,
    wanted: &mut Wanted,
) -> Result<usize, KernelError> {
    let Wanted { addresses, ports, incomplete, anywhere, .. } = wanted;
    // The programs must refuse missing addresses before their entries go, and until they have come.
    if *incomplete {
        refuse_unknown(tables, *anywhere)?;
    }
    let written = (tables.addresses.sync(addresses), tables.ports.sync(ports));
    // An entry that could not be written still says what was true before. It goes once its dials
    // are refused or led to the agent.
    if written.0.is_err() {
        let in_kernel = |address: &Addr| tables.addresses.get(address);
        *anywhere |= is_captured_outside(world.pod_cidrs(), &*addresses, in_kernel);
        refuse_unknown(tables, *anywhere)?;
        tables.addresses.drop_stale(addresses)?;
    }
    if written.1.is_err() {
        if let Err(error) = capture_services(tables, world, ports) {
            *anywhere = true;
            refuse_unknown(tables, true)?;
            tables.ports.drop_stale(ports)?;
            return Err(error);
        }
        tables.ports.drop_stale(ports)?;
    }
    let entries = written.0.and_then(|addresses| Ok(addresses + written.1?))?;
    if !*incomplete {
        tables.set_node(NODE_ADDRESSES_INCOMPLETE, 0)?;
    }
    Ok(entries)
}

/// Captures the whole address of each service with a port that is not as wanted in `PORTS`: all its
/// dials go to the agent.
fn capture_services(
    tables: &Tables,
    world: &Snapshot,
    wanted: &HashMap<AddrPort, u32>,
) -> Result<(), KernelError> {
    for row in world.kernel_services().filter(|row| row.has_meshed_endpoint) {
        let port = AddrPort::new(row.address.into(), row.port);
        if tables.ports.get(&port).as_ref() != wanted.get(&port) {
            let address = row.address.into();
            let bits = tables.addresses.get(&address).unwrap_or(0);
            tables.addresses.put(address, bits | ADDRESS_PEER)?;
        }
    }
    Ok(())
}

/// Has the programs refuse captured pods' dials to addresses that `ADDRESSES` does not know and
/// that may be a pod's.
fn refuse_unknown(tables: &Tables, anywhere: bool) -> Result<(), KernelError> {
    if anywhere {
        tables.pod_cidrs.sync([Cidr::ALL].iter())?;
    }
    tables.set_node(NODE_ADDRESSES_INCOMPLETE, 1)
}

fn filled(tables: &Tables) -> Vec<Filled> {
    let Room { addresses, ports } = KERNEL;
    let row = |table, used, room, when_full| Filled { table, used, room, when_full };
    vec![
        row(
            "ADDRESSES",
            tables.addresses.used(),
            addresses,
            "pods of the mesh cannot dial the addresses that find no room",
        ),
        row(
            "PORTS",
            tables.ports.used(),
            ports,
            "excluded and permissive ports that find no room are so no more",
        ),
        row(
            "POD_CIDRS",
            tables.pod_cidrs.wanted(),
            limits::POD_CIDRS,
            "every address counts as a pod's, so that more is refused while something is missing",
        ),
    ]
}

fn write_difference(
    tables: &Tables,
    before: &Snapshot,
    world: &Snapshot,
) -> Option<Result<usize, KernelError>> {
    let Difference { addresses, ports } = Difference::of(before, world);
    // Before anything is tried: an address that finds no room would be taken for one that is not in
    // the mesh.
    if tables.addresses.used_after(&addresses) > KERNEL.addresses {
        return None;
    }
    let (addresses, ports) = (tables.addresses.apply(&addresses), tables.ports.apply(&ports));
    Some(addresses.and_then(|addresses| Ok(addresses + ports?)))
}

/// The value of `LOCAL` for a pod.
pub(super) fn local(netns: u64, flags: u32) -> LocalEntry {
    LocalEntry { netns, flags, zero: 0 }
}

/// The `LOCAL_*` bits of an enrolled pod.
pub(super) fn local_flags(mode: Mode) -> u32 {
    if mode == Mode::Strict { LOCAL_STRICT } else { 0 }
}

/// Whether `LOCAL_*` bits say that only mutual TLS may enter.
pub(super) fn is_strict(flags: u32) -> bool {
    flags & LOCAL_STRICT != 0
}
