//! The only module that knows all parts: it makes them, joins them and stops them.

mod charge;
mod cleanup;
mod end;
mod feeds;
mod hooks;
mod keep;
mod kubelet;
mod refusals;
mod settings;

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use prometheus::Registry;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub use self::cleanup::{CleanedUp, cleanup};
pub use self::feeds::WorldSource;
pub use self::settings::{DaemonError, Settings, Unclassified};
use mesh_wire::identity::{FileCa, Identities, TlsConfigs};

use self::{
    charge::Begun,
    cleanup::Note,
    end::Signals,
    feeds::Followed,
    hooks::Hooks,
    keep::{Believed, Keeper, Over},
    kubelet::KubeletFollower,
};
use crate::{
    admin,
    enrol::{self, Enroller},
    flows::FlowStore,
    handover::{TakeoverDone, TakeoverQueue},
    heartbeat,
    kernel::{Before, Kernel, free_from_hold},
    metrics,
    netns::{Factory, Netns},
    notices::Notices,
    pod_cgroups,
    preflight::{self, Host, OwnCgroup, PreflightError},
    proxy::{self, Mesh, capacity_of},
    source::KeptFile,
    sys::descriptors,
    tasks::Tasks,
    watchdog,
};

/// How long clients that follow the flows may take to read the last of them.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

fn os(what: &'static str) -> impl FnOnce(io::Error) -> DaemonError {
    move |source| DaemonError::Os { what, source }
}

