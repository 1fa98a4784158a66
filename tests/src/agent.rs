//! A node's agent, driven as its users do: through its command line.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    env,
    ffi::OsString,
    fs,
    net::SocketAddr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::{sys::signal::Signal, unistd::Pid};
use serde::Deserialize;

use crate::{
    Net, Node, Pod, bin_dir, eventually,
    exec::{Output, Process},
    flow::Flow,
};

/// How long the agent may take to start, to enrol a pod, to hear of a peer.
pub const SOON: Duration = Duration::from_secs(10);

/// The agent of one node; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    node: Node,
    dirs: Dirs,
    options: Vec<String>,
    /// What runs the program: `env A=b`.
    wrapper: Vec<String>,
    process: RefCell<Option<Process>>,
}

/// The directories that the agents of one [`Net`] share.
#[derive(Debug, Clone)]
pub struct Dirs {
    /// Kubernetes objects.
    pub source: PathBuf,
    /// What nodes announce to each other.
    pub announce: PathBuf,
    /// The trust anchor and its key.
    pub ca: PathBuf,
}

/// What `mesh-agent status -o json` says, as far as the tests ask for it.
#[derive(Debug, Clone, Deserialize)]
pub struct Status {
    /// The agent's process.
    pub pid: u32,
    /// Fingerprints of the trust anchors in force.
    pub anchors: Vec<String>,
    /// The pods of this node.
    pub pods: Vec<PodStatus>,
    /// How many captured pods other nodes have announced.
    pub remote_peers: usize,
    /// What the agent's userspace did.
    pub counters: Counters,
    /// The kernel's verdicts by reason code.
    pub verdicts: BTreeMap<String, u64>,
    /// The same by pod, `namespace/name`.
    pub pod_verdicts: BTreeMap<String, BTreeMap<String, u64>>,
    /// Certificates in use.
    pub identities: Vec<Identity>,
    /// What is wrong with the source or the announcements.
    pub problems: Vec<Problem>,
}

/// A certificate in use.
#[derive(Debug, Clone, Deserialize)]
pub struct Identity {
    /// The SPIFFE id.
    pub id: String,
    /// The certificate's serial number.
    pub serial: Option<String>,
}

/// One pod in it.
#[derive(Debug, Clone, Deserialize)]
pub struct PodStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `enrolled`, `leaving` or `not_enrolled`.
    pub state: String,
    /// `permissive` or `strict`, if it is enrolled.
    pub mode: Option<String>,
    /// Why it is not enrolled: a code.
    pub code: String,
    /// The same as a sentence.
    pub reason: String,
    /// Its connections that predate its mesh membership or strict mode.
    #[serde(default)]
    pub plaintext: Plaintext,
}

/// A pod's connections that go on in plaintext.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Plaintext {
    /// How many.
    pub count: usize,
    /// Some of them.
    pub oldest: Vec<PlaintextConnection>,
}

/// One of them.
#[derive(Debug, Clone, Deserialize)]
pub struct PlaintextConnection {
    /// The end that dialled.
    pub client: SocketAddr,
    /// The end that was dialled.
    pub server: SocketAddr,
}

/// What the agent's userspace did since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Counters {
    /// Connections accepted from pods.
    pub accepted_outbound: u64,
    /// Connections accepted for pods.
    pub accepted_inbound: u64,
    /// Bytes of applications, from clients to servers.
    pub bytes_sent: u64,
    /// Bytes of applications, from servers to clients.
    pub bytes_received: u64,
    /// Connections of pods that went to the agents' port; 0 from an earlier agent, which does not
    /// say.
    #[serde(default)]
    pub by_agents_port: u64,
    /// The TLS sessions with other pods' agents; none from an earlier agent, which does not say.
    #[serde(default)]
    pub sessions: Sessions,
    /// How many pods were judged while following the world.
    pub judged: u64,
    /// Entries of the kernel's tables of addresses and ports that were written or removed.
    pub table_writes: u64,
    /// Reports of the kernel's refusals that found their buffer full.
    pub events_lost: u64,
}

