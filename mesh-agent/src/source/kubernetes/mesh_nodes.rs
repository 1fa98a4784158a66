//! Announcements as `MeshNode` objects of the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::watcher::Event;
use kube::{Api, Client, ResourceExt as _};
use mesh_world::{Announcements, FieldError, MeshNode, NodeName};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::announce::{
    AnnounceError, AnnouncementStore, Announcer, Heard, Publisher, announcer,
};
use super::super::earlier::Earlier;
use super::super::error::SourceError;
use super::super::json::read;
use super::super::state::Knowledge;
use super::api_object::ApiObject;
use super::away::Away;
use super::fallback::Fallback;
use super::told::{of_watch, sentence};
use super::watches::{Events, events, settled};

/// What is watched.
const KIND: &str = "MeshNode";
/// The owner of the written fields, for server-side apply.
const FIELD_MANAGER: &str = "mesh-agent";
/// How long the API server may take for one write.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);

/// An announcer that writes and watches `MeshNode` objects.
pub fn kube_announcer(
    client: Client,
    own_node: NodeName,
    earlier: &Earlier,
) -> (Announcer, KubeAnnouncerTask) {
    let api = Api::<ApiObject>::all_with(client.clone(), &mesh_nodes());
    let node = own_node.clone();
    let place = OwnObject { client: client.clone(), api: api.clone(), node, owner: None };
    let (announcer, publisher, heard) = announcer(own_node.clone(), place);
    let task = KubeAnnouncerTask {
        own_node,
        client,
        events: events(api, settled()),
        known: BTreeMap::new(),
        listing: None,
        is_listed: false,
        away: Away::default(),
        fallback: earlier.announcements(),
        heard,
        publisher,
    };
    (announcer, task)
}

pub(super) fn mesh_nodes() -> ApiResource {
    let kind = GroupVersionKind::gvk("nodemesh.dev", "v1alpha1", "MeshNode");
    ApiResource::from_gvk_with_plural(&kind, "meshnodes")
}

/// Writes this node's object and follows those of all nodes. Objects are read leniently, one by
/// one: what one node writes must not hide what the others say.
pub struct KubeAnnouncerTask {
    own_node: NodeName,
    client: Client,
    events: Events,
    /// By the object's name. An object that cannot be used keeps its earlier content.
    known: BTreeMap<String, MeshNodeEntry>,
    /// What has come since a list began.
    listing: Option<BTreeSet<String>>,
    /// Whether they have been listed once.
    is_listed: bool,
    away: Away,
    /// What an earlier agent knew, until all objects have been listed.
    fallback: Fallback<Announcements>,
    heard: Heard,
    publisher: Publisher<OwnObject>,
}

#[derive(Default)]
struct MeshNodeEntry {
    good: Option<Arc<MeshNode>>,
    error: Option<SourceError>,
}

impl KubeAnnouncerTask {
    /// Works until `cancel` is done. The announcement then stays.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            tokio::select! {
                () = &mut cancel => return,
                event = self.events.next() => match event {
                    Some(Ok(event)) => self.take_in(event),
                    Some(Err(error)) => {
                        self.away.failed(KIND, of_watch(&error));
                        self.complain();
                    }
                    None => return,
                },
                () = self.away.look(&self.client) => self.complain(),
                () = self.fallback.comes_into_force() => self.fall_back(),
                () = self.publisher.due() => {
                    self.publisher.fulfil().await;
                    self.complain();
                }
            }
        }
    }

    fn complain(&self) {
        self.heard.complain(self.errors(), self.knowledge());
    }

    fn fall_back(&self) {
        if let Some((kept, _)) = self.fallback.in_force() {
            self.heard.tell(Announcements::clone(kept), self.errors(), self.knowledge());
        }
    }

    fn knowledge(&self) -> Knowledge {
        if self.is_listed {
            self.away.since().map_or(Knowledge::Current, Knowledge::Since)
        } else {
            let kept = self.fallback.in_force();
            kept.map_or(Knowledge::Nothing, |(_, as_of)| Knowledge::Kept(as_of))
        }
    }

    fn take_in(&mut self, event: Event<ApiObject>) {
        if !matches!(event, Event::Init) {
            self.away.heard_of(KIND); // the beginning of a list proves nothing
        }
        match event {
            Event::Init => self.listing = Some(BTreeSet::new()),
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.listing {
                    seen.insert(object.name_any());
                }
                self.put(object);
            }
            Event::InitDone => {
                let seen = self.listing.take().unwrap_or_default();
                self.known.retain(|name, _| seen.contains(name));
                self.is_listed = true;
                self.fallback.is_over();
                if !seen.contains(self.own_node.as_str()) {
                    self.own_is_gone();
                }
                self.tell();
            }
            Event::Apply(object) => {
                self.put(object);
                self.tell();
            }
            Event::Delete(object) => {
                let name = object.name_any();
                if name == self.own_node.as_str() {
                    self.own_is_gone();
                }
                self.known.remove(&name);
                self.tell();
            }
        }
    }

    fn put(&mut self, object: ApiObject) {
        let name = object.name_any();
        let known = self.known.entry(name.clone()).or_default();
        match parse(&name, object) {
            Ok(announcement) => {
                *known = MeshNodeEntry { good: Some(Arc::new(announcement)), error: None };
            }
            Err(error) => {
                let object: Arc<str> = format!("MeshNode {name}").into();
                known.error = Some(SourceError::in_object(&object, error));
            }
        }
        if name == self.own_node.as_str() {
            let stands = known.good.as_deref().filter(|_| known.error.is_none());
            self.publisher.found(stands);
        }
    }

    fn tell(&self) {
        if self.listing.is_some() {
            return; // the rest is still to come
        }
        let good = self.known.values().filter_map(|known| known.good.as_ref());
        let announcements = good.map(|good| (good.node.clone(), Arc::clone(good))).collect();
        self.heard.tell(announcements, self.errors(), self.knowledge());
    }

    fn errors(&self) -> Vec<SourceError> {
        let objects = self.known.values().filter_map(|known| known.error.clone());
        self.away.error().into_iter().chain(self.publisher.error()).chain(objects).collect()
    }

    /// The object was deleted by another account, or went with a Node that is created anew. This
    /// agent withdraws only to leave.
    fn own_is_gone(&mut self) {
        self.publisher.place().owner = None;
        self.publisher.has_been_changed();
    }
}

