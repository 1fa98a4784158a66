//! Whether this agent's installation is being taken away, as against updated: its DaemonSet has been deleted, or its
//! namespace is going. Known only from what the API server says. Silence, 401 and 403 mean nothing: everything stays closed.

use std::fmt::Debug;
use std::future::{Future, ready};
use std::pin::pin;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

use super::watches::events;
use crate::manifest::AGENT;

/// Follows the agent's DaemonSet and namespace.
pub struct Installation {
    /// Each says that one of the two is gone or going.
    signs: BoxStream<'static, ()>,
    is_removed: watch::Sender<bool>,
}

impl Installation {
    /// Watches the installation in the client's own namespace; [`Self::run`] has to be run for anything to happen. The
    /// receiver turns true once and stays so.
    pub fn new(client: Client) -> (Self, watch::Receiver<bool>) {
        let (is_removed, receiver) = watch::channel(false);
        let namespace = client.default_namespace().to_owned();
        let named =
            |name: &str| watcher::Config::default().fields(&format!("metadata.name={name}"));
        let daemon_set =
            Api::<PartialObjectMeta<DaemonSet>>::namespaced(client.clone(), &namespace);
        let daemon_set = going(events(daemon_set, named(AGENT)));
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
        let namespace = going(events(namespaces, named(&namespace)));
        (Self { signs: stream::select(daemon_set, namespace).boxed(), is_removed }, receiver)
    }

    /// Follows the installation until `cancel` is done.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        tokio::select! {
            () = &mut cancel => return,
            Some(()) = self.signs.next() => {}
        }
        tracing::warn!("the installation has been deleted; taking away all that is on this node");
        self.is_removed.send_replace(true);
        cancel.await; // who asks later must still find the sender
    }
}

/// When an object that has been there is gone or going.
fn going<K: Resource + Clone + Debug + DeserializeOwned + Send + 'static>(
    events: impl Stream<Item = watcher::Result<Event<K>>> + Send + 'static,
) -> BoxStream<'static, ()> {
    // One that was never there (an agent that somebody runs by hand) cannot go.
    let (mut was_there, mut is_listed) = (false, false);
    let is_going = move |event: watcher::Result<Event<K>>| {
        let going = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                (was_there, is_listed) = (true, true);
                object.meta().deletion_timestamp.is_some()
            }
            Ok(Event::Delete(_)) => true,
            Ok(Event::Init) => {
                is_listed = false;
                false
            }
            Ok(Event::InitDone) => !is_listed,
            Err(_unknown) => false,
        };
        ready((going && was_there).then_some(()))
    };
    events.filter_map(is_going).boxed()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemon_set(going: bool) -> DaemonSet {
        let at = going.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": "mesh-agent", "deletionTimestamp": at}}))
            .unwrap()
    }

    async fn signs(events: Vec<watcher::Result<Event<DaemonSet>>>) -> usize {
        going(stream::iter(events)).count().await
    }

    #[tokio::test]
    async fn only_an_answer_that_it_is_gone_means_that_it_is() {
        let lists = |with: Option<DaemonSet>| {
            let listed = with.into_iter().map(|it| Ok(Event::InitApply(it)));
            [Ok(Event::Init)].into_iter().chain(listed).chain([Ok(Event::InitDone)])
        };
        let there = || lists(Some(daemon_set(false)));
        assert_eq!(signs(there().collect()).await, 0);
        let refused = || [Err(watcher::Error::NoResourceVersion)];
        assert_eq!(signs(there().chain(refused()).collect()).await, 0);
        assert_eq!(signs(lists(None).collect()).await, 0, "it has never been there");
        let deleted = [Ok(Event::Delete(daemon_set(false)))];
        assert_eq!(signs(there().chain(deleted).collect()).await, 1);
        let in_foreground = [Ok(Event::Apply(daemon_set(true)))];
        assert_eq!(signs(there().chain(in_foreground).collect()).await, 1);
        let missed = there().chain(refused()).chain(lists(None));
        assert_eq!(signs(missed.collect()).await, 1, "deleted while nobody watched");
    }
}
