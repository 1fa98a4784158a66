//! Announcements as files: `<node>.json` per node in a directory that all nodes share.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;

use mesh_world::{FieldError, FileLines, MeshNode, NodeName};

use super::announce::{AnnounceError, AnnouncementStore, Announcer, Heard, Publisher, announcer};
use super::directory::Directory;
use super::earlier::Earlier;
use super::error::{OpenError, SourceError};
use super::json::read;
use super::last_good::LastGood;
use super::state::Knowledge;
use super::tree;
use crate::tasks::off_the_workers;

/// Opens the shared directory and reads all announcements a first time, blocking. The file of an
/// earlier run of this node's agent stays until an announcement is published or withdrawn. Nothing
/// happens unless [`FileAnnouncerTask::run`] runs. A file that cannot be read stands for what an
/// `earlier` agent read in it.
///
/// # Errors
/// See [`OpenError`].
pub fn file_announcer(
    dir: &Path,
    own_node: NodeName,
    earlier: &Earlier,
) -> Result<(Announcer, FileAnnouncerTask), OpenError> {
    let (directory, changes) = Directory::open(dir, "--announce-dir", is_announcement)?;
    let place = OwnFile::new(announcement_file(dir, &own_node));
    let (announcer, publisher, heard) = announcer(own_node, place);
    let mut files = LastGood::after(earlier.announcements_by_file());
    files.apply(Ok(changes), parse);
    let task = FileAnnouncerTask { directory, files: Some(files), heard, publisher };
    task.update();
    Ok((announcer, task))
}

/// The file in which a node announces itself.
pub fn announcement_file(dir: &Path, node: &NodeName) -> PathBuf {
    dir.join(&*file_of(node))
}

/// Announces no pods in the file of a node whose agent has ended. Agents that read it forget what
/// the node announced; then the file can be removed. Returns whether there is such a file.
pub async fn withdraw_in_file(path: &Path) -> bool {
    let Ok(text) = tokio::fs::read(path).await else { return false };
    if let Ok(said) = serde_json::from_slice::<MeshNode>(&text) {
        let nothing = MeshNode { pods: Vec::new(), ..said };
        if let Err(error) = OwnFile::new(path.to_owned()).write(&nothing).await {
            tracing::warn!(%error, "other nodes may go on remembering what this one announced");
        }
    }
    true
}

/// Its name in the directory.
pub(super) fn file_of(node: &NodeName) -> Arc<str> {
    format!("{node}.json").into()
}

/// Writes this node's file and follows those of all nodes.
pub struct FileAnnouncerTask {
    directory: Directory,
    /// `None` only while another thread applies a change.
    files: Option<LastGood<Arc<MeshNode>>>,
    heard: Heard,
    publisher: Publisher<OwnFile>,
}

impl FileAnnouncerTask {
    /// Works until `cancel` is done. The announcement then stays: stopping an agent does not mean
    /// leaving the mesh. To leave, await [`Announcer::withdraw`] first.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            tokio::select! {
                () = &mut cancel => return,
                () = self.directory.wait() => {
                    let scan = self.directory.scan().await;
                    let apply = move |files: &mut LastGood<_>| files.apply(scan, parse).different;
                    if off_the_workers(&mut self.files, apply).await == Some(true) {
                        self.update();
                    }
                }
                () = self.publisher.due() => {
                    self.publisher.fulfil().await;
                    self.heard.complain(self.errors(), Knowledge::Current);
                }
            }
        }
    }

    fn update(&self) {
        let Some(files) = &self.files else { return };
        let announcements = files.good().map(|(_, good)| (good.node.clone(), Arc::clone(good)));
        self.heard.tell(announcements.collect(), self.errors(), Knowledge::Current);
    }

    fn errors(&self) -> Vec<SourceError> {
        let files = self.files.iter().flat_map(LastGood::errors).cloned();
        files.chain(self.publisher.error()).collect()
    }
}

/// This node's file.
struct OwnFile {
    path: PathBuf,
    temporary: PathBuf,
}

impl OwnFile {
    fn new(path: PathBuf) -> Self {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // Hidden, and so not read. One name, so that leftovers do not pile up.
        let temporary = path.with_file_name(format!(".{name}.tmp"));
        Self { path, temporary }
    }
}

impl AnnouncementStore for OwnFile {
    async fn write(&mut self, announcement: &MeshNode) -> Result<(), AnnounceError> {
        let write = async {
            let mut text = serde_json::to_vec_pretty(announcement)?;
            text.push(b'\n');
            tokio::fs::write(&self.temporary, text).await?;
            tokio::fs::rename(&self.temporary, &self.path).await
        };
        let result: std::io::Result<()> = write.await;
        let place = || self.path.display().to_string();
        result.map_err(|cause| AnnounceError::Write { place: place(), cause: Arc::new(cause) })
    }

    async fn remove(&mut self) -> Result<(), AnnounceError> {
        match tokio::fs::remove_file(&self.path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let place = self.path.display().to_string();
                Err(AnnounceError::Remove { place, cause: Arc::new(error) })
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
    let checked = read::<MeshNode>(document.into_value()).and_then(|announcement| {
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
