//! The newest finished records. A full store evicts the oldest record of the owner with the most.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use mesh_api::{Direction, FlowRecord};
use mesh_world::ObjectName;

use super::record::Record;

/// Finished records that are kept: some 530 bytes each beside the names, so 2 MiB (counted).
pub(super) const KEPT: usize = 4096;

/// A pod of this node, and whether bytes of applications went. So neither another pod nor a flood
/// of connections without a byte evicts the records of a pod's connections that carried bytes.
/// Addresses that belong to no pod have one owner together, because a pod may give itself as
/// many addresses as it likes.
type Owner = (Option<ObjectName>, bool);

/// A finished record.
#[derive(Debug)]
pub(super) enum Finished {
    Own(Record),
    /// Of the agent before this one. It may be newer and have codes that this one does not know.
    Adopted(FlowRecord),
}

impl Finished {
    /// The record as it is printed.
    pub(super) fn printed(&self) -> FlowRecord {
        match self {
            Self::Own(record) => record.into(),
            Self::Adopted(record) => record.clone(),
        }
    }

    fn owner(&self) -> Owner {
        let (pod, bytes) = match self {
            Self::Own(record) => (record.local().pod.clone(), record.bytes),
            Self::Adopted(record) => {
                let local = match record.direction {
                    Direction::Outbound => &record.client,
                    Direction::Inbound => &record.server,
                };
                let name = local.pod.as_deref().and_then(|pod| pod.split_once('/'));
                (name.map(|(namespace, name)| ObjectName::new(namespace, name)), record.bytes)
            }
        };
        (pod, bytes.sent + bytes.received > 0)
    }
}

/// A bounded store.
#[derive(Default)]
pub(super) struct FinishedRecords {
    by_owner: HashMap<Owner, VecDeque<(u64, Arc<Finished>)>>,
    count: usize,
    next: u64,
}

impl FinishedRecords {
    /// Keeps one more record. If the store is full, evicts the oldest record of the owner with the
    /// most.
    pub(super) fn push(&mut self, record: Arc<Finished>) {
        if self.count == KEPT {
            self.push_out();
        }
        self.by_owner.entry(record.owner()).or_default().push_back((self.next, record));
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
    pub(super) fn list(&self) -> Vec<Arc<Finished>> {
        let mut all: Vec<_> = self.by_owner.values().flatten().cloned().collect();
        all.sort_unstable_by_key(|(number, _)| *number);
        all.into_iter().map(|(_, record)| record).collect()
    }
}
