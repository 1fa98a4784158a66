//! A real Kubernetes of two nodes on this machine: [`Cluster::up`], and gone when dropped.
//!
//! Its programs are Kubernetes' own (`cargo xtask cluster build`), and containerd. A node is a
//! [`Machine`]: it has its own processes, mounts, cgroups and network. A privileged pod there sees
//! that node and nothing else. `cargo xtask cluster up` is the same for people.

pub mod bulk;
mod cgroups;
mod control;
mod image;
mod link;
pub mod machine;
mod mesh;
mod node;
mod pki;
mod plan;
mod programs;
pub mod shop;
mod traces;

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

pub use image::NAME as BUSYBOX;
pub use machine::Machine;
pub use mesh::{Mesh, PATIENCE, TEST_IMAGE};
pub use plan::{NODES, test_name};
pub use programs::kubectl;

use crate::{eventually, exec::Output, netns};
use plan::{CONTROL, Plan};

/// How long each step may take. The whole takes half a minute where nothing else runs.
const SOON: Duration = Duration::from_mins(4);

/// How long a client waits for the server, as programs' arguments have it.
const KUBECTL_LIMIT: &str = "240s";

/// How long one question to the API server may take while it starts: other programs need the
/// processor too.
const ASK_PAUSE: Duration = Duration::from_millis(200);

/// Clusters are planned one after the other, so that each takes a number that is free.
const LOCK: &str = "/run/nodemesh-cluster.lock";

/// A running cluster. Taken down when dropped.
#[derive(Debug)]
pub struct Cluster {
    plan: Plan,
    control: Machine,
    nodes: Vec<Machine>,
    since: Instant,
    kept: bool,
}

impl Cluster {
    /// Brings a cluster up. First takes down what is there under its name, and what killed tests
    /// have left.
    ///
    /// # Errors
    /// A program is missing or does not run: the end of its log is part of the message. Nothing is
    /// left then.
    pub fn up(name: &str) -> Result<Self> {
        ensure!(nix::unistd::geteuid().is_root(), "a cluster needs namespaces: run this as root");
        programs::check()?;
        let since = Instant::now();
        let plan = {
            let _one_at_a_time = Flock::lock(File::create(LOCK)?, FlockArg::LockExclusive)
                .map_err(|(_, e)| e)
                .context(LOCK)?;
            sweep();
            remove(name)?;
            Plan::for_new(name)?
        };
        let cluster = Self::of(plan, since);
        cluster.bring_up().with_context(|| format!("the cluster {name} does not come up"))?;
        Ok(cluster)
    }

    /// The cluster of this name that is already up; it stays when this value is dropped. `None` if
    /// there is none.
    pub fn existing(name: &str) -> Result<Option<Self>> {
        let Some(plan) = Plan::of_existing(name)? else { return Ok(None) };
        let mut cluster = Self::of(plan, Instant::now());
        cluster.keep();
        Ok(Some(cluster))
    }

    fn of(plan: Plan, since: Instant) -> Self {
        let control = Machine::of(&plan, CONTROL, plan.control().0);
        let node = |n| Machine::of(&plan, &plan::node_name(n), plan.node(n).0);
        let nodes = (1..=NODES).map(node).collect();
        Self { plan, control, nodes, since, kept: false }
    }

