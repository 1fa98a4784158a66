//! What can be wrong with a directory and with the files in it.

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use mesh_api::ProblemCode;
use mesh_world::{FieldError, Place};

/// Why a directory cannot be a source at all. Fault: the configuration, or the host.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It is not there.
    #[error("the directory {} does not exist; hint: create it, or correct {flag}", dir.display())]
    Missing {
        /// The directory as it was given.
        dir: PathBuf,
        /// The argument that named it.
        flag: &'static str,
    },
    /// It is not a directory.
    #[error("{} is not a directory; hint: {flag} takes the directory, not a file in it", dir.display())]
    NotADirectory {
        /// The path as it was given.
        dir: PathBuf,
        /// The argument that named it.
        flag: &'static str,
    },
    /// It cannot be read.
    #[error("the directory {} cannot be read: {cause}", dir.display())]
    Unreadable {
        /// The directory as it was given.
        dir: PathBuf,
        /// What the system said.
        #[source]
        cause: io::Error,
    },
}

/// One thing that is wrong with one file. What the file said before stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceError {
    /// The kind of problem, for `status`.
    pub code: ProblemCode,
    /// The file's name without the directory; empty if the directory itself is meant. For the API
    /// server the object, as `Pod shop/cart`.
    pub file: Arc<str>,
    /// Where in it, if that is known.
    pub place: Option<Place>,
    /// The field, as Kubernetes names it; empty if none is meant.
    pub field: String,
    /// What is wrong, with the object it is in.
    pub message: String,
    /// The remedy.
    pub hint: Option<Cow<'static, str>>,
}

impl SourceError {
    /// An error about the file as a whole.
    pub(super) fn whole_file(file: &Arc<str>, message: impl Into<String>) -> Self {
        let message = printable(message.into());
        Self {
            code: ProblemCode::BadFile,
            file: Arc::clone(file),
            place: None,
            field: String::new(),
            message,
            hint: None,
        }
    }

    /// An error at a place, but in no field.
    pub(super) fn at(file: &Arc<str>, place: Option<Place>, message: impl Into<String>) -> Self {
        Self { place, ..Self::whole_file(file, message) }
    }

    /// An error in a field of an object.
    pub(super) fn in_field(file: &Arc<str>, place: Place, object: &str, error: FieldError) -> Self {
        let message = match object {
            "" => error.message,
            object => format!("{} (in {object})", error.message),
        };
        Self {
            code: ProblemCode::BadFile,
            file: Arc::clone(file),
            place: Some(place),
            field: printable(error.field),
            message: printable(message),
            hint: error.hint,
        }
    }

    /// An error in a field of an object of the API server, which stands for the file.
    pub(super) fn in_object(object: &Arc<str>, error: FieldError) -> Self {
        Self {
            field: printable(error.field),
            message: printable(error.message),
            hint: error.hint,
            code: ProblemCode::BadObject,
            ..Self::whole_file(object, "")
        }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// Parsers quote their input as it is; its author must not steer the terminal on which it is shown.
fn printable(text: String) -> String {
    if !text.contains(char::is_control) {
        return text;
    }
    let mut shown = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

impl fmt::Display for SourceError {
    /// `shop.yaml:12:9: status.podIPs[0].ip: message. Hint: remedy.`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if let Some(Place { line, column }) = self.place {
            write!(f, ":{line}:{column}")?;
        }
        if !self.file.is_empty() {
            f.write_str(": ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}.", self.message)?;
        match &self.hint {
            Some(hint) => write!(f, " Hint: {hint}."),
            None => Ok(()),
        }
    }
}
