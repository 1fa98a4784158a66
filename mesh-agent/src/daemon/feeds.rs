//! What enrolment goes by, wherever this agent's world comes from.

use std::{future::pending, path::PathBuf, sync::Arc, time::Duration};

use kube::Client;
use mesh_world::{Announcements, Answers, Memory, NodeName};
use tokio::sync::watch::{self, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::DaemonError;
use crate::{
    enrol::{Cgroups, Finder},
    pod_cgroups::PodCgroups,
    source::{
        AnnouncementState, Announcer, Earlier, FileSource, Installation, Keep, KeptFile, Knowledge,
        KubeSource, NodePodsTask, Question, SourceState, api_server, file_announcer,
        kube_announcer, listed,
    },
    tasks::Tasks,
};

/// How long the start waits for the API server. If it is away, the node's connections must not wait
/// for it: what the kernel's tables say stays in force.
const LIST_WAIT: Duration = Duration::from_secs(10);

/// Where the world comes from.
#[derive(Clone, Debug)]
pub enum WorldSource {
    /// Directories.
    Files {
        /// Of Kubernetes objects.
        source: PathBuf,
        /// Of all nodes' announcements.
        announce_dir: PathBuf,
    },
    /// The API server.
    Kubernetes {
        /// The DaemonSet whose deletion means that the agent is to take everything away.
        daemon_set: Option<String>,
    },
}

/// What enrolment goes by.
pub(super) struct Feeds {
    pub(super) objects: watch::Receiver<Arc<SourceState>>,
    pub(super) announcements: watch::Receiver<Arc<AnnouncementState>>,
    cgroups_seen: watch::Receiver<Arc<PodCgroups>>,
    pub(super) cgroups: Cgroups,
    /// `None` if the objects have all pods.
    pods_of_nodes: Option<PodsOfNodes>,
}

/// Tells whether pods of other nodes are still there, in a cluster.
struct PodsOfNodes {
    questions: watch::Sender<Announcements>,
    answers: watch::Receiver<Arc<Answers>>,
}

impl PodsOfNodes {
    fn ask(client: Client, feeding: &Tasks) -> Self {
        let (questions, receiver) = watch::channel(Announcements::new());
        let (task, answers) = NodePodsTask::new(client, receiver);
        feeding.spawn("node-pods", task.run(feeding.stopped().cancelled_owned()));
        Self { questions, answers }
    }
}

impl Feeds {
    /// Whether objects and announcements are known, be it from an earlier agent.
    pub(super) fn have_been_read(&self) -> bool {
        self.knowledge() != Knowledge::Nothing
    }

    /// How old what is known is.
    pub(super) fn knowledge(&self) -> Knowledge {
        let objects = self.objects.borrow().knowledge;
        objects.worse(self.announcements.borrow().knowledge)
    }

    /// What is known of pods of other nodes; `None` if the objects have them all.
    pub(super) fn answers(&self) -> Option<Arc<Answers>> {
        self.pods_of_nodes.as_ref().map(|pods| Arc::clone(&pods.answers.borrow()))
    }

    /// Asks which pods of these announcements are still there.
    pub(super) fn ask(&self, in_question: &Announcements) {
        let Some(PodsOfNodes { questions, .. }) = &self.pods_of_nodes else { return };
        questions.send_if_modified(|asked| {
            let is_other = asked != in_question;
            if is_other {
                asked.clone_from(in_question);
            }
            is_other
        });
    }

    /// Resolves when one of them has something new.
    ///
    /// # Errors
    /// One of them has ended: the agent is stopping.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub(super) async fn changed(&mut self) -> Result<(), RecvError> {
        let answered = async {
            match &mut self.pods_of_nodes {
                Some(pods) => pods.answers.changed().await,
                None => pending().await,
            }
        };
        tokio::select! {
            changed = answered => changed,
            changed = self.cgroups_seen.changed() => changed,
            changed = self.objects.changed() => changed,
            changed = self.announcements.changed() => changed,
        }
    }
}

