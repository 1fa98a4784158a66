//! The world from a directory of ordinary Kubernetes objects, for one machine without a cluster.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file that is not hidden is read; it may hold several
//! documents and `kind: List`. Namespace, Node, Pod, Service and EndpointSlice are used, other
//! kinds ignored. A pod without `metadata.uid` gets `<namespace>.<name>` as its UID.
//!
//! A file counts whole or not at all: while anything in it is wrong, what it last said stays in
//! force. So a slip of the pen never takes a pod out of the mesh; deleting the file does.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::directory::{Change, Directory};
use super::document::{Object, parse_file};
use super::error::OpenError;
use super::last_good::{LastGood, log_new};
use super::merge::Merged;
use super::state::{Knowledge, SourceState};
use crate::tasks::off_the_workers;

/// The watched directory.
pub struct FileSource {
    directory: Directory,
    /// `None` only while a change is taken in elsewhere.
    content: Option<FileContent>,
}

/// What is in the files. A change costs the files that have changed.
struct FileContent {
    files: LastGood<Vec<Object>>,
    merged: Merged,
    state: watch::Sender<Arc<SourceState>>,
}

impl FileSource {
    /// Reads the directory a first time, blocking, and starts to watch it; [`Self::run`] then
    /// follows its changes. Files that cannot be used are in the state's errors.
    pub fn open(dir: &Path) -> Result<(Self, watch::Receiver<Arc<SourceState>>), OpenError> {
        let (directory, changes) = Directory::open(dir, "--source", is_source_file)?;
        let (state, receiver) = watch::channel(Arc::default());
        let (files, merged) = (LastGood::new(), Merged::default());
        let mut content = FileContent { files, merged, state };
        content.apply(Ok(changes));
        Ok((Self { directory, content: Some(content) }, receiver))
    }

    /// Follows the directory until `cancel` is done.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            tokio::select! {
                () = &mut cancel => return,
                () = self.directory.wait() => {}
            }
            let scan = self.directory.scan().await;
            let apply = move |content: &mut FileContent| content.apply(scan);
            let _: Option<()> = off_the_workers(&mut self.content, apply).await;
        }
    }
}

impl FileContent {
    /// Takes in a scan, and tells if the state has become another.
    fn apply(&mut self, scan: std::io::Result<Vec<Change>>) {
        let before = Arc::clone(&self.state.borrow());
        let applied = self.files.apply(scan, parse_file);
        let first = before.revision == 0;
        if !applied.different && !first {
            return;
        }
        self.merged.update(&self.files, &applied.replaced);
        let mut errors: Vec<_> =
            self.files.errors().chain(self.merged.duplicates()).cloned().collect();
        errors.sort_by(|a, b| (&a.file, a.place, &a.field).cmp(&(&b.file, b.place, &b.field)));
        log_new(&errors, &before.errors);
        let objects = self.merged.objects();
        if first || *objects != *before.objects || errors != before.errors {
            let (objects, revision) = (Arc::new(objects.clone()), before.revision + 1);
            let (complete, knowledge) = (errors.is_empty(), Knowledge::Current);
            let state = SourceState { objects, errors, complete, knowledge, revision };
            self.state.send_replace(Arc::new(state));
        }
    }
}

/// Not what editors leave behind: `.x.yaml.swp`, `x.yaml~`, `#x.yaml#`.
fn is_source_file(name: &str) -> bool {
    let extension = Path::new(name).extension();
    let known = extension.is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
    known && !name.starts_with(['.', '#', '~'])
}
