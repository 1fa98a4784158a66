//! What an earlier agent of this node knew in this boot, for what the source cannot say, or not any
//! more.

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh_api::ProblemCode;
use mesh_world::{Memory, MeshNode, Objects};
use tokio::time::Instant;

use super::error::SourceError;
use super::file_announcer::file_of;
use super::kept::{KeptFile, SavedWorld};
use super::kinds::Object;

/// What an earlier agent wrote down, if anything.
pub struct Earlier {
    pub(super) kept: Option<SavedWorld>,
    /// Why the file cannot be used.
    pub(super) unusable: Option<SourceError>,
    pub(super) read_at: Instant,
}

impl Earlier {
    /// Reads it. Blocking.
    pub fn read(file: &KeptFile) -> Self {
        let (kept, unusable) = match file.read() {
            Ok(kept) => (kept, None),
            Err(error) => {
                let name = Arc::from(file.path().display().to_string());
                let message = format!("what an earlier agent knew is not used: {error}");
                let told = SourceError::whole_file(&name, message);
                (None, Some(SourceError { code: ProblemCode::WorldFileUnusable, ..told }))
            }
        };
        Self { kept, unusable, read_at: Instant::now() }
    }

    /// Nothing.
    pub fn none() -> Self {
        Self { kept: None, unusable: None, read_at: Instant::now() }
    }

    /// What it remembered of announcements.
    pub fn memory(&self) -> Memory {
        self.kept.as_ref().map(|kept| kept.memory.clone()).unwrap_or_default()
    }

    /// The objects that were in force.
    pub(super) fn all_objects(&self) -> Option<&Arc<Objects>> {
        self.kept.as_ref().map(|kept| &kept.objects)
    }

    /// The same objects by the files in which they stood.
    pub(super) fn objects_by_file(&self) -> BTreeMap<Arc<str>, Vec<Object>> {
        let mut files: BTreeMap<Arc<str>, Vec<Object>> = BTreeMap::new();
        let Some(objects) = self.all_objects() else { return files };
        for object in Object::all(objects) {
            if let Some(file) = object.origin().file() {
                files.entry(Arc::clone(file)).or_default().push(object);
            }
        }
        files
    }

    /// The announcements by their files.
    pub(super) fn announcements_by_file(&self) -> BTreeMap<Arc<str>, Arc<MeshNode>> {
        let all = self.kept.iter().flat_map(|kept| kept.memory.announcements.iter());
        all.map(|(node, announcement)| (file_of(node), Arc::clone(announcement))).collect()
    }
}
