//! Takes the start-up taint off nodes whose agent is ready: `mesh-agent untaint`, run once in the
//! cluster.
//!
//! A node that joins with the taint gets no ordinary pods before an agent can hold them. The agents
//! must not remove the taint: an account that may write nodes may write any node. This part writes
//! nothing else (a `ValidatingAdmissionPolicy` sees to that), and runs without any right over its
//! own node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::{
    Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::watcher::Event,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::source::{ApiObject, Repeats, events, of_watch, read, sentence, settled};

/// The taint's key; its effect is `NoSchedule`.
pub const TAINT: &str = "nodemesh.dev/not-ready";

/// The pause after a failed write.
const PAUSE: Duration = Duration::from_secs(1);

/// Follows nodes and agents (pods of the client's own namespace that have this
/// `app.kubernetes.io/name`), and takes the taint off each node whose agent is ready. Ends only by
/// being dropped: failures are logged and tried again.
///
/// # Cancel safety
/// Can be dropped at any time.
pub async fn keep_untainting(client: Client, agents: &str) {
    let nodes = ApiObject::all::<Node>(&client);
    let pods = ApiObject::namespaced::<Pod>(&client, client.default_namespace());
    let of_agents = settled().labels(&format!("app.kubernetes.io/name={agents}"));
    let mut node_events = events(nodes.clone(), settled());
    let mut pod_events = events(pods, of_agents);
    let mut known = TaintedNodes::default();
    let mut is_refused = false;
    let mut repeats = Repeats::default();
    loop {
        tokio::select! {
            Some(event) = node_events.next() => match event {
                Ok(event) => {
                    if let Err(why) = known.nodes.apply(event, tainted) {
                        complain("a node cannot be read", &why, &mut repeats);
                    }
                }
                Err(error) => complain("nodes cannot be watched", &of_watch(&error), &mut repeats),
            },
            Some(event) = pod_events.next() => match event {
                Ok(event) => {
                    if let Err(why) = known.agents.apply(event, node_of_ready) {
                        complain("an agent's pod cannot be read", &why, &mut repeats);
                    }
                }
                Err(error) => complain("agents cannot be watched", &of_watch(&error), &mut repeats),
            },
            () = sleep(PAUSE), if is_refused => {}
            else => return,
        }
        is_refused = false;
        for (node, patch) in known.to_free() {
            match nodes.patch(&node, &PatchParams::default(), &Patch::Merge(&patch)).await {
                Ok(_freed) => {
                    tracing::info!(node, "its agent is ready: the taint {TAINT} is taken off");
                    known.nodes.now.remove(&node); // until its watch says otherwise
                }
                Err(error) => {
                    let what = format!("the taint {TAINT} cannot be taken off {node}");
                    complain(&what, &sentence(&error), &mut repeats);
                    is_refused = true;
                }
            }
        }
    }
}

fn complain(what: &str, why: &str, repeats: &mut Repeats) {
    let told = format!("{what}: {why}");
    if let Some(attempts) = repeats.again(&told) {
        tracing::warn!(attempts, "{told}; trying again");
    }
}

/// A node that has the taint: its version, and its other taints.
#[derive(Clone, Debug, PartialEq)]
struct Tainted {
    version: Option<String>,
    others: Vec<Taint>,
}

#[derive(Default)]
struct TaintedNodes {
    nodes: WatchCache<Tainted>,
    /// The nodes of ready agents, by pod.
    agents: WatchCache<String>,
}

/// The objects of a watch that matter.
struct WatchCache<T> {
    now: BTreeMap<String, T>,
    /// What has come since a list began; everything else is gone at its end.
    listing: BTreeSet<String>,
}

impl<T> Default for WatchCache<T> {
    fn default() -> Self {
        Self { now: BTreeMap::new(), listing: BTreeSet::new() }
    }
}

impl<T> WatchCache<T> {
    /// An object that cannot be read does not matter; returns why.
    fn apply<K: DeserializeOwned>(
        &mut self,
        event: Event<ApiObject>,
        matters: impl Fn(&K) -> Option<T>,
    ) -> Result<(), String> {
        match event {
            Event::Init => self.listing.clear(),
            Event::InitApply(object) => {
                self.listing.insert(object.name_any());
                return self.put(object, matters);
            }
            Event::Apply(object) => return self.put(object, matters),
            Event::Delete(object) => drop(self.now.remove(&object.name_any())),
            Event::InitDone => self.now.retain(|name, _| self.listing.contains(name)),
        }
        Ok(())
    }

