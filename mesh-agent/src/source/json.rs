//! The API server's types, read from JSON values. Whatever an object came in, it is read from a
//! value: code that is made for each type and each format took a fifth of the agent's compile time.

use mesh_world::FieldError;
use serde::de::DeserializeOwned;
use serde_json::Value;
use serde_path_to_error::Segment;

/// Reads a value as its type wants it. An error names the field as Kubernetes does.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().iter().fold(String::new(), |path, segment| match segment {
            Segment::Seq { index } => format!("{path}[{index}]"),
            Segment::Map { key } => child_path(&path, key),
            Segment::Enum { variant } => child_path(&path, variant),
            Segment::Unknown => path,
        });
        FieldError::new(path, error.into_inner().to_string())
    })
}

/// `a` + `b` is `a.b`, `a` + `b.c/d` is `a[b.c/d]`.
pub(super) fn child_path(path: &str, key: &str) -> String {
    let plain = key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    match (plain, path) {
        (true, "") => key.to_owned(),
        (true, path) => format!("{path}.{key}"),
        (false, path) => format!("{path}[{key}]"),
    }
}
