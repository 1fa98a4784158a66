//! What agents may say in Events.

use k8s_openapi::api::admissionregistration::v1::{
    ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding,
};
use serde_json::json;

use super::access::policy_binding;
use super::{ManifestError, Part, part};
use crate::notices::EVENT_CONTROLLER;

const POLICY: &str = "nodemesh-agents-sign-their-events";
/// A permission for nothing, by which the policy knows the agents' role: group, resource, verb.
pub(super) const MARKER: (&str, &str, &str) = ("nodemesh.dev", "signedevents", "write");

pub(super) fn parts() -> Result<Vec<Part>, ManifestError> {
    // By what only the agents' role gives, whatever namespace or name somebody has moved it to; who may delete Events is an
    // administrator's account.
    let (group, resource, verb) = MARKER;
    let is_agent = format!(
        "request.userInfo.username.startsWith('system:serviceaccount:') && authorizer.group('{group}').resource('{resource}').check('{verb}').allowed() && !authorizer.group('events.k8s.io').resource('events').check('delete').allowed()"
    );
    let claim = "authentication.kubernetes.io/node-name";
    // The API server lets nobody change who has reported an Event.
    let signed = format!(
        "variables.node != '' && has(object.reportingController) && object.reportingController == '{EVENT_CONTROLLER}' && has(object.reportingInstance) && object.reportingInstance == variables.node"
    );
    Ok(vec![
        part::<ValidatingAdmissionPolicy>(
            "An agent writes Events in its own name only: those of the mesh, of the node in its token. It can neither change others'\nnor speak for the kubelet.",
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "ValidatingAdmissionPolicy",
                "metadata": {"name": POLICY},
                "spec": {
                    "failurePolicy": "Fail",
                    "matchConstraints": {"resourceRules": [{
                        "apiGroups": ["events.k8s.io"], "apiVersions": ["*"],
                        "operations": ["CREATE", "UPDATE"], "resources": ["events"], "scope": "*",
                    }]},
                    "matchConditions": [{"name": "an-agent", "expression": is_agent}],
                    "variables": [{
                        "name": "node",
                        "expression": format!("'{claim}' in request.userInfo.extra ? request.userInfo.extra['{claim}'][0] : ''"),
                    }],
                    "validations": [{
                        "expression": signed,
                        "message": "an agent writes Events that are signed as those of its own node",
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
