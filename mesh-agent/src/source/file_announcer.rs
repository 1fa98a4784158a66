//! Announcements as files: `<node>.json` per node in a directory that all nodes share.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::announce::{AnnounceError, AnnouncementState, Announcer, BoxFuture};
use super::directory::Directory;
use super::error::{OpenError, SourceError};
use super::last_good::{LastGood, log_new};
use super::tree;
use crate::tasks::off_the_workers;
use crate::world::{FieldError, FileLines, MeshNode, NodeName};

/// Least time between two writes of an announcement: every other agent reads each of them.
const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// The handle. What it is asked to do, [`FileAnnouncerTask`] does.
#[derive(Clone)]
pub struct FileAnnouncer {
    own_node: NodeName,
    wish: Arc<watch::Sender<Wish>>,
    outcome: watch::Receiver<Outcome>,
    state: watch::Receiver<Arc<AnnouncementState>>,
}

/// What was asked for last. Numbers rise by one.
#[derive(Default)]
struct Wish {
    number: u64,
    what: What,
}

#[derive(Clone, Default)]
enum What {
    #[default]
    Nothing,
    Announce(Arc<MeshNode>),
    Withdraw,
}

/// The number of the last wish that was attempted, and how that ended.
struct Outcome {
    number: u64,
    result: Result<(), AnnounceError>,
}

impl FileAnnouncer {
    /// The file in which a node announces itself.
    pub fn path(dir: &Path, node: &NodeName) -> PathBuf {
        dir.join(format!("{node}.json"))
    }

    /// Opens the shared directory and reads all announcements a first time, blocking. The file
    /// that an earlier run of this node's agent has left stays until something is published or
    /// withdrawn. [`FileAnnouncerTask::run`] has to be run for anything to happen.
    pub fn open(dir: &Path, own_node: NodeName) -> Result<(Self, FileAnnouncerTask), OpenError> {
        let (directory, changes) = Directory::open(dir, "--announce-dir", is_announcement)?;
        let (state, state_receiver) = watch::channel(Arc::default());
        let (wish, wishes) = watch::channel(Wish::default());
        let (outcome, outcomes) = watch::channel(Outcome { number: 0, result: Ok(()) });
        let mut task = FileAnnouncerTask {
            directory,
            files: Some(LastGood::new()),
            state,
            wishes: Some(wishes),
            outcome,
            own_file: OwnFile {
                path: Self::path(dir, &own_node),
                // Hidden, and so not read; one name, so that leftovers do not pile up.
                temporary: dir.join(format!(".{own_node}.json.tmp")),
                written: None,
                not_before: Instant::now(),
            },
            due: None,
        };
        if let Some(files) = &mut task.files {
            files.apply(Ok(changes), parse);
        }
        task.update();
        let wish = Arc::new(wish);
        Ok((Self { own_node, wish, outcome: outcomes, state: state_receiver }, task))
    }

    async fn fulfil(&self, what: What) -> Result<(), AnnounceError> {
        let mut number = 0;
        self.wish.send_modify(|wish| {
            number = wish.number + 1;
            *wish = Wish { number, what };
        });
        let mut outcomes = self.outcome.clone();
        match outcomes.wait_for(|outcome| outcome.number >= number).await {
            Ok(outcome) => outcome.result.clone(),
            Err(_) => Err(AnnounceError::Stopped),
        }
    }
}

impl Announcer for FileAnnouncer {
    fn publish(&self, announcement: MeshNode) -> BoxFuture<'_, Result<(), AnnounceError>> {
        Box::pin(async move {
            if announcement.node != self.own_node {
                let (own, other) = (self.own_node.clone(), announcement.node);
                return Err(AnnounceError::OtherNode { own, other });
            }
            self.fulfil(What::Announce(Arc::new(announcement))).await
        })
    }

    fn withdraw(&self) -> BoxFuture<'_, Result<(), AnnounceError>> {
        Box::pin(self.fulfil(What::Withdraw))
    }

    fn subscribe(&self) -> watch::Receiver<Arc<AnnouncementState>> {
        self.state.clone()
    }
}

/// Writes this node's file and follows those of all nodes.
pub struct FileAnnouncerTask {
    directory: Directory,
    /// `None` only while a change is taken in elsewhere.
    files: Option<LastGood<Arc<MeshNode>>>,
    state: watch::Sender<Arc<AnnouncementState>>,
    /// `None` once every handle is gone.
    wishes: Option<watch::Receiver<Wish>>,
    outcome: watch::Sender<Outcome>,
    own_file: OwnFile,
    /// When the present wish is to be fulfilled, if it is not yet.
    due: Option<Instant>,
}

