//! The DaemonSet.

use serde_json::json;

use super::authority::SECRET;
use super::{AGENT, Manifest, NAMESPACE, Part, part};

/// How long open connections may take to end at an agent's shutdown.
const DRAIN_SECONDS: u32 = 25;
/// Where the agents serve metrics, on their pods' addresses; ztunnel's port for the same.
const METRICS_PORT: u16 = 15020;
/// How long an agent may wait until it knows anything, before the kubelet restarts it. It is longer
/// than the ten minutes after which the kubelet forgets earlier restarts, so that no back-off comes
/// before it.
const PATIENCE_SECONDS: u32 = 60 * 60;
/// The kubelet's grace period: the drain, and time to let pods leave and to clean up on a busy
/// node.
const GRACE_SECONDS: u32 = DRAIN_SECONDS + 35;

pub(super) fn parts(chosen: &Manifest) -> Vec<Part> {
    let about = "One agent per node, not in the node's network. An update starts the new agent beside the old one and lets it take over:\nno connection is refused meanwhile.";
    let labels = json!({"app.kubernetes.io/name": AGENT, "app.kubernetes.io/part-of": "nodemesh"});
    let selector = json!({"app.kubernetes.io/name": AGENT});
    let from = |field: &str| json!({"fieldRef": {"fieldPath": field}});
    let object = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": AGENT, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": selector},
            "updateStrategy": {
                "type": "RollingUpdate",
                "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0},
            },
            "template": {
                "metadata": {"labels": labels, "annotations": {
                    "kubectl.kubernetes.io/default-container": AGENT,
                    // A convention of many Prometheus installations; only they read it.
                    "prometheus.io/scrape": "true",
                    "prometheus.io/port": METRICS_PORT.to_string(),
                }},
                "spec": {
                    "serviceAccountName": AGENT,
                    "automountServiceAccountToken": true,
                    // Sees the pods' processes, and through process 1 the node's cgroups. No
                    // hostNetwork.
                    "hostPID": true,
                    "priorityClassName": "system-node-critical",
                    "terminationGracePeriodSeconds": GRACE_SECONDS,
                    "nodeSelector": {"kubernetes.io/os": "linux"},
                    "tolerations": [{"operator": "Exists"}],
                    "containers": [chosen.container(AGENT, json!({
                        "args": [
                            "run", "--kubernetes", "--daemon-set", AGENT, "--take-over",
                            "--ca-dir", "/etc/nodemesh/ca",
                            // A CA of another trust domain is refused: another manifest cannot
                            // change the one in use.
                            "--trust-domain", chosen.trust_domain.as_str(),
                            "--drain-seconds", DRAIN_SECONDS.to_string(),
                            "--metrics", format!("[::]:{METRICS_PORT}"),
                        ],
                        "ports": [{"name": "metrics", "containerPort": METRICS_PORT}],
                        "env": [{"name": "NODE_NAME", "valueFrom": from("spec.nodeName")}],
                        // Ready: in charge of the node, and the world has been read. There is no
                        // liveness probe: a stuck agent ends itself, and one that is only slow must
                        // not lose its connections because of a probe. The startup probe is there
                        // to ask more often at first.
                        "startupProbe": {"exec": {"command": ["/usr/bin/mesh-agent", "ready"]}, "periodSeconds": 1, "failureThreshold": PATIENCE_SECONDS, "timeoutSeconds": 5},
                        "readinessProbe": {"exec": {"command": ["/usr/bin/mesh-agent", "ready"]}, "periodSeconds": 10, "timeoutSeconds": 5},
                        "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}},
                        "securityContext": {
                            "privileged": false,
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "runAsUser": 0,
                            "capabilities": {
                                "drop": ["ALL"],
                                "add": ["BPF", "NET_ADMIN", "NET_RAW", "SYS_ADMIN", "SYS_CHROOT", "SYS_PTRACE"],
                            },
                            "seccompProfile": {"type": "RuntimeDefault"},
                            "appArmorProfile": {"type": "Unconfined"},
                        },
                        "volumeMounts": [
                            {"name": "run", "mountPath": "/run/nodemesh"},
                            // With this propagation, a bpffs that the agent first has to mount on
                            // the node is seen here.
                            {"name": "bpf", "mountPath": "/sys/fs/bpf", "mountPropagation": "HostToContainer"},
                            {"name": "ca", "mountPath": "/etc/nodemesh/ca", "readOnly": true},
                        ],
                    }))],
                    "volumes": [
                        {"name": "run", "hostPath": {"path": "/run/nodemesh", "type": "DirectoryOrCreate"}},
                        {"name": "bpf", "hostPath": {"path": "/sys/fs/bpf", "type": "Directory"}},
                        {"name": "ca", "secret": {"secretName": SECRET, "defaultMode": 0o400}},
                    ],
                },
            },
        },
    });
    vec![part(about, object)]
}
