//! `mesh-agent ca keep`: the CA in a Secret of the cluster, which agents mount as their CA
//! directory. It is made only if no agent uses a CA: a second CA beside one in use would cut nodes
//! off from each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt as _};
use mesh_wire::identity::{
    TrustDomain,
    file_ca::{ANCHORS, CA_CERTIFICATE, CA_KEY, CA_LIFETIME, make, trust_domain_in},
};
use serde_json::json;

use crate::source::{ApiObject, CA_NOTICE, CA_NOTICE_KEY, Repeats, read, sentence};

/// How often the Secret is checked.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// The manager of the notice's fields, for server-side apply.
const FIELD_MANAGER: &str = "make-ca";

/// Why there is no Secret to keep, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The API server does not return or create it.
    #[error("Secret {secret} cannot be had: {}", sentence(.error))]
    Refused {
        /// Its namespace and name.
        secret: String,
        /// What the API server said.
        error: Box<kube::Error>,
    },
    /// It is gone, and its CA is in use.
    #[error(
        "Secret {secret} is gone, and the agents of {} go on with the CA that was in it. No other CA is made, since they would not trust each other: put the Secret back from your copy, or put another CA there yourself (docs/kubernetes.md, \"The interim CA\")",
        .nodes.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    )]
    Gone {
        /// Its namespace and name.
        secret: String,
        /// The nodes on which agents run.
        nodes: BTreeSet<String>,
    },
    /// It is of another trust domain.
    #[error(
        "Secret {secret} is the CA of trust domain {theirs}, and {ours} is asked for; identities cannot change their trust domain: apply with --trust-domain {theirs}"
    )]
    OfOther {
        /// Its namespace and name.
        secret: String,
        /// The trust domain that is asked for.
        ours: TrustDomain,
        /// The Secret's.
        theirs: TrustDomain,
    },
    /// Whether an agent runs cannot be read, so that no CA is made.
    #[error(
        "the agent's pod {name} cannot be read: {error}; no CA is made as long as it may use one"
    )]
    Agent {
        /// The pod's name.
        name: String,
        /// What is wrong with it.
        error: String,
    },
    /// It holds no CA.
    #[error(
        "Secret {secret} holds no CA of ours (ca.crt, ca.key, anchors.pem); put it back from your copy"
    )]
    Unusable {
        /// Its namespace and name.
        secret: String,
    },
    /// The crypto library failed.
    #[error("a CA key could not be made: {detail}")]
    Crypto {
        /// What it said.
        detail: String,
    },
}

/// Keeps the CA's Secret.
pub struct SecretKeeper {
    secrets: Api<Secret>,
    pods: Api<ApiObject>,
    notices: Api<ConfigMap>,
    namespace: String,
    name: String,
    /// The `app.kubernetes.io/name` of the agents, in the Secret's namespace.
    agents: String,
    trust_domain: TrustDomain,
}

impl SecretKeeper {
    /// Keeps a Secret in the client's own namespace, which `agents` mount.
    pub fn new(client: Client, name: &str, agents: &str, trust_domain: TrustDomain) -> Self {
        let namespace = client.default_namespace().to_owned();
        let (name, agents) = (name.to_owned(), agents.to_owned());
        let secrets = Api::namespaced(client.clone(), &namespace);
        let pods = ApiObject::namespaced::<Pod>(&client, &namespace);
        let notices = Api::namespaced(client, &namespace);
        Self { secrets, pods, notices, namespace, name, agents, trust_domain }
    }

