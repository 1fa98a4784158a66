//! The only place that knows all parts: makes them, joins them, stops them.

mod cleanup;
mod feeds;
mod hooks;
mod keep;

use std::{
    fs, io,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use thiserror::Error;
use tokio::{
    net::UnixStream,
    signal::unix::{Signal, SignalKind, signal},
    sync::{mpsc, oneshot, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, timeout},
};

pub use self::cleanup::{CleanedUp, cleanup};
pub use self::feeds::World;
use self::{
    cleanup::Note,
    feeds::{Feeds, Followed},
    hooks::Hooks,
    keep::{Believed, Keeper, Over},
};
use crate::{
    admin,
    enrol::{self, Enroller},
    flows::{Direction, Ended, FlowStore, Refused},
    handover::{self, Ask, Desk, Inherited, Predecessor, Switched, TakeOverError},
    heartbeat,
    identity::{FileCa, Identities, TlsConfigs, TrustDomain, file_ca::CaError},
    kernel::{Before, Kernel, KernelError, Refusal, Refusals},
    lock::{LockError, NodeLock, PinLock},
    netns::Factory,
    pod_cgroups,
    preflight::{self, Host, PreflightError},
    proxy::{Limits, Mesh, capacity_of},
    source::{OpenError, Question},
    sys::{self, descriptors},
    tasks::Tasks,
    watchdog,
    world::NodeName,
};

/// How long an heir waits for the locks of a predecessor that has just given them up, or for one that does not answer.
const LOCKS_WAIT: Duration = Duration::from_secs(5);

/// Pause between two attempts.
const LOCKS_PAUSE: Duration = Duration::from_millis(5);

/// How long those who follow the flows may take to read the last of them.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// How often an agent that waits for its world looks whether the one in charge has ended meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long the API server may take to tell the others that this node has left the mesh.
const LAST_WORD: Duration = Duration::from_secs(2);

/// How long the API server may take to say whether the installation has been deleted, when an agent is told to stop.
const ANSWER: Duration = Duration::from_secs(3);

/// How long pods may take to leave then: the grace, and what a hand-over under way takes.
const LEAVE: Duration = Duration::from_secs(15);

/// How often an agent that has handed over looks whether anybody is in charge. Twice nobody is long enough for the kubelet to
/// start a container again that has failed once.
const LOOK_AFTER_HEIR: Duration = Duration::from_secs(5);

/// How many of the connections that a drain cuts are logged; `flows` has all.
const CUT_TOLD: usize = 100;

/// What `mesh-agent run` was told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: NodeName,
    /// Where the world comes from.
    pub world: World,
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
    /// Whether to take over from an agent that runs for this node.
    pub take_over: bool,
    /// Whether to go on, doing nothing, after having handed over: a container that ends is started again.
    pub stays_until_told: bool,
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
    /// Another agent runs, and this one could not take over from it.
    #[error(transparent)]
    TakeOver(#[from] TakeOverError),
    /// The task that keeps pods enrolled is gone.
    #[error("the task that keeps pods enrolled has ended by itself; the log says why")]
    NobodyEnrols,
    /// The agent that had taken over is gone.
    #[error(
        "the agent that took over is gone, and no other has come; this one has to be started again"
    )]
    NobodyInCharge,
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
    /// Nobody has said where the API server is.
    #[error(
        "there is no API server to ask: {0}; as a pod the agent needs its service account's token, elsewhere KUBECONFIG"
    )]
    NoApiServer(#[from] kube::Error),
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
    // From the beginning: who is told to stop while he starts does both in order.
    let mut signals = Signals::listen().map_err(os("cannot listen for signals"))?;
    let host =
        preflight::check(settings.node.as_str(), &settings.pin_dir, settings.cgroup.as_deref())?;
    let refuse_unclassified = settings.unclassified == Unclassified::Refuse;
    if refuse_unclassified && host.pods_cgroup_is_root {
        return Err(PreflightError::UnclassifiedAtRoot.into());
    }
    if refuse_unclassified && matches!(settings.world, World::Kubernetes { .. }) {
        return Err(PreflightError::UnclassifiedInCluster.into());
    }
    let own_cgroup = host.own_cgroup.enter()?;
    let (watch, cgroups) = pod_cgroups::Watch::open(&host.pods_cgroup)
        .map_err(os("cannot read the cgroup of the pods"))?;
    // Four groups, stopped one after another: what feeds the world, what accepts for pods, their connections, and what
    // answers questions.
    let (feeding, accepting, serving, answering) =
        (Tasks::new(), Tasks::new(), Tasks::new(), Tasks::new());
    let stop = feeding.stopped();
    feeding.spawn("pod-cgroups", watch.run(stop.clone()));
    let Followed { mut feeds, announcer, finder, is_removed, question } =
        settings.world.follow(&settings.node, cgroups, &feeding).await?;
    tokio::select! {
        () = signals.wait() => return Ok(()),
        () = has_read_or_is_alone(&settings, &mut feeds) => {}
    }
    let Begun { mut locks, predecessor, inherited } = begin(&settings, own_cgroup).await?;
    let ca = FileCa::open(&settings.ca_dir)?.with_leaf_lifetime(settings.leaf_ttl);
    let trust_domain = ca.trust_domain().clone();
    if let Some(wanted) = settings.trust_domain.clone().filter(|wanted| *wanted != trust_domain) {
        return Err(DaemonError::TrustDomain { dir: settings.ca_dir, found: trust_domain, wanted });
    }
    tracing::warn!(ca = %settings.ca_dir.display(), "this agent holds the CA's key and signs for itself; whoever takes over this node can be anybody in the mesh");
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(os("cannot read the boot id"))?;

    let before = if predecessor.is_some() { Before::Lives } else { Before::Gone };
    let (kernel, refusals) = Kernel::load(&settings.pin_dir, before)?;
    let kernel = Arc::new(kernel);
    if let Some(predecessor) = &predecessor {
        predecessor.in_time(async {}).await?; // loading may take long, and changes nothing
    }
    let passed = predecessor.iter().map(|predecessor| predecessor.cgroup).chain([own_cgroup]);
    kernel.tables().agent_cgroups.sync(&passed.map(|cgroup| (cgroup, 1)).collect())?;
    let own_netns = sys::sock::own_netns_cookie().map_err(os("cannot name the agent's netns"))?;
    for program in kernel.programs() {
        tracing::debug!(program = program.name, instructions = ?program.verified_instructions, "program loaded");
    }

    let ca = Arc::new(ca);
    let identities = Arc::new(Identities::new(Arc::<FileCa>::clone(&ca)));
    let factory = Factory::start().map_err(os("cannot start threads"))?;
    let watched = Tasks::new();
    watchdog::start(&watched).map_err(os("cannot start threads"))?;
    let flows = FlowStore::new(settings.node.as_str());
    let mesh = Arc::new(Mesh::new(
        Arc::clone(&kernel),
        TlsConfigs::new(Arc::clone(&identities)),
        trust_domain,
        factory,
        flows,
        limits(&settings)?,
    ));

    let asked = answering.child();
    feeding.spawn("renewal", {
        let (identities, stop) = (Arc::clone(&identities), stop.clone());
        async move { identities.renew_loop(stop).await }
    });
    feeding.spawn("ca", {
        let (identities, stop) = (Arc::clone(&identities), stop.clone());
        async move { ca.follow(|| identities.renew_all(), stop).await }
    });
    let enroller = Enroller::new(enrol::Parts {
        mesh: Arc::clone(&mesh),
        identities: Arc::clone(&identities),
        announcer: announcer.clone(),
        node: settings.node.clone(),
        boot_id: boot_id.trim().to_owned(),
        saved_dir: Note::saved_dir(&settings.runtime_dir),
        finder,
        accepting: accepting.clone(),
        serving: serving.clone(),
        inherited,
    });
    let (wish, wishes) = mpsc::channel(1);
    let state = Arc::new(admin::State {
        node: settings.node.to_string(),
        started,
        mesh: Arc::clone(&mesh),
        board: enroller.board(),
        identities,
        problems: ArcSwap::default(),
        ready: AtomicBool::new(false),
        draining: AtomicBool::new(false),
        desk: Desk {
            wishes: wish,
            node: settings.node.to_string(),
            pin_dir: settings.pin_dir.clone(),
            cgroup: own_cgroup,
        },
    });
    if locks.is_some() {
        answer(&settings, &host, &state, (&answering, &asked))?;
    }
    answering.spawn("refusals", record_refusals(refusals, Arc::clone(&mesh)));
    heartbeat::beat(&kernel)?;
    answering.spawn("heartbeat", heartbeat::keep(Arc::clone(&kernel)));
    answering.spawn("floods", tell_of_floods(Arc::clone(&mesh)));

    // The tables are right before the hooks on the cgroup begin to decide.
    let mut keeper = Keeper {
        enroller,
        feeds,
        state: Arc::clone(&state),
        hooks: Hooks {
            kernel: Arc::clone(&kernel),
            pods_cgroup: host.pods_cgroup.clone(),
            own_netns,
            refuse_unclassified,
        },
        wishes,
        believed: Believed::default(),
        is_removed: is_removed.clone(),
    };
    match &predecessor {
        Some(predecessor) => predecessor.in_time(keeper.step()).await?,
        None => keeper.step().await,
    }
    keeper.hooks.attach()?;
    kernel.drop_other_layouts()?;
    if let Some(predecessor) = predecessor {
        locks = Some(succeed(predecessor, &settings, &state, &answering).await?);
        keeper.enroller.disclaim_rest();
        if let Err(error) = kernel.forget_unfinished() {
            tracing::warn!(%error, "what the predecessor was just about to pin cannot be removed");
        }
        answer(&settings, &host, &state, (&answering, &asked))?;
    }
    let enrolling = Tasks::new(); // not stopped: it ends by itself, between two steps
    let (end, mut over) = oneshot::channel();
    enrolling.spawn("enrolment", async move {
        if let Some(switched) = keeper.run(stop).await {
            drop(end.send(switched)); // a signal came first
        }
    });
    tracing::info!(node = %settings.node, cgroup = %host.pods_cgroup.display(), pins = %settings.pin_dir.display(), "agent ready");

    let (ended, is_told) = tokio::select! {
        () = signals.wait() => (is_being_removed(&is_removed, question, &mut over).await, true),
        over = &mut over => (Some(over), false),
    };
    state.draining.store(true, Ordering::Relaxed);
    let is_removed = matches!(ended, Some(Ok(Over::Removed)));
    if is_removed {
        // With the CustomResourceDefinition all announcements go, so that this may well be done.
        match timeout(LAST_WORD, announcer.withdraw()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the announcement stays"),
            Err(_elapsed) => {
                tracing::warn!("the announcement stays: the API server does not answer");
            }
        }
    }
    feeding.stop();
    feeding.wait().await;
    enrolling.wait().await;
    // A hand-over that came to its end meanwhile is one, whoever else has told us to stop.
    let ended = ended.or_else(|| over.try_recv().ok().map(Ok));
    accepting.stop();
    accepting.wait().await;
    let handed_over = matches!(ended, Some(Ok(Over::Switched(_))));
    let outcome = match ended {
        Some(Ok(Over::Switched(Switched { released }))) => {
            tracing::info!("handed over; what is open may end by itself until the deadline");
            drop(locks.take());
            let _: Result<(), ()> = released.send(()); // an heir that is gone finds the locks free
            Ok(())
        }
        Some(Err(_gone)) => Err(DaemonError::NobodyEnrols),
        Some(Ok(Over::Removed)) | None => Ok(()),
    };
    drain(settings.drain, &serving, &mesh.flows).await;
    mesh.flows.close();
    drop(timeout(LAST_ANSWERS, asked.wait()).await); // who reads no more has read enough
    answering.stop();
    answering.wait().await;
    watched.stop();
    if is_removed {
        let removed = cleanup::take_away(&settings.runtime_dir, &settings.pin_dir).await?;
        let CleanedUp { links, maps, namespaces, .. } = removed;
        tracing::info!(links, maps, namespaces, "everything is taken away");
    }
    drop(locks);
    if (handed_over || is_removed) && settings.stays_until_told && !is_told {
        tracing::info!("nothing is left to do; waiting to be told to stop");
        tokio::select! {
            () = signals.wait() => {}
            () = nobody_is_in_charge(&settings), if handed_over => {
                return Err(DaemonError::NobodyInCharge);
            }
        }
    }
    outcome
}

