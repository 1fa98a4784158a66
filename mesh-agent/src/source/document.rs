//! The documents of one file, as checked objects of the world.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use mesh_world::{
    EndpointSliceObject, FieldError, FileLines, NamespaceObject, NodeObject, Objects, Origin,
    PodObject, ServiceObject,
};
use serde::de::DeserializeOwned;

use super::error::SourceError;
use super::tree::{self, Tree};

/// One object of a kind that the mesh needs, shared with the world.
#[derive(Clone, Debug)]
pub(super) enum Object {
    Namespace(Arc<NamespaceObject>),
    Node(Arc<NodeObject>),
    Pod(Arc<PodObject>),
    Service(Arc<ServiceObject>),
    EndpointSlice(Arc<EndpointSliceObject>),
}

impl Object {
    pub(super) fn origin(&self) -> &Origin {
        match self {
            Self::Namespace(object) => &object.origin,
            Self::Node(object) => &object.origin,
            Self::Pod(object) => &object.origin,
            Self::Service(object) => &object.origin,
            Self::EndpointSlice(object) => &object.origin,
        }
    }

    /// Adds it to the objects in force.
    pub(super) fn insert_into(&self, objects: &mut Objects) {
        match self {
            Self::Namespace(object) => objects.insert_namespace(Arc::clone(object)),
            Self::Node(object) => objects.insert_node(Arc::clone(object)),
            Self::Pod(object) => objects.insert_pod(Arc::clone(object)),
            Self::Service(object) => objects.insert_service(Arc::clone(object)),
            Self::EndpointSlice(object) => objects.insert_slice(Arc::clone(object)),
        }
    }
}

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
        match (version.as_str(), kind.as_str()) {
            ("v1", "Namespace") => self.object(&kind, tree, |object: &Namespace, locate| {
                NamespaceObject::parse(object, locate).map(|it| Object::Namespace(Arc::new(it)))
            }),
            ("v1", "Node") => self.object(&kind, tree, |object: &Node, locate| {
                NodeObject::parse(object, locate).map(|it| Object::Node(Arc::new(it)))
            }),
            ("v1", "Pod") => self.object(&kind, tree, |object: &Pod, locate| {
                PodObject::parse(object, locate).map(|it| Object::Pod(Arc::new(it)))
            }),
            ("v1", "Service") => self.object(&kind, tree, |object: &Service, locate| {
                ServiceObject::parse(object, locate).map(|it| Object::Service(Arc::new(it)))
            }),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.object(&kind, tree, |object: &EndpointSlice, locate| {
                    let slice = EndpointSliceObject::parse(object, locate);
                    slice.map(|it| Object::EndpointSlice(Arc::new(it)))
                });
            }
            (version, list) if is_list(version, list) => {
                let items = tree.remove("items").and_then(Tree::into_items).unwrap_or_default();
                let item_kind = list.strip_suffix("List").filter(|kind| !kind.is_empty());
                for item in items {
                    self.document(item, item_kind.map(|kind| (version, kind)));
                }
            }
            (version, kind) => self.other_kind(&tree, version, kind),
        }
    }

    fn object<K: DeserializeOwned>(
        &mut self,
        kind: &str,
        tree: Tree,
        convert: impl FnOnce(&K, &dyn Fn(Origin) -> Origin) -> Result<Object, FieldError>,
    ) {
        let name = display_name(kind, &tree);
        let lines = FileLines::new(tree.place(), tree.fields());
        let converted = tree
            .deserialize::<K>()
            .map_err(|error| with_type_hint(error, kind))
            .and_then(|object| {
                let kept = Arc::new(lines.only(may_be_complained_about));
                convert(&object, &|origin| origin.in_file(Arc::clone(self.file), Arc::clone(&kept)))
            });
        match converted {
            Ok(object) => self.objects.push(object),
            Err(error) => {
                let place = lines.place(&error.field);
                self.errors.push(SourceError::in_field(self.file, place, &name, error));
            }
        }
    }

    fn other_kind(&mut self, tree: &Tree, version: &str, kind: &str) {
        let ours = match kind {
            "Namespace" | "Node" | "Pod" | "Service" => Some(("v1", !version.contains('/'))),
            "EndpointSlice" => {
                Some(("discovery.k8s.io/v1", version.starts_with("discovery.k8s.io/")))
            }
            _ => None,
        };
        if let Some((expected, true)) = ours {
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

fn is_list(version: &str, kind: &str) -> bool {
    matches!(
        (version, kind),
        ("v1", "List" | "NamespaceList" | "NodeList" | "PodList" | "ServiceList")
            | ("discovery.k8s.io/v1", "EndpointSliceList")
    )
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

fn with_type_hint(error: FieldError, kind: &str) -> FieldError {
    let unquoted = error.message.starts_with("invalid type: integer")
        || error.message.starts_with("invalid type: boolean")
        || error.message.starts_with("invalid type: floating point");
    if unquoted && error.message.ends_with("expected a string") {
        return error.hint("put the value in quotes");
    }
    let path: String = match error.field.find('[') {
        Some(bracket) => error.field.chars().take(bracket).collect(),
        None => error.field.clone(),
    };
    let kind = kind.to_ascii_lowercase();
    error.hint(format!("`kubectl explain {kind}.{path}` shows what belongs there"))
}
