//! The only place that knows all parts: makes them, joins them, stops them.

use std::{
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use mesh_common::maps::{NODE_OWN_NETNS, NODE_REFUSE_UNCLASSIFIED};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, ProblemFacts},
    enrol::{self, Enroller, restore_all},
    flows::{Direction, FlowStore, Refused},
    heartbeat,
    identity::{FileCa, Identities, TlsConfigs, TrustDomain, file_ca::CaError},
    kernel::{self, Kernel, KernelError, Refusal, Refusals, Removed},
    lock::{LockError, NodeLock, PinLock},
    netns::Factory,
    pod_cgroups::{self, PodCgroups},
    preflight::{self, Host, PreflightError},
    proxy::{Limits, Mesh, capacity_of},
    source::{
        AnnouncementState, Announcer as _, FileAnnouncer, FileSource, OpenError, SourceError,
        SourceState,
    },
    sys::{self, descriptors},
    tasks::Tasks,
    world::{NodeName, of_this_boot},
};

/// How often the namespaces of enrolled pods are looked at, for those that vanished without their object.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What `mesh-agent run` was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: NodeName,
    /// Directory of Kubernetes objects.
    pub source: PathBuf,
    /// Directory of all nodes' announcements.
    pub announce_dir: PathBuf,
    /// Directory of the CA.
    pub ca_dir: PathBuf,
    /// The trust domain, if it was given.
    pub trust_domain: Option<TrustDomain>,
    /// Where socket, lock and notes are.
    pub runtime_dir: PathBuf,
    /// Where programs and maps are pinned.
    pub pin_dir: PathBuf,
    /// The cgroup above the pods, if it was given.
    pub cgroup: Option<PathBuf>,
    /// What becomes of pods that nobody has classified yet.
    pub unclassified: Unclassified,
    /// How long open connections may take to end after SIGTERM.
    pub drain: Duration,
    /// How long certificates live.
    pub leaf_ttl: Duration,
    /// How many connections at once, if fewer than the descriptors allow.
    pub max_connections: Option<usize>,
}

/// What becomes of the TCP connections of a pod whose object the agent has not seen yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unclassified {
    /// They go on, as without a mesh.
    #[default]
    Open,
    /// They are refused, also while the agent is away.
    Refuse,
}

