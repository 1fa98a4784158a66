//! What a seed says: which pods are in the mesh at the beginning, what happens when, and how late
//! each node learns it.

use std::{
    fmt::{self, Display},
    time::Duration,
};

use crate::probe::Noise;

/// The pods that join and leave; two on each node.
pub(super) const MOVERS: [&str; 4] = ["a1", "a2", "b1", "b2"];

/// A story.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Schedule {
    pub(super) seed: u64,
    /// Which movers are in the mesh when it begins.
    pub(super) members: [bool; MOVERS.len()],
    /// What happens, in order, and when.
    pub(super) events: Vec<(Duration, Event)>,
    /// When it ends.
    pub(super) length: Duration,
}

/// One thing that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// A mover is labelled, or its label is taken away.
    Member(usize, bool),
    /// A mover is made strict, or permissive.
    Strict(usize, bool),
    /// The port of a mover's server-first server is excluded from the mesh, or not any more.
    Exclude(usize, bool),
    /// A mover's object is deleted, while the mover runs on; the next change brings it back.
    Forget(usize),
    /// SIGKILL to the agent of a node, and another one after some time.
    Kill(usize, Duration),
    /// SIGTERM, the same way.
    Stop(usize, Duration),
}

impl Schedule {
    pub(super) fn new(seed: u64) -> Self {
        let mut noise = Noise::new(seed);
        let mut below = |bound: u64| noise.next_u64() % bound;
        let members = std::array::from_fn(|_| below(2) == 0);
        let mut now = members;
        let length = Duration::from_millis(5000 + below(5) * below(1000));
        let count = 6 + below(8);
        let mut times: Vec<u64> = (0..count).map(|_| below(length.as_millis() as u64)).collect();
        times.sort_unstable();
        let mut deaths = 0;
        let mut event = || {
            let mover = below(MOVERS.len() as u64) as usize;
            match below(16) {
                0..9 => {
                    now[mover] = !now[mover];
                    Event::Member(mover, now[mover])
                }
                9 | 10 => Event::Strict(mover, below(2) == 0),
                11 => Event::Exclude(mover, below(3) > 0),
                12 => Event::Forget(mover),
                kind => {
                    deaths += 1;
                    let (node, away) = (below(2) as usize, Duration::from_millis(below(1500)));
                    match (kind, deaths) {
                        // A start costs more than all else together.
                        (_, 3..) => Event::Strict(mover, false),
                        (13, _) => Event::Stop(node, away),
                        _ => Event::Kill(node, away),
                    }
                }
            }
        };
        let events = times.into_iter().map(|ms| (Duration::from_millis(ms), event())).collect();
        Self { seed, members, events, length }
    }
}

/// How late a piece of news is: mostly a little, sometimes not at all, now and then up to 30 s.
/// Depends on its arguments alone, so that a schedule is the same however the machine is loaded.
pub(super) fn delay(seed: u64, route: &str, file: &str, change: u64) -> Duration {
    // FNV-1a, so that the noise of one piece of news has nothing to do with another's.
    let bytes = [route.as_bytes(), b"/", file.as_bytes(), &change.to_le_bytes()].concat();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64 ^ seed, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mut noise = Noise::new(hash);
    let mut below = |bound: u64| noise.next_u64() % bound;
    Duration::from_millis(match below(10) {
        0..3 => 0,
        3..6 => below(500),
        6..9 => 500 + below(3500),
        _ => 4000 + below(26_000),
    })
}

impl Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Member(mover, true) => write!(f, "{} joins", MOVERS[mover]),
            Self::Member(mover, false) => write!(f, "{} leaves", MOVERS[mover]),
            Self::Strict(mover, true) => write!(f, "{} becomes strict", MOVERS[mover]),
            Self::Strict(mover, false) => write!(f, "{} becomes permissive", MOVERS[mover]),
            Self::Exclude(mover, true) => write!(f, "{} has an excluded port", MOVERS[mover]),
            Self::Exclude(mover, false) => write!(f, "{} excludes nothing", MOVERS[mover]),
            Self::Forget(mover) => write!(f, "{}: object deleted", MOVERS[mover]),
            Self::Kill(node, away) => write!(f, "node{}: SIGKILL for {away:?}", node + 1),
            Self::Stop(node, away) => write!(f, "node{}: SIGTERM for {away:?}", node + 1),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_hundred_seeds_have_everything_in_them() {
        let events: Vec<Event> =
            (0..200).flat_map(|seed| Schedule::new(seed).events).map(|(_, event)| event).collect();
        let count =
            |wanted: fn(&Event) -> bool| events.iter().filter(|event| wanted(event)).count();
        assert!(count(|event| matches!(event, Event::Member(_, true))) > 300);
        assert!(count(|event| matches!(event, Event::Member(_, false))) > 300);
        assert!(count(|event| matches!(event, Event::Strict(_, true))) > 50);
        assert!(count(|event| matches!(event, Event::Exclude(_, true))) > 30);
        assert!(count(|event| matches!(event, Event::Forget(_))) > 30);
        assert!(count(|event| matches!(event, Event::Kill(..))) > 50);
        assert!(count(|event| matches!(event, Event::Stop(..))) > 50);
        let delays: Vec<Duration> = (0..1000).map(|n| delay(1, "r", "f", n)).collect();
        let longer =
            |than| delays.iter().filter(|delay| **delay > Duration::from_secs(than)).count();
        assert!(longer(0) < 800 && longer(1) > 200 && longer(10) > 30, "{delays:?}");
        assert_eq!(longer(30), 0);
    }
}