fn parse(name: &str, object: ApiObject) -> Result<MeshNode, FieldError> {
    let mut whole = object.into_value();
    read(json!({
        "apiVersion": "nodemesh.dev/v1alpha1",
        "kind": "MeshNode",
        "metadata": {"name": name},
        "spec": whole.get_mut("spec").map(Value::take),
    }))
}

/// This node's object.
struct OwnObject {
    client: Client,
    api: Api<ApiObject>,
    node: NodeName,
    /// The Node, so that the object is deleted with it.
    owner: Option<Value>,
}

impl OwnObject {
    async fn owner(&mut self) -> kube::Result<Value> {
        if let Some(owner) = &self.owner {
            return Ok(owner.clone());
        }
        let node = ApiObject::all::<Node>(&self.client).get(self.node.as_str()).await?;
        let owner = json!({
            "apiVersion": "v1", "kind": "Node", "name": self.node.as_str(),
            "uid": node.uid().unwrap_or_default(),
        });
        Ok(self.owner.insert(owner).clone())
    }

    async fn apply(&mut self, announcement: &MeshNode) -> Result<(), Arc<Failure>> {
        let owner = self.owner().await.map_err(|error| Arc::new(Failure::Api(error)))?;
        let mut object =
            serde_json::to_value(announcement).map_err(|error| Arc::new(Failure::Json(error)))?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("ownerReferences".to_owned(), json!([owner]));
        }
        let ours = PatchParams::apply(FIELD_MANAGER).force();
        let written = self.api.patch(self.node.as_str(), &ours, &Patch::Apply(object)).await;
        written.map(drop).map_err(|error| Arc::new(Failure::Api(error)))
    }

    fn place(&self) -> String {
        format!("MeshNode {}", self.node)
    }
}

/// Why the API server has not accepted it.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{}", sentence(.0))]
    Api(kube::Error),
    #[error(transparent)]
    Json(serde_json::Error),
    #[error("the API server has not answered for {WRITE_TIMEOUT:?}")]
    Timeout,
}

impl AnnouncementStore for OwnObject {
    async fn write(&mut self, announcement: &MeshNode) -> Result<(), AnnounceError> {
        let written = timeout(WRITE_TIMEOUT, self.apply(announcement)).await;
        let written = written.unwrap_or_else(|_elapsed| Err(Arc::new(Failure::Timeout)));
        written.map_err(|cause| {
            self.owner = None; // the Node may have been made anew
            AnnounceError::Write { place: self.place(), cause }
        })
    }

    async fn remove(&mut self) -> Result<(), AnnounceError> {
        let now = DeleteParams::default();
        let removed = self.api.delete(self.node.as_str(), &now);
        let cause = match timeout(WRITE_TIMEOUT, removed).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() => return Ok(()),
            Ok(Err(error)) => Failure::Api(error),
            Err(_elapsed) => Failure::Timeout,
        };
        Err(AnnounceError::Remove { place: self.place(), cause: Arc::new(cause) })
    }
}