/// After SIGTERM: how it ends if that is because the installation has been deleted. Then the pods leave first.
async fn is_being_removed(
    is_removed: &watch::Receiver<bool>,
    question: Option<Question>,
    over: &mut oneshot::Receiver<Over>,
) -> Option<Result<Over, oneshot::error::RecvError>> {
    // Known already, as a rule; by now the agent's own rights may have been deleted too.
    let known = *is_removed.borrow();
    let removed = known || timeout(ANSWER, question?.ask()).await.unwrap_or(false);
    if removed { timeout(LEAVE, over).await.ok() } else { None }
}

/// Resolves when the agent that has taken over is gone and no other has come: the container is to be started again then.
async fn nobody_is_in_charge(settings: &Settings) {
    let mut free_before = false;
    loop {
        sleep(LOOK_AFTER_HEIR).await;
        let is_free = lock(settings).is_ok();
        if is_free && free_before {
            return;
        }
        free_before = is_free;
    }
}

/// The two locks of an agent that is in charge of its node.
type Locks = (NodeLock, PinLock);

fn lock(settings: &Settings) -> Result<Locks, LockError> {
    Ok((NodeLock::take(&settings.runtime_dir)?, PinLock::take(&settings.pin_dir)?))
}

/// How an agent begins: in charge, or with somebody who still is.
struct Begun {
    locks: Option<Locks>,
    predecessor: Option<Predecessor>,
    inherited: Inherited,
}

