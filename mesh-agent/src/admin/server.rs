//! The agent's side.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use jiff::Timestamp;
use mesh_api::{
    IdentityFacts, NodeCounters, NotCarried, OpenPeer, PodStatus, ProblemCode, ProblemFacts,
    Request, Response, Status,
};
use mesh_common::verdict::Verdict;
use mesh_wire::identity::Identities;
use mesh_world::{Peer, Problem, ServicePort};
use nix::sys::stat::{Mode, umask};
use prometheus::Registry;
use thiserror::Error;
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::followers::MOST;
use super::{Followers, socket_path};
use crate::{
    enrol::{Board, PlaintextWatch},
    flows::Followed,
    handover::{self, TakeoverQueue},
    kernel::Dials,
    proxy::Mesh,
    source::Knowledge,
    tasks::Tasks,
};

/// Longest request.
const MAX_REQUEST_BYTES: u64 = 64 * 1024;
/// How long a client may take to ask, and to take each line of the answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state that the answers are made from.
pub struct AdminContext {
    /// The node's name.
    pub node: String,
    /// When the agent started.
    pub started: Timestamp,
    /// The data path.
    pub mesh: Arc<Mesh>,
    /// How enrolment stands.
    pub board: Board,
    /// Connections from before the mesh.
    pub plaintext: PlaintextWatch,
    /// The certificates.
    pub identities: Arc<Identities>,
    /// What is wrong with the sources.
    pub problems: ArcSwap<Vec<ProblemFacts>>,
    /// How old the knowledge of the world is; nothing, until the agent is in charge of its node.
    pub knowledge: ArcSwap<Knowledge>,
    /// Whether the agent is draining.
    pub draining: AtomicBool,
    /// The metrics that parts of the agent hold.
    pub metrics: Registry,
    /// Why the metrics are not served, if they should be.
    pub metrics_problem: ArcSwapOption<ProblemFacts>,
    /// The processes that follow the flows.
    pub followers: Followers,
    /// Where a successor is received.
    pub takeovers: TakeoverQueue,
}

impl AdminContext {
    /// How the agent and its pods are.
    pub fn status(&self) -> Status {
        let tables = self.mesh.kernel.tables();
        let mut status = self.overview();
        let of_pod = |pod: &PodStatus| {
            Some((format!("{}/{}", pod.namespace, pod.name), tables.pod_verdicts(pod.netns?)?))
        };
        status.pod_verdicts = status
            .pods
            .iter()
            .filter_map(of_pod)
            .map(|(pod, counts)| (pod, by_code(&counts, false)))
            .collect();
        let world = self.mesh.world.load();
        let outside = world.services_with_outside().into_iter();
        status.not_carried = outside.map(not_carried).collect();
        status.open_peers = world.strict_peers_with_open_ports().into_iter().map(open).collect();
        status
    }

    /// What is wrong with the world as it is written.
    pub fn world_problems(&self) -> Vec<Problem> {
        self.mesh.world.load().problems()
    }

