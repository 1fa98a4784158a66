//! What Kubernetes would tell the agents: the objects of a [`Net`](crate::Net) as YAML files in one
//! directory.
//!
//! Files appear and change atomically (written beside the directory, then renamed into it).

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::{self, Display, Write as _},
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    tag::Tag,
    topology::{Pod, PodSpec},
};

/// The label that brings a namespace or a pod into the mesh.
pub const MESH: &str = "nodemesh.dev/mesh";
/// The annotation that says `permissive` or `strict`.
pub const MODE: &str = "nodemesh.dev/mode";
/// The annotation that names a pod's network namespace.
pub const NETNS: &str = "nodemesh.dev/netns";
/// The annotation that lists ports which the mesh leaves alone.
pub const EXCLUDE_PORTS: &str = "nodemesh.dev/exclude-ports";
/// Annotation: ports on which a strict pod takes plaintext.
pub const PERMISSIVE_PORTS: &str = "nodemesh.dev/permissive-ports";
/// Annotation: how connections between two pods of one node go, `tls` or `local`.
pub const SAME_NODE: &str = "nodemesh.dev/same-node";

/// The directory and what is in it.
#[derive(Debug)]
pub struct Objects {
    dir: PathBuf,
    namespaces: RefCell<BTreeMap<String, Meta>>,
    pods: RefCell<BTreeMap<String, PodObject>>,
    /// How many UIDs pods have got.
    uids: Cell<usize>,
}

/// Labels and annotations.
#[derive(Debug, Clone, Default)]
struct Meta {
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
struct PodObject {
    namespace: String,
    name: String,
    uid: String,
    node: String,
    service_account: String,
    addresses: Vec<IpAddr>,
    meta: Meta,
    stage: Stage,
}

/// How far the API server is with a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Its object is there, with its addresses.
    #[default]
    Running,
    /// Its object is there, without an address, as before the kubelet has reported one.
    Starting,
    /// Its object is not there yet.
    Unknown,
}

impl Objects {
    pub(crate) fn new(tag: &Tag) -> Result<Self> {
        let dir = tag.dir().join("source");
        fs::create_dir_all(&dir)?;
        let (namespaces, pods) = (RefCell::default(), RefCell::default());
        Ok(Self { dir, namespaces, pods, uids: Cell::new(0) })
    }

    /// The directory, for `--source`.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Sets or removes the mesh label of a namespace:
    /// `kubectl label namespace NAME nodemesh.dev/mesh=VALUE`.
    pub fn label_namespace(&self, namespace: &str, mesh: Option<&str>) -> Result<()> {
        self.change_namespace(namespace, |meta| set(&mut meta.labels, MESH, mesh))
    }

    /// Sets or removes an annotation of a namespace.
    pub fn annotate_namespace(
        &self,
        namespace: &str,
        key: &str,
        value: Option<&str>,
    ) -> Result<()> {
        self.change_namespace(namespace, |meta| set(&mut meta.annotations, key, value))
    }

    /// Sets or removes the mesh label of a pod.
    pub fn label_pod(&self, pod: &Pod, mesh: Option<&str>) -> Result<()> {
        self.change_pod(pod, |object| set(&mut object.meta.labels, MESH, mesh))
    }

    /// Sets or removes an annotation of a pod.
    pub fn annotate_pod(&self, pod: &Pod, key: &str, value: Option<&str>) -> Result<()> {
        self.change_pod(pod, |object| set(&mut object.meta.annotations, key, value))
    }

    /// The UID that a pod's object has.
    pub fn uid(&self, pod: &Pod) -> Result<String> {
        let pods = self.pods.borrow();
        Ok(pods.get(&key(pod)).with_context(|| format!("no pod {}", key(pod)))?.uid.clone())
    }

    /// The pod's object is there with its addresses, also if the pod was made without
    /// ([`PodSpec::starting`], [`PodSpec::unknown`]).
    pub fn pod_runs(&self, pod: &Pod) -> Result<()> {
        self.change_pod(pod, |object| object.stage = Stage::Running)
    }

