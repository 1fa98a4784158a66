//! The interim CA: its key lies in a Secret that every agent reads. A CA service will replace it.

use serde_json::json;

use super::access::{account, role, role_binding, unprivileged};
use super::{Manifest, NAMESPACE, Part, part};
use crate::source::CA_NOTICE;

/// The Secret with `ca.crt`, `ca.key` and `anchors.pem`.
pub(super) const SECRET: &str = "nodemesh-ca";
/// The Deployment that makes it, once.
const MAKER: &str = "make-ca";

pub(super) fn parts(chosen: &Manifest) -> Vec<Part> {
    let labels = json!({"app.kubernetes.io/name": MAKER, "app.kubernetes.io/part-of": "nodemesh"});
    vec![
        part(
            "INTERIM: the CA's key is in the Secret nodemesh-ca, and every agent signs with it. Whoever reads that Secret, or takes over\na node, can be anybody in the mesh. A CA of its own, which only signs for pods that run on the asking node, replaces this.",
            account(MAKER),
        ),
        part(
            "",
            role(
                MAKER,
                &json!([
                    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
                    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get"]},
                    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
                    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
                    {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": [CA_NOTICE], "verbs": ["get", "patch"]},
                ]),
            ),
        ),
        part("", role_binding(MAKER)),
        part(
            "Makes the Secret, unless it is there or agents use the one that was. A Deployment and no Job: a Job cannot be given\nanother image.",
            json!({
                "apiVersion": "apps/v1", "kind": "Deployment",
                "metadata": {"name": MAKER, "namespace": NAMESPACE, "labels": labels},
                "spec": {
                    "replicas": 1,
                    "selector": {"matchLabels": {"app.kubernetes.io/name": MAKER}},
                    "template": {
                        "metadata": {"labels": labels},
                        "spec": {
                            "serviceAccountName": MAKER,
                            "automountServiceAccountToken": true,
                            "priorityClassName": "system-cluster-critical",
                            "terminationGracePeriodSeconds": 1,
                            "nodeSelector": {"kubernetes.io/os": "linux"},
                            "tolerations": [{"operator": "Exists", "effect": "NoSchedule"}],
                            "containers": [chosen.container(MAKER, json!({
                                "args": ["ca", "keep", "--secret", SECRET, "--trust-domain", chosen.trust_domain.as_str()],
                                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                                "securityContext": unprivileged(),
                            }))],
                        },
                    },
                },
            }),
        ),
    ]
}
