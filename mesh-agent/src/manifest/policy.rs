//! Admission policies: what an account may write, more narrowly than a role can say.

use serde_json::{Value, json};

use super::{Part, part};

/// The request's account is a service account.
pub(super) const IS_SERVICE_ACCOUNT: &str =
    "request.userInfo.username.startsWith('system:serviceaccount:')";

/// A policy that refuses what its validations do not allow. It is in force as soon as it is
/// applied.
pub(super) struct Policy {
    /// The name of both objects.
    pub(super) name: &'static str,
    /// The purpose of the policy.
    pub(super) about: &'static str,
    /// API group, resources and operations.
    pub(super) of: (&'static str, &'static [&'static str], &'static [&'static str]),
    /// The requests that it applies to: `matchConditions`.
    pub(super) conditions: Value,
    /// `variables`, if there are any.
    pub(super) variables: Option<Value>,
    pub(super) validations: Value,
}

impl Policy {
    /// The policy and its binding.
    pub(super) fn parts(self) -> [Part; 2] {
        let Self { name, about, of: (group, resources, operations), .. } = self;
        let mut spec = json!({
            "failurePolicy": "Fail",
            "matchConstraints": {"resourceRules": [{
                "apiGroups": [group], "apiVersions": ["*"],
                "operations": operations, "resources": resources, "scope": "*",
            }]},
            "matchConditions": self.conditions,
            "validations": self.validations,
        });
        if let Some(variables) = self.variables
            && let Some(spec) = spec.as_object_mut()
        {
            spec.insert("variables".to_owned(), variables);
        }
        let object = |kind: &str, spec: &Value| {
            json!({
                "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
                "metadata": {"name": name}, "spec": spec,
            })
        };
        let binding = json!({"policyName": name, "validationActions": ["Deny"]});
        [
            part(about, object("ValidatingAdmissionPolicy", &spec)),
            part("The policy is in force.", object("ValidatingAdmissionPolicyBinding", &binding)),
        ]
    }
}

/// A variable `node`: the node that the account's token names, signed by the API server since
/// Kubernetes 1.30, or ''.
pub(super) fn node_of_token() -> Value {
    let claim = "authentication.kubernetes.io/node-name";
    json!({
        "name": "node",
        "expression": format!("'{claim}' in request.userInfo.extra ? request.userInfo.extra['{claim}'][0] : ''"),
    })
}
