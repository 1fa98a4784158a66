//! What an earlier agent has written down may be older than what it told the kernel. A pod that was
//! made strict since would be opened again by an agent that begins with what is on disk.
//!
//! As long as the disk is all that is known, the kernel's tables, as they were when this agent
//! began, are the floor: no pod becomes more open than they say. The same goes for objects that
//! cannot be read and of which the disk has an earlier version, until they can be read. Where the
//! disk has none, the tables are the earlier version, so that a pod that was in the mesh stays
//! there.
//!
//! The floors are put into the objects that the world is made of, so that snapshot, announcement
//! and tables say the same. A pod is known by its address alone. If another pod had that address in
//! the tables, this one is closed for longer than it need be, and no pod is opened.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use mesh_api::Mode;
use mesh_common::{
    addr::{Addr, AddrPort},
    maps::{LOCAL_LEFT, LocalEntry, PORT_EXCLUDED, PORT_PERMISSIVE},
};
use mesh_world::{Floor, Objects};

use super::tables::is_strict;
use crate::source::{Knowledge, SourceState};

/// The floors, and the objects that they were last put into.
pub(super) struct Floors {
    found: HashMap<IpAddr, Floor>,
    /// Objects without and with them.
    last: Option<(Arc<Objects>, Arc<Objects>)>,
}

impl Floors {
    /// The floors that the tables say.
    pub(super) fn of(local: &HashMap<Addr, LocalEntry>, ports: &HashMap<AddrPort, u32>) -> Self {
        Self { found: floors(local, ports), last: None }
    }

    /// Objects in which no pod is more open than its floor; the same copy while nothing changes. A
    /// pod that the source itself has told, and that can be read, is left as it is from then on.
    pub(super) fn in_objects(
        &mut self,
        objects: &Arc<Objects>,
        state: &SourceState,
    ) -> Arc<Objects> {
        let found = &mut self.found;
        if !found.is_empty() && !matches!(state.knowledge, Knowledge::Kept(_)) {
            let unreadable = objects.unreadable(state.is_unreadable());
            let before = found.len();
            found.retain(|address, _| unreadable.contains(address));
            if found.len() != before {
                self.last = None;
            }
        }
        if found.is_empty() {
            self.last = None;
            return Arc::clone(objects);
        }
        if let Some((without, with)) = &self.last
            && Arc::ptr_eq(without, objects)
        {
            return Arc::clone(with);
        }
        let with = Arc::new(objects.above(found, state.is_unreadable()));
        self.last = Some((Arc::clone(objects), Arc::clone(&with)));
        with
    }
}

/// Reads the floors out of the tables, which say nothing of a pod that has left.
fn floors(
    local: &HashMap<Addr, LocalEntry>,
    ports: &HashMap<AddrPort, u32>,
) -> HashMap<IpAddr, Floor> {
    let here = local.iter().filter(|(_, pod)| pod.flags & LOCAL_LEFT == 0);
    let mut floors: HashMap<IpAddr, Floor> = here
        .map(|(address, pod)| {
            let mode = if is_strict(pod.flags) { Mode::Strict } else { Mode::Permissive };
            ((*address).into(), Floor { mode, ..Floor::default() })
        })
        .collect();
    for (endpoint, bits) in ports {
        let Some(floor) = floors.get_mut(&IpAddr::from(endpoint.addr)) else { continue };
        let mut note = |bit, ports: fn(&mut Floor) -> &mut BTreeSet<u16>| {
            if bits & bit != 0 {
                ports(floor).insert(endpoint.port);
            }
        };
        note(PORT_EXCLUDED, |floor| &mut floor.exclude_ports);
        note(PORT_PERMISSIVE, |floor| &mut floor.permissive_ports);
    }
    floors
}

#[cfg(test)]
mod tests {
    use mesh_common::maps::LOCAL_STRICT;

    use super::{super::tables::local, *};

    #[test]
    fn the_tables_say_how_closed_a_pod_is_unless_it_has_left() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let [strict, open, left, remote] =
            ["10.0.0.1", "fd00::2", "10.0.0.3", "10.0.1.4"].map(address);
        let pods = HashMap::from([
            (strict.into(), local(7, LOCAL_STRICT)),
            (open.into(), local(8, 0)),
            (left.into(), local(9, LOCAL_LEFT)),
        ]);
        let at = |address: IpAddr, port| AddrPort::new(address.into(), port);
        let ports = HashMap::from([
            (at(strict, 9102), PORT_PERMISSIVE),
            (at(strict, 22), PORT_EXCLUDED | PORT_PERMISSIVE),
            (at(left, 22), PORT_EXCLUDED),
            (at(remote, 22), PORT_EXCLUDED),
        ]);
        let said = Floor {
            mode: Mode::Strict,
            exclude_ports: [22].into(),
            permissive_ports: [22, 9102].into(),
        };
        let expected = HashMap::from([(strict, said), (open, Floor::default())]);
        assert_eq!(floors(&pods, &ports), expected);
    }
}
