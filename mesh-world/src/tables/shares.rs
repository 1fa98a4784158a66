//! Shares out the room in the kernel's tables when there is not enough for all: among namespaces
//! that of ports, among nodes that of addresses (`tables.rs`).
//!
//! As long as all fits, there is no bound. Else every namespace gets all that it asks for up to one
//! common number of entries, so a namespace that asks for little never loses any to one that asks
//! for much. A namespace that loses entries keeps the same ones on every node that knows the same
//! world: those of services before those of annotations, then by address and port.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use mesh_api::{PortSet, ProblemCode};
use mesh_common::{addr::AddrPort, maps::PORT_SERVICE};

/// A namespace or node that asks for more than its share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excess {
    /// Its name, and its table.
    pub by: By,
    /// How many entries it asks for.
    pub wanted: usize,
    /// And how many it gets.
    pub given: usize,
}

/// What has a share of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A namespace, of `PORTS`.
    Namespace(Arc<str>),
    /// A node, of `ADDRESSES`.
    Node(Arc<str>),
}

impl By {
    /// The code of the problem.
    pub fn code(&self) -> ProblemCode {
        match self {
            Self::Namespace(_) => ProblemCode::PortsOverShare,
            Self::Node(_) => ProblemCode::AddressesOverShare,
        }
    }
}

impl fmt::Display for Excess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { by, wanted, given } = self;
        match by {
            By::Namespace(namespace) => write!(
                f,
                "Namespace {namespace}: its services and the ports in its annotations ask for {wanted} entries of the kernel's table PORTS, which is full; {given} are in force on this node. Hint: name fewer ports in nodemesh.dev/exclude-ports and nodemesh.dev/permissive-ports, or have fewer service ports."
            ),
            By::Node(node) => write!(
                f,
                "Node {node}: the addresses that it announces ask for {wanted} entries of the kernel's table ADDRESSES, which is full; {given} are in force on this node, and pods of the mesh cannot dial addresses that may be among the others. Hint: find out what runs as that node's agent; the cluster may be too large."
            ),
        }
    }
}

/// Entries of the table that a namespace asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct EntryRequest<'a> {
    pub(super) namespace: &'a Arc<str>,
    pub(super) address: IpAddr,
    pub(super) ports: Ports<'a>,
    /// The `PORT_*` bit.
    pub(super) bit: u32,
}

/// The ports of a request's address.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ports<'a> {
    Of(&'a PortSet),
    Only(u16),
}

impl EntryRequest<'_> {
    fn len(&self) -> usize {
        match self.ports {
            Ports::Of(ports) => ports.iter().count(),
            Ports::Only(_) => 1,
        }
    }

    fn endpoints(&self) -> impl Iterator<Item = AddrPort> {
        let (set, only) = match self.ports {
            Ports::Of(ports) => (Some(ports), None),
            Ports::Only(port) => (None, Some(port)),
        };
        let (ports, address) = (set.into_iter().flat_map(PortSet::iter), self.address.into());
        ports.chain(only).map(move |port| AddrPort::new(address, port))
    }
}

/// What may be written to a table of that size, and the namespaces that lose something, by name.
pub(super) fn share_out(
    mut claims: Vec<EntryRequest<'_>>,
    size: usize,
) -> (HashMap<AddrPort, u32>, Vec<Excess>) {
    let mut asked: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    for claim in &claims {
        *asked.entry(claim.namespace).or_default() += claim.len();
    }
    if asked.values().sum::<usize>() > size {
        // Only now is it worthwhile to count a port that is claimed for two reasons as one entry.
        let mut claimed: HashSet<AddrPort> = HashSet::new();
        asked.clear();
        for claim in &claims {
            let new = claim.endpoints().filter(|endpoint| claimed.insert(*endpoint)).count();
            *asked.entry(claim.namespace).or_default() += new;
        }
    }
    let most = level(asked.values().copied(), size);
    let greedy = asked.into_iter().filter(|(_, wanted)| *wanted > most);
    let lost: Vec<_> = greedy
        .map(|(namespace, wanted)| Excess {
            by: By::Namespace(Arc::clone(namespace)),
            wanted,
            given: most,
        })
        .collect();
    if !lost.is_empty() {
        claims.sort_unstable_by_key(|it| (it.bit != PORT_SERVICE, it.address, it.bit));
    }
    let mut left: HashMap<&str, usize> = HashMap::new();
    for excess in &lost {
        if let By::Namespace(namespace) = &excess.by {
            left.insert(namespace, most);
        }
    }
    let mut ports: HashMap<AddrPort, u32> = HashMap::new();
    for claim in &claims {
        let mut left = left.get_mut(&**claim.namespace);
        for endpoint in claim.endpoints() {
            if let Some(bits) = ports.get_mut(&endpoint) {
                *bits |= claim.bit;
                continue;
            }
            match &mut left {
                Some(0) => continue,
                Some(left) => **left -= 1,
                None => {}
            }
            ports.insert(endpoint, claim.bit);
        }
    }
    (ports, lost)
}