/// Resolves when this agent may begin. One that has not read the world yet would enrol nobody: it must not take over from
/// one that knows.
async fn has_read_or_is_alone(settings: &Settings, feeds: &mut Feeds) {
    let mut is_told = false;
    while !feeds.have_been_read()
        && matches!(lock(settings), Err(LockError::Held { .. } | LockError::PinsHeld { .. }))
    {
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!(
                "an agent runs for this node, and this one has not been told of any pod; it waits"
            );
        }
        drop(timeout(LOOK_AGAIN, feeds.changed()).await); // whichever comes first
    }
}

/// Takes the locks, or asks the agent that has them to hand over if that is wanted. One that is just starting does not answer
/// yet, and one that is just ending not any more: both are asked again.
async fn begin(settings: &Settings, cgroup: u64) -> Result<Begun, DaemonError> {
    let deadline = Instant::now() + LOCKS_WAIT;
    loop {
        match lock(settings) {
            Ok(locks) => {
                let inherited = Inherited::new();
                return Ok(Begun { locks: Some(locks), predecessor: None, inherited });
            }
            Err(LockError::Held { .. } | LockError::PinsHeld { .. }) if settings.take_over => {}
            Err(error) => return Err(error.into()),
        }
        let ask = Ask {
            version: handover::VERSION,
            pid: std::process::id(),
            node: settings.node.to_string(),
            pin_dir: settings.pin_dir.clone(),
            cgroup,
        };
        match Predecessor::ask(&settings.runtime_dir, ask).await {
            Ok((predecessor, inherited)) => {
                tracing::info!(pid = predecessor.pid, pods = inherited.len(), "taking over");
                return Ok(Begun { locks: None, predecessor: Some(predecessor), inherited });
            }
            Err(TakeOverError::NoAnswer { .. } | TakeOverError::Broken(_))
                if Instant::now() < deadline =>
            {
                sleep(LOCKS_PAUSE).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// From here on this agent is in charge: everything leads to it, and its predecessor may go.
async fn succeed(
    mut predecessor: Predecessor,
    settings: &Settings,
    state: &Arc<admin::State>,
    answering: &Tasks,
) -> Result<Locks, DaemonError> {
    let records = UnixStream::connect(admin::socket_path(&settings.runtime_dir)).await;
    let released = predecessor.release().await;
    let deadline = Instant::now() + LOCKS_WAIT;
    let locks = loop {
        match (lock(settings), &released) {
            (Ok(locks), _) => break locks,
            // Also if it has not answered: it may have died just now, and its locks with it.
            (Err(_), _) if Instant::now() < deadline => sleep(LOCKS_PAUSE).await,
            (Err(error), Ok(())) => return Err(error.into()),
            (Err(_), Err(_)) => return Err(TakeOverError::TakenBack.into()),
        }
    };
    if let Ok(records) = records {
        let (pid, flows) = (predecessor.pid, state.mesh.flows.clone());
        answering.spawn("predecessor-records", async move {
            if let Err(error) = handover::follow(records, flows).await {
                tracing::warn!(pid, %error, "the records of the predecessor are not complete");
            }
        });
    }
    let (mesh, own) = (Arc::clone(&state.mesh), state.desk.cgroup);
    answering.spawn("predecessor", async move {
        predecessor.ended().await;
        tracing::info!(pid = predecessor.pid, "the predecessor has ended");
        let tables = mesh.kernel.tables();
        if let Err(error) = tables.agent_cgroups.sync(&[(own, 1)].into()) {
            tracing::error!(%error, "the predecessor's cgroup cannot be forgotten");
        }
        if let Err(error) = tables.failed.forget_others() {
            tracing::error!(%error, "what the predecessor could not reach cannot be forgotten");
        }
    });
    Ok(locks)
}

/// Begins to answer on the admin socket, and notes what `cleanup` has to know.
fn answer(
    settings: &Settings,
    host: &Host,
    state: &Arc<admin::State>,
    (answering, asked): (&Tasks, &Tasks),
) -> Result<(), DaemonError> {
    let note = Note::of(settings, host);
    note.write(&settings.runtime_dir).map_err(os("cannot write into the runtime directory"))?;
    let socket = admin::bind(&settings.runtime_dir)?;
    answering.spawn("admin-socket", admin::serve(socket, Arc::clone(state), asked.clone()));
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

/// What tells the agent to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        let (terminate, interrupt) = (SignalKind::terminate(), SignalKind::interrupt());
        Ok(Self { terminate: signal(terminate)?, interrupt: signal(interrupt)? })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Lets open connections end, and says which have not. New ones are refused by the kernel once the listeners are gone, or
/// go to the agent that has taken over: strict stays closed.
async fn drain(deadline: Duration, serving: &Tasks, flows: &FlowStore) {
    let open = serving.running();
    tracing::info!(open, ?deadline, "draining; programs, maps and the announcement stay in force");
    if timeout(deadline, serving.wait()).await.is_err() {
        let sentence = format!(
            "The agent was told to stop, and the connection was still open when {deadline:?} were over."
        );
        flows.cut(Ended::new("drain_deadline", sentence));
        let open = flows.list_open();
        tracing::warn!(
            cut = open.len(),
            "the drain's deadline has passed; what is still open is cut"
        );
        for flow in open.iter().take(CUT_TOLD) {
            let opened = flow.opened;
            tracing::warn!(client = %flow.client, server = %flow.server, %opened, "cut");
        }
    }
    serving.stop();
    drop(timeout(Duration::from_secs(1), serving.wait()).await); // tasks end at their next await
    tracing::info!("agent stopped");
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