/// Why the agent did not start, or could not clean up.
#[derive(Debug, Error)]
pub enum DaemonError {
    /// The host lacks something.
    #[error(transparent)]
    Preflight(#[from] PreflightError),
    /// Another agent runs.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The CA directory is not usable.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The CA is another trust domain's.
    #[error(
        "the CA in {dir} is that of trust domain {found}, but --trust-domain says {wanted}; use the right directory, or leave --trust-domain out"
    )]
    TrustDomain {
        /// Its directory.
        dir: PathBuf,
        /// Its trust domain.
        found: TrustDomain,
        /// What was asked for.
        wanted: TrustDomain,
    },
    /// A directory cannot be watched.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The kernel side failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The admin socket failed.
    #[error(transparent)]
    Admin(#[from] admin::ServeError),
    /// Something of the operating system failed.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

fn os(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Os { what, source }
}

/// Runs until SIGTERM or SIGINT, and then until the drain is over. Links, maps and the announcement stay.
///
/// # Errors
/// See [`DaemonError`]; only from the start.
pub async fn run(settings: Settings) -> Result<(), DaemonError> {
    let started = Timestamp::now();
    let host =
        preflight::check(settings.node.as_str(), &settings.pin_dir, settings.cgroup.as_deref())?;
    let refuse_unclassified = settings.unclassified == Unclassified::Refuse;
    if refuse_unclassified && host.pods_cgroup_is_root {
        return Err(PreflightError::UnclassifiedAtRoot.into());
    }
    let locks = (NodeLock::take(&settings.runtime_dir)?, PinLock::take(&settings.pin_dir)?);
    let ca = FileCa::open(&settings.ca_dir)?.with_leaf_lifetime(settings.leaf_ttl);
    let trust_domain = ca.trust_domain().clone();
    if let Some(wanted) = settings.trust_domain.clone().filter(|wanted| *wanted != trust_domain) {
        return Err(DaemonError::TrustDomain { dir: settings.ca_dir, found: trust_domain, wanted });
    }
    tracing::warn!(ca = %settings.ca_dir.display(), "file mode: this agent holds the CA's key and signs for itself; for one machine, not for a cluster");
    let (source, objects) = FileSource::open(&settings.source)?;
    let (announcer, announcing) =
        FileAnnouncer::open(&settings.announce_dir, settings.node.clone())?;
    let announcements = announcer.subscribe();
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(os("cannot read the boot id"))?;
    Note::of(&settings, &host)
        .write(&settings.runtime_dir)
        .map_err(os("cannot write into the runtime directory"))?;
    let socket = admin::bind(&settings.runtime_dir)?;

    let (kernel, refusals) = Kernel::load(&settings.pin_dir)?;
    let kernel = Arc::new(kernel);
    kernel.tables().agent_cgroups.sync(&[(host.own_cgroup.enter()?, 1)].into())?;
    let own_netns = sys::sock::own_netns_cookie().map_err(os("cannot name the agent's netns"))?;
    kernel.tables().set_node(NODE_OWN_NETNS, own_netns)?;
    let (watch, cgroups) = pod_cgroups::Watch::open(&host.pods_cgroup)
        .map_err(os("cannot read the cgroup of the pods"))?;
    for program in kernel.programs() {
        tracing::debug!(program = program.name, instructions = ?program.verified_instructions, "program loaded");
    }

    let ca = Arc::new(ca);
    let identities = Arc::new(Identities::new(Arc::<FileCa>::clone(&ca)));
    let factory = Factory::start().map_err(os("cannot start threads"))?;
    let flows = FlowStore::new(settings.node.as_str());
    let mesh = Arc::new(Mesh::new(
        Arc::clone(&kernel),
        TlsConfigs::new(Arc::clone(&identities)),
        trust_domain,
        factory,
        flows,
        limits(&settings)?,
    ));

    // Four groups, stopped one after another: what feeds the world, what accepts for pods, their connections, and what
    // answers questions.
    let (feeding, accepting, serving, answering) =
        (Tasks::new(), Tasks::new(), Tasks::new(), Tasks::new());
    let stop = feeding.stopped();
    feeding.spawn("source", source.run(stop.clone().cancelled_owned()));
    feeding.spawn("announcements", announcing.run(stop.clone().cancelled_owned()));
    feeding.spawn("pod-cgroups", watch.run(stop.clone()));
    feeding.spawn("renewal", {
        let (identities, stop) = (Arc::clone(&identities), stop.clone());
        async move { identities.renew_loop(stop).await }
    });
    feeding.spawn("ca", {
        let (identities, stop) = (Arc::clone(&identities), stop.clone());
        async move { ca.follow(|| identities.renew_all(), stop).await }
    });
    let mut enroller = Enroller::new(enrol::Parts {
        mesh: Arc::clone(&mesh),
        identities: Arc::clone(&identities),
        announcer: Arc::new(announcer),
        node: settings.node.clone(),
        boot_id: boot_id.trim().to_owned(),
        saved_dir: Note::saved_dir(&settings.runtime_dir),
        accepting: accepting.clone(),
        serving: serving.clone(),
    });
    let state = Arc::new(admin::State {
        node: settings.node.to_string(),
        started,
        mesh: Arc::clone(&mesh),
        board: enroller.board(),
        identities,
        problems: ArcSwap::default(),
        draining: AtomicBool::new(false),
    });
    answering.spawn("admin-socket", admin::serve(socket, Arc::clone(&state), answering.clone()));
    answering.spawn("refusals", record_refusals(refusals, Arc::clone(&mesh)));
    heartbeat::beat(&kernel)?;
    answering.spawn("heartbeat", heartbeat::keep(Arc::clone(&kernel)));
    answering.spawn("floods", tell_of_floods(Arc::clone(&mesh)));

    // The tables are right before the hooks on the cgroup begin to decide.
    let feeds = Feeds { objects, announcements, cgroups };
    step(&mut enroller, &feeds, &state).await;
    kernel.attach_cgroup(&host.pods_cgroup)?;
    kernel.tables().set_node(NODE_REFUSE_UNCLASSIFIED, refuse_unclassified.into())?;
    kernel.guard_unclassified(&host.pods_cgroup, refuse_unclassified)?;
    let enrolling = Tasks::new(); // not stopped: it ends by itself, between two steps
    let keeping = keep_enrolled(enroller, feeds, Arc::clone(&state), stop);
    enrolling.spawn("enrolment", keeping);
    tracing::info!(node = %settings.node, cgroup = %host.pods_cgroup.display(), pins = %settings.pin_dir.display(), "agent ready");

    wait_for_signal().await.map_err(os("cannot wait for signals"))?;
    state.draining.store(true, Ordering::Relaxed);
    feeding.stop();
    feeding.wait().await;
    enrolling.wait().await;
    accepting.stop();
    accepting.wait().await;
    drain(settings.drain, &serving).await;
    answering.stop();
    answering.wait().await;
    drop(locks);
    Ok(())
}

/// How much all pods together may ask of the agent.
fn limits(settings: &Settings) -> Result<Limits, DaemonError> {
    let descriptors =
        descriptors::raise_limit().map_err(os("cannot raise the limit on open files"))?;
    let possible = capacity_of(descriptors);
    let connections = settings.max_connections.map_or(possible, |wanted| wanted.min(possible));
    tracing::info!(connections, descriptors, "connections that may be open at once");
    Ok(Limits::new(connections))
}

async fn wait_for_signal() -> io::Result<()> {
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Lets open connections end. New ones are refused by the kernel once the listeners are gone: strict stays closed.
async fn drain(deadline: Duration, serving: &Tasks) {
    let open = serving.running();
    tracing::info!(open, ?deadline, "draining; programs, maps and the announcement stay in force");
    if timeout(deadline, serving.wait()).await.is_err() {
        let cut = serving.running();
        tracing::warn!(cut, "the drain's deadline has passed; what is still open is cut");
    }
    serving.stop();
    drop(timeout(Duration::from_secs(1), serving.wait()).await); // tasks end at their next await
    tracing::info!("agent stopped");
}

/// What enrolment goes by.
struct Feeds {
    objects: watch::Receiver<Arc<SourceState>>,
    announcements: watch::Receiver<Arc<AnnouncementState>>,
    cgroups: watch::Receiver<Arc<PodCgroups>>,
}

/// Follows the world until `stop`.
async fn keep_enrolled(
    mut enroller: Enroller,
    mut feeds: Feeds,
    state: Arc<admin::State>,
    stop: CancellationToken,
) {
    let mut look = interval(LOOK_EVERY);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = feeds.objects.changed() => if changed.is_err() { return },
            changed = feeds.announcements.changed() => if changed.is_err() { return },
            changed = feeds.cgroups.changed() => {
                if changed.is_err() { return }
                // By what is known already: building the world anew takes time that a starting pod does not give.
                enroller.hold(&state.mesh.world.load(), &feeds.cgroups.borrow().clone());
            }
            () = enroller.due() => {}
            _ = look.tick() => {}
        }
        step(&mut enroller, &feeds, &state).await;
    }
}

