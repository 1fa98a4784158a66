//! For each file the last content that could be used, and what is wrong with the present one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::directory::{Change, Content};
use super::error::SourceError;
use super::kubernetes::AWAY;

/// The files of a directory, by name, each parsed to a `T`.
pub(super) struct LastGood<T> {
    good: BTreeMap<Arc<str>, T>,
    errors: BTreeMap<Arc<str>, Vec<SourceError>>,
    /// What an earlier agent read in files, until the first scan shows which of them exist and can
    /// be read.
    earlier: BTreeMap<Arc<str>, T>,
    /// Why the directory itself cannot be read.
    directory: Option<SourceError>,
}

/// What a scan has changed.
pub(super) struct Applied<T> {
    /// Whether anything may be different now.
    pub(super) different: bool,
    /// The files with another content in force now, each with the earlier one.
    pub(super) replaced: Vec<(Arc<str>, Option<T>)>,
}

impl<T> LastGood<T> {
    /// Knows only what an earlier agent read. That comes into force for a file that exists and
    /// cannot be read at the first scan.
    pub(super) fn after(earlier: BTreeMap<Arc<str>, T>) -> Self {
        Self { good: BTreeMap::new(), errors: BTreeMap::new(), earlier, directory: None }
    }

    /// Applies a scan. Only files that have changed are parsed.
    pub(super) fn apply(
        &mut self,
        scan: std::io::Result<Vec<Change>>,
        parse: impl Fn(&Arc<str>, &str) -> Result<T, Vec<SourceError>>,
    ) -> Applied<T> {
        let (changes, directory) = match scan {
            Ok(changes) => (changes, None),
            Err(error) => {
                let message = format!("the directory cannot be read: {error}");
                let hint = "what it said before stays in force until it is back";
                (Vec::new(), Some(SourceError::whole_file(&Arc::from(""), message).hint(hint)))
            }
        };
        let different = !changes.is_empty() || directory != self.directory;
        self.directory = directory;
        let mut replaced = Vec::new();
        for Change { file, content } in changes {
            let result = match content {
                Content::Gone => {
                    self.errors.remove(&file);
                    let before = self.good.remove(&file);
                    replaced.push((file, before));
                    continue;
                }
                Content::Text(text) if text.trim().is_empty() && self.knows(&file) => {
                    // `kubectl … > file` empties the file long before it writes to it.
                    let error = SourceError::whole_file(&file, "is empty now")
                        .hint("what it said before stays in force; to end that, delete the file");
                    Err(vec![error])
                }
                Content::Text(text) => parse(&file, &text),
                Content::Unreadable(why) => Err(vec![SourceError::whole_file(&file, why)]),
            };
            match result {
                Ok(good) => {
                    self.errors.remove(&file);
                    let before = self.good.insert(Arc::clone(&file), good);
                    replaced.push((file, before));
                }
                Err(errors) => {
                    if let Some(earlier) = self.earlier.remove(&file) {
                        self.good.insert(Arc::clone(&file), earlier);
                        replaced.push((Arc::clone(&file), None));
                    }
                    self.errors.insert(file, errors);
                }
            }
        }
        self.earlier.clear(); // of files that can be read, or are not there
        Applied { different, replaced }
    }

    /// Whether a usable content of the file is known.
    fn knows(&self, file: &str) -> bool {
        self.good.contains_key(file) || self.earlier.contains_key(file)
    }

    /// What is in force, by file name.
    pub(super) fn good(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.good.iter()
    }

    /// What is in force of one file.
    pub(super) fn good_of(&self, file: &str) -> Option<&T> {
        self.good.get(file)
    }

    /// What is wrong, by file name.
    pub(super) fn errors(&self) -> impl Iterator<Item = &SourceError> {
        self.directory.iter().chain(self.errors.values().flatten())
    }
}

/// Logs each new error once, though the file is read often.
pub(super) fn log_new(errors: &[SourceError], before: &[SourceError]) {
    let is_told_elsewhere = |error: &&SourceError| error.code == AWAY;
    let new = errors.iter().filter(|error| !before.contains(error));
    for error in new.filter(|error| !is_told_elsewhere(error)) {
        tracing::warn!(file = %error.file, "{error}");
    }
}
