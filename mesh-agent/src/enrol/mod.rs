//! Takes pods into the mesh and lets them go, live, in the order that loses no connection.
//!
//! `pods.rs` says which phases a pod goes through, and [`Enroller::step`] in which order what is
//! done about them. A pod that vanished leaves nothing behind.

mod cgroups;
mod earlier;
mod find;
mod floors;
mod follow;
mod hold;
mod join;
mod leave;
mod pass_on;
mod plaintext;
mod pods;
mod saved;
mod sightings;
mod status;
mod step;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;
use mesh_api::{PodCode, PodStatus, SameNode};
use mesh_common::maps::EnrolledPod;
use mesh_wire::identity::{Identities, IdentityError, SpiffeIdError};
use mesh_world::{
    Announcements, Incumbents, LocalNode, Memory, MeshNode, NodeName, PodSettings, PodUid,
    Snapshot, tables::Excess,
};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

pub use cgroups::Cgroups;
pub use find::Finder;
pub use plaintext::{PlaintextWatch, ResetError};
pub use saved::{Saved, restore_all};
pub use tables::{Filled, Unwritten, Written, write_world};

use earlier::Earlier;
use floors::Floors;
use follow::WorldFollower;
use pods::{Phase, Pods};
use sightings::Sightings;

use crate::{
    handover::Inherited,
    kernel::KernelError,
    netns::{Netns, NetnsError, ReserveError},
    proxy::{ListenError, Listening, Mesh, Pod, Steered},
    source::{Announcer, SourceState},
    tasks::Tasks,
};

/// How long a pod that leaves goes on taking TLS: bounds the age of peers' news. Files are seen
/// within 20 ms, by the slow rescan within 2 s.
pub const LEAVE_GRACE: Duration = Duration::from_secs(3);

/// How long the rule about agents' source ports stays at a pod that has left: peers may dial it by
/// old news, and a `ClientHello` must not reach an application. Much longer than news takes from
/// one node to another. No longer, because the rule refuses clients outside the mesh that dial from
/// such a port and an address that a pod could have.
const LEFT_FOR: Duration = Duration::from_mins(1);

/// Time from a failed enrolment of a pod to the next attempt.
const RETRY: Duration = Duration::from_secs(2);

/// Keeps the node's pods as the world wants them.
pub struct Enroller {
    mesh: Arc<Mesh>,
    identities: Arc<Identities>,
    node: NodeName,
    mesh_namespace: Option<Arc<str>>,
    boot_id: String,
    saved_dir: PathBuf,
    finder: Finder,
    node_netns: Netns,
    accepting: Tasks,
    serving: Tasks,
    inherited: Inherited,
    same_node: SameNode,
    announcement: watch::Sender<Option<MeshNode>>,
    pods: Pods,
    earlier: Earlier,
    /// The namespaces of pods that have left, by cookie, and until when that is remembered.
    left: BTreeMap<u64, Instant>,
    /// The held pods whose dials wait.
    held_dialling: BTreeMap<PodUid, HeldDialling>,
    /// Whether the programs on the pods' cgroup are this agent's. Without them, a dial that no
    /// guard refuses goes where it wants.
    programs_attached: bool,
    generation: u64,
    sightings: Sightings,
    floors: Floors,
    /// What was refused when the tables were last written.
    refused: [Option<KernelError>; 2],
    board: Board,
    plaintext: PlaintextWatch,
    follower: WorldFollower,
}

/// What this agent has of a pod that is in the mesh, or was.
struct Member {
    pod: Arc<Pod>,
    listeners: Listeners,
    settings: PodSettings,
    /// When it joined. `None` before its dials are redirected.
    since: Option<Timestamp>,
    generation: u64,
}

/// By what the kernel knows the dials of a held pod.
struct HeldDialling {
    /// The cookie of its namespace.
    netns: u64,
    addresses: EnrolledPod,
    /// When the namespace was looked at last.
    seen: Instant,
}

/// How far a pod's listeners are.
enum Listeners {
    /// Made; nothing is steered to them before the world knows the pod.
    Made(Option<Listening>),
    /// In the kernel's table.
    Steered(Steered),
}