/// Runs until SIGTERM or SIGINT, and then until the drain is over. Links, maps and the announcement
/// stay.
///
/// # Errors
/// See [`DaemonError`]; only from the start.
pub async fn run(settings: Settings) -> Result<(), DaemonError> {
    let started = Timestamp::now();
    // Listen for signals first, so that a SIGTERM during start-up still ends the agent in order.
    let mut signals = Signals::listen().map_err(os("cannot listen for signals"))?;
    let host =
        preflight::check(settings.node.as_str(), &settings.pin_dir, settings.cgroup.as_deref())?;
    let refuse_unclassified = settings.unclassified == Unclassified::Refuse;
    if refuse_unclassified && host.pods_cgroup_is_root {
        return Err(PreflightError::UnclassifiedAtRoot.into());
    }
    if refuse_unclassified && matches!(settings.world, WorldSource::Kubernetes { .. }) {
        return Err(PreflightError::UnclassifiedInCluster.into());
    }
    let own_cgroup = host.own_cgroup.enter()?;
    let (watch, cgroups) = pod_cgroups::Watch::open(&host.pods_cgroup)
        .map_err(os("cannot read the cgroup of the pods"))?;
    // Four groups, stopped one after another: what feeds the world, what accepts for pods, their
    // connections, and what answers questions.
    let (feeding, accepting, serving, answering) =
        (Tasks::new(), Tasks::new(), Tasks::new(), Tasks::new());
    let stop = feeding.stopped();
    feeding.spawn("pod-cgroups", watch.run(stop.clone()));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_err(os("cannot read the boot id"))?;
    let in_charge = CancellationToken::new();
    let kept = KeptFile::new(&settings.runtime_dir, &settings.node, boot_id.trim());
    if let OwnCgroup::Given(own) = &host.own_cgroup
        && free_from_hold(&settings.pin_dir, own, &host.pods_cgroup).map_err(os("cannot unpin"))?
    {
        tracing::warn!("this agent was held like a pod, by an earlier agent; that is over");
    }
    let (remember, remembered) = watch::channel(None);
    let kept = (kept, remembered);
    let Followed {
        mut feeds,
        announcer,
        finder,
        is_removed,
        question,
        client,
        mesh_namespace,
        memory,
        keeping,
    } = settings.world.follow(&settings.node, cgroups, kept, in_charge.clone(), &feeding).await?;
    tokio::select! {
        () = signals.wait() => return Ok(()),
        () = charge::has_read_or_is_alone(&settings, &mut feeds) => {}
    }
    // Before another agent is asked to hand over: an agent that cannot have its CA must not disturb
    // one that has.
    let ca = FileCa::open(&settings.ca_dir)?.with_leaf_lifetime(settings.leaf_ttl);
    let trust_domain = ca.trust_domain().clone();
    if let Some(wanted) = settings.trust_domain.clone().filter(|wanted| *wanted != trust_domain) {
        return Err(DaemonError::TrustDomain { dir: settings.ca_dir, found: trust_domain, wanted });
    }
    let Begun { mut locks, predecessor, inherited } = charge::begin(&settings, own_cgroup).await?;
    tracing::warn!(ca = %settings.ca_dir.display(), "this agent holds the CA's key and signs for itself; whoever takes over this node can be anybody in the mesh");

    let before = if predecessor.is_some() { Before::Lives } else { Before::Gone };
    let (kernel, told) = Kernel::load(&settings.pin_dir, before)?;
    let kernel = Arc::new(kernel);
    if let Some(predecessor) = &predecessor {
        predecessor.in_time(async {}).await?; // loading may take long, and changes nothing
    }
    let passed = predecessor.iter().map(|predecessor| predecessor.cgroup).chain([own_cgroup]);
    kernel.tables().agent_cgroups.sync(&passed.map(|cgroup| (cgroup, 1)).collect())?;
    for program in kernel.programs() {
        tracing::debug!(program = program.name, instructions = ?program.verified_instructions, "program loaded");
    }

    let ca = Arc::new(ca);
    let identities = Arc::new(Identities::new(Arc::<FileCa>::clone(&ca)));
    let factory = Factory::start().map_err(os("cannot start threads"))?;
    let node_netns = Netns::open(&factory, host.netns).await?;
    let watched = Tasks::new();
    watchdog::start(&watched).map_err(os("cannot start threads"))?;
    let flows = FlowStore::new(settings.node.as_str());
    let registry = Registry::new();
    let mesh = Arc::new(Mesh::new(
        Arc::clone(&kernel),
        TlsConfigs::new(Arc::clone(&identities)),
        trust_domain,
        factory,
        flows,
        capacity(&settings)?,
        proxy::Metrics::new(&registry)?,
    ));

    let (asked, scraped) = (answering.child(), answering.child());
    feeding.spawn("renewal", {
        let (identities, stop) = (Arc::clone(&identities), stop.clone());
        async move { identities.renew_loop(stop).await }
    });
    feeding.spawn("ca", {
        let (ca, identities, stop) = (Arc::clone(&ca), Arc::clone(&identities), stop.clone());
        async move { ca.follow(|| identities.renew_all(), stop).await }
    });
    let enroller = Enroller::new(enrol::Parts {
        mesh: Arc::clone(&mesh),
        identities: Arc::clone(&identities),
        announcer: announcer.clone(),
        node: settings.node.clone(),
        mesh_namespace,
        boot_id: boot_id.trim().to_owned(),
        saved_dir: Note::saved_dir(&settings.runtime_dir),
        finder,
        node_netns: node_netns.clone(),
        accepting: accepting.clone(),
        serving: serving.clone(),
        inherited,
        same_node: settings.same_node,
        memory: memory.clone(),
    });
    let (request, requests) = mpsc::channel(1);
    let state = Arc::new(admin::AdminContext {
        node: settings.node.to_string(),
        started,
        mesh: Arc::clone(&mesh),
        board: enroller.board(),
        plaintext: enroller.plaintext(),
        identities,
        problems: ArcSwap::default(),
        knowledge: ArcSwap::default(),
        draining: AtomicBool::new(false),
        metrics: registry,
        metrics_problem: ArcSwapOption::empty(),
        followers: admin::Followers::default(),
        takeovers: TakeoverQueue {
            requests: request,
            node: settings.node.to_string(),
            pin_dir: settings.pin_dir.clone(),
            cgroup: own_cgroup,
        },
    });
    if locks.is_some() {
        answer(&settings, &host, &state, (&answering, &asked, &scraped))?;
    }
    answering.spawn("refusals", refusals::record(told.refusals, Arc::clone(&mesh)));
    answering.spawn("program log", refusals::log(told.log));
    heartbeat::beat(&kernel)?;
    answering.spawn("heartbeat", heartbeat::keep(Arc::clone(&kernel)));
    answering.spawn("questions", refusals::answer(told.questions, Arc::clone(&mesh)));
    answering.spawn("floods", refusals::tell_of_floods(Arc::clone(&mesh)));

    // The tables are right before the hooks on the cgroup begin to decide.
    let mut keeper = Keeper {
        enroller,
        feeds,
        state: Arc::clone(&state),
        hooks: Hooks {
            kernel: Arc::clone(&kernel),
            pods_cgroup: host.pods_cgroup.clone(),
            node_netns: node_netns.cookie(),
            refuse_unclassified,
        },
        ca,
        kubelet: matches!(settings.world, WorldSource::Kubernetes { .. })
            .then(|| KubeletFollower::new(&kernel, &host)),
        requests,
        believed: Believed::after(memory),
        remember,
        is_removed: is_removed.clone(),
    };
    match &predecessor {
        Some(predecessor) => predecessor.in_time(keeper.step()).await?,
        None => keeper.step().await,
    }
    keeper.hooks.attach()?;
    keeper.enroller.programs_are_attached();
    keeper.look_for_kubelet().await;
    kernel.drop_other_layouts()?;
    if let Some(predecessor) = predecessor {
        locks = Some(charge::succeed(predecessor, &settings, &state, &answering).await?);
        keeper.enroller.disclaim_rest();
        // What the predecessor has held meanwhile.
        kernel.tables().held.reload()?;
        if let Err(error) = kernel.forget_unfinished() {
            tracing::warn!(%error, "what the predecessor was just about to pin cannot be removed");
        }
        answer(&settings, &host, &state, (&answering, &asked, &scraped))?;
    }
    in_charge.cancel();
    let notices =
        Notices::new(Arc::clone(&state), settings.node.clone(), announcer.subscribe(), client);
    feeding.spawn("notices", notices.run());
    let enrolling = Tasks::new(); // not stopped: it ends by itself, between two steps
    let (end, mut over) = oneshot::channel();
    enrolling.spawn("enrolment", async move {
        if let Some(switched) = keeper.run(stop).await {
            drop(end.send(switched)); // a signal came first
        }
    });
    tracing::info!(node = %settings.node, cgroup = %host.pods_cgroup.display(), pins = %settings.pin_dir.display(), "agent ready");

    let (ended, is_told) = tokio::select! {
        () = signals.wait() => (end::is_being_removed(&is_removed, question, &mut over).await, true),
        over = &mut over => (Some(over), false),
    };
    state.draining.store(true, Ordering::Relaxed);
    let is_removed = matches!(ended, Some(Ok(Over::Removed)));
    if is_removed {
        end::withdraw(&announcer).await;
    }
    feeding.stop();
    feeding.wait().await;
    keeping.wait().await;
    enrolling.wait().await;
    // A hand-over that came to its end meanwhile counts, whatever else told this agent to stop.
    let ended = ended.or_else(|| over.try_recv().ok().map(Ok));
    accepting.stop();
    accepting.wait().await;
    let handed_over = matches!(ended, Some(Ok(Over::Switched(_))));
    let outcome = match ended {
        Some(Ok(Over::Switched(TakeoverDone { released }))) => {
            scraped.stop(); // the successor's port, where the two share a network
            tracing::info!("handed over; what is open may end by itself until the deadline");
            drop(locks.take());
            // If the successor hears nothing, it finds the locks free.
            let _: Result<(), ()> = released.send(());
            Ok(())
        }
        Some(Err(_gone)) => Err(DaemonError::NobodyEnrols),
        Some(Ok(Over::Removed)) | None => Ok(()),
    };
    end::drain(settings.drain, &serving, &mesh.flows).await;
    mesh.flows.close();
    // A client that reads no more has read enough.
    drop(timeout(LAST_ANSWERS, asked.wait()).await);
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
            () = charge::nobody_is_left(&settings), if handed_over => {
                return Err(DaemonError::NobodyInCharge);
            }
        }
    }
    outcome
}

/// Begins to answer on the admin socket and to serve metrics, and notes what `cleanup` has to know.
fn answer(
    settings: &Settings,
    host: &Host,
    state: &Arc<admin::AdminContext>,
    (answering, asked, scraped): (&Tasks, &Tasks, &Tasks),
) -> Result<(), DaemonError> {
    let note = Note::of(settings, host);
    note.write(&settings.runtime_dir).map_err(os("cannot write into the runtime directory"))?;
    let socket = admin::bind(&settings.runtime_dir)?;
    answering.spawn("admin-socket", admin::serve(socket, Arc::clone(state), asked.clone()));
    if let Some(address) = settings.metrics {
        let serving = metrics::keep_serving(address, Arc::clone(state), scraped.clone());
        scraped.spawn("metrics", serving);
    }
    Ok(())
}

/// How many connections may be open at once.
fn capacity(settings: &Settings) -> Result<usize, DaemonError> {
    let descriptors =
        descriptors::raise_limit().map_err(os("cannot raise the limit on open files"))?;
    let possible = capacity_of(descriptors);
    let connections = settings.max_connections.map_or(possible, |wanted| wanted.min(possible));
    tracing::info!(connections, descriptors, "connections that may be open at once");
    Ok(connections)
}
