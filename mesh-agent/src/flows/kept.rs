//! The newest finished records. A full store evicts the oldest record of the owner with the most.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use mesh_api::{Direction, FlowRecord};

/// Finished records that are kept: some 700 bytes each, so 3 MiB.
pub(super) const KEPT: usize = 4096;

/// A pod of this node, and whether bytes of applications went. So neither another pod nor a flood
/// of connections that came to nothing evicts the records of a pod's connections that carried
/// bytes. Addresses that belong to no pod have one owner together, because a pod may give itself as
/// many addresses as it likes.
type Owner = (Option<String>, bool);

/// A bounded store.
#[derive(Default)]
pub(super) struct Kept {
    by_owner: HashMap<Owner, VecDeque<(u64, Arc<FlowRecord>)>>,
    count: usize,
    next: u64,
}

impl Kept {
    /// Keeps one more record. If the store is full, evicts the oldest record of the owner with the
    /// most.
    pub(super) fn push(&mut self, record: Arc<FlowRecord>) {
        if self.count == KEPT {
            self.push_out();
        }
        let local = match record.direction {
            Direction::Outbound => &record.client.pod,
            Direction::Inbound => &record.server.pod,
        };
        let carried = record.bytes.sent + record.bytes.received > 0;
        let owner = (local.clone(), carried);
        self.by_owner.entry(owner).or_default().push_back((self.next, record));
        self.next += 1;
        self.count += 1;
    }

    fn push_out(&mut self) {
        let most = self.by_owner.iter().max_by_key(|(_, records)| records.len());
        let Some(owner) = most.map(|(owner, _)| owner.clone()) else { return };
        if let Some(records) = self.by_owner.get_mut(&owner) {
            records.pop_front();
            self.count -= 1;
            if records.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
    }

    /// All, oldest first.
    pub(super) fn list(&self) -> Vec<Arc<FlowRecord>> {
        let mut all: Vec<_> = self.by_owner.values().flatten().cloned().collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, record)| record).collect()
    }
}
