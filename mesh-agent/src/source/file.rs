//! The world from a directory of ordinary Kubernetes objects, for one machine without a cluster.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file that is not hidden is read. It may hold several
//! documents and `kind: List`. Namespace, Node, Pod, Service and EndpointSlice are used, other
//! kinds ignored. A pod without `metadata.uid` gets `<namespace>.<name>` as its UID.
//!
//! A file counts whole or not at all. While anything in it is wrong, its last good content stays in
//! force, also over a restart of the agent (`earlier.rs`). So a slip of the pen never takes a pod
//! out of the mesh; deleting the file does.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::directory::{Change, Directory};
use super::document::parse_file;
use super::earlier::Earlier;
use super::error::OpenError;
use super::kinds::Object;
use super::last_good::{LastGood, log_new};
use super::merge::Merged;
use super::state::{Knowledge, SourceState};
use crate::tasks::off_the_workers;

/// The watched directory.
pub struct FileSource {
    directory: Directory,
    /// `None` only while another thread applies a change.
    content: Option<FileContent>,
}

/// The content of the files. A change costs time in proportion to the changed files.
struct FileContent {
    files: LastGood<Vec<Object>>,
    merged: Merged,
    state: watch::Sender<Arc<SourceState>>,
}

impl FileSource {
    /// Reads the directory a first time, blocking, and starts to watch it. [`Self::run`] then
    /// follows its changes. Files that cannot be used are listed in the state's errors.
    ///
    /// A file or a setting that cannot be read is as an `earlier` agent read it.
    pub fn open(
        dir: &Path,
        earlier: &Earlier,
    ) -> Result<(Self, watch::Receiver<Arc<SourceState>>), OpenError> {
        let (directory, changes) = Directory::open(dir, "--source", is_source_file)?;
        let (state, receiver) = watch::channel(Arc::default());
        let (files, merged) = (LastGood::after(earlier.objects_by_file()), Merged::default());
        let mut content = FileContent { files, merged, state };
        content.apply(Ok(changes), Some(earlier));
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
            let apply = move |content: &mut FileContent| content.apply(scan, None);
            let _: Option<()> = off_the_workers(&mut self.content, apply).await;
        }
    }
}

impl FileContent {
    /// Applies a scan, and publishes the state if it has changed. The first call adds what an
    /// earlier agent knew.
    fn apply(&mut self, scan: std::io::Result<Vec<Change>>, earlier: Option<&Earlier>) {
        let before = Arc::clone(&self.state.borrow());
        let applied = self.files.apply(scan, parse_file);
        let first = before.revision == 0;
        if !applied.different && !first {
            return;
        }
        self.merged.update(&self.files, &applied.replaced);
        if let Some(known) = earlier.and_then(Earlier::all_objects) {
            self.merged.inherit(known);
        }
        let mut errors: Vec<_> =
            self.files.errors().chain(self.merged.duplicates()).cloned().collect();
        errors.sort_by(|a, b| (&a.file, a.place, &a.field).cmp(&(&b.file, b.place, &b.field)));
        if let Some(unusable) = earlier.and_then(|earlier| earlier.unusable.as_ref()) {
            tracing::warn!("{unusable}"); // of what can be read nothing was needed
        }
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

/// Excludes what editors leave behind: `.x.yaml.swp`, `x.yaml~`, `#x.yaml#`.
fn is_source_file(name: &str) -> bool {
    let extension = Path::new(name).extension();
    let known = extension.is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
    known && !name.starts_with(['.', '#', '~'])
}
