//! Reports what is wrong with pods and other objects where people look for it: in the log, and in a
//! cluster as Kubernetes Events. `kubectl describe pod` and `kubectl get events` show those.
//!
//! Problems are read from `status` every few seconds, so that nothing waits for it and nothing is
//! queued. A lasting problem is reported once and again every [`REPEAT`]. What the pace (`pace.rs`)
//! leaves out is reported when its turn comes.

mod collect;
mod events;
mod pace;

use std::{collections::BTreeMap, sync::Arc, sync::atomic::Ordering, time::Duration};

use jiff::Timestamp;
use kube::Client;
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior, interval},
};

pub(crate) use self::events::CONTROLLER as EVENT_CONTROLLER;
use mesh_world::{Announcements, NodeName};

use self::{
    collect::{Key, Notice, collect},
    events::Events,
    pace::Pace,
};
use crate::{admin::AdminContext, source::AnnouncementState};

/// How often problems are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How long a problem must last to be reported: pods are held for a moment whenever they start.
const LASTS: Duration = Duration::from_secs(10);
/// How often a lasting problem is reported again. Below six minutes, after which an Event counts as
/// a new one.
const REPEAT: Duration = Duration::from_mins(5);
/// How many agents report what every node sees, such as a false announcement: one, and another if
/// that one is gone.
const SPEAKERS: usize = 2;

/// The task that reports problems.
pub struct Notices {
    state: Arc<AdminContext>,
    node: NodeName,
    announcements: watch::Receiver<Arc<AnnouncementState>>,
    /// Only in a cluster.
    events: Option<Events>,
    /// The present problems, and those of a short while ago.
    known: BTreeMap<Key, ProblemTimes>,
    pace: Pace,
}

struct ProblemTimes {
    since: Timestamp,
    first: Instant,
    /// When the problem was last seen.
    last: Instant,
    logged: Option<Instant>,
    written: Option<Instant>,
}

impl Notices {
    /// For a node's agent; `client` where there is an API server to write Events to.
    pub fn new(
        state: Arc<AdminContext>,
        node: NodeName,
        announcements: watch::Receiver<Arc<AnnouncementState>>,
        client: Option<Client>,
    ) -> Self {
        let events = client.map(|client| Events::new(client, &node));
        let (known, pace) = (BTreeMap::new(), Pace::default());
        Self { state, node, announcements, events, known, pace }
    }

    /// Reports for ever.
    ///
    /// # Cancel safety
    /// Can be dropped at any time: what was not reported yet is not reported.
    pub async fn run(mut self) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            let speaks = speaks_for_all(&self.node, &self.announcements.borrow().announcements);
            let found = collect(&self.state.overview(), &self.state.world_problems(), speaks);
            self.note(&found, Instant::now());
            self.tell(&found).await;
        }
    }

    /// Notes since when problems last. A problem that is over is forgotten only after [`REPEAT`],
    /// so that one that comes and goes is reported no more often than one that stays.
    fn note(&mut self, found: &BTreeMap<Key, Notice>, now: Instant) {
        let is_recent = |known: &ProblemTimes| {
            let told = known.logged.max(known.written);
            told.is_some_and(|told| now - told < REPEAT)
        };
        self.known.retain(|key, known| found.contains_key(key) || is_recent(known));
        for key in found.keys() {
            let (since, first) = (Timestamp::now(), now);
            let new = ProblemTimes { since, first, last: now, logged: None, written: None };
            let known = self.known.entry(key.clone()).or_insert(new);
            if now - known.last > 2 * LOOK_EVERY {
                (known.since, known.first) = (since, first); // it was over in between
            }
            known.last = now;
        }
    }

    async fn tell(&mut self, found: &BTreeMap<Key, Notice>) {
        let counters = &self.state.mesh.counters;
        for (key, notice) in found {
            let now = Instant::now();
            let Some(known) = self.known.get_mut(key) else { continue };
            let is_due = |told: Option<Instant>| {
                now - known.first >= LASTS && told.is_none_or(|told| now - told >= REPEAT)
            };
            let (log, write) = (is_due(known.logged), is_due(known.written));
            if (!log && (!write || self.events.is_none())) || !self.pace.allows(key, now) {
                continue;
            }
            if log {
                known.logged = Some(now);
                let (reason, since) = (&key.reason, known.since);
                tracing::warn!(about = %key.about, reason, %since, "{}", notice.note);
            }
            let Some(events) = self.events.as_mut().filter(|_| write) else { continue };
            match events.write(key, notice).await {
                Ok(()) => {
                    counters.events_written.fetch_add(1, Ordering::Relaxed);
                    known.written = Some(now);
                }
                Err(error) => {
                    counters.events_failed.fetch_add(1, Ordering::Relaxed);
                    tracing::debug!(about = %key.about, %error, "an Event cannot be written");
                    if error.is_about_the_server() {
                        self.pace.give_back(key);
                        return; // the others would fail, too; the next look tries again
                    }
                    known.written = Some(now); // the API server does not accept this Event
                }
            }
        }
        counters.events_waiting.store(self.waiting(found), Ordering::Relaxed);
    }

    /// How many lasting problems have not been reported yet.
    fn waiting(&self, found: &BTreeMap<Key, Notice>) -> u64 {
        let now = Instant::now();
        let waits = |key: &&Key| {
            self.known.get(*key).is_some_and(|known| {
                let told = if self.events.is_some() { known.written } else { known.logged };
                now - known.first >= LASTS && told.is_none()
            })
        };
        found.keys().filter(waits).count() as u64
    }
}

/// Whether this node's agent is one of those that report what every node sees: the first by name of
/// the nodes that announce.
fn speaks_for_all(node: &NodeName, announcements: &Announcements) -> bool {
    announcements.keys().take(SPEAKERS).any(|first| first == node)
        || announcements.len() < SPEAKERS && !announcements.contains_key(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_what_every_node_sees_two_agents_tell_at_most() {
        let node = |name: &str| NodeName::parse(name).unwrap();
        let mesh_node = |name: &str| {
            serde_json::from_value(serde_json::json!({
                "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": name},
                "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": []},
            }))
            .unwrap()
        };
        let names = ["node1", "node2", "node3", "node4"];
        let all: Announcements =
            names.iter().map(|name| (node(name), Arc::new(mesh_node(name)))).collect();
        let speakers = names.iter().filter(|name| speaks_for_all(&node(name), &all)).count();
        assert_eq!(speakers, SPEAKERS);
        assert!(speaks_for_all(&node("node9"), &Announcements::new()), "one node has to");
    }
}