/// TLS sessions. Outbound are those that the node's pods dialled.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub struct Sessions {
    /// Kept for the next connection.
    pub kept_outbound: usize,
    /// The same, inbound.
    pub kept_inbound: usize,
    /// Handshakes.
    pub handshakes_outbound: u64,
    /// The same, inbound.
    pub handshakes_inbound: u64,
    /// Those that resumed an earlier one.
    #[serde(default)]
    pub resumed_outbound: u64,
    /// The same, inbound.
    #[serde(default)]
    pub resumed_inbound: u64,
    /// Connections that a kept session carried.
    pub reused_outbound: u64,
    /// The same, inbound.
    pub reused_inbound: u64,
    /// Kept sessions that could not carry the next connection.
    pub stale: u64,
    /// Sessions for which there was no room.
    pub not_kept: u64,
}

/// Something that is wrong.
#[derive(Debug, Clone, Deserialize)]
pub struct Problem {
    /// Stable code.
    pub code: String,
    /// File, object, field, what is wrong and what to do.
    pub message: String,
}

impl Dirs {
    /// The directories of a network.
    pub fn of(net: &Net) -> Self {
        let dir = net.tag().dir();
        let (announce, ca) = (dir.join("announce"), dir.join("ca"));
        Self { source: net.objects().dir().to_owned(), announce, ca }
    }
}

/// The program under test: `$MESH_AGENT`, or the one that cargo has built.
pub fn program() -> PathBuf {
    env::var_os("MESH_AGENT").map_or_else(|| bin_dir().join("mesh-agent"), PathBuf::from)
}

