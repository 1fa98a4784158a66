//! `MeshNode`, and which account may write which.

use serde_json::json;

use super::policy::{IS_SERVICE_ACCOUNT, Policy, node_of_token};
use super::{Part, part};
use crate::source::mesh_node_crd;

/// Kubernetes' own account that deletes a MeshNode when its Node goes.
const GARBAGE_COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

pub(super) fn parts() -> serde_json::Result<Vec<Part>> {
    let crd = serde_json::to_value(mesh_node_crd())?;
    let policy = Policy {
        name: "nodemesh-agents-speak-for-their-own-node",
        about: "An agent writes only the MeshNode of its own node: that of the node claim in its token, which the API server signs\nsince Kubernetes 1.30. It holds for every service account, whatever namespace or name the agents' has.",
        of: ("nodemesh.dev", &["meshnodes"], &["CREATE", "UPDATE", "DELETE"]),
        conditions: json!([
            // People may write what their rights allow.
            {"name": "a-service-account", "expression": IS_SERVICE_ACCOUNT},
            {"name": "not-a-nodes-end", "expression": format!("request.operation != 'DELETE' || request.userInfo.username != '{GARBAGE_COLLECTOR}'")},
        ]),
        variables: Some(json!([
            node_of_token(),
            {"name": "written", "expression": "request.operation == 'DELETE' ? oldObject.metadata.name : object.metadata.name"},
        ])),
        validations: json!([{
            "expression": "variables.node != '' && variables.written == variables.node",
            "messageExpression": "variables.node == '' ? 'a MeshNode is written by the agent of its node, and the token of ' + request.userInfo.username + ' names no node' : 'the agent of node ' + variables.node + ' may not write the MeshNode ' + variables.written",
            "reason": "Forbidden",
        }]),
    };
    let mut parts = vec![part("What each node's agent tells the others.", crd)];
    parts.extend(policy.parts());
    Ok(parts)
}
