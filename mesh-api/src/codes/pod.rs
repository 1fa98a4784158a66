//! Whether a pod is in the mesh, and if not, why not.

use serde::{Deserialize, Serialize};

use super::codes;

codes! {
    /// Whether a pod is in the mesh, as [`PodStatus`](crate::PodStatus) shows it.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    PodState {
    Enrolled "enrolled" none
        "its new connections are decided about and carried",
        "", "";
    Leaving "leaving" none
        "it has been withdrawn, and peers may not know yet",
        "", "wait 3 s";
    Held "held" none
        "it is strict and not enrolled yet: it cannot be dialled, and its dials wait or are refused",
        "", "the code beside it says why";
    NotEnrolled "not_enrolled" none
        "it is left alone",
        "", "the code beside it says why";
    }
}

codes! {
    /// Why a pod is not in the mesh. Without a fault, it is meant so, or passes by itself.
    PodCode {
    Enabled "enabled" none
        "the pod is to be in the mesh, and its enrolment has not begun",
        "", "wait";
    MeshNamespace "mesh_namespace" none
        "the pod is in the mesh's own namespace, whose pods are never in the mesh",
        "", "";
    NotLabelled "not_labelled" none
        "neither the pod nor its namespace has the label nodemesh.dev/mesh=enabled",
        "", "set the label, if the pod should be in the mesh";
    PodOptedOut "pod_opted_out" none
        "the pod has the label nodemesh.dev/mesh=disabled",
        "", "";
    NamespaceOptedOut "namespace_opted_out" none
        "the namespace has the label nodemesh.dev/mesh=disabled",
        "", "";
    HostNetwork "host_network" none
        "the pod uses the node's network (hostNetwork)",
        "", "such a pod is never in the mesh";
    Completed "completed" none
        "the pod has ended",
        "", "";
    Leaving "leaving" none
        "the pod leaves the mesh; peers are given time to hear of it",
        "", "wait 3 s";
    NoAddress "no_address" none
        "the pod has no address yet",
        "", "wait";
    NamespaceMissing "namespace_missing" Configuration
        "the pod's Namespace object is not known",
        "file mode, and the object is missing", "add the object; the pod is held only if it says itself that it is in the mesh, and strict";
    AddressTaken "address_taken" Configuration
        "another pod has its address",
        "in a cluster: an address that is used again, and it passes", "in file mode: give each its own";
    InvalidSetting "invalid_setting" Configuration
        "a label or annotation cannot be read, and nothing was said before",
        "a misspelling", "the problem of the same code says which; docs/enrol.md says which pods are held";
    NoNetnsAnnotation "no_netns_annotation" Configuration
        "file mode: the pod does not say where its network namespace is",
        "", "set the annotation nodemesh.dev/netns";
    NetnsNotFound "netns_not_found" Platform
        "no process of the pod has a network namespace with its addresses",
        "it starts or ends, or has a kernel of its own (gVisor, Kata), which cannot be in the mesh", "wait, or take the pod out of the mesh by nodemesh.dev/mesh=disabled";
    NetnsUnusable "netns_unusable" Platform
        "its network namespace cannot be entered",
        "", "the reason has the system's error";
    NetnsTaken "netns_taken" Configuration
        "another pod has the same network namespace",
        "file mode: a wrong annotation nodemesh.dev/netns", "give each its own";
    NoIdentity "no_identity" Configuration
        "its names make no SPIFFE id",
        "", "rename the service account";
    NoCertificate "no_certificate" Configuration
        "the CA did not sign its certificate",
        "", "the reason has the error";
    NoListener "no_listener" Application
        "the agent's ports in the pod's namespace cannot be had",
        "something in the pod listens there", "have it listen elsewhere";
    KernelRefused "kernel_refused" Platform
        "the kernel refused a program or an entry",
        "", "the reason has the system's error";
    NoPortsLeft "no_ports_left" Configuration
        "the mesh's ports are those that the pod dials from",
        "net.ipv4.ip_local_port_range of the pod is within 60988-65535, or mostly", "widen it downwards";
    SysctlRefused "sysctl_refused" Platform
        "`ip_local_reserved_ports` cannot be set in the pod",
        "", "the reason has the system's error";
    RuntimeDirUnusable "runtime_dir_unusable" Platform
        "`/run/nodemesh` cannot be written",
        "", "the reason has the system's error";
    }
}
