//! Which pod a cgroup is, by the name that the kubelet gives it.

use mesh_world::PodUid;

/// The pod that a directory of the cgroup tree belongs to: `pod<UID>` from the cgroupfs driver,
/// `kubepods-burstable-pod<UID>.slice` with `_` for `-` from the systemd driver (kubelet,
/// `pkg/kubelet/cm`).
pub(super) fn pod_uid(directory: &str) -> Option<PodUid> {
    let uid = match directory.strip_suffix(".slice") {
        // A slice's name holds its ancestors'; the UID is what follows the last `-pod`.
        Some(slice) => slice.split_once("kubepods-")?.1.rsplit_once("pod")?.1.replace('_', "-"),
        None => directory.strip_prefix("pod")?.to_owned(),
    };
    PodUid::parse(&uid).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_drivers_names_are_understood() {
        const UID: &str = "0a1b2c3d-0000-4000-8000-00000000000f";
        let slice = |class: &str| format!("kubepods{class}-pod{}.slice", UID.replace('-', "_"));
        for name in [format!("pod{UID}"), slice(""), slice("-burstable"), slice("-besteffort")] {
            assert_eq!(pod_uid(&name).unwrap().as_str(), UID, "{name}");
        }
        for name in ["kubepods.slice", "kubepods-burstable.slice", "besteffort", "pod", "app", ""] {
            assert_eq!(pod_uid(name), None, "{name}");
        }
        let nested = format!("kubelet-{}", slice("-burstable"));
        assert_eq!(pod_uid(&nested).unwrap().as_str(), UID, "a node that is a container");
        assert_eq!(pod_uid("cri-containerd-pod1.scope"), None);
        assert_eq!(pod_uid("system-pod1.slice"), None);
    }
}
