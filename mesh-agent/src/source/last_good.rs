//! Per file the last content that could be used, beside what is wrong with the present one.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::directory::{Change, Content};
use super::error::SourceError;

/// The files of a directory, by name, each parsed to a `T`.
pub(super) struct LastGood<T> {
    files: BTreeMap<Arc<str>, Entry<T>>,
    /// The directory itself cannot be read.
    directory: Option<SourceError>,
}

struct Entry<T> {
    good: Option<T>,
    errors: Vec<SourceError>,
}

impl<T> LastGood<T> {
    pub(super) fn new() -> Self {
        Self { files: BTreeMap::new(), directory: None }
    }

    /// Takes the result of a scan; whether anything may be different now.
    pub(super) fn apply(
        &mut self,
        scan: std::io::Result<Vec<Change>>,
        parse: impl Fn(&Arc<str>, &str) -> Result<T, Vec<SourceError>>,
    ) -> bool {
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
        for Change { file, content } in changes {
            let result = match content {
                Content::Gone => {
                    self.files.remove(&file);
                    continue;
                }
                Content::Text(text) if text.trim().is_empty() && self.has_good(&file) => {
                    // `kubectl … > file` empties the file long before it writes to it.
                    let error = SourceError::whole_file(&file, "is empty now")
                        .hint("what it said before stays in force; to end that, delete the file");
                    Err(vec![error])
                }
                Content::Text(text) => parse(&file, &text),
                Content::Unreadable(why) => Err(vec![SourceError::whole_file(&file, why)]),
            };
            let entry = self.files.entry(file).or_insert(Entry { good: None, errors: Vec::new() });
            match result {
                Ok(good) => *entry = Entry { good: Some(good), errors: Vec::new() },
                Err(errors) => entry.errors = errors,
            }
        }
        different
    }

    /// What is in force, by file name.
    pub(super) fn good(&self) -> impl Iterator<Item = (&Arc<str>, &T)> {
        self.files.iter().filter_map(|(file, entry)| Some((file, entry.good.as_ref()?)))
    }

    /// What is wrong, by file name.
    pub(super) fn errors(&self) -> impl Iterator<Item = &SourceError> {
        self.directory.iter().chain(self.files.values().flat_map(|entry| &entry.errors))
    }

    fn has_good(&self, file: &Arc<str>) -> bool {
        self.files.get(file).is_some_and(|entry| entry.good.is_some())
    }
}

/// Logs what is wrong now and was not before: the file is read often, the error told once.
pub(super) fn log_new(errors: &[SourceError], before: &[SourceError]) {
    for error in errors.iter().filter(|error| !before.contains(error)) {
        tracing::warn!(file = %error.file, "{error}");
    }
}
