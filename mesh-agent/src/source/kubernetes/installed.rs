//! Problems of the installation itself, as far as an agent can see them: whether the admission
//! policy that holds agents to their own node is in force, and what is reported of the CA's Secret,
//! which agents may not read.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client};
use mesh_api::ProblemCode;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout};

use super::super::error::SourceError;
use super::api_object::ApiObject;
use super::mesh_nodes::mesh_nodes;
use super::watches::{Events, events, settled};

/// The ConfigMap in the agents' namespace, and its key, in which `mesh-agent ca keep` says what is
/// wrong with the CA's Secret.
pub const CA_NOTICE: &str = "nodemesh-ca";
pub const CA_NOTICE_KEY: &str = "problem";

/// How often the agent asks whether the policy is in force, once it is known to be.
const ASK_EVERY: Duration = Duration::from_mins(10);
/// The same while it is not, or there is no answer.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// How long the API server may take to answer.
const ANSWER: Duration = Duration::from_secs(5);
/// A node that does not exist: no account may write its `MeshNode`.
const NO_NODE: &str = "nodemesh-asks-whether-it-may";

/// Looks after the installation.
pub(super) struct Installed {
    mesh_nodes: Api<ApiObject>,
    notices: Events,
    next: Instant,
    is_open: bool,
    ca: Option<String>,
}

impl Installed {
    pub(super) fn new(client: &Client) -> Self {
        let notices = ApiObject::namespaced::<ConfigMap>(client, client.default_namespace());
        let named = settled().fields(&format!("metadata.name={CA_NOTICE}"));
        Self {
            mesh_nodes: Api::all_with(client.clone(), &mesh_nodes()),
            notices: events(notices, named),
            next: Instant::now(),
            is_open: false,
            ca: None,
        }
    }

    /// Resolves when something may have changed.
    ///
    /// # Cancel safety
    /// Can be dropped and called again; an interrupted question is asked again later.
    pub(super) async fn changed(&mut self) {
        tokio::select! {
            Some(event) = self.notices.next() => self.take_in(event),
            () = sleep_until(self.next) => {
                self.next = Instant::now() + ASK_AGAIN;
                self.ask().await;
            }
        }
    }

    fn take_in(&mut self, event: watcher::Result<Event<ApiObject>>) {
        match event {
            Ok(Event::Apply(notice) | Event::InitApply(notice)) => {
                let problem = notice.pointer("/data").and_then(|data| data.get(CA_NOTICE_KEY));
                self.ca = problem.and_then(Value::as_str).map(str::to_owned);
            }
            Ok(Event::Delete(_)) => self.ca = None,
            // The next list says what a failed watch has missed.
            Ok(Event::Init | Event::InitDone) | Err(_) => {}
        }
    }

    /// Tries a write that must be refused, as a dry run.
    async fn ask(&mut self) {
        let false_claim = Patch::Apply(json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": NO_NODE},
            "spec": {"bootId": "", "trustDomain": "none.invalid", "pods": []},
        }));
        let only_try = PatchParams { dry_run: true, ..PatchParams::apply(NO_NODE) };
        let tried = self.mesh_nodes.patch(NO_NODE, &only_try, &false_claim);
        match timeout(ANSWER, tried).await {
            Ok(Ok(_allowed)) => self.is_open = true,
            Ok(Err(kube::Error::Api(status)))
                if status.message.contains(NO_NODE) && status.is_forbidden() =>
            {
                self.is_open = false;
                self.next = Instant::now() + ASK_EVERY;
            }
            Ok(Err(_)) | Err(_) => {} // nothing is known
        }
    }

    pub(super) fn errors(&self) -> impl Iterator<Item = SourceError> {
        let error = |code, message: String| {
            let told = SourceError::whole_file(&Arc::from("installation"), message);
            SourceError { code, ..told }
        };
        let open = self.is_open.then(|| {
            error(
                ProblemCode::AdmissionNotInForce,
                "the admission policy nodemesh-agents-speak-for-their-own-node is not in force: with one agent's token, pods can be announced for every node; apply Nodemesh's manifest again".to_owned(),
            )
        });
        let ca = self.ca.clone().map(|message| error(ProblemCode::CaMissing, message));
        open.into_iter().chain(ca)
    }
}
