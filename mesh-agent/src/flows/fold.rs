//! Connections that come to nothing and are all alike are recorded one by one at first, and then counted: a flood of
//! them must neither cost more than it is worth nor push out the records that explain it.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use super::record::{Direction, FlowRecord};

/// Alike ones that are recorded one by one in a [`WINDOW`].
pub(super) const SINGLY: u32 = 32;
/// After this time the others are told of in one record.
const WINDOW: Duration = Duration::from_secs(5);
/// Kinds that are told apart at once. With more (a scan from forged addresses) the client is not looked at any more.
const KINDS: usize = 512;

/// What makes two alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) direction: Direction,
    pub(super) code: &'static str,
    pub(super) client: Option<IpAddr>,
    pub(super) server: IpAddr,
}

/// What is counted now.
#[derive(Default)]
pub(super) struct Folds(HashMap<Kind, Fold>);

struct Fold {
    since: Instant,
    seen: u32,
    /// The first one, to tell of the others with.
    like: Option<FlowRecord>,
    folded: u64,
}

/// Whether one is to be recorded by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    Singly,
    /// It has been counted.
    Folded,
}

impl Folds {
    /// One more of a kind. The second part is what is to be told of the window that has ended with it.
    pub(super) fn count(&mut self, mut kind: Kind, now: Instant) -> (Recorded, Option<FlowRecord>) {
        if self.0.len() >= KINDS && !self.0.contains_key(&kind) {
            kind.client = None;
        }
        let new = || Fold { since: now, seen: 0, like: None, folded: 0 };
        let fold = self.0.entry(kind).or_insert_with(new);
        let ended = if now.duration_since(fold.since) < WINDOW {
            None
        } else {
            std::mem::replace(fold, new()).told()
        };
        fold.seen = fold.seen.saturating_add(1);
        if fold.seen <= SINGLY {
            return (Recorded::Singly, ended);
        }
        fold.folded += 1;
        (Recorded::Folded, ended)
    }

    /// The record of one that was recorded by itself: those that are only counted will be told of by its example.
    pub(super) fn example(&mut self, kind: &Kind, record: &FlowRecord) {
        let of_any_client = Kind { client: None, ..kind.clone() };
        let known = if self.0.contains_key(kind) { kind } else { &of_any_client };
        if let Some(fold) = self.0.get_mut(known) {
            fold.like.get_or_insert_with(|| record.clone());
        }
    }

    /// What is to be told of all windows that have ended. They are forgotten.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<FlowRecord> {
        let ended = self.0.extract_if(|_, fold| now.duration_since(fold.since) >= WINDOW);
        ended.filter_map(|(_, fold)| fold.told()).collect()
    }
}

impl Fold {
    fn told(self) -> Option<FlowRecord> {
        let mut record = self.like.filter(|_| self.folded > 0)?;
        record.alike = self.folded;
        record.reason = format!(
            "{} more connections like this one within {} s: {}",
            self.folded,
            WINDOW.as_secs(),
            record.reason
        );
        Some(record)
    }
}
