//! What an earlier agent wrote down, for when the API server does not answer.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mesh_api::ProblemCode;
use mesh_world::{Announcements, Objects};
use tokio::time::{Instant, sleep_until};

use super::super::earlier::Earlier;
use super::super::error::SourceError;

/// How long the API server may take to answer before an earlier agent's knowledge comes into force.
/// Until either is known, dials into the mesh are refused.
const PATIENCE: Duration = Duration::from_secs(3);

impl Earlier {
    pub(super) fn objects(&self) -> Fallback<Objects> {
        let hint = "the API server has to answer before anything is decided here";
        let unusable = self.unusable.clone().map(|unusable| unusable.hint(hint));
        let what = self.kept.as_ref().map(|kept| (Arc::clone(&kept.objects), kept.as_of));
        Fallback { what, from: Some(self.read_at + PATIENCE), error: unusable }
    }

    /// Errors are reported with the objects only.
    pub(super) fn announcements(&self) -> Fallback<Announcements> {
        let what =
            self.kept.as_ref().map(|kept| (Arc::clone(&kept.memory.announcements), kept.as_of));
        Fallback { what, from: Some(self.read_at + PATIENCE), error: None }
    }
}

/// Either the objects or the announcements of an earlier agent.
pub(super) struct Fallback<T> {
    what: Option<(Arc<T>, Timestamp)>,
    /// When it comes into force; `None` once it has.
    from: Option<Instant>,
    error: Option<SourceError>,
}

impl<T> Fallback<T> {
    /// Resolves once, unless there is nothing or the API server has answered.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub(super) async fn comes_into_force(&mut self) {
        let (Some((_, as_of)), Some(from)) = (&self.what, self.from) else {
            return pending().await;
        };
        sleep_until(from).await;
        self.from = None;
        let message = format!(
            "the API server has told nothing since this agent began; it goes on with what an earlier one knew at {as_of:.0}"
        );
        let told = SourceError::whole_file(&Arc::from("API server"), message)
            .hint("pods that are newer than that are not known yet");
        self.error = Some(SourceError { code: ProblemCode::WorldFromDisk, ..told });
    }

    /// The content, and when it was true.
    pub(super) fn in_force(&self) -> Option<(&Arc<T>, Timestamp)> {
        let (what, as_of) = self.what.as_ref().filter(|_| self.from.is_none())?;
        Some((what, *as_of))
    }

    /// The problem, for people.
    pub(super) fn errors(&self) -> impl Iterator<Item = &SourceError> {
        self.error.iter()
    }

    /// The API server has answered. Returns what an earlier agent knew, the first time.
    pub(super) fn is_over(&mut self) -> Option<Arc<T>> {
        self.error = None;
        self.what.take().map(|(what, _)| what)
    }
}
