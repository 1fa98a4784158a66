//! A machine room in memory: nodes on a common link, pods on their nodes' bridges.
//!
//! ```text
//!  pod eth0 ── cni0 node1 uplink ── br0 (its own namespace) ── uplink node2 cni0 ── eth0 pod
//!  10.244.1.x      192.168.100.1                               192.168.100.2       10.244.2.x
//!  fd00:244:1::x   fd00:100::1                                 fd00:100::2         fd00:244:2::x
//! ```
//! `cni0` and `br0` are bridges. Every [`Net`] has its own namespaces, so that all use the same
//! addresses and run at the same time.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::Once,
};

use anyhow::{Context as _, Result, ensure};
use nix::unistd::{Pid, geteuid};

use crate::{
    agent::{Agent, Dirs, SOON},
    capture::Capture,
    cgroup, eventually,
    exec::Place,
    netns,
    objects::{Objects, Stage},
    tag::{self, BPFFS, Tag},
};

/// The host number of a machine on the link that is neither a node nor a pod.
const OUTSIDER: u8 = 200;

/// One test's network and all that it owns. Removed when dropped.
#[derive(Debug)]
pub struct Net {
    name: String,
    tag: Tag,
    nodes: RefCell<Vec<Node>>,
    pods: Cell<u8>,
    objects: Objects,
    removed: Cell<bool>,
}

/// A node: programs run at it as in the host's namespace, in a cgroup beside the pods'.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name in the objects.
    pub name: String,
    number: u8,
    netns: String,
    cgroup: PathBuf,
    tag: Tag,
    place: Place,
}

/// What a pod shall be.
#[derive(Debug, Clone, Default)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service_account: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) stage: Stage,
    pub(crate) netns_of: Option<Pid>,
}

/// A pod: programs run in it, through [`Place`].
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    number: u8,
    place: Place,
}

impl PodSpec {
    /// A pod whose service account has the pod's name.
    pub fn new(namespace: &str, name: &str) -> Self {
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let labels = BTreeMap::from([("app".to_owned(), name.clone())]);
        Self { namespace, service_account: name.clone(), name, labels, ..Self::default() }
    }

    /// With another service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        name.clone_into(&mut self.service_account);
        self
    }

    /// With a label, for instance `nodemesh.dev/mesh`.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The pod's object has no address yet, until [`Objects::pod_runs`].
    #[must_use]
    pub fn starting(mut self) -> Self {
        self.stage = Stage::Starting;
        self
    }

    /// The pod's object is not there yet, until [`Objects::pod_runs`].
    #[must_use]
    pub fn unknown(mut self) -> Self {
        self.stage = Stage::Unknown;
        self
    }

    /// In the network namespace that this process has already, instead of a new one.
    #[must_use]
    pub fn netns_of(mut self, process: Pid) -> Self {
        self.netns_of = Some(process);
        self
    }

    /// With an annotation, for instance `nodemesh.dev/mode`.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }
}

impl Net {
    /// An empty network for the test of this name. Sweeps up after killed tests first.
    pub fn new(name: &str) -> Result<Self> {
        Self::with_tag(name, Tag::unique())
    }

    /// A network whose things have a given tag; what was there under that tag is removed.
    pub fn with_tag(name: &str, tag: Tag) -> Result<Self> {
        static ONCE: Once = Once::new();
        ensure!(geteuid().is_root(), "whole-system tests make namespaces: run them as root");
        ONCE.call_once(tag::sweep);
        mount_bpffs()?;
        tag.remove_all()?;
        let objects = Objects::new(&tag)?;
        let (pods, removed) = (Cell::new(0), Cell::new(false));
        let net =
            Self { name: name.to_owned(), tag, nodes: RefCell::default(), pods, objects, removed };
        fs::create_dir_all(net.logs())?;
        fs::create_dir(net.tag.cgroup())?;
        let link = net.tag.netns("link");
        netns::add(&link, false)?;
        netns::ip(
            Some(&link),
            "link set lo up\nlink add br0 type bridge mcast_snooping 0\nlink set br0 up\n",
        )?;
        Ok(net)
    }

    /// What every name of this network carries.
    pub fn tag(&self) -> &Tag {
        &self.tag
    }

