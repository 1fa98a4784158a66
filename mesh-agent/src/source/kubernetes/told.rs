//! Answers of the API server, as sentences for people, logged as often as people want to read them.

use std::error::Error;
use std::time::{Duration, Instant};

use kube::core::Status;
use kube::runtime::watcher;

/// How often a repeated failure is logged.
const TELL_EVERY: Duration = Duration::from_mins(1);

/// Why a request came to nothing: what was asked, what is missing, what to do.
pub fn sentence(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => of_status(status),
        other => with_causes(other),
    }
}

/// The same of a watch.
pub(crate) fn of_watch(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => sentence(error),
        watcher::Error::WatchError(status) => of_status(status),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

/// The API server's own message names account, verb and resource.
fn of_status(status: &Status) -> String {
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    match status.code {
        401 => format!(
            "{said} (401): the API server does not know this pod's account; start the pod again, and if that is not enough apply Nodemesh's manifest"
        ),
        403 => format!(
            "{said} (403): a right is missing, or an admission policy is against it; apply Nodemesh's manifest again, which has the rights"
        ),
        code => format!("{said} ({code})"),
    }
}

/// An error with its causes, such as `connection refused`, which kube's own sentence may not
/// mention.
fn with_causes(error: &dyn Error) -> String {
    let mut told = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !told.contains(&why) {
            told = format!("{told}: {why}");
        }
        cause = error.source();
    }
    told
}

/// When to log what happens again and again: the first time, and then once a minute with the count.
/// Texts that are equal up to a colon are the same: the API server names pods when it refuses their
/// list and when it refuses a watch.
#[derive(Default)]
pub(crate) struct Repeats(Vec<Repeat>);

struct Repeat {
    text: String,
    told: Instant,
    since: u32,
}

/// The number of texts that are remembered; a watch of each kind has its own.
const KNOWN: usize = 16;

impl Repeats {
    /// It has happened. If it is to be logged now, returns how often it has happened since it was
    /// last logged, this time included.
    pub(crate) fn again(&mut self, text: &str) -> Option<u32> {
        self.at(text, Instant::now())
    }

    fn at(&mut self, text: &str, now: Instant) -> Option<u32> {
        let text = text.split(':').next().unwrap_or_default();
        if let Some(known) = self.0.iter_mut().find(|known| known.text == text) {
            known.since = known.since.saturating_add(1);
            if now.duration_since(known.told) < TELL_EVERY {
                return None;
            }
            known.told = now;
            return Some(std::mem::take(&mut known.since));
        }
        if self.0.len() >= KNOWN {
            self.0.remove(0);
        }
        self.0.push(Repeat { text: text.to_owned(), told: now, since: 0 });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        Status { code, message: message.to_owned(), reason: "Why".to_owned(), ..Status::default() }
    }

    #[test]
    fn answers_are_sentences_without_debug_output() {
        let message = "pods is forbidden: User \"system:serviceaccount:nodemesh:mesh-agent\" cannot list resource \"pods\" in API group \"\" at the cluster scope";
        let error = || kube::Error::Api(Box::new(status(403, message)));
        let told = [
            sentence(&error()),
            of_watch(&watcher::Error::InitialListFailed(error())),
            of_watch(&watcher::Error::WatchError(Box::new(status(403, message)))),
        ];
        for told in told {
            assert!(
                told.starts_with(message) && told.contains("apply Nodemesh's manifest"),
                "{told}"
            );
            assert!(!told.contains("Status {") && !told.contains("Some("), "{told}");
        }
        assert_eq!(sentence(&kube::Error::Api(Box::new(status(500, "")))), "Why (500)");
    }

    #[test]
    fn what_happens_all_the_time_is_told_once_a_minute_with_a_count() {
        let mut repeats = Repeats::default();
        let mut told = Vec::new();
        let begin = Instant::now();
        for second in 0..=120 {
            let now = begin + Duration::from_secs(second);
            let verb = if second % 2 == 0 { "list" } else { "watch" };
            told.extend(repeats.at(&format!("pods is forbidden: you may not {verb}"), now));
            if second == 7 {
                assert_eq!(repeats.at("another reason", now), Some(1));
            }
        }
        assert_eq!(told, [1, 60, 60]);
    }
}
