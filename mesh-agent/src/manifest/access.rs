//! What the agents may do at the API server: read what the world is made of, and write their
//! MeshNode and Events.

use serde_json::{Value, json};

use super::{AGENT, NAMESPACE, Part, events, part};
use crate::source::{CA_NOTICE, KINDS};

pub(super) const RBAC: &str = "rbac.authorization.k8s.io/v1";

pub(super) fn parts() -> Vec<Part> {
    let (group, resource, verb) = events::MARKER;
    let mut rules = reading();
    rules.extend([
        json!({"apiGroups": ["nodemesh.dev"], "resources": ["meshnodes"], "verbs": ["get", "list", "watch", "create", "patch", "delete"]}),
        json!({"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]}),
        json!({"apiGroups": [group], "resources": [resource], "verbs": [verb]}),
    ]);
    vec![
        part("The agents.", account(AGENT)),
        part(
            "What agents read of the cluster, and the two things they write: their MeshNode, and Events, by the\npolicy below, which knows this role by a permission that means nothing else. No write to pods or nodes.",
            json!({
                "apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": cluster_name(AGENT)},
                "rules": rules,
            }),
        ),
        part("", cluster_role_binding(AGENT)),
        part(
            "An agent watches its own DaemonSet: when that is deleted, it takes everything away that it has put on its node. And\nwhat is said of the CA's Secret, which it may not read.",
            role(
                AGENT,
                &json!([
                    {"apiGroups": ["apps"], "resources": ["daemonsets"], "resourceNames": [AGENT], "verbs": ["get", "list", "watch"]},
                    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CA_NOTICE], "verbs": ["get", "list", "watch"]},
                ]),
            ),
        ),
        part("", role_binding(AGENT)),
    ]
}

/// To read the kinds that the world is made of, a rule for each API group.
fn reading() -> Vec<Value> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in KINDS {
        match groups.iter_mut().find(|(group, _)| *group == kind.group) {
            Some((_, plurals)) => plurals.push(kind.plural),
            None => groups.push((kind.group, vec![kind.plural])),
        }
    }
    let rule = |(group, plurals): (&str, Vec<&str>)| json!({"apiGroups": [group], "resources": plurals, "verbs": ["get", "list", "watch"]});
    groups.into_iter().map(rule).collect()
}

/// The name of a cluster-wide object.
pub(super) fn cluster_name(name: &str) -> String {
    format!("{NAMESPACE}-{name}")
}

/// Binds an account to the cluster role of the same name.
pub(super) fn cluster_role_binding(account: &str) -> Value {
    let name = cluster_name(account);
    json!({
        "apiVersion": RBAC, "kind": "ClusterRoleBinding", "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}],
    })
}

/// The security context of a container that needs nothing from its node.
pub(super) fn unprivileged() -> Value {
    json!({
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "runAsNonRoot": true,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    })
}

pub(super) fn account(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "automountServiceAccountToken": false,
    })
}

pub(super) fn role(name: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": RBAC, "kind": "Role",
        "metadata": {"name": name, "namespace": NAMESPACE}, "rules": rules,
    })
}

pub(super) fn role_binding(name: &str) -> Value {
    json!({
        "apiVersion": RBAC, "kind": "RoleBinding",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}],
    })
}