/// How many entries each may have at most, so that all together have no more than there is room
/// for.
pub(super) fn level(wanted: impl Iterator<Item = usize>, size: usize) -> usize {
    let mut wanted: Vec<usize> = wanted.collect();
    wanted.sort_unstable();
    let (mut left, mut others) = (size, wanted.len());
    for one in wanted {
        let share = left.checked_div(others).unwrap_or(left);
        if one > share {
            return share;
        }
        (left, others) = (left - one, others - 1);
    }
    usize::MAX
}

#[cfg(test)]
mod tests {
    use mesh_common::maps::{PORT_EXCLUDED, PORT_PERMISSIVE};

    use super::*;

    /// Namespaces, each with an address and the ports that it excludes there.
    fn asked(all: &[(&str, &str)]) -> Vec<(Arc<str>, IpAddr, PortSet)> {
        let one = |(number, (name, ports)): (usize, &(&str, &str))| {
            let address = IpAddr::from([10, 0, 0, u8::try_from(number).unwrap()]);
            (Arc::from(*name), address, ports.parse().unwrap())
        };
        all.iter().enumerate().map(one).collect()
    }

    fn claims(asked: &[(Arc<str>, IpAddr, PortSet)]) -> Vec<EntryRequest<'_>> {
        asked
            .iter()
            .map(|(namespace, address, ports)| {
                let ports = Ports::Of(ports);
                EntryRequest { namespace, address: *address, ports, bit: PORT_EXCLUDED }
            })
            .collect()
    }

    fn lost(excess: &[Excess]) -> Vec<(Arc<str>, usize, usize)> {
        let name = |by: &'_ By| match by {
            By::Namespace(name) | By::Node(name) => Arc::clone(name),
        };
        excess.iter().map(|it| (name(&it.by), it.wanted, it.given)).collect()
    }

    fn of(ports: &HashMap<AddrPort, u32>, address: IpAddr) -> usize {
        ports.keys().filter(|endpoint| IpAddr::from(endpoint.addr) == address).count()
    }

    #[test]
    fn who_asks_for_little_loses_nothing_to_who_asks_for_much() {
        let all = asked(&[("few", "1-5"), ("much", "1-700"), ("some", "1-40"), ("much", "1-300")]);
        let (given, excess) = share_out(claims(&all), 100);
        assert_eq!(lost(&excess), [("much".into(), 1000, 55)]);
        assert_eq!(given.len(), 100, "all room is used");
        assert_eq!((of(&given, all[0].1), of(&given, all[2].1)), (5, 40));
        assert_eq!((of(&given, all[1].1), of(&given, all[3].1)), (55, 0), "in order");

        let two = asked(&[("few", "1-10"), ("a", "1-200"), ("b", "1-1000")]);
        let (given, excess) = share_out(claims(&two), 100);
        assert_eq!(
            (given.len(), lost(&excess)),
            (100, vec![("a".into(), 200, 45), ("b".into(), 1000, 45)])
        );
    }

    #[test]
    fn nobody_is_bounded_while_all_fits() {
        let all = asked(&[("much", "1-99"), ("few", "1")]);
        let (given, excess) = share_out(claims(&all), 100);
        assert_eq!((given.len(), lost(&excess)), (100, Vec::new()));
        let (given, excess) = share_out(claims(&all), 99);
        assert_eq!((given.len(), lost(&excess)), (99, vec![("much".into(), 99, 98)]));
    }

    #[test]
    fn a_service_comes_before_what_annotations_name_and_one_entry_has_all_bits() {
        let all = asked(&[("shop", "1-99")]);
        let (namespace, address, ports) = &all[0];
        let claim = |ports, bit| EntryRequest { namespace, address: *address, ports, bit };
        let all = vec![
            claim(Ports::Of(ports), PORT_PERMISSIVE),
            claim(Ports::Of(ports), PORT_EXCLUDED),
            claim(Ports::Only(8080), PORT_SERVICE),
        ];
        let (given, excess) = share_out(all.clone(), 100);
        assert_eq!((given.len(), excess), (100, Vec::new()), "100 entries, of 199 claims");
        let (given, _) = share_out(all, 3);
        let at = |port| AddrPort::new((*address).into(), port);
        let both = PORT_EXCLUDED | PORT_PERMISSIVE;
        assert_eq!(given, HashMap::from([(at(8080), PORT_SERVICE), (at(1), both), (at(2), both)]));
    }
}
