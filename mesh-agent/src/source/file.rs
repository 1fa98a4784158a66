//! The world from a directory of ordinary Kubernetes objects, for one machine without a cluster.
//!
//! Every `*.yaml`, `*.yml` and `*.json` file that is not hidden is read; it may hold several
//! documents and `kind: List`. Namespace, Node, Pod, Service and EndpointSlice are used, other
//! kinds ignored. A pod without `metadata.uid` gets `<namespace>.<name>` as its UID.
//!
//! A file counts whole or not at all: while anything in it is wrong, what it last said stays in
//! force. So a slip of the pen never takes a pod out of the mesh; deleting the file does.

use std::collections::HashMap;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;

use tokio::sync::watch;

use super::directory::Directory;
use super::document::{Object, parse_file};
use super::error::{OpenError, SourceError};
use super::last_good::{LastGood, log_new};
use crate::world::{Objects, Origin};

/// What the directory says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What is wrong with the files, by file name.
    pub errors: Vec<SourceError>,
    /// Rises by one with every state that differs from the one before; the first is 1.
    pub revision: u64,
}

/// The watched directory.
pub struct FileSource {
    directory: Directory,
    files: LastGood<Vec<Object>>,
    /// Which file an object was taken from, so that a duplicate elsewhere does not replace it.
    owners: HashMap<Key, Arc<str>>,
    state: watch::Sender<Arc<SourceState>>,
}

/// Kind, namespace and name; for a pod also `uid` and its UID.
type Key = (&'static str, Option<Arc<str>>, Arc<str>);

impl FileSource {
    /// Reads the directory a first time, blocking, and starts to watch it; [`Self::run`] then
    /// follows its changes. Files that cannot be used are in the state's errors.
    pub fn open(dir: &Path) -> Result<(Self, watch::Receiver<Arc<SourceState>>), OpenError> {
        let (directory, changes) = Directory::open(dir, "--source", is_source_file)?;
        let (state, receiver) = watch::channel(Arc::default());
        let (files, owners) = (LastGood::new(), HashMap::new());
        let mut source = Self { directory, files, owners, state };
        source.files.apply(Ok(changes), parse_file);
        source.update();
        Ok((source, receiver))
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
            if self.files.apply(scan, parse_file) {
                self.update();
            }
        }
    }

    fn update(&mut self) {
        let before = Arc::clone(&self.state.borrow());
        let (mut objects, duplicates) = self.merge();
        objects.carry_over(&before.objects);
        let mut errors: Vec<_> = self.files.errors().cloned().chain(duplicates).collect();
        errors.sort_by(|a, b| (&a.file, a.place, &a.field).cmp(&(&b.file, b.place, &b.field)));
        log_new(&errors, &before.errors);
        let first = before.revision == 0;
        if first || objects != *before.objects || errors != before.errors {
            let revision = before.revision + 1;
            let objects = Arc::new(objects);
            self.state.send_replace(Arc::new(SourceState { objects, errors, revision }));
        }
    }

    /// Puts the files' objects together. Of two with one name (or UID) the one that was in force
    /// stays, else the first by file name and line.
    fn merge(&mut self) -> (Objects, Vec<SourceError>) {
        let of_file = |(file, objects): (&Arc<str>, &Vec<Object>)| {
            objects.iter().map(|object| (Arc::clone(file), object.clone())).collect::<Vec<_>>()
        };
        let mut all: Vec<_> = self.files.good().flat_map(of_file).collect();
        all.sort_by_cached_key(|(file, object)| {
            let (name, _) = keys(object);
            self.owners.get(&name) != Some(file) // stable: files and lines stay in order
        });

        let mut taken: HashMap<Key, (Arc<str>, Origin)> = HashMap::new();
        let mut objects = Objects::default();
        let mut errors = Vec::new();
        for (file, object) in all {
            let (name, uid) = keys(&object);
            let holder = taken.get(&name).or_else(|| taken.get(uid.as_ref()?));
            if let Some((_, holder)) = holder {
                errors.push(duplicate(&file, &object, holder));
                continue;
            }
            for key in [Some(name), uid].into_iter().flatten() {
                taken.insert(key, (Arc::clone(&file), object.origin().clone()));
            }
            match object {
                Object::Namespace(object) => objects.insert_namespace(object),
                Object::Node(object) => objects.insert_node(object),
                Object::Pod(object) => objects.insert_pod(*object),
                Object::Service(object) => objects.insert_service(object),
                Object::EndpointSlice(object) => objects.insert_slice(object),
            }
        }
        self.owners = taken.into_iter().map(|(key, (file, _))| (key, file)).collect();
        (objects, errors)
    }
}

/// Not what editors leave behind: `.x.yaml.swp`, `x.yaml~`, `#x.yaml#`.
fn is_source_file(name: &str) -> bool {
    let extension = Path::new(name).extension();
    let known = extension.is_some_and(|ext| ext == "yaml" || ext == "yml" || ext == "json");
    known && !name.starts_with(['.', '#', '~'])
}

fn keys(object: &Object) -> (Key, Option<Key>) {
    let Origin { kind, namespace, name, .. } = object.origin();
    let uid = match object {
        Object::Pod(pod) => Some(("uid", None, Arc::from(pod.uid.as_str()))),
        Object::Namespace(_) | Object::Node(_) | Object::Service(_) | Object::EndpointSlice(_) => {
            None
        }
    };
    ((kind, namespace.clone(), Arc::clone(name)), uid)
}

fn duplicate(file: &Arc<str>, object: &Object, holder: &Origin) -> SourceError {
    let origin = object.origin();
    let same_name = (&origin.kind, &origin.namespace, &origin.name)
        == (&holder.kind, &holder.namespace, &holder.name);
    let what = if same_name { "is there twice" } else { "has a uid that is there twice" };
    let message = format!("this {} {what}; in force is {holder}", origin.kind);
    SourceError::at(file, origin.place(""), message).hint("remove one of the two")
}
