//! Whether this agent's installation is being taken away, as against updated: its DaemonSet has
//! been deleted, or its namespace is going. Only the API server knows that: the agent watches it,
//! and asks once more at shutdown. Silence, 401 and 403 mean nothing: everything stays closed.

use std::future::{Future, ready};
use std::pin::pin;

use futures_util::stream::{self, BoxStream};
use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource as _};
use tokio::sync::watch;

use super::api_object::ApiObject;
use super::watches::{events, settled};

/// Follows the agent's DaemonSet and namespace.
pub struct Installation {
    /// Each item says that one of the two is gone or going.
    signs: BoxStream<'static, ()>,
    is_removed: watch::Sender<bool>,
}

/// Asks the API server without waiting for a watch.
pub struct Question {
    daemon_sets: Api<ApiObject>,
    daemon_set: String,
    namespaces: Api<ApiObject>,
    namespace: String,
    is_removed: watch::Sender<bool>,
}

impl Installation {
    /// Watches a DaemonSet of the client's own namespace. Nothing happens unless [`Self::run`]
    /// runs. The receiver turns true once and stays so.
    pub fn new(client: &Client, daemon_set: &str) -> (Self, Question, watch::Receiver<bool>) {
        let (is_removed, receiver) = watch::channel(false);
        let namespace = client.default_namespace().to_owned();
        let named = |name: &str| settled().fields(&format!("metadata.name={name}"));
        let daemon_sets = ApiObject::namespaced::<DaemonSet>(client, &namespace);
        let namespaces = ApiObject::all::<Namespace>(client);
        let signs = stream::select(
            going(events(daemon_sets.clone(), named(daemon_set))),
            going(events(namespaces.clone(), named(&namespace))),
        );
        let (signs, daemon_set) = (signs.boxed(), daemon_set.to_owned());
        let question = Question {
            daemon_sets,
            daemon_set,
            namespaces,
            namespace,
            is_removed: is_removed.clone(),
        };
        (Self { signs, is_removed }, question, receiver)
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
        cancel.await; // a later `ask` must still find the sender
    }
}

impl Question {
    /// Whether the API server says now that the installation is being taken away. Sets the
    /// receiver, too.
    pub async fn ask(&self) -> bool {
        let daemon_set = self.daemon_sets.get_metadata_opt(&self.daemon_set).await;
        let namespace = self.namespaces.get_metadata_opt(&self.namespace).await;
        let is_going = matches!(&daemon_set, Ok(None))
            || matches!(&daemon_set, Ok(Some(found)) if is_going(found.meta()))
            || matches!(&namespace, Ok(Some(found)) if is_going(found.meta()));
        if is_going {
            self.is_removed.send_replace(true);
        }
        is_going
    }
}

/// Whether an object is being deleted together with its dependents (`--cascade=orphan` keeps them).
fn is_going(meta: &ObjectMeta) -> bool {
    meta.deletion_timestamp.is_some() && !is_orphaning(meta)
}

fn is_orphaning(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|finalizer| finalizer == "orphan")
}

/// Yields when an object is gone or going.
fn going(
    events: impl Stream<Item = watcher::Result<Event<ApiObject>>> + Send + 'static,
) -> BoxStream<'static, ()> {
    let (mut is_listed, mut is_orphaned) = (false, false);
    let is_going = move |event: watcher::Result<Event<ApiObject>>| {
        let going = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => {
                (is_listed, is_orphaned) = (true, is_orphaning(object.meta()));
                is_going(object.meta())
            }
            Ok(Event::Delete(_)) => !is_orphaned,
            Ok(Event::Init) => {
                is_listed = false;
                false
            }
            Ok(Event::InitDone) => !is_listed && !is_orphaned,
            Err(_unknown) => false,
        };
        ready(going.then_some(()))
    };
    events.filter_map(is_going).boxed()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn daemon_set(going: bool) -> ApiObject {
        let at = going.then_some("2026-01-01T00:00:00Z");
        serde_json::from_value(json!({"metadata": {"name": "mesh-agent", "deletionTimestamp": at}}))
            .unwrap()
    }

    async fn signs(events: Vec<watcher::Result<Event<ApiObject>>>) -> usize {
        going(stream::iter(events)).count().await
    }

    #[tokio::test]
    async fn only_an_answer_that_it_is_gone_means_that_it_is() {
        let lists = |with: Option<ApiObject>| {
            let listed = with.into_iter().map(|it| Ok(Event::InitApply(it)));
            [Ok(Event::Init)].into_iter().chain(listed).chain([Ok(Event::InitDone)])
        };
        let there = || lists(Some(daemon_set(false)));
        assert_eq!(signs(there().collect()).await, 0);
        let refused = || [Err(watcher::Error::NoResourceVersion)];
        assert_eq!(signs(there().chain(refused()).collect()).await, 0);
        assert_eq!(signs(lists(None).collect()).await, 1, "deleted before the agent began");
        let mut orphaning = daemon_set(true);
        orphaning.meta_mut().finalizers = Some(vec!["orphan".into()]);
        let orphaned = [Ok(Event::Apply(orphaning.clone())), Ok(Event::Delete(orphaning))];
        assert_eq!(signs(there().chain(orphaned).collect()).await, 0, "its pods stay");
        let deleted = [Ok(Event::Delete(daemon_set(false)))];
        assert_eq!(signs(there().chain(deleted).collect()).await, 1);
        let in_foreground = [Ok(Event::Apply(daemon_set(true)))];
        assert_eq!(signs(there().chain(in_foreground).collect()).await, 1);
        let missed = there().chain(refused()).chain(lists(None));
        assert_eq!(signs(missed.collect()).await, 1, "deleted while not watched");
    }
}