    fn put<K: DeserializeOwned>(
        &mut self,
        object: ApiObject,
        matters: impl Fn(&K) -> Option<T>,
    ) -> Result<(), String> {
        let name = object.name_any();
        let read = read(object.into_value());
        match read.as_ref().ok().and_then(matters) {
            Some(value) => drop(self.now.insert(name.clone(), value)),
            None => drop(self.now.remove(&name)),
        }
        read.map(drop).map_err(|error| format!("{name}: {error}"))
    }
}

impl TaintedNodes {
    /// The nodes that have the taint and a ready agent, with the patch for each. The version in it
    /// makes the API server refuse the patch if the node has changed meanwhile: another writer's
    /// taint must not be lost.
    fn to_free(&self) -> Vec<(String, Value)> {
        let ready: BTreeSet<&String> = self.agents.now.values().collect();
        let free = self.nodes.now.iter().filter(|(name, _)| ready.contains(name));
        let patch = |node: &Tainted| json!({"metadata": {"resourceVersion": node.version}, "spec": {"taints": node.others}});
        free.map(|(name, node)| (name.clone(), patch(node))).collect()
    }
}

fn tainted(node: &Node) -> Option<Tainted> {
    let taints = node.spec.as_ref()?.taints.as_deref()?;
    let others: Vec<Taint> = taints.iter().filter(|taint| taint.key != TAINT).cloned().collect();
    (others.len() < taints.len()).then(|| Tainted { version: node.resource_version(), others })
}

/// The node of an agent that is ready and is not being deleted.
fn node_of_ready(agent: &Pod) -> Option<String> {
    let conditions = agent.status.as_ref()?.conditions.as_deref().unwrap_or_default();
    let is_ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let stays = agent.metadata.deletion_timestamp.is_none();
    agent.spec.as_ref()?.node_name.clone().filter(|_| is_ready && stays)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, taints: &Value) -> ApiObject {
        serde_json::from_value(json!({
            "metadata": {"name": name, "resourceVersion": "7"}, "spec": {"taints": taints},
        }))
        .unwrap()
    }

    fn agent(node: &str, ready: &str, deleted: Option<&str>) -> ApiObject {
        serde_json::from_value(json!({
            "metadata": {"name": format!("agent-{node}"), "deletionTimestamp": deleted},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}, {"type": "PodScheduled", "status": "True"}]},
        }))
        .unwrap()
    }

    fn ours() -> Value {
        json!({"key": TAINT, "effect": "NoSchedule"})
    }

    #[test]
    fn a_node_is_freed_when_its_agent_is_ready_and_keeps_its_other_taints() {
        let mut known = TaintedNodes::default();
        let other = json!({"key": "team", "value": "a", "effect": "NoExecute"});
        known.nodes.apply(Event::Apply(node("n1", &json!([other, ours()]))), tainted).unwrap();
        known.nodes.apply(Event::Apply(node("n2", &json!([ours()]))), tainted).unwrap();
        known.nodes.apply(Event::Apply(node("n3", &json!([other]))), tainted).unwrap();
        assert_eq!(known.to_free(), []);
        for starting in
            [agent("n1", "False", None), agent("n2", "True", Some("2026-01-01T00:00:00Z"))]
        {
            known.agents.apply(Event::Apply(starting), node_of_ready).unwrap();
        }
        assert_eq!(known.to_free(), [], "one is not ready, the other is going");
        known.agents.apply(Event::Apply(agent("n1", "True", None)), node_of_ready).unwrap();
        known.agents.apply(Event::Apply(agent("n3", "True", None)), node_of_ready).unwrap();
        let wanted = json!({"metadata": {"resourceVersion": "7"}, "spec": {"taints": [other]}});
        assert_eq!(known.to_free(), [("n1".to_owned(), wanted)]);
        let odd = node("n1", &json!("none"));
        assert!(known.nodes.apply(Event::Apply(odd), tainted).is_err());
        assert_eq!(known.to_free(), [], "what cannot be read is left alone");
        known.nodes.apply(Event::Apply(node("n1", &json!([other]))), tainted).unwrap();
        assert_eq!(known.to_free(), []);
    }

    #[test]
    fn what_a_new_list_does_not_name_is_gone() {
        let mut agents = WatchCache::default();
        agents.apply(Event::Apply(agent("n1", "True", None)), node_of_ready).unwrap();
        agents.apply(Event::Apply(agent("n2", "True", None)), node_of_ready).unwrap();
        agents.apply(Event::Init, node_of_ready).unwrap();
        agents.apply(Event::InitApply(agent("n2", "True", None)), node_of_ready).unwrap();
        assert_eq!(agents.now.len(), 2, "a list that has only begun says nothing");
        agents.apply(Event::InitDone, node_of_ready).unwrap();
        assert_eq!(agents.now.into_values().collect::<Vec<_>>(), ["n2"]);
    }
}