    fn bring_up(&self) -> Result<()> {
        let plan = &self.plan;
        link::make(plan)?;
        pki::make(plan)?;
        for machine in self.nodes.iter().chain([&self.control]) {
            machine.make_cgroups()?;
        }
        let busybox = plan.dir().join("busybox.tar");
        image::write(&busybox)?;
        self.say("its network and its certificates are made");
        thread::scope(|scope| {
            let prepare = |machine: &Machine| -> Result<()> {
                machine.prepare()?;
                pki::hand_out(plan, &machine.name, &machine.file("etc/kubernetes"))?;
                machine.boot()
            };
            let nodes: Vec<_> = (1..=NODES)
                .map(|n| {
                    let busybox = &busybox;
                    scope.spawn(move || -> Result<()> {
                        let machine = self.node(n);
                        prepare(machine)?;
                        node::configure(machine, n)?;
                        node::start(machine, plan, n, node::CONTAINERD)?;
                        node::wait_containerd(machine)?;
                        node::import(machine, busybox)
                    })
                })
                .collect();
            prepare(&self.control)?;
            control::start(&self.control, plan, control::ETCD)?;
            self.start_api_server()?;
            self.say("the API server answers");
            for program in control::AFTER_API {
                control::start(&self.control, plan, program)?;
            }
            for node in nodes {
                node.join().expect("a thread panicked")?;
            }
            Ok::<_, anyhow::Error>(())
        })?;
        let mut objects: Vec<Value> = (1..=NODES).map(node::object).collect();
        objects.extend(control::dns_objects(plan));
        let list = json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string();
        // A ready server makes its namespaces and the range of services' addresses a moment later.
        self.wait_until("its first objects", || {
            self.kubectl_with(&list, ["apply", "--validate=false", "-f", "-"])
        })?;
        for n in 1..=NODES {
            for program in [node::KUBELET, node::PROXY] {
                node::start(self.node(n), plan, n, program)?;
            }
        }
        self.say("its nodes start");
        self.wait_nodes()?;
        self.wait_until("the default service account", || {
            let objects = ["serviceaccount/default", "configmap/kube-root-ca.crt"];
            self.kubectl(["wait", "--for=create", "--timeout=10s"].into_iter().chain(objects))
        })?;
        for node in &self.nodes {
            self.wait_until("the DNS server", || {
                let name = "kubernetes.default.svc.cluster.local";
                node.run(["busybox", "nslookup", name, plan::DNS_SERVICE])
            })?;
        }
        self.say("it is up");
        Ok(())
    }