async fn step(enroller: &mut Enroller, feeds: &Feeds, state: &admin::State) {
    let objects = Arc::clone(&feeds.objects.borrow());
    let announced = Arc::clone(&feeds.announcements.borrow());
    let cgroups = Arc::clone(&feeds.cgroups.borrow());
    let (announcements, void) = of_this_boot(&announced.announcements, &objects.objects);
    let problems = objects.errors.iter().chain(&announced.errors).map(bad_file);
    let problems: Vec<_> = problems.chain(void.iter().map(ProblemFacts::of)).collect();
    report_new(&state.problems.load(), &problems);
    state.problems.store(Arc::new(problems));
    let complete = objects.errors.is_empty();
    enroller.step(&objects.objects, &announcements, &cgroups, complete).await;
}

fn bad_file(error: &SourceError) -> ProblemFacts {
    ProblemFacts { code: "bad_file".to_owned(), message: error.to_string() }
}

fn report_new(known: &[ProblemFacts], now: &[ProblemFacts]) {
    for problem in now.iter().filter(|problem| !known.contains(problem)) {
        tracing::error!(code = problem.code, "{}", problem.message);
    }
}

/// A connection that the kernel refused becomes a record like any other, or one of many that are counted.
async fn record_refusals(refusals: Refusals, mesh: Arc<Mesh>) {
    let each = |refusal: Refusal| {
        let inbound = refusal.verdict.is_inbound();
        let direction = if inbound { Direction::Inbound } else { Direction::Outbound };
        let (server, code) = (refusal.server, refusal.verdict.code());
        let client = dialling(&refusal, &mesh);
        let refused = Refused { direction, client, server, verdict: code, code };
        mesh.flows.refuse(refused, |client, server| {
            client.pod = mesh.pod_at(client.address);
            server.pod = mesh.pod_at(server.address);
            refusal.verdict.sentence().to_owned()
        });
    };
    if let Err(error) = refusals.run(each).await {
        tracing::error!(%error, "the kernel's refusals are not recorded any more");
    }
}