impl FileAnnouncerTask {
    /// Works until `cancel` is done. What is announced by then stays announced: stopping an agent
    /// does not mean leaving the mesh. To leave, await [`Announcer::withdraw`] first.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            let due = self.due;
            tokio::select! {
                () = &mut cancel => return,
                () = self.directory.wait() => {
                    let scan = self.directory.scan().await;
                    let apply = move |files: &mut LastGood<_>| files.apply(scan, parse).different;
                    if off_the_workers(&mut self.files, apply).await == Some(true) {
                        self.update();
                    }
                }
                there_are_handles = next_wish(&mut self.wishes) => {
                    if there_are_handles { self.schedule() } else { self.wishes = None }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    self.fulfil().await;
                }
            }
        }
    }

    fn schedule(&mut self) {
        let Some(wishes) = &self.wishes else { return };
        self.due = match wishes.borrow().what {
            What::Nothing => None,
            What::Announce(_) => Some(self.own_file.not_before),
            What::Withdraw => Some(Instant::now()),
        };
    }

    async fn fulfil(&mut self) {
        let Some(wishes) = &mut self.wishes else {
            return;
        };
        let (number, what) = {
            let wish = wishes.borrow_and_update();
            (wish.number, wish.what.clone())
        };
        let result = match what {
            What::Nothing => Ok(()),
            What::Announce(announcement) => self.own_file.write(&announcement).await,
            What::Withdraw => self.own_file.remove().await,
        };
        self.due = result.is_err().then(|| Instant::now() + WRITE_INTERVAL);
        if let Err(error) = &result {
            tracing::warn!(%error, "the announcement is not what it should be; trying again");
        }
        self.outcome.send_replace(Outcome { number, result });
    }

    fn update(&mut self) {
        let before = Arc::clone(&self.state.borrow());
        let Some(files) = &self.files else { return };
        let announcements = files.good().map(|(_, good)| (good.node.clone(), Arc::clone(good)));
        let announcements = Arc::new(announcements.collect());
        let errors: Vec<_> = files.errors().cloned().collect();
        log_new(&errors, &before.errors);
        let first = before.revision == 0;
        if first || announcements != before.announcements || errors != before.errors {
            let revision = before.revision + 1;
            let state = AnnouncementState { announcements, errors, revision };
            self.state.send_replace(Arc::new(state));
        }
    }
}

/// Waits for the next wish; false if none can come.
async fn next_wish(wishes: &mut Option<watch::Receiver<Wish>>) -> bool {
    match wishes {
        Some(wishes) => wishes.changed().await.is_ok(),
        None => std::future::pending().await,
    }
}

/// This node's file.
struct OwnFile {
    path: PathBuf,
    temporary: PathBuf,
    written: Option<Arc<MeshNode>>,
    /// When the next write may be.
    not_before: Instant,
}

impl OwnFile {
    /// Whole or not at all: a reader sees the file before or the file after.
    async fn write(&mut self, announcement: &Arc<MeshNode>) -> Result<(), AnnounceError> {
        if self.written.as_ref() == Some(announcement) {
            return Ok(());
        }
        let write = async {
            let mut text = serde_json::to_vec_pretty(&**announcement)?;
            text.push(b'\n');
            tokio::fs::write(&self.temporary, text).await?;
            tokio::fs::rename(&self.temporary, &self.path).await
        };
        let result = write.await;
        self.not_before = Instant::now() + WRITE_INTERVAL;
        self.written = result.is_ok().then(|| Arc::clone(announcement));
        let path = &self.path;
        result.map_err(|cause| AnnounceError::Write { path: path.clone(), cause: Arc::new(cause) })
    }

    async fn remove(&mut self) -> Result<(), AnnounceError> {
        self.written = None;
        match tokio::fs::remove_file(&self.path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(AnnounceError::Remove { path: self.path.clone(), cause: Arc::new(error) })
            }
            _ => Ok(()),
        }
    }
}

fn is_announcement(name: &str) -> bool {
    !name.starts_with('.') && Path::new(name).extension().is_some_and(|ext| ext == "json")
}

/// A file is believed only under the name of the node that it speaks for.
pub(super) fn parse(file: &Arc<str>, text: &str) -> Result<Arc<MeshNode>, Vec<SourceError>> {
    let hint = "only that node's agent writes this file; delete it if the node is gone";
    let mut documents = tree::parse(text).map_err(|error| {
        let message = format!("not JSON: {}", error.message);
        vec![SourceError::at(file, error.place, message).hint(hint)]
    })?;
    let (Some(document), true) = (documents.pop(), documents.is_empty()) else {
        return Err(vec![SourceError::whole_file(file, "is not one MeshNode object").hint(hint)]);
    };
    let lines = FileLines::new(document.place(), document.fields());
    let checked = document.deserialize::<MeshNode>().and_then(|announcement| {
        if file.strip_suffix(".json") == Some(announcement.node.as_str()) {
            return Ok(Arc::new(announcement));
        }
        let message = format!(
            "a node speaks only for itself, and {:?} may only stand in {0}.json",
            announcement.node.as_str()
        );
        Err(FieldError::new("metadata.name", message))
    });
    checked.map_err(|error| {
        let place = lines.place(&error.field);
        vec![SourceError::in_field(file, place, "", error.hint(hint))]
    })
}