/// Why a pod that should be enrolled is not.
#[derive(Clone, Debug, PartialEq)]
struct Failure {
    code: PodCode,
    sentence: String,
}

/// Where `status` reads how enrolment stands. Cloning copies one pointer.
#[derive(Clone, Debug, Default)]
pub struct Board(Arc<Mutex<Vec<PodStatus>>>);

impl Board {
    /// Every pod of this node.
    pub fn read(&self) -> Vec<PodStatus> {
        self.0.lock().clone()
    }

    fn write(&self, pods: Vec<PodStatus>) {
        *self.0.lock() = pods;
    }
}

/// Why a pod could not be enrolled.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// It does not say where its network namespace is.
    #[error(
        "the pod has no annotation nodemesh.dev/netns, which names its network namespace in file mode"
    )]
    NoNetns,
    /// None of its processes leads to it.
    #[error(
        "none of its processes has a network namespace with the address {} ({looked_at} looked at); it may be starting or ending, or run in a kernel of its own (gVisor, Kata), where the mesh cannot reach",
        find::list(addresses)
    )]
    NoProcess {
        /// The pod's addresses.
        addresses: Vec<std::net::IpAddr>,
        /// How many namespaces its processes have.
        looked_at: usize,
    },
    /// Its network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Two pods name one namespace.
    #[error(
        "pod {0} has the same network namespace; in file mode, correct the annotation nodemesh.dev/netns of one of them"
    )]
    NetnsTaken(String),
    /// Its names make no identity.
    #[error("no identity for the service account: {0}")]
    Name(#[from] SpiffeIdError),
    /// It has no certificate.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It has no listeners.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The kernel side failed.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The mesh's ports could not be reserved.
    #[error(transparent)]
    Ports(#[from] ReserveError),
    /// What was there before could not be written down.
    #[error("cannot keep a note in the runtime directory: {0}")]
    Note(#[source] std::io::Error),
}

impl EnrolError {
    fn code(&self) -> PodCode {
        match self {
            Self::NoNetns => PodCode::NoNetnsAnnotation,
            Self::NoProcess { .. } => PodCode::NetnsNotFound,
            Self::Netns(_) => PodCode::NetnsUnusable,
            Self::NetnsTaken(_) => PodCode::NetnsTaken,
            Self::Name(_) => PodCode::NoIdentity,
            Self::Identity(_) => PodCode::NoCertificate,
            Self::Listen(_) => PodCode::NoListener,
            Self::Kernel(_) => PodCode::KernelRefused,
            Self::Ports(ReserveError::TooFewLeft { .. }) => PodCode::NoPortsLeft,
            Self::Ports(ReserveError::Sysctl(_)) => PodCode::SysctlRefused,
            Self::Note(_) => PodCode::RuntimeDirUnusable,
        }
    }
}

/// What an [`Enroller`] is made of.
pub struct Parts {
    /// The data path.
    pub mesh: Arc<Mesh>,
    /// The certificates.
    pub identities: Arc<Identities>,
    /// Tells other nodes.
    pub announcer: Announcer,
    /// This node's name.
    pub node: NodeName,
    /// The namespace in which the mesh itself runs, in a cluster.
    pub mesh_namespace: Option<Arc<str>>,
    /// This boot.
    pub boot_id: String,
    /// Where the settings that were there before are kept.
    pub saved_dir: PathBuf,
    /// How pods' network namespaces are found.
    pub finder: Finder,
    /// The node's own network namespace.
    pub node_netns: Netns,
    /// The group of the accept loops.
    pub accepting: Tasks,
    /// The group of the pods' connections.
    pub serving: Tasks,
    /// Listeners of an agent that hands over to this one.
    pub inherited: Inherited,
    /// How connections between two pods of the node go, where nothing else is said.
    pub same_node: SameNode,
    /// What an earlier agent remembered of announcements.
    pub memory: Memory,
}

impl Enroller {
    /// An enroller with no pod enrolled yet.
    pub fn new(parts: Parts) -> Self {
        let Parts { mesh, identities, announcer, node, boot_id, saved_dir, finder, .. } = parts;
        let mesh_namespace = parts.mesh_namespace;
        let (accepting, serving, inherited) = (parts.accepting, parts.serving, parts.inherited);
        let same_node = parts.same_node;
        let (announcement, announcements) = watch::channel(None);
        accepting.spawn("announce", announce(announcer, announcements));
        let plaintext = PlaintextWatch::new(Arc::clone(&mesh));
        accepting.spawn("plaintext", plaintext.clone().run());
        let (earlier, floors) = Earlier::read(&mesh.kernel);
        Self {
            mesh,
            identities,
            node,
            mesh_namespace,
            boot_id,
            saved_dir,
            finder,
            node_netns: parts.node_netns,
            accepting,
            serving,
            inherited,
            same_node,
            announcement,
            pods: Pods(BTreeMap::new()),
            earlier,
            left: BTreeMap::new(),
            held_dialling: BTreeMap::new(),
            programs_attached: false,
            generation: 0,
            sightings: Sightings::default(),
            floors,
            refused: [None, None],
            board: Board::default(),
            plaintext,
            follower: WorldFollower::after(parts.memory),
        }
    }

    /// The programs on the pods' cgroup are attached: from now on the dials of held pods may wait,
    /// and pods that are enrolled are released.
    pub fn programs_are_attached(&mut self) {
        self.programs_attached = true;
    }

    /// Where to read how enrolment stands.
    pub fn board(&self) -> Board {
        self.board.clone()
    }

    /// Where to ask for connections from before the mesh.
    pub fn plaintext(&self) -> PlaintextWatch {
        self.plaintext.clone()
    }

    /// The namespaces and nodes that asked for more than the kernel's tables have room for.
    pub fn lost(&self) -> &[Excess] {
        self.follower.lost()
    }

    /// How full the kernel's tables are.
    pub fn filled(&self) -> &[Filled] {
        self.follower.filled()
    }

    /// For addresses that several nodes announce, which of them was first.
    pub fn incumbents(&self) -> Incumbents {
        self.follower.incumbents()
    }

    /// Why the kernel's tables are not what they should be.
    pub fn refused(&self) -> impl Iterator<Item = &KernelError> {
        self.refused.iter().flatten()
    }

    /// The world with what is captured on this node right now.
    async fn build(&mut self, state: &SourceState, announcements: &Arc<Announcements>) -> Snapshot {
        let local = LocalNode {
            name: self.node.clone(),
            enrolled: self.enrolled(),
            mesh_namespace: self.mesh_namespace.clone(),
        };
        let objects = self.sightings.in_objects(&state.objects, &self.node);
        let objects = self.floors.in_objects(&objects, state);
        self.follower.build(&self.mesh, &objects, announcements, local).await
    }

    /// The pods that are captured.
    fn enrolled(&self) -> BTreeSet<PodUid> {
        self.pods.all(Phase::enrolled).map(|(uid, _)| uid.clone()).collect()
    }

    /// The pods of a phase, for a loop that changes it.
    fn pods_that(&self, are: fn(&Phase<Member>) -> Option<&Member>) -> Vec<(PodUid, Arc<Pod>)> {
        self.pods.all(are).map(|(uid, member)| (uid.clone(), Arc::clone(&member.pod))).collect()
    }

    /// Another pod that has the same namespace.
    fn holder_of(&self, netns: u64, uid: &PodUid) -> Option<String> {
        let mut others = self.pods.all(Phase::serving).filter(|(other, _)| *other != uid);
        let holder = others.find(|(_, other)| other.pod.netns.cookie() == netns);
        holder.map(|(_, other)| other.pod.name.to_string())
    }
}

/// Publishes what is to be announced: always the newest, one at a time.
async fn announce(announcer: Announcer, mut announcements: watch::Receiver<Option<MeshNode>>) {
    while announcements.changed().await.is_ok() {
        let Some(announcement) = announcements.borrow_and_update().clone() else { continue };
        if let Err(error) = announcer.publish(announcement).await {
            tracing::error!(%error, "other nodes cannot be told what is captured here");
        }
    }
}