/// Who dialled. A socket that was bound to no address has none yet: it is the pod's own.
fn dialling(refusal: &Refusal, mesh: &Mesh) -> SocketAddr {
    let client = refusal.client;
    if !client.ip().is_unspecified() {
        return client;
    }
    let pod = mesh.kernel.tables().enrolled.get(&refusal.netns);
    let own = pod.map(|pod| if refusal.server.is_ipv4() { pod.v4 } else { pod.v6 });
    own.filter(|own| !own.is_none()).map_or(client, |own| {
        SocketAddr::from(mesh_common::addr::Endpoint::new(own, client.port()))
    })
}

/// Tells, once a second, of the connections that were too many to be recorded one by one.
async fn tell_of_floods(mesh: Arc<Mesh>) {
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        second.tick().await;
        mesh.flows.sweep();
    }
}

/// What `cleanup` has to know of the agent that ran.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    node: String,
    announcement: PathBuf,
    pin_dir: PathBuf,
    /// The cgroup that was made for the agent.
    cgroup: Option<PathBuf>,
}

impl Note {
    fn of(settings: &Settings, host: &Host) -> Self {
        Self {
            node: settings.node.to_string(),
            announcement: FileAnnouncer::path(&settings.announce_dir, &settings.node),
            pin_dir: settings.pin_dir.clone(),
            cgroup: host.own_cgroup.made().map(Path::to_owned),
        }
    }

    fn write(&self, runtime_dir: &Path) -> io::Result<()> {
        fs::write(runtime_dir.join("agent.json"), serde_json::to_vec(self)?)
    }

    fn read(runtime_dir: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(runtime_dir.join("agent.json")).ok()?).ok()
    }

    fn saved_dir(runtime_dir: &Path) -> PathBuf {
        runtime_dir.join("namespaces")
    }
}

/// What [`cleanup`] did.
#[derive(Debug, Serialize)]
pub struct CleanedUp {
    /// Links detached.
    pub links: usize,
    /// Maps freed.
    pub maps: usize,
    /// Namespaces whose settings were put back.
    pub namespaces: usize,
    /// Whether an announcement was taken back.
    pub announcement: bool,
}

/// Takes away all that an agent left on the node. The agent must have been stopped.
///
/// # Errors
/// An agent runs, or something could not be removed.
pub async fn cleanup(
    runtime_dir: &Path,
    pin_dir: Option<&Path>,
    default_pin_dir: &Path,
) -> Result<CleanedUp, DaemonError> {
    let lock = NodeLock::take(runtime_dir)?;
    let note = Note::read(runtime_dir);
    let noted = note.as_ref().map(|note| note.pin_dir.as_path());
    let pins = pin_dir.or(noted).unwrap_or(default_pin_dir);
    let announcement =
        note.as_ref().is_some_and(|note| fs::remove_file(&note.announcement).is_ok());
    let Removed { links, maps } = if pins.exists() {
        let _locked = PinLock::take(pins)?;
        kernel::cleanup(pins).map_err(os("cannot remove the pins"))?
    } else {
        Removed::default()
    };
    let factory = Factory::start().map_err(os("cannot start threads"))?;
    let restored = restore_all(&factory, &Note::saved_dir(runtime_dir), &[]).await;
    let namespaces = restored.map_err(os("cannot put back settings of namespaces"))?;
    if let Some(cgroup) = note.as_ref().and_then(|note| note.cgroup.as_ref()) {
        drop(fs::remove_dir(cgroup)); // one that is not there is removed
    }
    for file in
        [admin::socket_path(runtime_dir), runtime_dir.join("agent.json"), runtime_dir.join("lock")]
    {
        drop(fs::remove_file(file)); // one that is not there is removed
    }
    for dir in [&Note::saved_dir(runtime_dir), runtime_dir] {
        drop(fs::remove_dir(dir)); // somebody else's files in it keep it
    }
    drop(lock);
    Ok(CleanedUp { links, maps, namespaces, announcement })
}
