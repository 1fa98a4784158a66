//! What agents may write in Events.

use serde_json::json;

use super::Part;
use super::policy::{IS_SERVICE_ACCOUNT, Policy, node_of_token};
use crate::notices::EVENT_CONTROLLER;

/// A permission for nothing, by which the policy recognises the agents' role: group, resource,
/// verb.
pub(super) const MARKER: (&str, &str, &str) = ("nodemesh.dev", "signedevents", "write");

pub(super) fn parts() -> Vec<Part> {
    // The account is recognised by the permission that only the agents' role gives, whatever
    // namespace or name it has been moved to. An account that may delete Events is an
    // administrator's.
    let (group, resource, verb) = MARKER;
    let is_agent = format!(
        "{IS_SERVICE_ACCOUNT} && authorizer.group('{group}').resource('{resource}').check('{verb}').allowed() && !authorizer.group('events.k8s.io').resource('events').check('delete').allowed()"
    );
    // The API server lets no account change the reporter of an Event.
    let signed = format!(
        "variables.node != '' && has(object.reportingController) && object.reportingController == '{EVENT_CONTROLLER}' && has(object.reportingInstance) && object.reportingInstance == variables.node"
    );
    let policy = Policy {
        name: "nodemesh-agents-sign-their-events",
        about: "An agent writes Events in its own name only: those of the mesh, of the node in its token. It can neither change others'\nnor speak for the kubelet.",
        of: ("events.k8s.io", &["events"], &["CREATE", "UPDATE"]),
        conditions: json!([{"name": "an-agent", "expression": is_agent}]),
        variables: Some(json!([node_of_token()])),
        validations: json!([{
            "expression": signed,
            "message": "an agent writes Events that are signed as those of its own node",
            "reason": "Forbidden",
        }]),
    };
    policy.parts().into()
}
