//! Connections of pods that predate their mesh membership or strict mode. They stay in plaintext.
//! The agent finds and lists them, and resets them on request.
//!
//! The sockets of a pod's namespace are looked at when it joins or its settings change, and twice
//! more soon after: its peers may have joined a moment later. From then on they are looked at only
//! while there are any such connections. In an unchanged world this costs nothing.

mod judge;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::Path,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use mesh_api::{PlaintextConnection, PlaintextFacts, ResetConnection, ResetReport};
use mesh_world::{PodSettings, PodUid};
use parking_lot::{Mutex, MutexGuard};
use thiserror::Error;
use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

use self::judge::{Judge, Side};
use crate::{
    netns::{NetnsError, OpenSocket, SocketList},
    proxy::{Mesh, Pod},
};

/// When a pod is looked at again after a change: announcements of peers that join with it take up
/// to some seconds.
const NEXT_LOOKS: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];
/// How often a pod is looked at while it has any.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How many connections are shown of a pod, the oldest first. More are counted.
const SHOWN: usize = 8;
/// For how many connections of a pod the time of the first sighting is kept: some 100 KiB for a pod
/// with more.
const REMEMBERED: usize = 4096;
/// How many connections a report lists. More are reset all the same, and counted.
const REPORTED: usize = 1000;

/// Looks for these connections. Cloning copies one pointer.
#[derive(Clone)]
pub struct PlaintextWatch(Arc<Shared>);

struct Shared {
    mesh: Arc<Mesh>,
    pods: Mutex<BTreeMap<PodUid, WatchedPod>>,
    changed: Notify,
}

struct WatchedPod {
    pod: Arc<Pod>,
    settings: PodSettings,
    /// `None` if there is no need.
    next_look: Option<Instant>,
    looks: usize,
    found: PlaintextFacts,
    /// When each connection was seen first, by its socket's cookie.
    seen: HashMap<u64, Timestamp>,
}

/// Why nothing could be reset.
#[derive(Debug, Error)]
pub enum ResetError {
    /// It is not a pod of this node, or not in the mesh.
    #[error(
        "no pod {0} of this node is in the mesh; ask the agent of the pod's own node, and see `mesh-agent status`"
    )]
    NoPod(String),
    /// Its namespace cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel does not list sockets.
    #[error("the kernel does not list the pod's sockets (sock_diag): {0}")]
    List(#[source] io::Error),
    /// The agent is stopping.
    #[error("the agent is stopping")]
    Stopping,
}

impl PlaintextWatch {
    /// A watch that looks at no pod yet. Nothing is found before [`Self::run`] is run.
    pub fn new(mesh: Arc<Mesh>) -> Self {
        let (pods, changed) = (Mutex::default(), Notify::new());
        Self(Arc::new(Shared { mesh, pods, changed }))
    }

