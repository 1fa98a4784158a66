//! `MeshNode`, and who may write which.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;

use super::access::policy_binding;
use super::{ManifestError, Part, part};
use crate::source::mesh_node_crd;

const POLICY: &str = "nodemesh-agents-speak-for-their-own-node";
/// Kubernetes' own, which deletes a MeshNode when its Node goes.
const GARBAGE_COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";

pub(super) fn parts() -> Result<Vec<Part>, ManifestError> {
    let crd = serde_json::to_value(mesh_node_crd())
        .map_err(|error| super::wrong(&json!({"kind": "CustomResourceDefinition"}), &error))?;
    let claim = "authentication.kubernetes.io/node-name";
    Ok(vec![
        part::<CustomResourceDefinition>("What each node's agent tells the others.", crd)?,
        part::<ValidatingAdmissionPolicy>(
            "An agent writes only the MeshNode of its own node: that of the node claim in its token, which the API server signs\nsince Kubernetes 1.30. It holds for every service account, whatever namespace or name the agents' has.",
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": POLICY},
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": [{
                        "apiGroups": ["nodemesh.dev"], "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE", "DELETE"], "resources": ["meshnodes"], "scope": "*",
                    }]},
                    "matchConditions": [
                        // People write what their rights allow.
                        {"name": "a-service-account", "expression": "request.userInfo.username.startsWith('system:serviceaccount:')"},
                        {"name": "not-a-nodes-end", "expression": format!("request.operation != 'DELETE' || request.userInfo.username != '{GARBAGE_COLLECTOR}'")},
                    ],
                    "variables": [
                        {"name": "node", "expression": format!("'{claim}' in request.userInfo.extra ? request.userInfo.extra['{claim}'][0] : ''")},
                        {"name": "written", "expression": "request.operation == 'DELETE' ? oldObject.metadata.name : object.metadata.name"},
                    ],
                    "validations": [{
                        "expression": "variables.node != '' && variables.written == variables.node",
                        "messageExpression": "variables.node == '' ? 'a MeshNode is written by the agent of its node, and the token of ' + request.userInfo.username + ' names no node' : 'the agent of node ' + variables.node + ' may not write the MeshNode ' + variables.written",
                        "reason": "Forbidden",
                    }],
                },
            }),
        )?,
        part::<ValidatingAdmissionPolicyBinding>(
            "The policy is in force.",
            policy_binding(POLICY),
        )?,
    ])
}