    /// Checks the Secret again and again, and logs what is wrong. Ends only by being dropped.
    ///
    /// # Cancel safety
    /// Can be dropped at any time.
    pub async fn keep(&self) {
        let (mut repeats, mut is_wrong) = (Repeats::default(), false);
        let mut notice = None;
        loop {
            let found = match self.look().await {
                Ok(made) => {
                    if made {
                        tracing::info!(secret = %self.whole_name(), trust_domain = %self.trust_domain, "made a CA; whoever reads this Secret can be anybody in the mesh");
                    } else if is_wrong {
                        tracing::info!(secret = %self.whole_name(), "the CA is there");
                    }
                    is_wrong = false;
                    None
                }
                Err(error) => {
                    let told = error.to_string();
                    is_wrong = true;
                    if repeats.again(&told).is_some() {
                        tracing::error!("{told}");
                    }
                    // Errors of the API server are not reported: agents know as much themselves.
                    (!matches!(error, SecretError::Refused { .. })).then_some(told)
                }
            };
            // Agents may not read the Secret. They hear of its problems through the notice.
            if notice.as_ref() != Some(&found) && self.notify(found.as_deref()).await {
                notice = Some(found);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Writes the notice. Returns whether the agents can read what is wrong, or that nothing is.
    async fn notify(&self, problem: Option<&str>) -> bool {
        let data = problem.map_or_else(|| json!({}), |problem| json!({CA_NOTICE_KEY: problem}));
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": CA_NOTICE}, "data": data});
        let ours = PatchParams::apply(FIELD_MANAGER).force();
        let written = self.notices.patch(CA_NOTICE, &ours, &Patch::Apply(object)).await;
        written
            .inspect_err(|error| tracing::warn!("agents cannot be told: {}", sentence(error)))
            .is_ok()
    }

    /// Returns whether a CA was made: there was none, and no agent uses one.
    ///
    /// # Errors
    /// See [`SecretError`].
    pub async fn look(&self) -> Result<bool, SecretError> {
        if let Some(secret) = self.secrets.get_opt(&self.name).await.map_err(|e| self.refused(e))? {
            return self.is_of_trust_domain(&secret).map(|()| false);
        }
        let nodes = self.nodes_with_one().await?;
        if !nodes.is_empty() {
            return Err(SecretError::Gone { secret: self.whole_name(), nodes });
        }
        self.make().await
    }

    /// The nodes with a running agent: each has begun with a CA and continues with it.
    async fn nodes_with_one(&self) -> Result<BTreeSet<String>, SecretError> {
        let agents = format!("app.kubernetes.io/name={}", self.agents);
        let agents = ListParams::default().labels(&agents);
        let agents = self.pods.list(&agents).await.map_err(|e| self.refused(e))?;
        nodes_of(agents.into_iter().map(|agent| (agent.name_any(), agent.into_value())))
    }

    fn is_of_trust_domain(&self, secret: &Secret) -> Result<(), SecretError> {
        let pem = secret.data.as_ref().and_then(|data| data.get(CA_CERTIFICATE));
        let theirs = pem.and_then(|pem| trust_domain_in(&pem.0));
        let secret = self.whole_name();
        match theirs {
            Some(theirs) if theirs == self.trust_domain => Ok(()),
            Some(theirs) => {
                Err(SecretError::OfOther { secret, ours: self.trust_domain.clone(), theirs })
            }
            None => Err(SecretError::Unusable { secret }),
        }
    }

    async fn make(&self) -> Result<bool, SecretError> {
        let not_after = SystemTime::now() + CA_LIFETIME;
        let (certificate, key) =
            make(&self.trust_domain, not_after).map_err(|detail| SecretError::Crypto { detail })?;
        let file = |name: &str, content: &str| (name.to_owned(), ByteString(content.into()));
        let secret = Secret {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(BTreeMap::from([
                file(CA_CERTIFICATE, &certificate),
                file(CA_KEY, &key),
                file(ANCHORS, &certificate),
            ])),
            ..Secret::default()
        };
        match self.secrets.create(&PostParams::default(), &secret).await {
            Ok(_made) => Ok(true),
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
            Err(error) => Err(self.refused(error)),
        }
    }

    fn whole_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    fn refused(&self, error: kube::Error) -> SecretError {
        SecretError::Refused { secret: self.whole_name(), error: Box::new(error) }
    }
}

/// The nodes of the agents that run, of pods by their names.
///
/// # Errors
/// A pod cannot be read: it may be an agent that runs.
fn nodes_of(
    agents: impl Iterator<Item = (String, serde_json::Value)>,
) -> Result<BTreeSet<String>, SecretError> {
    let mut nodes = BTreeSet::new();
    for (name, agent) in agents {
        let agent: Pod =
            read(agent).map_err(|error| SecretError::Agent { name, error: error.to_string() })?;
        if runs(&agent) {
            nodes.extend(agent.spec.and_then(|spec| spec.node_name));
        }
    }
    Ok(nodes)
}

fn runs(agent: &Pod) -> bool {
    let containers = agent.status.as_ref().and_then(|it| it.container_statuses.as_ref());
    let is_running = |it: &k8s_openapi::api::core::v1::ContainerStatus| {
        it.state.as_ref().is_some_and(|state| state.running.is_some())
    };
    containers.into_iter().flatten().any(is_running)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(node: &str, state: &serde_json::Value) -> (String, serde_json::Value) {
        let status = json!({"containerStatuses": [{"name": "agent", "state": state}]});
        let spec = json!({"nodeName": node, "containers": []});
        (
            format!("agent-{node}"),
            json!({"metadata": {"name": node}, "spec": spec, "status": status}),
        )
    }

    #[test]
    fn no_ca_is_made_while_an_agent_runs_or_cannot_be_read() {
        let (running, waiting) = (json!({"running": {}}), json!({"waiting": {}}));
        let nodes = |agents: Vec<_>| nodes_of(agents.into_iter());
        assert_eq!(nodes(vec![agent("node1", &waiting)]).unwrap(), BTreeSet::new());
        let found = nodes(vec![agent("node1", &waiting), agent("node2", &running)]).unwrap();
        assert_eq!(found, BTreeSet::from(["node2".to_owned()]));
        let unreadable = agent("node3", &json!("?"));
        let error = nodes(vec![unreadable, agent("node1", &waiting)]).unwrap_err();
        assert!(
            matches!(&error, SecretError::Agent { name, .. } if name == "agent-node3"),
            "{error}"
        );
    }
}
