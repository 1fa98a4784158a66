//! Where an object was read, so that a problem can name the file, the line and the field.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// A line and column, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line in the file, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// Which line each field of one object stands on. Fields are named as [`FieldError::field`] is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileLines {
    start: Place,
    fields: BTreeMap<String, Place>,
}

impl FileLines {
    /// `start` is where the object begins, and the answer for fields that are not there.
    pub fn new(start: Place, fields: BTreeMap<String, Place>) -> Self {
        Self { start, fields }
    }

    /// Of an object of which only the file is known.
    pub fn unknown() -> Self {
        Self::new(Place { line: 1, column: 1 }, BTreeMap::new())
    }

    /// The place of `field` or, if it is absent, of the nearest field around it.
    pub fn place(&self, field: &str) -> Place {
        let mut rest = field;
        loop {
            if let Some(place) = self.fields.get(rest) {
                return *place;
            }
            // `a.b[c.d]` is inside `a.b`, which is inside `a`.
            let end = if rest.ends_with(']') { rest.rfind('[') } else { rest.rfind(['.', '[']) };
            match end.and_then(|end| rest.get(..end)) {
                Some(shorter) => rest = shorter,
                None => return self.start,
            }
        }
    }

    /// Only the fields for which `keep` says yes: all of a pod's lines are some 20 KB.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&str) -> bool) -> Self {
        let kept = self.fields.iter().filter(|(field, _)| keep(field));
        let fields = kept.map(|(field, place)| (field.clone(), *place)).collect();
        Self { start: self.start, fields }
    }
}

/// Which object this is, and the file it was read from, if it was one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The Kubernetes kind, such as `Pod`.
    pub kind: &'static str,
    /// The namespace, for namespaced kinds.
    pub namespace: Option<Arc<str>>,
    /// The object's name.
    pub name: Arc<str>,
    file: Option<(Arc<str>, Arc<FileLines>)>,
}

impl Origin {
    /// An object that the API server handed out.
    pub fn api(kind: &'static str, namespace: Option<&str>, name: &str) -> Self {
        Self { kind, namespace: namespace.map(Arc::from), name: Arc::from(name), file: None }
    }

    /// The same object, read from `file` (a name to show to people).
    #[must_use]
    pub fn in_file(mut self, file: Arc<str>, lines: Arc<FileLines>) -> Self {
        self.file = Some((file, lines));
        self
    }

    /// The file's name; `None` for an object of the API server.
    pub fn file(&self) -> Option<&Arc<str>> {
        self.file.as_ref().map(|(file, _)| file)
    }

    /// Where `field` stands in the file; `""` asks for the object's first line.
    pub fn place(&self, field: &str) -> Option<Place> {
        self.file.as_ref().map(|(_, lines)| lines.place(field))
    }

    /// What problems are sorted by: the object, then its file and line.
    pub(super) fn sort_key(&self) -> impl Ord + '_ {
        (self.kind, self.namespace.as_deref(), &*self.name, self.file(), self.place(""))
    }
}

impl fmt::Display for Origin {
    /// `Pod shop/cart`, and for one in a file `Pod shop/cart (shop.yaml, line 12)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind)?;
        if let Some(namespace) = &self.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.name)?;
        if let (Some(file), Some(place)) = (self.file(), self.place("")) {
            write!(f, " ({file}, line {})", place.line)?;
        }
        Ok(())
    }
}

/// A field of one object with a value that it cannot have. Fault: the object's author.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// The field as Kubernetes names it: `status.podIPs[1].ip`,
    /// `metadata.annotations[nodemesh.dev/mode]`.
    pub field: String,
    /// What is wrong with it, quoting its value.
    pub message: String,
    /// What to write instead.
    pub hint: Option<Cow<'static, str>>,
}

impl FieldError {
    /// An error with no hint.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into(), hint: None }
    }

    /// The same error with a remedy.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<Cow<'static, str>>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_absent_field_is_placed_at_what_encloses_it() {
        let at = |line| Place { line, column: 1 };
        let fields = [("metadata", 2), ("metadata.annotations", 4), ("status.podIPs[0]", 9)];
        let lines = FileLines::new(
            at(1),
            fields.iter().map(|(field, line)| ((*field).to_owned(), at(*line))).collect(),
        );
        assert_eq!(lines.place("metadata.annotations[nodemesh.dev/mode]").line, 4);
        assert_eq!(lines.place("metadata.name").line, 2);
        assert_eq!(lines.place("status.podIPs[0].ip").line, 9);
        assert_eq!(lines.place("spec.nodeName").line, 1);
        assert_eq!(lines.place("").line, 1);
    }
}