    /// Replaces the pods that are watched. A pod that is new or has other settings is looked at
    /// soon.
    pub(super) fn follow<'a>(&self, pods: impl Iterator<Item = (&'a Arc<Pod>, &'a PodSettings)>) {
        let mut watched = self.watched();
        let mut before = std::mem::take(&mut *watched);
        for (pod, settings) in pods {
            let known = before.remove(&pod.uid);
            let is_same =
                |known: &WatchedPod| Arc::ptr_eq(&known.pod, pod) && known.settings == *settings;
            let (found, seen) = match known {
                Some(known) if is_same(&known) => {
                    watched.insert(pod.uid.clone(), known);
                    continue;
                }
                Some(known) => (known.found, known.seen),
                None => (PlaintextFacts::default(), HashMap::new()),
            };
            let (pod, settings) = (Arc::clone(pod), settings.clone());
            let next_look = Some(Instant::now());
            let new = WatchedPod { pod, settings, next_look, looks: 0, found, seen };
            watched.insert(new.pod.uid.clone(), new);
            self.0.changed.notify_one();
        }
    }

    /// What was found of a pod.
    pub fn of(&self, uid: &str) -> PlaintextFacts {
        let watched = self.watched();
        let pod = watched.iter().find(|(known, _)| known.as_str() == uid);
        pod.map(|(_, pod)| pod.found.clone()).unwrap_or_default()
    }

    /// Looks at each pod when it is time, for ever.
    pub async fn run(self) {
        loop {
            let next = {
                let watched = self.watched();
                let due = watched.values().filter_map(|it| Some((it.next_look?, it)));
                let next = due.min_by_key(|(at, _)| *at);
                next.map(|(at, it)| (at, Arc::clone(&it.pod), it.settings.clone()))
            };
            let Some((at, pod, settings)) = next else {
                self.0.changed.notified().await;
                continue;
            };
            if at > Instant::now() {
                tokio::select! {
                    () = self.0.changed.notified() => {}
                    () = sleep_until(at) => {}
                }
                continue;
            }
            let found = match self.find(&pod, &settings).await {
                Ok((_, found)) => Some(found),
                Err(error) => {
                    tracing::debug!(pod = %pod.name, %error, "the pod's sockets cannot be looked at");
                    None // it is ending, as a rule; tried again as if there were some
                }
            };
            self.note(&pod, found);
        }
    }

    /// Ends a pod's connections that the mesh would carry or refuse today.
    ///
    /// # Errors
    /// See [`ResetError`]; what a single connection refuses stands in the report.
    pub async fn reset(&self, name: &str, dry_run: bool) -> Result<ResetReport, ResetError> {
        let known = {
            let watched = self.watched();
            let pod = watched.values().find(|it| it.pod.name.to_string() == name);
            pod.map(|it| (Arc::clone(&it.pod), it.settings.clone()))
        };
        let (pod, settings) = known.ok_or_else(|| ResetError::NoPod(name.to_owned()))?;
        let (list, found) = self.find(&pod, &settings).await?;
        self.note(&pod, Some(found.clone()));
        let seen = self.seen(&pod.uid);
        let work = move || {
            let (mut reset, mut connections) = (0, Vec::new());
            for (socket, side) in &found {
                let ended = if dry_run { Ok(()) } else { list.reset(socket) };
                let error = match ended {
                    Ok(()) => None,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => Some(
                        "this kernel resets no connections (it is built without CONFIG_INET_DIAG_DESTROY): restart the pod, or the client".to_owned(),
                    ),
                    Err(error) => Some(error.to_string()),
                };
                reset += usize::from(!dry_run && error.is_none());
                if connections.len() < REPORTED
                    || error.is_some() && connections.len() < 2 * REPORTED
                {
                    let connection = connection(socket, *side, &seen);
                    connections.push(ResetConnection { connection, error });
                }
            }
            (found.len(), reset, connections)
        };
        let done = tokio::task::spawn_blocking(work).await;
        let (found, reset, connections) = done.map_err(|_stopping| ResetError::Stopping)?;
        if reset > 0 {
            tracing::info!(pod = name, reset, found, "connections from before the mesh are reset");
        }
        if !dry_run && let Some(watched) = self.watched().get_mut(&pod.uid) {
            (watched.next_look, watched.looks) = (Some(Instant::now()), 0);
            self.0.changed.notify_one();
        }
        Ok(ResetReport { pod: name.to_owned(), dry_run, found, reset, connections })
    }

    /// The sockets of a pod that go on in plaintext, and what can reset them.
    async fn find(
        &self,
        pod: &Arc<Pod>,
        settings: &PodSettings,
    ) -> Result<(SocketList, Vec<(OpenSocket, Side)>), ResetError> {
        let mesh = Arc::clone(&self.0.mesh);
        let list = pod.netns.run(&mesh.factory, SocketList::open).await?;
        let list = list.map_err(ResetError::List)?;
        let (pod, settings) = (Arc::clone(pod), settings.clone());
        let look = move || {
            let sockets = list.sockets()?;
            let world = mesh.world.load();
            let addresses: Vec<_> = pod.addresses().collect();
            let judge = Judge {
                addresses: &addresses,
                settings: &settings,
                listening: &sockets.listening,
                world: &world,
            };
            let mut found: Vec<_> = sockets
                .open
                .into_iter()
                .filter_map(|socket| {
                    let side = judge.is_bypassing(socket.local, socket.remote)?;
                    Some((socket, side))
                })
                .collect();
            let dials = &mesh.kernel.tables().kubelet_dials;
            found
                .retain(|(it, side)| *side == Side::Client || !dials.contains(it.remote, it.local));
            found.retain(|(it, _)| {
                mesh.kernel.tables().leg(&pod.flow_key(it.remote, it.local)).is_none()
            });
            if !found.is_empty() {
                // Leaves out what this agent, or an earlier one that still drains, has open for the
                // pod.
                let agents = mesh.kernel.tables().agent_cgroups.content();
                let own = own_sockets()?;
                found
                    .retain(|(it, _)| !agents.contains_key(&it.cgroup) && !own.contains(&it.inode));
            }
            Ok((list, found))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        looked.map_err(|_stopping| ResetError::Stopping)?.map_err(ResetError::List)
    }

    /// Notes what was found, and when to look again. `None`: the look failed.
    fn note(&self, pod: &Arc<Pod>, found: Option<Vec<(OpenSocket, Side)>>) {
        let mut watched = self.watched();
        let Some(it) = watched.get_mut(&pod.uid).filter(|it| Arc::ptr_eq(&it.pod, pod)) else {
            return;
        };
        let Some(found) = found else {
            it.next_look = Some(Instant::now() + LOOK_EVERY);
            return;
        };
        let now = Timestamp::now();
        let cookies: HashSet<u64> = found.iter().map(|(socket, _)| socket.cookie).collect();
        it.seen.retain(|cookie, _| cookies.contains(cookie));
        for cookie in cookies {
            if it.seen.len() < REMEMBERED {
                it.seen.entry(cookie).or_insert(now);
            }
        }
        let mut all: Vec<_> =
            found.iter().map(|(socket, side)| connection(socket, *side, &it.seen)).collect();
        all.sort_by_key(|it| (it.seen, it.client, it.server));
        let count = all.len();
        all.truncate(SHOWN);
        if count != it.found.count {
            tracing::info!(
                pod = %pod.name, connections = count, before = it.found.count,
                "connections from before the mesh go on in plaintext"
            );
        }
        it.found = PlaintextFacts { count, oldest: all };
        let soon = NEXT_LOOKS.get(it.looks).copied();
        it.looks += 1;
        let next = soon.or_else(|| (count > 0).then_some(LOOK_EVERY));
        it.next_look = next.map(|pause| Instant::now() + pause);
    }

    fn seen(&self, uid: &PodUid) -> HashMap<u64, Timestamp> {
        self.watched().get(uid).map(|it| it.seen.clone()).unwrap_or_default()
    }

    fn watched(&self) -> MutexGuard<'_, BTreeMap<PodUid, WatchedPod>> {
        self.0.pods.lock()
    }
}

fn connection(
    socket: &OpenSocket,
    side: Side,
    seen: &HashMap<u64, Timestamp>,
) -> PlaintextConnection {
    let (client, server) = match side {
        Side::Client => (socket.local, socket.remote),
        Side::Server => (socket.remote, socket.local),
    };
    let seen = seen.get(&socket.cookie).copied().unwrap_or_else(Timestamp::now);
    PlaintextConnection { client, server, seen }
}

/// The inodes of this process' sockets.
fn own_sockets() -> io::Result<HashSet<u32>> {
    let inode = |path: &Path| {
        let target = fs::read_link(path).ok()?; // closed meanwhile
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    };
    let entries = fs::read_dir("/proc/self/fd")?;
    Ok(entries.filter_map(|entry| inode(&entry.ok()?.path())).collect())
}
