//! The program that takes the start-up taint off nodes: a small Deployment of its own, since agents
//! must not write nodes.

use serde_json::json;

use super::access::{
    RBAC, account, cluster_name, cluster_role_binding, role, role_binding, unprivileged,
};
use super::policy::{IS_SERVICE_ACCOUNT, Policy};
use super::{Manifest, NAMESPACE, Part, part};
use crate::start_taint::TAINT;

const UNTAINT: &str = "untaint";
/// A permission for nothing, by which the policy recognises the role's account.
const MARKER: Marker = Marker { group: "nodemesh.dev", resource: "starttaints", verb: "remove" };

struct Marker {
    group: &'static str,
    resource: &'static str,
    verb: &'static str,
}

pub(super) fn parts(chosen: &Manifest) -> Vec<Part> {
    let mut parts = vec![
        part(
            "Takes the start-up taint off nodes whose agent is ready. Nodes of which nobody has tainted any are none of its business.",
            account(UNTAINT),
        ),
        part(
            "A taint is a field of the node, and no role is as narrow as a field: the policy below is. It holds for whoever has\nthis role, known by the permission `remove starttaints`, which means nothing else.",
            json!({
                "apiVersion": RBAC, "kind": "ClusterRole", "metadata": {"name": cluster_name(UNTAINT)},
                "rules": [
                    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "list", "watch", "patch"]},
                    {"apiGroups": [MARKER.group], "resources": [MARKER.resource], "verbs": [MARKER.verb]},
                ],
            }),
        ),
        part("", cluster_role_binding(UNTAINT)),
        part(
            "",
            role(
                UNTAINT,
                &json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]}]),
            ),
        ),
        part("", role_binding(UNTAINT)),
    ];
    parts.extend(policy().parts());
    parts.push(deployment(chosen));
    parts
}

fn policy() -> Policy {
    // The account is recognised by the permission that only its role gives, whatever namespace or
    // name it has been moved to. An account that may write nodes in other ways, too, is an
    // administrator's.
    let may = |of: &str, verb: &str| format!("authorizer{of}.check('{verb}').allowed()");
    let marker = format!(".group('{}').resource('{}')", MARKER.group, MARKER.resource);
    let user = format!(
        "{IS_SERVICE_ACCOUNT} && {} && !{}",
        may(&marker, MARKER.verb),
        may(".group('').resource('nodes')", "update"),
    );
    // All other fields that an account may write that may patch nodes, but not their status.
    let same = |field: &str, empty: &str| {
        let value = |object: &str| {
            let (at, _) = field.split_once('.').unwrap_or(("", ""));
            format!("(has({object}.{at}) && has({object}.{field}) ? {object}.{field} : {empty})")
        };
        let expression = format!("{} == {}", value("object"), value("oldObject"));
        json!({"expression": expression, "message": format!("{UNTAINT} may not write {field} of nodes"), "reason": "Forbidden"})
    };
    let taints = |object: &str| {
        let spec = format!("has({object}.spec) && has({object}.spec.taints)");
        format!("({spec} ? {object}.spec.taints : [])")
    };
    let others = format!(
        "{} == {}.filter(taint, taint.key != '{TAINT}')",
        taints("object"),
        taints("oldObject")
    );
    Policy {
        name: "nodemesh-untaint-takes-off-its-own-taint",
        about: "Of nodes it may write nothing but that the taint is gone.",
        of: ("", &["nodes", "nodes/*"], &["UPDATE"]),
        conditions: json!([{"name": "untaint", "expression": user}]),
        variables: None,
        validations: json!([
            {"expression": others, "message": format!("{UNTAINT} may take off the taint {TAINT} and no other"), "reason": "Forbidden"},
            same("metadata.labels", "{}"),
            same("metadata.annotations", "{}"),
            same("metadata.finalizers", "[]"),
            same("metadata.ownerReferences", "[]"),
            same("spec.unschedulable", "false"),
            same("spec.providerID", "''"),
            same("spec.podCIDRs", "[]"),
        ]),
    }
}

fn deployment(chosen: &Manifest) -> Part {
    let labels =
        json!({"app.kubernetes.io/name": UNTAINT, "app.kubernetes.io/part-of": "nodemesh"});
    let selector = json!({"app.kubernetes.io/name": UNTAINT});
    let tolerated = ["node-role.kubernetes.io/control-plane", TAINT];
    part(
        "One for the cluster. It runs on nodes that still have the taint: all may have it.",
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": UNTAINT, "namespace": NAMESPACE, "labels": labels},
            "spec": {
                "replicas": 1,
                "selector": {"matchLabels": selector},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {
                        "serviceAccountName": UNTAINT,
                        "automountServiceAccountToken": true,
                        "priorityClassName": "system-cluster-critical",
                        "terminationGracePeriodSeconds": 1,
                        "nodeSelector": {"kubernetes.io/os": "linux"},
                        "tolerations": tolerated.map(|key| json!({"key": key, "operator": "Exists", "effect": "NoSchedule"})),
                        "containers": [chosen.container(UNTAINT, json!({
                            "args": ["untaint"],
                            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "128Mi"}},
                            "securityContext": unprivileged(),
                        }))],
                    },
                },
            },
        }),
    )
}
