//! Limits what is reported: no namespace keeps another one's pods out of the log and the Events,
//! and a node with thousands of mistakes writes few Events a second.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::collect::Key;

/// How long shares last.
const WINDOW: Duration = Duration::from_mins(5);
/// Notices of one namespace in that time. The cluster's own objects share one count like it.
const PER_NAMESPACE: usize = 20;
/// Notices of the whole node: one every 2 s.
const PER_NODE: usize = 150;

/// What has been reported in the present window.
#[derive(Default)]
pub(super) struct Pace {
    begun: Option<Instant>,
    told: HashMap<String, usize>,
    total: usize,
}

impl Pace {
    /// Whether one more may be reported; if so, it counts.
    pub(super) fn allows(&mut self, key: &Key, now: Instant) -> bool {
        if self.begun.is_none_or(|begun| now - begun >= WINDOW) {
            *self = Self { begun: Some(now), ..Self::default() };
        }
        // Keeps room for namespaces that have said little: a quarter of the whole is for first
        // notices.
        let told = self.told.get(&key.about.namespace).copied().unwrap_or(0);
        let room = if told == 0 { PER_NODE } else { PER_NODE - PER_NODE / 4 };
        if told >= PER_NAMESPACE || self.total >= room {
            return false;
        }
        self.total += 1;
        *self.told.entry(key.about.namespace.clone()).or_default() += 1;
        true
    }

    /// The notice could not be written, and does not count.
    pub(super) fn give_back(&mut self, key: &Key) {
        self.total = self.total.saturating_sub(1);
        if let Some(told) = self.told.get_mut(&key.about.namespace) {
            *told = told.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::collect::About, *};

    fn key(namespace: &str, name: usize) -> Key {
        let (namespace, name, uid) = (namespace.to_owned(), name.to_string(), String::new());
        Key { about: About { namespace, kind: "Pod", name, uid }, reason: "Held".to_owned() }
    }

    #[test]
    fn a_namespace_has_its_share_and_the_next_window_is_a_new_one() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        let told = (0..1000).filter(|pod| pace.allows(&key("noisy", *pod), now)).count();
        assert_eq!(told, PER_NAMESPACE);
        assert!(pace.allows(&key("quiet", 0), now));
        assert!(!pace.allows(&key("noisy", 0), now + WINDOW / 2));
        assert!(pace.allows(&key("noisy", 0), now + WINDOW));
    }

    #[test]
    fn many_namespaces_leave_room_for_the_first_word_of_another() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for namespace in 0..20 {
            for pod in 0..20 {
                pace.allows(&key(&format!("noisy-{namespace}"), pod), now);
            }
        }
        assert!(pace.total < PER_NODE);
        assert!(pace.allows(&key("quiet", 0), now));
        let all = (0..1000).filter(|it| pace.allows(&key(&format!("n{it}"), 0), now)).count();
        assert!(pace.total == PER_NODE && all > 0);
    }
}
