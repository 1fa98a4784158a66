//! YAML (and JSON, which is YAML) read into a tree whose every node knows its line.
//!
//! The API server's types are then deserialised from the tree and not from the text, for three
//! reasons. A document can be looked at before its type is known. The items of a `List` are
//! documents like any other. An error that is found later (a bad address) still has its line.

use std::collections::BTreeMap;
use std::fmt;

use mesh_world::Place;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_saphyr::{MessageFormatter, Spanned, UserMessageFormatter};

use super::json::child_path;

/// Deepest nesting, which bounds the stack. Built without optimisation, a level takes some 38 KB of
/// a thread's 2 MiB (test below). The objects of the mesh have some 15 levels.
const MAX_DEPTH: usize = 32;
/// Most values in a file: a `List` of a few thousand pods.
const MAX_NODES: usize = 4_000_000;
/// Most documents in a file.
const MAX_DOCUMENTS: usize = 65_536;

/// Most values that aliases (`*x`) may stand for in a file, or twelve lines could become millions.
const MAX_ALIASED_NODES: usize = 100_000;

/// A value and where it stands. A mapping or sequence under a key has the key's place.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tree {
    place: Place,
    node: Node,
}

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Scalar(Value),
    Sequence(Vec<Tree>),
    Mapping(Vec<(String, Tree)>),
}

/// Text that is not YAML.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SyntaxError {
    pub(super) place: Option<Place>,
    pub(super) message: String,
}

/// Reads all documents of a file, without the empty ones.
pub(super) fn parse(text: &str) -> Result<Vec<Tree>, SyntaxError> {
    let options = serde_saphyr::options! {
        with_snippet: false,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: MAX_NODES,
            max_events: 2 * MAX_NODES,
            max_documents: MAX_DOCUMENTS,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: MAX_ALIASED_NODES,
        },
    };
    match serde_saphyr::from_multiple_with_options::<Spanned<Node>>(text, options) {
        Ok(documents) => Ok(documents.into_iter().map(Tree::from).collect()),
        Err(error) => Err(SyntaxError {
            place: error.location().map(place),
            message: UserMessageFormatter.format_message(error.without_snippet()).into_owned(),
        }),
    }
}

impl Tree {
    /// Where it stands.
    pub(super) fn place(&self) -> Place {
        self.place
    }

    /// The value under a key of a mapping.
    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        let Node::Mapping(entries) = &self.node else {
            return None;
        };
        entries.iter().find_map(|(name, value)| (name == key).then_some(value))
    }

    /// The text, if it is one.
    pub(super) fn as_str(&self) -> Option<&str> {
        match &self.node {
            Node::Scalar(Value::String(text)) => Some(text),
            Node::Scalar(_) | Node::Sequence(_) | Node::Mapping(_) => None,
        }
    }

    /// The items, if it is a sequence.
    pub(super) fn into_items(self) -> Option<Vec<Self>> {
        match self.node {
            Node::Sequence(items) => Some(items),
            Node::Scalar(_) | Node::Mapping(_) => None,
        }
    }

    /// Takes a key out of a mapping.
    pub(super) fn remove(&mut self, key: &str) -> Option<Self> {
        let Node::Mapping(entries) = &mut self.node else {
            return None;
        };
        let index = entries.iter().position(|(name, _)| name == key)?;
        Some(entries.remove(index).1)
    }

    /// Every field below this node with its place, named as Kubernetes names it.
    pub(super) fn fields(&self) -> BTreeMap<String, Place> {
        let mut fields = BTreeMap::new();
        self.add_fields("", &mut fields);
        fields
    }

    fn add_fields(&self, path: &str, fields: &mut BTreeMap<String, Place>) {
        let mut add = |path: String, child: &Self| {
            child.add_fields(&path, fields);
            fields.insert(path, child.place);
        };
        match &self.node {
            Node::Scalar(_) => {}
            Node::Sequence(items) => {
                for (index, item) in items.iter().enumerate() {
                    add(format!("{path}[{index}]"), item);
                }
            }
            Node::Mapping(entries) => {
                for (key, value) in entries {
                    add(child_path(path, key), value);
                }
            }
        }
    }

    /// The value without its places.
    pub(super) fn into_value(self) -> Value {
        match self.node {
            Node::Scalar(value) => value,
            Node::Sequence(items) => items.into_iter().map(Self::into_value).collect(),
            Node::Mapping(entries) => {
                entries.into_iter().map(|(key, value)| (key, value.into_value())).collect()
            }
        }
    }
}

fn place(location: serde_saphyr::Location) -> Place {
    // Line and column are u32 inside the parser, too.
    let number = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    Place { line: number(location.line()), column: number(location.column()) }
}

impl From<Spanned<Node>> for Tree {
    fn from(spanned: Spanned<Node>) -> Self {
        Self { place: place(spanned.referenced), node: spanned.value }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Node, E> {
        Ok(Node::Scalar(value.into()))
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Node, E> {
        Ok(Node::Scalar(Value::Null))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut sequence = Vec::new();
        while let Some(item) = items.next_element::<Spanned<Node>>()? {
            sequence.push(Tree::from(item));
        }
        Ok(Node::Sequence(sequence))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Node, A::Error> {
        let mut mapping = Vec::new();
        while let Some((key, value)) = entries.next_entry::<Spanned<String>, Spanned<Node>>()? {
            let mut value = Tree::from(value);
            if !matches!(value.node, Node::Scalar(_)) {
                value.place = place(key.referenced);
            }
            mapping.push((key.value, value));
        }
        Ok(Node::Mapping(mapping))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_knows_its_line_in_yaml_and_in_json() {
        let yaml = "---\n# nothing\n---\nmetadata:\n  labels:\n    nodemesh.dev/mesh: enabled\nips:\n- ip: 10.0.0.1\n";
        let json = "{\n\n\n\t\"metadata\": {\n\"labels\": {\n\"nodemesh.dev/mesh\": \"enabled\"}},\n\"ips\": [\n{\"ip\": \"10.0.0.1\"}]}";
        for text in [yaml, json] {
            let documents = parse(text).unwrap();
            assert_eq!(documents.len(), 1);
            let fields = documents[0].fields();
            let line = |field: &str| fields.get(field).unwrap().line;
            assert_eq!(line("metadata"), 4);
            assert_eq!(line("metadata.labels[nodemesh.dev/mesh]"), 6);
            assert_eq!(line("ips[0].ip"), 8);
        }
    }

    #[test]
    fn a_deep_document_is_refused_and_the_deepest_allowed_one_fits_the_stack() {
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert!(parse(&nested(100_000)).is_err());
        let deepest = (1..=MAX_DEPTH).rev().find_map(|depth| parse(&nested(depth)).ok());
        let fields = deepest.unwrap().remove(0).fields();
        assert!(fields.len() > MAX_DEPTH / 2, "{} levels", fields.len());
    }

    #[test]
    fn aliases_do_not_multiply_without_bound() {
        let line = |i: usize| {
            let before = format!("*a{}, ", i.saturating_sub(1)).repeat(9);
            format!("a{i}: &a{i} [{}]\n", if i == 0 { "x" } else { &before })
        };
        let text: String = (0..12).map(line).collect();
        assert!(parse(&text).is_err());
    }
}