/// Makes the trust anchor of a network, unless it has one.
pub fn ca_init(dirs: &Dirs) -> Result<()> {
    if dirs.ca.exists() {
        return Ok(());
    }
    let output = Command::new(program()).args(["ca", "init", "--ca-dir"]).arg(&dirs.ca).output();
    let output = output.with_context(|| format!("running {}", program().display()))?;
    ensure!(output.status.success(), "ca init: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

impl Agent {
    /// Starts the agent of a node with its own directories and more options, and waits until it
    /// answers.
    pub fn start(node: &Node, dirs: Dirs, options: &[&str]) -> Result<Self> {
        Self::start_by(&[], node, dirs, options)
    }

    /// The same through another program (`wrapper`), which then becomes the agent.
    pub fn start_by(wrapper: &[&str], node: &Node, dirs: Dirs, options: &[&str]) -> Result<Self> {
        ca_init(&dirs)?;
        let texts = |all: &[&str]| all.iter().map(ToString::to_string).collect();
        let (options, wrapper) = (texts(options), texts(wrapper));
        let agent =
            Self { node: node.clone(), dirs, options, wrapper, process: RefCell::default() };
        agent.start_again()?;
        Ok(agent)
    }

    /// Starts the agent (again), and waits until it answers.
    pub fn start_again(&self) -> Result<()> {
        self.launch()?;
        let mut slot = self.process.borrow_mut();
        let process = slot.as_mut().context("the agent is not running")?;
        eventually(SOON, || {
            ensure!(process.is_running()?, "the agent has ended: {}", process.stderr());
            self.status()
        })
        .with_context(|| format!("starting the agent of {}", self.node.name))?;
        Ok(())
    }

    /// Starts the agent (again), and does not wait.
    pub fn launch(&self) -> Result<()> {
        fs::create_dir_all(&self.dirs.announce)?;
        fs::create_dir_all(self.node.runtime_dir())?;
        let mut argv: Vec<_> = self.wrapper.iter().map(OsString::from).collect();
        argv.extend(run_argv(&self.node, &self.dirs));
        argv.extend(self.options.iter().map(OsString::from));
        self.process.replace(Some(self.node.agent_place().spawn(argv)?));
        Ok(())
    }

    /// Starts another agent, in a cgroup of its own, that takes over from this one. Waits until it
    /// is in charge, and returns the process of the earlier agent.
    pub fn take_over(&self) -> Result<Process> {
        let successor = self.spawn_successor()?;
        let old = self.process.replace(Some(successor)).context("the agent is not running")?;
        eventually(SOON, || {
            let (pid, own) = (self.status()?.pid, self.pid()?.as_raw());
            ensure!(
                i64::from(pid) == i64::from(own),
                "{pid} is in charge, not {own}: {}",
                self.log()
            );
            Ok(())
        })?;
        Ok(old)
    }

    /// Starts another agent that is to take over, and does not wait. [`Agent::replace`] makes it
    /// this one.
    pub fn spawn_successor(&self) -> Result<Process> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        let mut place = self.node.agent_place();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        place.cgroup = place.cgroup.with_file_name(format!("agent-{number}"));
        fs::create_dir(&place.cgroup)?;
        let mut argv = run_argv(&self.node, &self.dirs);
        argv.extend(self.options.iter().map(OsString::from));
        argv.push("--take-over".into());
        place.spawn(argv)
    }

    /// Starts another agent in the same place, with the same directories but these options, and
    /// does not wait.
    pub fn spawn_beside(&self, options: &[&str]) -> Result<Process> {
        let mut argv = run_argv(&self.node, &self.dirs);
        for pair in options.chunks(2) {
            let [option, value] = pair else {
                argv.extend(pair.iter().map(OsString::from));
                continue;
            };
            let known = argv.iter().position(|word| word == option).context("which option?")?;
            argv[known + 1] = value.into();
        }
        self.node.agent_place().spawn(argv)
    }

    /// Makes this process the node's agent from now on; returns the earlier one.
    pub fn replace(&self, process: Process) -> Result<Process> {
        self.process.replace(Some(process)).context("the agent is not running")
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> Result<bool> {
        self.process.borrow_mut().as_mut().context("the agent was not started")?.is_running()
    }

    /// Its process id.
    pub fn pid(&self) -> Result<Pid> {
        Ok(self.process.borrow().as_ref().context("the agent is not running")?.pid())
    }

    /// `mesh-agent status`.
    pub fn status(&self) -> Result<Status> {
        let text = self.cli(&["status", "-o", "json"])?.success()?;
        serde_json::from_str(&text).with_context(|| format!("status said {text}"))
    }

    /// `mesh-agent flows`: all records that the agent still has, oldest first.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        let text = self.cli(&["flows", "-o", "json"])?.success()?;
        let parse = |line| serde_json::from_str(line).with_context(|| format!("flow {line}"));
        text.lines().map(parse).collect()
    }

    /// Its records that are newer than these.
    pub fn flows_after(&self, known: &[Flow]) -> Result<Vec<Flow>> {
        let last = known.iter().map(|flow| flow.id).max().unwrap_or(0);
        Ok(self.flows()?.into_iter().filter(|flow| flow.id > last).collect())
    }

    /// Waits for a flow record that `wanted` accepts.
    pub fn wait_flow(&self, what: &str, wanted: impl Fn(&Flow) -> bool) -> Result<Flow> {
        eventually(SOON, || {
            let flows = self.flows()?;
            let all = || anyhow!("no flow {what} in {flows:#?}");
            flows.iter().find(|flow| wanted(flow)).cloned().ok_or_else(all)
        })
    }

    /// Waits until all these pods are enrolled.
    pub fn wait_enrolled(&self, pods: &[&Pod]) -> Result<()> {
        pods.iter().try_for_each(|pod| self.wait_state(pod, "enrolled").map(drop))
    }

    /// Waits until a pod is in this state.
    pub fn wait_state(&self, pod: &Pod, state: &str) -> Result<PodStatus> {
        eventually(SOON, || {
            let found = self.status()?.pod(pod)?;
            ensure!(
                found.state == state,
                "{}/{} is not {state}: {found:?}",
                pod.namespace,
                pod.name
            );
            Ok(found)
        })
    }

    /// Waits until this agent knows of exactly so many captured pods on other nodes.
    pub fn wait_peers(&self, count: usize) -> Result<()> {
        eventually(SOON, || {
            let known = self.status()?.remote_peers;
            ensure!(known == count, "{} knows of {known} peers, not of {count}", self.node.name);
            Ok(())
        })
    }

    /// Waits until the agent has named a problem that `wanted` accepts.
    pub fn wait_problem(&self, what: &str, wanted: impl Fn(&Problem) -> bool) -> Result<Problem> {
        eventually(SOON, || {
            let problems = self.status()?.problems;
            let none = || anyhow!("no problem about {what} in {problems:#?}");
            problems.iter().find(|problem| wanted(problem)).cloned().ok_or_else(none)
        })
    }

    /// Runs a subcommand that talks to this agent.
    pub fn cli(&self, words: &[&str]) -> Result<Output> {
        let mut argv = vec![program().into_os_string()];
        argv.extend(words.iter().map(OsString::from));
        argv.extend(["--runtime-dir".into(), self.node.runtime_dir().into_os_string()]);
        let output =
            Command::new(&argv[0]).args(&argv[1..]).output().context("running mesh-agent")?;
        Ok(Output::of(&argv, &output))
    }

    /// SIGTERM: drains, ends, and leaves its links and pins.
    pub fn stop(&self) -> Result<()> {
        let process = self.process.take().context("the agent is not running")?;
        process.stop()?.success()?;
        Ok(())
    }

    /// SIGTERM, and goes on: [`Agent::wait_end`] waits.
    pub fn begin_stop(&self) -> Result<()> {
        let process = self.process.borrow();
        process.as_ref().context("the agent is not running")?.signal(Signal::SIGTERM)
    }

    /// Waits until an agent that was told to stop has ended by itself, without an error.
    pub fn wait_end(&self) -> Result<()> {
        let process = self.process.take().context("the agent is not running")?;
        process.wait(SOON)?.success().map(drop)
    }

    /// Any other signal; the agent goes on.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process.borrow().as_ref().context("the agent is not running")?.signal(signal)
    }

    /// Waits until an agent has ended, however that may be.
    pub fn wait_output(&self) -> Result<Output> {
        let process = self.process.take().context("the agent is not running")?;
        process.wait(2 * SOON)
    }

    /// `mesh-agent flows --follow`, in the background.
    pub fn follow_flows(&self) -> Result<Process> {
        let mut argv = vec![program().into_os_string()];
        argv.extend(["flows", "--follow", "-o", "json", "--runtime-dir"].map(OsString::from));
        argv.push(self.node.runtime_dir().into_os_string());
        self.node.spawn(argv)
    }

    /// SIGKILL.
    pub fn kill9(&self) -> Result<()> {
        self.process.take().context("the agent is not running")?.kill9()
    }

    /// What the agent has logged.
    pub fn log(&self) -> String {
        self.process.borrow().as_ref().map(|p| p.stdout() + &p.stderr()).unwrap_or_default()
    }

    /// `mesh-agent cleanup`: removes what a stopped agent has left.
    pub fn cleanup(&self) -> Result<()> {
        let mut argv = vec![program().into_os_string(), "cleanup".into()];
        argv.extend(["--pin-dir".into(), self.node.pin_dir().into_os_string()]);
        argv.extend(["--runtime-dir".into(), self.node.runtime_dir().into_os_string()]);
        self.node.run(argv)?.success()?;
        Ok(())
    }
}

