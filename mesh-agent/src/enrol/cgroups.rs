//! The cgroups of the node's pods by the UIDs of their objects.

use std::sync::Arc;

use mesh_world::{NodeName, Objects};
use tokio::sync::watch;

use crate::{pod_cgroups::PodCgroups, source::SourceState};

/// Reads what the tree and the objects say now. A clone reads the same.
#[derive(Clone, Debug)]
pub struct Cgroups {
    seen: watch::Receiver<Arc<PodCgroups>>,
    objects: watch::Receiver<Arc<SourceState>>,
    node: NodeName,
}

impl Cgroups {
    /// Of this node.
    pub fn new(
        seen: watch::Receiver<Arc<PodCgroups>>,
        objects: watch::Receiver<Arc<SourceState>>,
        node: NodeName,
    ) -> Self {
        Self { seen, objects, node }
    }

    /// All that are known now.
    pub fn now(&self) -> Arc<PodCgroups> {
        let seen = Arc::clone(&self.seen.borrow());
        let objects = Arc::clone(&self.objects.borrow().objects);
        by_object(seen, &objects, &self.node)
    }
}

/// Renames the cgroups of static pods, which carry another UID than the pods' objects.
fn by_object(mut seen: Arc<PodCgroups>, objects: &Objects, node: &NodeName) -> Arc<PodCgroups> {
    for (named, uid) in objects.static_pods(node.as_str()) {
        if seen.contains_key(named)
            && let Some(cgroup) = Arc::make_mut(&mut seen).remove(named)
        {
            Arc::make_mut(&mut seen).insert(uid.clone(), cgroup);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use mesh_world::{PodObject, PodUid};
    use serde_json::json;

    use super::*;
    use crate::pod_cgroups::PodCgroup;

    #[test]
    fn a_static_pods_cgroup_is_found_by_the_uid_of_its_mirror() {
        let digest = "73bd32bbb27ec8f1e4f7ea3a3e3b2e28";
        let mirror: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "kube-system", "name": "dns-node1", "uid": "mirror", "annotations": {
                "kubernetes.io/config.mirror": digest, "kubernetes.io/config.hash": digest,
            }},
            "spec": {"nodeName": "node1", "containers": []},
        }))
        .unwrap();
        let mut objects = Objects::default();
        objects.insert_pod(PodObject::try_from(&mirror).unwrap());
        let (path, id) = ("/kubepods/pod73bd".into(), 7);
        let cgroup = PodCgroup { path, id, containers: 1, only_sandbox: false };
        let uid = |text: &str| PodUid::parse(text).unwrap();
        let seen = Arc::new(PodCgroups::from([(uid(digest), cgroup.clone())]));
        let on =
            |node: &str| by_object(Arc::clone(&seen), &objects, &NodeName::parse(node).unwrap());
        assert_eq!(*on("node1"), PodCgroups::from([(uid("mirror"), cgroup)]), "and by no other");
        assert_eq!(on("node2"), seen);
    }
}