/// A world that is being followed.
pub(super) struct Followed {
    pub(super) feeds: Feeds,
    pub(super) announcer: Announcer,
    pub(super) finder: Finder,
    /// Turns true when the installation is taken away.
    pub(super) is_removed: watch::Receiver<bool>,
    /// Asks whether it is.
    pub(super) question: Option<Question>,
    /// Asks the API server, if that is where the world comes from.
    pub(super) client: Option<Client>,
    /// The namespace in which the mesh itself runs, where that is known.
    pub(super) mesh_namespace: Option<Arc<str>>,
    /// What an earlier agent remembered of announcements.
    pub(super) memory: Memory,
    /// Tasks that end by themselves once the feeds have been stopped, and that have to be waited
    /// for.
    pub(super) keeping: Tasks,
}

impl WorldSource {
    /// Begins to follow the world, and waits for its first state. What the world says is written
    /// down once this agent is `in_charge`.
    pub(super) async fn follow(
        &self,
        node: &NodeName,
        cgroups_seen: watch::Receiver<Arc<PodCgroups>>,
        (kept, memory): (KeptFile, watch::Receiver<Option<Memory>>),
        in_charge: CancellationToken,
        feeding: &Tasks,
    ) -> Result<Followed, DaemonError> {
        let stop = || feeding.stopped().cancelled_owned();
        let keeping = Tasks::new();
        let earlier = Earlier::read(&kept);
        let keep_known = |objects: &watch::Receiver<_>, announcer: &Announcer| {
            let keep = Keep::new(kept, objects.clone(), announcer.subscribe(), memory);
            keeping.spawn("world-file", keep.run(in_charge, feeding.stopped()));
        };
        let (mut question, mut is_removed) = (None, watch::channel(false).1);
        let (mut api, mut mesh_namespace) = (None, None);
        let (objects, announcer, finder, cgroups) = match self {
            Self::Files { source, announce_dir } => {
                let (source, objects) = FileSource::open(source, &earlier)?;
                let (announcer, announcing) = file_announcer(announce_dir, node.clone(), &earlier)?;
                feeding.spawn("source", source.run(stop()));
                feeding.spawn("announcements", announcing.run(stop()));
                keep_known(&objects, &announcer);
                let cgroups = Cgroups::new(cgroups_seen.clone(), objects.clone(), node.clone());
                (objects, announcer, Finder::Named, cgroups)
            }
            Self::Kubernetes { daemon_set } => {
                let client = api_server().await?;
                api = Some(client.clone());
                let (source, mut objects) = KubeSource::new(client.clone(), node, &earlier);
                if let Some(daemon_set) = daemon_set {
                    // As the token's mount names it, not a label: only administrators write where
                    // the mount is.
                    mesh_namespace = Some(Arc::from(client.default_namespace()));
                    let (installation, asks, removed) = Installation::new(&client, daemon_set);
                    feeding.spawn("installation", installation.run(stop()));
                    (question, is_removed) = (Some(asks), removed);
                }
                let (announcer, announcing) = kube_announcer(client, node.clone(), &earlier);
                feeding.spawn("source", source.run(stop()));
                feeding.spawn("announcements", announcing.run(stop()));
                let mut announcements = announcer.subscribe();
                keep_known(&objects, &announcer);
                if !listed(&mut objects, &mut announcements, LIST_WAIT).await {
                    tracing::error!(
                        waited = ?LIST_WAIT,
                        "the API server has not told what is there; until it does, all stays as the kernel's tables say"
                    );
                }
                let cgroups = Cgroups::new(cgroups_seen.clone(), objects.clone(), node.clone());
                (objects, announcer, Finder::Processes(cgroups.clone()), cgroups)
            }
        };
        let announcements = announcer.subscribe();
        let pods_of_nodes = api.clone().map(|client| PodsOfNodes::ask(client, feeding));
        let feeds = Feeds { objects, announcements, cgroups_seen, cgroups, pods_of_nodes };
        let (client, memory) = (api, earlier.memory());
        Ok(Followed {
            feeds,
            announcer,
            finder,
            is_removed,
            question,
            client,
            mesh_namespace,
            memory,
            keeping,
        })
    }
}