impl Status {
    /// How many connections the kernel has decided for this reason, over all pods of the node.
    pub fn verdict(&self, code: &str) -> u64 {
        self.verdicts.get(code).copied().unwrap_or(0)
    }

    /// How many for this reason and this pod.
    pub fn pod_verdict(&self, pod: &Pod, code: &str) -> u64 {
        let counts = self.pod_verdicts.get(&format!("{}/{}", pod.namespace, pod.name));
        counts.and_then(|counts| counts.get(code)).copied().unwrap_or(0)
    }

    /// What it says of a pod.
    pub fn pod(&self, pod: &Pod) -> Result<PodStatus> {
        let found = self.pods.iter().find(|p| p.namespace == pod.namespace && p.name == pod.name);
        found.cloned().with_context(|| format!("no {}/{} in {self:?}", pod.namespace, pod.name))
    }
}

/// The arguments with which a node's agent is run.
pub fn run_argv(node: &Node, dirs: &Dirs) -> Vec<OsString> {
    let mut argv = vec![program().into_os_string(), "run".into()];
    let options = [
        ("--node", OsString::from(&node.name)),
        ("--source", dirs.source.clone().into()),
        ("--announce-dir", dirs.announce.clone().into()),
        ("--ca-dir", dirs.ca.clone().into()),
        ("--runtime-dir", node.runtime_dir().into()),
        ("--pin-dir", node.pin_dir().into()),
        ("--cgroup", node.pods_cgroup().into()),
    ];
    for (option, value) in options {
        argv.extend([option.into(), value]);
    }
    argv
}
