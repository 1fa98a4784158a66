//! The documents of one file, as checked objects of the world.

use std::sync::Arc;

use mesh_world::{FieldError, FileLines, Origin};

use super::error::SourceError;
use super::kinds::{KINDS, Kind, Object, kind_named};
use super::tree::{self, Tree};

/// Reads a file's text. Reports everything that is wrong with it, not only the first error.
pub(super) fn parse_file(file: &Arc<str>, text: &str) -> Result<Vec<Object>, Vec<SourceError>> {
    let documents = tree::parse(text).map_err(|error| {
        let hint = "what the file said before stays in force until this is corrected";
        vec![SourceError::at(file, error.place, format!("not YAML: {}", error.message)).hint(hint)]
    })?;
    let mut reader = Reader { file, objects: Vec::new(), errors: Vec::new() };
    for document in documents {
        reader.document(document, None);
    }
    if reader.errors.is_empty() { Ok(reader.objects) } else { Err(reader.errors) }
}

struct Reader<'a> {
    file: &'a Arc<str>,
    objects: Vec<Object>,
    errors: Vec<SourceError>,
}

impl Reader<'_> {
    /// `item_of` is the kind that the items of a typed list (`PodList`) do not repeat.
    fn document(&mut self, mut tree: Tree, item_of: Option<(&str, &str)>) {
        let place = tree.place();
        let text = |field: &str| tree.get(field).and_then(Tree::as_str).map(str::to_owned);
        let inherited = |value: Option<&str>| value.map(str::to_owned);
        let version = text("apiVersion").or_else(|| inherited(item_of.map(|(version, _)| version)));
        let kind = text("kind").or_else(|| inherited(item_of.map(|(_, kind)| kind)));
        let (Some(version), Some(kind)) = (version, kind) else {
            let error = SourceError::at(self.file, Some(place), "not a Kubernetes object")
                .hint("give it the texts apiVersion and kind");
            return self.errors.push(error);
        };
        let known = kind_named(&kind).filter(|known| known.api_version == version);
        if let Some(kind) = known {
            self.object(kind, tree);
        } else if is_list(&version, &kind) {
            let items = tree.remove("items").and_then(Tree::into_items).unwrap_or_default();
            let item_kind = kind.strip_suffix("List").filter(|kind| !kind.is_empty());
            for item in items {
                self.document(item, item_kind.map(|kind| (version.as_str(), kind)));
            }
        } else {
            self.other_kind(&tree, &version, &kind);
        }
    }

    fn object(&mut self, kind: &Kind, tree: Tree) {
        let name = display_name(kind.name, &tree);
        let lines = FileLines::new(tree.place(), tree.fields());
        let kept = Arc::new(lines.only(may_be_complained_about));
        let locate = |it: Origin| it.in_file(Arc::clone(self.file), Arc::clone(&kept));
        match (kind.read)(tree.into_value(), &locate) {
            Ok(object) => self.objects.push(object),
            Err(error) => {
                let place = lines.place(&error.field);
                self.errors.push(SourceError::in_field(self.file, place, &name, error));
            }
        }
    }

    fn other_kind(&mut self, tree: &Tree, version: &str, kind: &str) {
        let is_of_group = |known: &&Kind| match known.group {
            "" => !version.contains('/'),
            group => version.strip_prefix(group).is_some_and(|rest| rest.starts_with('/')),
        };
        if let Some(known) = kind_named(kind).filter(is_of_group) {
            let expected = known.api_version;
            let place = tree.get("apiVersion").unwrap_or(tree).place();
            let message = format!("{version:?} is not a known version of {kind}");
            let error = FieldError::new("apiVersion", message).hint(format!("write {expected}"));
            self.errors.push(SourceError::in_field(self.file, place, "", error));
            return;
        }
        let line = tree.place().line;
        tracing::debug!(file = %self.file, line, version, kind, "ignored: not a kind of the mesh");
    }
}

/// Whether it is a list of any kinds, or of one of ours.
fn is_list(version: &str, kind: &str) -> bool {
    let of_kind = |known: &Kind| {
        kind.strip_suffix("List") == Some(known.name) && version == known.api_version
    };
    (version, kind) == ("v1", "List") || KINDS.iter().any(of_kind)
}

/// `Pod shop/cart`, as far as the document says.
fn display_name(kind: &str, tree: &Tree) -> String {
    let meta = |field| tree.get("metadata").and_then(|meta| meta.get(field)).and_then(Tree::as_str);
    match (meta("namespace"), meta("name")) {
        (Some(namespace), Some(name)) => format!("{kind} {namespace}/{name}"),
        (None, Some(name)) => format!("{kind} {name}"),
        (_, None) => format!("a {kind} without a name"),
    }
}

/// The fields whose lines the world may ask for later.
fn may_be_complained_about(field: &str) -> bool {
    const FIELDS: [&str; 5] = [
        "metadata.namespace",
        "metadata.labels",
        "metadata.annotations",
        "status.podIP",
        "spec.ports",
    ];
    field == "metadata" || FIELDS.iter().any(|start| field.starts_with(start))
}