    /// The same as [`Self::status`], without what takes time in proportion to the cluster's pods
    /// and services, or a system call for each pod. `pod_verdicts`, `not_carried` and `open_peers`
    /// are empty.
    pub fn overview(&self) -> Status {
        let mesh = &self.mesh;
        let tables = mesh.kernel.tables();
        let world = mesh.world.load();
        // None rather than zeros: falling counters are taken for those of a new kernel.
        let verdicts = tables.verdicts().map(|counts| by_code(&counts, true)).unwrap_or_default();
        let mut problems: Vec<_> = self.problems.load().to_vec();
        problems.extend(world.problems().iter().map(ProblemFacts::from));
        let of = |code| move |message: String| ProblemFacts::new(code, message);
        problems.extend(self.identities.ca_problem().map(of(ProblemCode::BadCa)));
        let out_of_date = self.identities.problems().into_iter();
        problems.extend(out_of_date.map(of(ProblemCode::CertificateNotValid)));
        problems.extend(self.identities.clock_problem().map(of(ProblemCode::ClocksDiffer)));
        let masqueraded = mesh.masqueraded_paths().into_iter();
        problems.extend(masqueraded.map(of(ProblemCode::MasqueradedPath)));
        let blocked = mesh.blocked_agents_ports().into_iter();
        problems.extend(blocked.map(of(ProblemCode::AgentsPortBlocked)));
        problems.extend(mesh.lost_listeners().into_iter().map(of(ProblemCode::ListenerLost)));
        let pods = self.board.read();
        let of_pod =
            |pod: &PodStatus| Some((format!("{}/{}", pod.namespace, pod.name), pod.netns?));
        let greedy = tables.shares.greedy(pods.iter().filter_map(of_pod));
        problems.extend(greedy.into_iter().map(|(pod, dials)| of_share(&pod, dials)));
        let shares = mesh.socket_memory_shares().into_iter();
        problems.extend(shares.map(of(ProblemCode::SocketMemoryShare)));
        problems.extend(self.metrics_problem.load_full().as_deref().cloned());
        let mut pods = self.board.read();
        for pod in &mut pods {
            pod.plaintext = self.plaintext.of(&pod.uid);
            let name = format!("{}/{}", pod.namespace, pod.name);
            let problem = pod.plaintext.problem(&name, pod.mode);
            problems.extend(problem.map(of(ProblemCode::PlaintextBeforeStrict)));
        }
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            pid: std::process::id(),
            started: self.started,
            trust_domain: mesh.trust_domain.as_str().to_owned(),
            anchors: self.identities.anchors().fingerprints(),
            ready: **self.knowledge.load() != Knowledge::Nothing,
            knowledge: self.knowledge.load().facts(Timestamp::now()),
            draining: self.draining.load(Ordering::Relaxed),
            remote_peers: world.remote_pods(),
            counters: NodeCounters {
                accepted_outbound: mesh.metrics.accepted_outbound.get(),
                accepted_inbound: mesh.metrics.accepted_inbound.get(),
                bytes_sent: mesh.metrics.bytes_sent.get(),
                bytes_received: mesh.metrics.bytes_received.get(),
                by_agents_port: mesh.metrics.by_agents_port.get(),
                judged: mesh.counters.judged.load(Ordering::Relaxed),
                table_writes: mesh.counters.table_writes.load(Ordering::Relaxed),
                events_written: mesh.counters.events_written.load(Ordering::Relaxed),
                events_failed: mesh.counters.events_failed.load(Ordering::Relaxed),
                events_waiting: mesh.counters.events_waiting.load(Ordering::Relaxed),
                open: mesh.flows.open(),
                capacity: mesh.limits.capacity(),
                refused_by_limits: mesh.metrics.refused_by_limits.get(),
                sessions: mesh.sessions(),
                socket_memory: mesh.socket_memory().0,
                events_lost: tables.events_lost(),
            },
            verdicts,
            pod_verdicts: BTreeMap::new(),
            identities: identities(&self.identities),
            problems: ProblemFacts::bounded(problems),
            pods,
            not_carried: Vec::new(),
            open_peers: Vec::new(),
        }
    }
}

fn of_share(pod: &str, Dials { own, allowed }: Dials) -> ProblemFacts {
    let message = format!(
        "pod {pod} has {own} dials under way through the mesh, of {allowed} that it may have while other pods have as many as they have; beyond that its dials are refused (refused_pending_share). Find what in it dials without end, or keeps its handshakes from ending"
    );
    ProblemFacts::new(ProblemCode::PendingShare, message)
}

/// Why the socket could not be made.
#[derive(Debug, Error)]
#[error("cannot make the admin socket {path}: {source}")]
pub struct ServeError {
    path: PathBuf,
    source: io::Error,
}

/// Makes the socket. The caller holds the node's lock, so an existing socket is that of a dead
/// agent or of one that has handed over. It is replaced at once, so that an agent always answers.
///
/// # Errors
/// See [`ServeError`].
pub fn bind(runtime_dir: &Path) -> Result<UnixListener, ServeError> {
    let path = socket_path(runtime_dir);
    let failed = |source| ServeError { path: path.clone(), source };
    let unfinished = path.with_extension("new");
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    // Never open to others, not even between the two calls.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(&unfinished);
    umask(before);
    let listener = listener.map_err(failed)?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    fs::rename(&unfinished, &path).map_err(failed)?;
    Ok(listener)
}