    /// Removes a pod's object, as when the pod has been deleted.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.pods.borrow_mut().remove(&key(pod));
        self.remove(&pod_file(pod))
    }

    /// Writes a service (both families) whose endpoints are these pods, all ready.
    pub fn service(
        &self,
        namespace: &str,
        name: &str,
        at: &[SocketAddr],
        target_port: u16,
        endpoints: &[&Pod],
    ) -> Result<()> {
        self.service_with(namespace, name, at, target_port, endpoints, true)
    }

    /// The same, with endpoints that are ready or not.
    pub fn service_with(
        &self,
        namespace: &str,
        name: &str,
        at: &[SocketAddr],
        target_port: u16,
        endpoints: &[&Pod],
        ready: bool,
    ) -> Result<()> {
        let port = at.first().context("a service without an address")?.port();
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\n  namespace: {namespace}\n\
             spec:\n  type: ClusterIP\n  clusterIP: {:?}\n  clusterIPs:\n",
            at[0].ip().to_string(),
        );
        for address in at {
            writeln!(text, "  - {:?}", address.ip().to_string())?;
        }
        write!(
            text,
            "  ports:\n  - {{name: main, protocol: TCP, port: {port}, targetPort: {target_port}}}\n"
        )?;
        for (family, index) in [("IPv4", 0), ("IPv6", 1)] {
            write!(
                text,
                "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: {family}\n\
                 metadata:\n  name: {name}-{}\n  namespace: {namespace}\n\
                 \x20 labels: {{\"kubernetes.io/service-name\": {name:?}}}\n\
                 ports:\n- {{name: main, protocol: TCP, port: {target_port}}}\nendpoints:\n",
                family.to_lowercase(),
            )?;
            if endpoints.is_empty() {
                text.truncate(text.len() - 1);
                text.push_str(" []\n");
            }
            for pod in endpoints {
                let address = pod.addresses()[index].to_string();
                let target =
                    format!("{{kind: Pod, name: {:?}, namespace: {:?}}}", pod.name, pod.namespace);
                writeln!(
                    text,
                    "- addresses: [{address:?}]\n  conditions: {{ready: {ready}}}\n  targetRef: {target}"
                )?;
            }
        }
        self.write(&format!("service-{namespace}-{name}.yaml"), &text)
    }

    /// Writes a file as it is, for instance a bad one.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        let new = self.dir.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, self.dir.join(file)).with_context(|| format!("renaming to {file}"))
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.dir.join(file)).with_context(|| format!("removing {file}"))
    }

    /// A UID that no pod has yet.
    pub(crate) fn new_uid(&self) -> String {
        let number = self.uids.get() + 1;
        self.uids.set(number);
        format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id())
    }

    pub(crate) fn add_pod(
        &self,
        pod: &Pod,
        uid: String,
        node: &str,
        netns: &str,
        spec: PodSpec,
    ) -> Result<()> {
        if !self.namespaces.borrow().contains_key(&pod.namespace) {
            self.change_namespace(&pod.namespace, |_| ())?;
        }
        let mut annotations = spec.annotations;
        annotations.insert(NETNS.to_owned(), netns.to_owned());
        let object = PodObject {
            namespace: spec.namespace,
            name: spec.name,
            uid,
            node: node.to_owned(),
            service_account: spec.service_account,
            addresses: pod.addresses().to_vec(),
            meta: Meta { labels: spec.labels, annotations },
            stage: spec.stage,
        };
        self.pods.borrow_mut().insert(key(pod), object);
        self.change_pod(pod, |_| ())
    }

    fn change_namespace(&self, name: &str, change: impl FnOnce(&mut Meta)) -> Result<()> {
        let mut namespaces = self.namespaces.borrow_mut();
        let meta = namespaces.entry(name.to_owned()).or_default();
        change(meta);
        let head = format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n");
        self.write(&format!("namespace-{name}.yaml"), &(head + &meta.to_string()))
    }

    fn change_pod(&self, pod: &Pod, change: impl FnOnce(&mut PodObject)) -> Result<()> {
        let mut pods = self.pods.borrow_mut();
        let object = pods.get_mut(&key(pod)).with_context(|| format!("no pod {}", key(pod)))?;
        change(object);
        if object.stage == Stage::Unknown {
            return Ok(());
        }
        self.write(&pod_file(pod), &object.to_string())
    }
}

impl Display for Meta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, map) in [("labels", &self.labels), ("annotations", &self.annotations)] {
            if !map.is_empty() {
                writeln!(f, "  {title}:")?;
            }
            for (key, value) in map {
                writeln!(f, "    {key}: {value:?}")?;
            }
        }
        Ok(())
    }
}

impl Display for PodObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { namespace, name, uid, node, service_account, addresses, meta, stage } = self;
        let addresses: &[_] = if *stage == Stage::Starting { &[] } else { addresses };
        write!(
            f,
            "apiVersion: v1\nkind: Pod\n\
             metadata:\n  name: {name}\n  namespace: {namespace}\n  uid: {uid}\n{meta}\
             spec:\n  nodeName: {node}\n  serviceAccountName: {service_account}\n  containers:\n  \
             - {{name: main, image: none}}\nstatus:\n  phase: Running\n"
        )?;
        if let Some(first) = addresses.first() {
            writeln!(f, "  podIP: \"{first}\"\n  podIPs:")?;
        }
        addresses.iter().try_for_each(|address| writeln!(f, "  - ip: \"{address}\""))
    }
}

fn key(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

/// The file in which a pod's object is.
pub fn pod_file(pod: &Pod) -> String {
    format!("pod-{}-{}.yaml", pod.namespace, pod.name)
}

fn set(map: &mut BTreeMap<String, String>, key: &str, value: Option<&str>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value.to_owned()),
        None => map.remove(key),
    };
}
