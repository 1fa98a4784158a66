//! Kubernetes Events (`events.k8s.io/v1`). The recorder joins an Event that repeats within six
//! minutes to a series of one Event.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use mesh_world::NodeName;
use tokio::time::timeout;

use super::collect::{Key, Notice};
use crate::source::kind_named;

/// The reporting controller, as an admission policy wants it.
pub(crate) const CONTROLLER: &str = "nodemesh.dev/mesh-agent";
/// What the agent was about to do.
const ACTION: &str = "Enrol";
/// The longest note that the API server takes is 1,024 bytes
/// (`pkg/apis/core/validation/events.go`).
const NOTE_BYTES: usize = 1000;
/// How long the API server may take to accept one.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);

/// Writes them.
pub(super) struct Events(Recorder);

/// Why one was not written.
#[derive(Debug, thiserror::Error)]
pub(super) enum EventError {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("the API server has not answered for {WRITE_TIMEOUT:?}")]
    Timeout,
}

impl EventError {
    /// Whether another Event would fail alike: the server is away, or accepts no Events of ours.
    pub(super) fn is_about_the_server(&self) -> bool {
        match self {
            // 404 means that a namespace or Event is gone: it concerns this Event alone, and so
            // does what cannot be read.
            Self::Api(kube::Error::Api(status)) => !matches!(status.code, 404 | 409 | 422),
            Self::Api(_) | Self::Timeout => true,
        }
    }
}

impl Events {
    /// Of a node's agent.
    pub(super) fn new(client: Client, node: &NodeName) -> Self {
        let (controller, instance) = (CONTROLLER.to_owned(), Some(node.to_string()));
        Self(Recorder::new(client, Reporter { controller, instance }))
    }

    pub(super) async fn write(&self, key: &Key, notice: &Notice) -> Result<(), EventError> {
        let text = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let about = &key.about;
        let regarding = ObjectReference {
            api_version: Some(api_version(about.kind).to_owned()),
            kind: Some(about.kind.to_owned()),
            namespace: text(&about.namespace),
            name: Some(about.name.clone()),
            uid: text(&about.uid),
            ..ObjectReference::default()
        };
        let event = Event {
            type_: EventType::Warning,
            reason: key.reason.clone(),
            note: Some(shortened(&notice.note).to_owned()),
            action: ACTION.to_owned(),
            secondary: None,
        };
        match timeout(WRITE_TIMEOUT, self.0.publish(&event, &regarding)).await {
            Ok(written) => Ok(written?),
            Err(_elapsed) => Err(EventError::Timeout),
        }
    }
}

fn api_version(kind: &str) -> &'static str {
    kind_named(kind).map_or("nodemesh.dev/v1alpha1", |known| known.api_version)
}

fn shortened(note: &str) -> &str {
    note.get(..note.floor_char_boundary(NOTE_BYTES)).unwrap_or(note)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_letters() {
        assert_eq!(shortened("short"), "short");
        let cut = shortened(&"ä".repeat(1000)).len();
        assert!((NOTE_BYTES - 1..=NOTE_BYTES).contains(&cut), "{cut}");
    }
}
