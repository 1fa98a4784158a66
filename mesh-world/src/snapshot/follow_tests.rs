//! A world that is followed step by step equals the world that is built anew, whatever changes in
//! whatever order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::PortSet;
use proptest::prelude::*;

use super::changes::{Told, change};
use super::{Snapshot, World};
use crate::Incumbents;

/// The part of the kernel's tables that comes from a snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
struct Rows {
    addresses: BTreeMap<std::net::IpAddr, (bool, bool, PortSet, PortSet)>,
    nodes: BTreeSet<std::net::IpAddr>,
    services: BTreeSet<(std::net::IpAddr, u16)>,
}

impl Rows {
    fn of(world: &Snapshot) -> Self {
        let mut rows = Self::default();
        for row in world.kernel_addresses() {
            rows.set(world, row.address);
        }
        rows.nodes = world.node_addresses().copied().collect();
        let meshed = world.kernel_services().filter(|row| row.has_meshed_endpoint);
        rows.services = meshed.map(|row| (row.address, row.port)).collect();
        rows
    }

    fn set(&mut self, world: &Snapshot, address: std::net::IpAddr) {
        match world.kernel_address(address) {
            Some(row) => {
                let ports = row.exclude_ports.cloned().unwrap_or_default();
                let open = row.permissive_ports.cloned().unwrap_or_default();
                self.addresses.insert(address, (row.known_pod, row.peer, ports, open))
            }
            None => self.addresses.remove(&address),
        };
        if world.is_node_address(address) {
            self.nodes.insert(address);
        } else {
            self.nodes.remove(&address);
        }
    }

    fn follow(&mut self, before: &Snapshot, now: &Snapshot) {
        for address in now.changed_addresses(before) {
            self.set(now, address);
        }
        for (address, port) in now.changed_services(before) {
            if now.is_meshed_service(address, port) {
                self.services.insert((address, port));
            } else {
                self.services.remove(&(address, port));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, ..ProptestConfig::default() })]

    #[test]
    fn each_step_leads_to_what_is_built_anew(
        steps in prop::collection::vec(prop::collection::vec(change(), 1..6), 1..20),
    ) {
        let mut told = Told::nothing();
        let shared = |told: &Told| (Arc::new(told.objects.clone()), Arc::new(told.announcements.clone()));
        let (objects, announcements) = shared(&told);
        let mut world = World::new(&objects, &announcements, &told.local, Incumbents::default());
        let mut rows = Rows::of(world.snapshot());
        let mut heard = announcements;
        for changes in &steps {
            for change in changes {
                told.apply(change);
            }
            let (objects, announcements) = shared(&told);
            let before = world.snapshot().clone();
            let now = Incumbents::clone(world.incumbents());
            let now = now.after(&heard, &announcements, &told.local.name);
            heard = Arc::clone(&announcements);
            let followed = world.update(&objects, &announcements, &told.local).clone();
            prop_assert_eq!(world.incumbents(), &now);
            let built = Snapshot::build(&objects, &announcements, &told.local, world.incumbents());
            prop_assert_eq!(&followed, &built);
            prop_assert_eq!(followed.problems(), built.problems());
            prop_assert!(followed != before || followed.is(&before), "equal, but made anew");
            rows.follow(&before, &followed);
            prop_assert_eq!(&rows, &Rows::of(&built));
        }
    }
}