/// Answers until dropped.
pub async fn serve(listener: UnixListener, state: Arc<AdminContext>, tasks: Tasks) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let state = Arc::clone(&state);
                tasks.spawn("admin", async move {
                    if let Err(error) = answer(stream, &state).await {
                        tracing::debug!(%error, "admin connection");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept an admin connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, state: &AdminContext) -> io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut reader = BufReader::new(read.take(MAX_REQUEST_BYTES));
    timeout(PATIENCE, reader.read_line(&mut line)).await??;
    match serde_json::from_str(&line) {
        Ok(Request::HandOver(ask)) => {
            // The successor says nothing more until it is answered.
            let read = reader.into_inner().into_inner();
            let stream = read.reunite(write).map_err(io::Error::other)?;
            handover::give(stream, &ask, &state.takeovers, state.mesh.flows.closed()).await
        }
        Ok(Request::Give | Request::Switched) => {
            let out_of_order = "nobody is handing over on this connection".to_owned();
            send(&mut write, &Response::Error(out_of_order)).await
        }
        Ok(Request::Reset { pod, dry_run }) => {
            let response = match state.plaintext.reset(&pod, dry_run).await {
                Ok(report) => Response::Reset(Box::new(report)),
                Err(error) => Response::Error(error.to_string()),
            };
            send(&mut write, &response).await
        }
        Ok(Request::Status) => send(&mut write, &Response::Status(Box::new(state.status()))).await,
        Ok(Request::Flows { follow }) => {
            let mut follower = follow.then(|| (state.mesh.flows.follow(), state.followers.join()));
            let mut sent = BTreeSet::new();
            for record in state.mesh.flows.list() {
                // An open connection comes again when it has ended.
                if !follow || record.duration_us.is_some() {
                    sent.insert(record.id);
                    send(&mut write, &Response::Flow(Box::new(record))).await?;
                }
            }
            while let Some((follower, place)) = &mut follower {
                let next = tokio::select! {
                    next = follower.next() => next,
                    () = closed(&mut reader) => return Ok(()),
                    () = place.taken.cancelled() => {
                        let others = format!("{MOST} others follow the flows; who has done so longest has to go");
                        return send(&mut write, &Response::Error(others)).await;
                    }
                };
                let response = match next {
                    // It ended between the two steps, and was on the list already.
                    Some(Followed::Finished(record)) if sent.remove(&record.id) => continue,
                    Some(Followed::Finished(record)) => Response::Flow(record),
                    Some(Followed::Lost(lost)) => Response::Lost(lost),
                    None => break,
                };
                send(&mut write, &response).await?;
            }
            Ok(())
        }
        Err(error) => send(&mut write, &Response::Error(error.to_string())).await,
    }
}

/// Resolves when the client is gone: nothing more can be read.
///
/// # Cancel safety
/// Can be dropped and called again.
async fn closed(reader: &mut (impl AsyncBufRead + Unpin)) {
    while let Ok(more) = reader.fill_buf().await {
        let length = more.len();
        if length == 0 {
            return;
        }
        reader.consume(length);
    }
}

async fn send(
    stream: &mut tokio::net::unix::OwnedWriteHalf,
    response: &Response,
) -> io::Result<()> {
    let mut line = serde_json::to_vec(response)?;
    line.push(b'\n');
    timeout(PATIENCE, stream.write_all(&line)).await?
}

fn not_carried(service: &Arc<ServicePort>) -> NotCarried {
    NotCarried {
        service: format!("{}/{}", service.namespace, service.name),
        port: service.port,
        addresses: service.outside.addresses.clone(),
        node_port: service.outside.node_port,
    }
}

fn open(peer: &Arc<Peer>) -> OpenPeer {
    OpenPeer {
        pod: format!("{}/{}", peer.namespace, peer.name),
        node: peer.node.to_string(),
        exclude_ports: peer.exclude_ports.clone(),
        permissive_ports: peer.permissive_ports.clone(),
    }
}

fn by_code(counts: &[u64], all: bool) -> BTreeMap<String, u64> {
    let count = |verdict: &Verdict| counts.get(*verdict as usize).copied().unwrap_or(0);
    Verdict::ALL
        .iter()
        .filter(|verdict| all || count(verdict) > 0)
        .map(|verdict| (verdict.code().to_owned(), count(verdict)))
        .collect()
}

fn identities(identities: &Identities) -> Vec<IdentityFacts> {
    let facts = |status: mesh_wire::identity::IdentityStatus| IdentityFacts {
        id: status.id.to_string(),
        serial: status.certificate.as_ref().map(|identity| identity.serial().to_owned()),
        not_after: status.certificate.as_ref().map(|identity| timestamp(identity.not_after())),
        failure: status.failure.map(|failure| failure.error.to_string()),
    };
    identities.status().into_iter().map(facts).collect()
}

fn timestamp(time: SystemTime) -> Timestamp {
    Timestamp::try_from(time).unwrap_or(Timestamp::MAX)
}
