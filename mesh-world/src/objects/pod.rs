//! `v1/Pod`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::names::{NodeName, ObjectName, PodUid};
use crate::origin::Origin;
use crate::settings::Declaration;

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodObject {
    /// Where it was read.
    pub origin: Origin,
    /// `metadata.uid`. A pod in a file may lack it and then gets `<namespace>.<name>`.
    pub uid: PodUid,
    /// Namespace and name.
    pub name: ObjectName,
    /// `spec.serviceAccountName`, else `default`, as the API server's admission has it.
    pub service_account: Arc<str>,
    /// `spec.nodeName`; `None` until the pod is scheduled.
    pub node: Option<NodeName>,
    /// `status.podIPs`, else `status.podIP`; IPv4-mapped ones as IPv4. In the object's order.
    pub ips: Vec<IpAddr>,
    /// `spec.hostNetwork`: its addresses are the node's.
    pub host_network: bool,
    /// `status.phase` is Succeeded or Failed: its addresses may already be another pod's.
    pub completed: bool,
    /// When it was made, in seconds since 1970; files seldom say.
    pub created_s: Option<i64>,
    /// All labels.
    pub labels: BTreeMap<String, String>,
    /// What it says about the mesh.
    pub mesh: Declaration,
    /// The network namespace that it names. Only read from files: in a cluster, an account that may
    /// create pods could name the host's namespace here.
    pub netns: Option<NetnsRef>,
    /// The UID under which the kubelet knows a static pod, and that of its cgroup. Its object (the
    /// mirror) has another. See [`Objects::static_pods`](super::Objects::static_pods).
    pub static_uid: Option<PodUid>,
    /// Whether the addresses stand in `status.podIPs`.
    pub(crate) ips_from_list: bool,
}

/// A network namespace by the path of a file that holds it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetnsRef(PathBuf);

impl NetnsRef {
    /// Takes an absolute path, or a name as `ip netns` has it.
    ///
    /// Errors: one sentence that quotes the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let name = !text.is_empty() && !text.contains(['/', '\0']) && !text.starts_with('.');
        if name {
            Ok(Self(Path::new("/run/netns").join(text)))
        } else if text.starts_with('/') && !text.contains('\0') {
            Ok(Self(PathBuf::from(text)))
        } else {
            Err(format!("{text:?} is neither an absolute path nor a name under /run/netns"))
        }
    }

    /// The file to open.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl PodObject {
    /// The field in which `address` stands.
    pub(crate) fn address_field(&self, address: IpAddr) -> String {
        match self.ips.iter().position(|ip| *ip == address) {
            Some(index) if self.ips_from_list => format!("status.podIPs[{index}].ip"),
            _ => "status.podIP".to_owned(),
        }
    }
}