    /// The Kubernetes objects that the agents are told of.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// A new node with a bridge for its pods and routes to the other nodes' pods.
    pub fn node(&self, name: &str) -> Result<Node> {
        let mut nodes = self.nodes.borrow_mut();
        let number = u8::try_from(nodes.len() + 1)?;
        let node = self.machine(name, number)?;
        // A bridge without an address of its own takes the lowest of its ports', which may change
        // with each new pod. Pods that know the old one then send into the void for seconds.
        netns::ip(
            Some(&node.netns),
            &format!(
                "link add cni0 address 02:00:0a:f4:{number:02x}:01 type bridge mcast_snooping 0\n\
                 addr add 10.244.{number}.1/24 dev cni0\n\
                 addr add fd00:244:{number}::1/64 dev cni0 nodad\n\
                 link set cni0 up\n"
            ),
        )?;
        for other in nodes.iter() {
            node.route_to(other.number)?;
            other.route_to(number)?;
        }
        nodes.push(node.clone());
        Ok(node)
    }

    /// A machine on the link that is neither a node nor a pod, with routes to all pods.
    pub fn outsider(&self) -> Result<Place> {
        let machine = self.machine("outsider", OUTSIDER)?;
        for node in self.nodes.borrow().iter() {
            machine.route_to(node.number)?;
        }
        Ok(machine.place)
    }

    /// A new pod on a node, and the object that tells the agents of it.
    pub fn pod(&self, node: &Node, spec: PodSpec) -> Result<Pod> {
        let number = self.pods.get() + 1;
        self.pods.set(number);
        self.pod_at(node, spec, number)
    }

    /// A new pod with the addresses that another one had ([`Pod::number`]).
    pub fn pod_at(&self, node: &Node, spec: PodSpec, number: u8) -> Result<Pod> {
        let (on, host) = (node.number, number + 9);
        let v4 = Ipv4Addr::new(10, 244, on, host);
        let v6: Ipv6Addr = format!("fd00:244:{on}::{host:x}").parse()?;
        let what = format!("{}-{}", spec.namespace, spec.name);
        let netns = self.tag.netns(&what);
        match spec.netns_of {
            Some(process) => netns::attach(&netns, process)?,
            None => netns::add(&netns, false)?,
        }
        netns::ip(
            Some(&node.netns),
            &format!(
                "link add pod{number} type veth peer name eth0 netns {netns}\n\
                 link set pod{number} master cni0 up\n"
            ),
        )?;
        netns::ip(
            Some(&netns),
            &format!(
                "link set lo up\nlink set eth0 up\n\
                 addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad\n\
                 route add default via 10.244.{on}.1\nroute add default via fd00:244:{on}::1\n"
            ),
        )?;
        // As the kubelet has it: a cgroup for the pod, and below it one for each container.
        let uid = self.objects.new_uid();
        let cgroup = node.pods_cgroup().join(format!("pod{uid}")).join("app");
        fs::create_dir_all(&cgroup)?;
        let place = Place { netns: netns::path(&netns), cgroup, logs: self.logs(), name: what };
        let (namespace, name) = (spec.namespace.clone(), spec.name.clone());
        let pod = Pod { namespace, name, v4, v6, number, place };
        self.objects.add_pod(&pod, uid, &node.name, &netns, spec)?;
        Ok(pod)
    }

    /// Ends a pod: its processes, its cgroup and its network namespace. Its object stays.
    pub fn destroy(&self, pod: &Pod) -> Result<()> {
        cgroup::remove_tree(pod.cgroup.parent().unwrap_or(&pod.cgroup))?;
        let name = pod.netns.file_name().unwrap_or_default().to_string_lossy().into_owned();
        netns::remove(&[name])
    }

    /// Waits until the kernel has freed a destroyed pod's network namespace: no process or socket
    /// holds it any more.
    pub fn wait_freed(&self, node: &Node, pod: &Pod) -> Result<()> {
        let veth = format!("pod{}", pod.number);
        eventually(SOON, || {
            let links = Command::new("ip").args(["-n", &node.netns, "-o", "link"]).output()?;
            let links = String::from_utf8_lossy(&links.stdout).into_owned();
            ensure!(
                !links.contains(&format!(" {veth}@")),
                "a process holds the namespace of {}",
                pod.name
            );
            Ok(())
        })
    }

    /// Starts the agent of a node, on this network's objects.
    pub fn agent(&self, node: &Node) -> Result<Agent> {
        Agent::start(node, Dirs::of(self), &[])
    }

    /// Prints what programs have said, the last lines of each.
    pub fn print_logs(&self) {
        self.print_logs_of("");
    }