    /// A node, counted from 1 as its name is.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn node(&self, number: u8) -> &Machine {
        self.nodes.get(usize::from(number) - 1).expect("no such node")
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Machine] {
        &self.nodes
    }

    /// The machine of the control plane. The bridge `br0` between the nodes is in its network.
    pub fn control(&self) -> &Machine {
        &self.control
    }

    /// Everything on this machine that carries the cluster's name, and its processes: empty once it
    /// has been taken down.
    pub fn traces(&self) -> Result<Vec<String>> {
        traces::of(&self.plan)
    }

    /// The kubeconfig of the administrator. It works on the host.
    pub fn kubeconfig(&self) -> PathBuf {
        pki::admin(&self.plan)
    }

    /// Runs kubectl to its end; what it prints, if it succeeds.
    pub fn kubectl<'a>(&self, argv: impl IntoIterator<Item = &'a str>) -> Result<String> {
        self.kubectl_with("", argv)
    }

    /// The same, with something to read: `cluster.kubectl_with(yaml, ["apply", "-f", "-"])`.
    pub fn kubectl_with<'a>(
        &self,
        input: &str,
        argv: impl IntoIterator<Item = &'a str>,
    ) -> Result<String> {
        let argv: Vec<&str> = argv.into_iter().collect();
        let mut command = Command::new("timeout");
        command.arg("--kill-after=5").arg(KUBECTL_LIMIT).arg(kubectl());
        command.arg("--cache-dir").arg(self.plan.dir().join("kubectl"));
        command.args(&argv).env("KUBECONFIG", self.kubeconfig());
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("kubectl")?;
        let mut stdin = child.stdin.take().context("no input")?;
        let output = thread::scope(|scope| {
            // It may end before it has read everything, and says why.
            scope.spawn(move || drop(stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        })?;
        let line = ["kubectl"].iter().chain(&argv).map(Into::into).collect::<Vec<_>>();
        Output::of(&line, &output).success()
    }

    /// The same with nothing but a token.
    pub fn kubectl_by_token(&self, token: &str, input: &str, argv: &[&str]) -> Result<String> {
        let api = self.plan.api();
        let ca = pki::admin(&self.plan).with_file_name("ca.crt");
        let ca = ca.to_string_lossy();
        let server = ["--kubeconfig=/dev/null", "--server", &api, "--certificate-authority", &ca];
        let all = server.into_iter().chain(["--token", token]).chain(argv.iter().copied());
        self.kubectl_with(input, all)
    }

    /// The objects that an installation could leave behind, a line for each: all that
    /// belong to no namespace, and those of each namespace that give rights, run programs or keep
    /// secrets.
    pub fn objects(&self) -> Result<Vec<String>> {
        // Their names change by themselves, or they only report.
        const SKIPPED: [&str; 2] =
            ["componentstatuses", "certificatesigningrequests.certificates.k8s.io"];
        const IN_NAMESPACES: &str = "configmaps,daemonsets.apps,deployments.apps,rolebindings.rbac.authorization.k8s.io,\
                                     roles.rbac.authorization.k8s.io,secrets,serviceaccounts,services";
        let kinds =
            ["api-resources", "--namespaced=false", "--verbs=list", "-o", "name", "--cached=false"];
        let kinds = self.kubectl(kinds)?;
        let kinds: Vec<&str> = kinds.lines().filter(|kind| !SKIPPED.contains(kind)).collect();
        // An answer without these would find nothing left of anything.
        for kind in [
            "clusterroles",
            "clusterrolebindings",
            "customresourcedefinitions",
            "validatingadmissionpolicies",
        ] {
            ensure!(kinds.iter().any(|known| known.starts_with(kind)), "no {kind} in {kinds:?}");
        }
        let line = "jsonpath={range .items[*]}{.metadata.namespace} {.kind} {.apiVersion} {.metadata.name}{\"\\n\"}{end}";
        let mut all = Vec::new();
        for kinds in [&*kinds.join(","), IN_NAMESPACES] {
            let found = self.kubectl(["get", kinds, "--all-namespaces", "-o", line])?;
            all.extend(found.lines().map(str::to_owned));
        }
        all.sort();
        Ok(all)
    }

    /// Where its files are.
    pub fn dir(&self) -> PathBuf {
        self.plan.dir()
    }

    /// Gives an archive's images (of `docker save`, or OCI) to the containers of all nodes.
    pub fn import_image(&self, archive: &Path) -> Result<()> {
        thread::scope(|scope| {
            let imports: Vec<_> = self
                .nodes
                .iter()
                .map(|machine| scope.spawn(|| node::import(machine, archive)))
                .collect();
            imports.into_iter().try_for_each(|import| import.join().expect("a thread panicked"))
        })
    }

    /// Gives an image that each node has another name, too.
    pub fn tag_image(&self, image: &str, as_well: &str) -> Result<()> {
        self.nodes.iter().try_for_each(|machine| node::tag(machine, image, as_well))
    }

    /// Kills the API server.
    pub fn stop_api_server(&self) -> Result<()> {
        self.control.kill(control::API_SERVER)
    }

    /// Starts the API server, and waits until it is ready.
    pub fn start_api_server(&self) -> Result<()> {
        control::start(&self.control, &self.plan, control::API_SERVER)?;
        self.wait_until("the API server's port", || {
            ensure!(control::is_listening(&self.plan), "nothing listens");
            Ok(())
        })?;
        self.wait_until("the API server", || self.kubectl(["get", "--raw=/readyz"]))
    }

    /// Kills a node's kubelet. Its pods run on.
    pub fn stop_kubelet(&self, node: u8) -> Result<()> {
        self.node(node).kill(node::KUBELET)
    }

    /// Starts a node's kubelet.
    pub fn start_kubelet(&self, node: u8) -> Result<()> {
        node::start(self.node(node), &self.plan, node, node::KUBELET)
    }

    /// Waits until all nodes are ready.
    pub fn wait_nodes(&self) -> Result<()> {
        let wait = ["wait", "--for=condition=Ready", "--timeout=10s", "nodes", "--all"];
        self.wait_until("the nodes", || self.kubectl(wait))
    }

    /// Whether each of its programs runs, by machine and name.
    pub fn programs(&self) -> Vec<(&str, &'static str, bool)> {
        let control = [control::ETCD, control::API_SERVER].into_iter().chain(control::AFTER_API);
        let control = control.map(|program| (&self.control, program));
        let of_node = [node::CONTAINERD, node::KUBELET, node::PROXY];
        let nodes = self.nodes.iter().flat_map(|node| of_node.map(|program| (node, program)));
        control
            .chain(nodes)
            .map(|(machine, program)| (machine.name.as_str(), program, machine.runs(program)))
            .collect()
    }

    /// Leaves it running when this value is dropped.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    /// Takes it down; an error if something of it is still there.
    pub fn down(mut self) -> Result<()> {
        self.kept = true;
        let processes = traces::processes(&self.plan)?;
        remove(self.plan.name())?;
        // What has ended stays a process until its parent, the host's init, has asked for it.
        eventually(SOON, || {
            let left = [traces::of(&self.plan)?, traces::alive(&processes)].concat();
            ensure!(left.is_empty(), "still there: {left:#?}");
            Ok(())
        })
    }

    /// Prints the end of every program's log.
    pub fn print_logs(&self) {
        for (machine, program, _) in self.programs() {
            let all = self.nodes.iter().chain([&self.control]);
            for owner in all.filter(|owner| owner.name == machine) {
                eprintln!("--- {machine}: {program}\n{}", owner.last_lines(program));
            }
        }
    }

    /// Asks again until it is so, as long as all programs that it depends on run.
    fn wait_until<T>(&self, what: &str, is: impl Fn() -> Result<T>) -> Result<()> {
        let start = Instant::now();
        loop {
            let Err(last) = is() else { return Ok(()) };
            self.check_programs().with_context(|| format!("waiting for {what}"))?;
            if start.elapsed() > SOON {
                self.print_logs();
                return Err(last).with_context(|| format!("no {what} after {SOON:?}"));
            }
            thread::sleep(ASK_PAUSE);
        }
    }

    /// That whatever was started still runs.
    fn check_programs(&self) -> Result<()> {
        for machine in self.nodes.iter().chain([&self.control]) {
            machine.check_all()?;
        }
        Ok(())
    }

    fn say(&self, what: &str) {
        let took = self.since.elapsed().as_secs_f64();
        eprintln!("cluster {}: {what} ({took:.1} s)", self.plan.name());
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if !self.kept
            && let Err(e) = remove(self.plan.name())
        {
            eprintln!("cluster {}: {e:#}", self.plan.name());
        }
    }
}

/// Takes down what there is of a cluster: a running one, a half-made one, or what a crash has left.
pub fn remove(name: &str) -> Result<()> {
    let plan = Plan::of_existing(name)?;
    cgroups::remove(Path::new(&plan::cgroup_of(name)))?;
    let existing = netns::names();
    let namespaces: Vec<String> = Plan::machines()
        .iter()
        .map(|machine| plan::netns_of(name, machine))
        .filter(|netns| existing.contains(netns))
        .collect();
    netns::remove(&namespaces)?;
    if let Some(plan) = &plan {
        link::remove(plan);
    }
    let dir = Path::new(plan::ROOT).join(name);
    // The mounts of a machine go a moment after its last process.
    eventually(SOON, || {
        if dir.exists() {
            fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
        }
        Ok(())
    })?;
    // The last one takes the common directory with it; it is not empty as long as there are others.
    drop(fs::remove_dir(plan::ROOT));
    if let Some(plan) = &plan {
        eventually(SOON, || {
            ensure!(!link::host_link_exists(plan), "the link {} stays", plan.host_link());
            Ok(())
        })?;
    }
    Ok(())
}

/// All clusters of this machine, up or not.
pub fn names() -> Vec<String> {
    plan::names()
}

/// Removes the clusters of tests that were killed.
fn sweep() {
    for name in plan::names().iter().filter(|name| plan::is_dead_tests(name)) {
        if let Err(e) = remove(name) {
            eprintln!("sweep: cluster {name}: {e:#}");
        }
    }
}
