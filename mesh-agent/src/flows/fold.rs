//! Alike connections that failed without carrying a byte. The first ones are recorded one by one;
//! further ones are only counted. A flood of them must not cost much, nor evict the records that
//! explain it.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

use mesh_api::{Direction, Outcome};

use super::record::Record;

/// How many alike connections are recorded one by one in a [`WINDOW`].
pub(super) const SINGLY: u32 = 32;
/// After this time, one record stands for the others.
const WINDOW: Duration = Duration::from_secs(5);
/// How many kinds of one pod are counted apart. With more (a scan from forged addresses), new kinds
/// ignore the client; with twice as many (dials to ever new addresses), the server too. That bounds
/// their number, since there are few directions and outcomes.
const KINDS: usize = 64;

/// What makes two connections of one pod alike.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Kind {
    pub(super) direction: Direction,
    pub(super) outcome: Outcome,
    pub(super) client: Option<IpAddr>,
    pub(super) server: Option<IpAddr>,
}

impl Kind {
    /// The kind itself, that of any client, and that of any client and server.
    fn wider(&self) -> [Self; 3] {
        let of_any_client = Self { client: None, ..self.clone() };
        let of_any = Self { server: None, ..of_any_client.clone() };
        [self.clone(), of_any_client, of_any]
    }
}

/// The current counts, by the network namespace (its cookie) of this node's pod: a flood of one pod
/// says nothing about another pod.
#[derive(Default)]
pub(super) struct Folds(HashMap<u64, HashMap<Kind, Fold>>);

struct Fold {
    since: Instant,
    seen: u32,
    /// The first record of the kind, which serves as the example for the others.
    like: Option<Record>,
    folded: u64,
}

/// Whether a connection is to be recorded by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recorded {
    Singly,
    /// Only counted.
    Folded,
}

impl Folds {
    /// Counts one more connection of a kind. Returns whether to record it by itself, and the record
    /// of those that were only counted in the kind's last window, if that window is over.
    pub(super) fn count(
        &mut self,
        netns: u64,
        kind: Kind,
        now: Instant,
    ) -> (Recorded, Option<Record>) {
        let folds = self.0.entry(netns).or_default();
        let [_, of_any_client, of_any] = kind.wider();
        let kind = match folds.len() {
            _ if folds.contains_key(&kind) => kind,
            ..KINDS => kind,
            _ if folds.contains_key(&of_any_client) => of_any_client,
            few if few < 2 * KINDS => of_any_client,
            _ => of_any,
        };
        let new = || Fold { since: now, seen: 0, like: None, folded: 0 };
        let fold = folds.entry(kind).or_insert_with(new);
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

    /// Takes the record of a connection that was recorded by itself as the example for those that
    /// are only counted.
    pub(super) fn example(&mut self, netns: u64, kind: &Kind, record: &Record) {
        let Some(folds) = self.0.get_mut(&netns) else { return };
        let known = kind.wider().into_iter().find(|kind| folds.contains_key(kind));
        if let Some(fold) = known.and_then(|known| folds.get_mut(&known)) {
            fold.like.get_or_insert_with(|| record.clone());
        }
    }

    /// Records of all windows that have ended. The windows are forgotten.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Record> {
        let is_over = |fold: &Fold| now.duration_since(fold.since) >= WINDOW;
        let ended = self.0.values_mut().flat_map(|folds| folds.extract_if(|_, fold| is_over(fold)));
        let told = ended.filter_map(|(_, fold)| fold.told()).collect();
        self.0.retain(|_, folds| !folds.is_empty());
        told
    }
}

impl Fold {
    fn told(self) -> Option<Record> {
        let mut record = self.like.filter(|_| self.folded > 0)?;
        record.alike = self.folded;
        record.reason = format!(
            "{} more connections like this one within {} s: {}",
            self.folded,
            WINDOW.as_secs(),
            record.reason
        )
        .into();
        Some(record)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use mesh_common::verdict::Verdict;

    use super::*;

    #[test]
    fn dials_to_addresses_without_end_take_little_and_are_all_counted() {
        let (mut folds, now, many) = (Folds::default(), Instant::now(), 100_000);
        let mut singly = 0;
        for number in 0..many {
            singly += u32::from(folds.count(1, to(number), now).0 == Recorded::Singly);
        }
        let folds = &folds.0[&1];
        assert!(folds.len() <= 2 * KINDS + 1, "{}", folds.len());
        let folded: u64 = folds.values().map(|fold| fold.folded).sum();
        assert_eq!(folded + u64::from(singly), u64::from(many));
    }

    #[test]
    fn a_flood_of_one_pod_hides_nothing_of_another() {
        let (mut folds, now) = (Folds::default(), Instant::now());
        for number in 0..10_000 {
            folds.count(1, to(number), now);
        }
        let recorded: Vec<_> = (0..=SINGLY).map(|_| folds.count(2, to(0), now).0).collect();
        let (last, first) = recorded.split_last().unwrap();
        assert!(first.iter().all(|it| *it == Recorded::Singly), "{recorded:?}");
        assert_eq!(*last, Recorded::Folded);
        folds.sweep(now + WINDOW);
        assert!(folds.0.is_empty());
    }

    fn to(number: u32) -> Kind {
        Kind {
            direction: Direction::Outbound,
            outcome: Outcome::Refused(Verdict::RefusedMagicPort),
            client: Some(Ipv4Addr::from_bits(number % 7).into()),
            server: Some(Ipv4Addr::from_bits(number).into()),
        }
    }
}