    /// The same for programs with this in their name.
    pub fn print_logs_of(&self, program: &str) {
        const LAST: usize = 40;
        const WIDTH: usize = 400;
        let mut files: Vec<_> = fs::read_dir(self.logs()).into_iter().flatten().flatten().collect();
        files.retain(|file| file.file_name().to_string_lossy().contains(program));
        files.sort_by_key(fs::DirEntry::file_name);
        for file in files {
            let text =
                String::from_utf8_lossy(&fs::read(file.path()).unwrap_or_default()).into_owned();
            if text.is_empty() {
                continue;
            }
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- {}: {} ({} lines)", self.name, file.file_name().display(), lines.len());
            for line in &lines[lines.len().saturating_sub(LAST)..] {
                let cut: String = line.chars().take(WIDTH).collect();
                eprintln!("    {cut}");
            }
        }
    }

    /// Leaves everything there and running when this value is dropped.
    pub fn keep(&self) {
        self.removed.set(true);
    }

    /// Ends all programs and removes everything; an error if something is still there.
    pub fn remove(&self) -> Result<()> {
        if self.removed.replace(true) {
            return Ok(());
        }
        self.tag.remove_all()?;
        let leftovers = self.tag.leftovers();
        ensure!(leftovers.is_empty(), "not removed: {leftovers:?}");
        Ok(())
    }

    fn logs(&self) -> PathBuf {
        self.tag.dir().join("logs")
    }

    /// A namespace that is connected to the link.
    fn machine(&self, name: &str, number: u8) -> Result<Node> {
        let (netns, link) = (self.tag.netns(name), self.tag.netns("link"));
        netns::add(&netns, true)?;
        netns::ip(
            Some(&link),
            &format!(
                "link add port{number} type veth peer name uplink netns {netns}\n\
                 link set port{number} master br0 up\n"
            ),
        )?;
        netns::ip(
            Some(&netns),
            &format!(
                "link set lo up\nlink set uplink up\n\
                 addr add 192.168.100.{number}/24 dev uplink\n\
                 addr add fd00:100::{number}/64 dev uplink nodad\n"
            ),
        )?;
        let cgroup = self.tag.cgroup().join(name);
        fs::create_dir_all(cgroup.join("pods"))?;
        fs::create_dir(cgroup.join("agent"))?;
        fs::create_dir(cgroup.join("host"))?;
        let place = Place {
            netns: netns::path(&netns),
            cgroup: cgroup.join("host"),
            logs: self.logs(),
            name: name.to_owned(),
        };
        Ok(Node { name: name.to_owned(), number, netns, cgroup, tag: self.tag.clone(), place })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        if let Err(e) = self.remove() {
            eprintln!("{}: {e:#}", self.name);
        }
    }
}

impl Node {
    /// Its address on the link.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, 100, self.number)
    }

    /// The same over IPv6.
    pub fn address6(&self) -> Ipv6Addr {
        Ipv6Addr::new(
            0xfd00,
            0x100,
            0,
            0,
            0,
            0,
            0,
            u16::from_str_radix(&self.number.to_string(), 16).unwrap_or(0),
        )
    }

    /// The cgroup below which its pods are.
    pub fn pods_cgroup(&self) -> PathBuf {
        self.cgroup.join("pods")
    }

    /// Where its agent runs: at the node, and alone in its cgroup, as a container is.
    pub fn agent_place(&self) -> Place {
        let cgroup = self.cgroup.join("agent");
        Place { cgroup, ..self.place.clone() }
    }

    /// Where its agent pins maps and links.
    pub fn pin_dir(&self) -> PathBuf {
        self.tag.pins().join(&self.name)
    }

    /// Where its agent keeps its socket and its lock.
    pub fn runtime_dir(&self) -> PathBuf {
        self.tag.dir().join("run").join(&self.name)
    }

    /// Starts listening on the link, at this node's end of it.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(self, "uplink", Ipv4Addr::new(192, 168, 100, 255))
    }

    fn route_to(&self, node: u8) -> Result<()> {
        let routes = format!(
            "route add 10.244.{node}.0/24 via 192.168.100.{node}\n\
             route add fd00:244:{node}::/64 via fd00:100::{node}\n"
        );
        netns::ip(Some(&self.netns), &routes)
    }
}

impl Deref for Node {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    /// A port of it, over IPv4.
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.v4, port).into()
    }

    /// A port of it, over IPv6.
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.v6, port).into()
    }

    /// What makes its addresses different from those of other pods.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

fn mount_bpffs() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    if mounts.contains(&format!(" {BPFFS} ")) || !Path::new(BPFFS).exists() {
        return Ok(());
    }
    let status =
        Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]).status().context("mount")?;
    // Another test process may have been faster.
    ensure!(
        status.success() || fs::read_to_string("/proc/self/mountinfo")?.contains(" - bpf "),
        "mount {BPFFS}"
    );
    Ok(())
}
