//! Whether the API server answers, and since when it does not.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::Client;
use mesh_api::ProblemCode;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::error::SourceError;
use super::told::Repeats;

/// How often a server that was away is asked whether it is back, and how long it may take to
/// answer.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A failed watch is retried within 5 s. If it has not failed again for longer than that and the
/// server answers, it works.
const SETTLED: Duration = Duration::from_secs(8);

/// The code of the problem. Its text changes with every attempt, so that only this file logs it,
/// and seldom.
pub(crate) const AWAY: ProblemCode = ProblemCode::ApiServerAway;

/// The watches that have failed and have not been heard of since.
#[derive(Default)]
pub(super) struct Away {
    failed: BTreeMap<&'static str, String>,
    since: Option<Timestamp>,
    repeats: Repeats,
    last_failure: Option<Instant>,
    next_look: Option<Instant>,
}

impl Away {
    /// A watch has failed.
    pub(super) fn failed(&mut self, kind: &'static str, error: String) {
        let now = Instant::now();
        let since = *self.since.get_or_insert_with(Timestamp::now);
        if let Some(attempts) = self.repeats.again(&error) {
            tracing::error!(
                code = AWAY.code(),
                kind,
                attempts,
                "the API server cannot be watched since {since:.0}: {error}"
            );
        }
        self.failed.insert(kind, error);
        self.last_failure = Some(now);
        self.next_look.get_or_insert(now + LOOK_EVERY);
    }

    /// A watch works.
    pub(super) fn heard_of(&mut self, kind: &'static str) {
        if self.failed.remove(kind).is_some() && self.failed.is_empty() {
            *self = Self::default();
        }
    }

    /// Since when the API server cannot be watched.
    pub(super) fn since(&self) -> Option<Timestamp> {
        self.since
    }

    /// Resolves when the server is known to be back although no watch has reported a change.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub(super) async fn look(&mut self, client: &Client) {
        loop {
            let Some(at) = self.next_look else { return pending().await };
            sleep_until(at).await;
            self.next_look = Some(Instant::now() + LOOK_EVERY);
            let settled = self.last_failure.is_none_or(|last| last.elapsed() > SETTLED);
            let answers = timeout(LOOK_EVERY, client.apiserver_version()).await;
            if settled && matches!(answers, Ok(Ok(_))) {
                *self = Self::default();
                return;
            }
        }
    }

    /// The problem, for people.
    pub(super) fn error(&self) -> Option<SourceError> {
        let (since, (kind, error)) = (self.since?, self.failed.iter().next()?);
        let message = format!(
            "the API server cannot be watched since {since:.0} ({kind}: {error}); what it said before stays in force"
        );
        let told = SourceError::whole_file(&Arc::from("API server"), message);
        Some(SourceError { code: AWAY, ..told })
    }
}
