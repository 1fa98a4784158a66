//! Conversions from and to the API server's own types, one file for each kind. Both sources use
//! them, so that a file and a cluster cannot mean different things. The reverse conversions write
//! what is kept of an object, so that it can be read again as any other.

mod endpoint_slice;
mod namespace;
mod node;
mod pod;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::names::{ObjectName, check_label, check_subdomain};
use crate::origin::FieldError;
use crate::settings::Declaration;

/// `metadata.name`, which must be a DNS name.
fn object_name(meta: &ObjectMeta) -> Result<Arc<str>, FieldError> {
    let name = required(meta.name.as_deref(), "metadata.name")?;
    check_subdomain(name).map_err(|message| FieldError::new("metadata.name", message))?;
    Ok(Arc::from(name))
}

/// `metadata.namespace` and `metadata.name`.
fn namespaced_name(meta: &ObjectMeta) -> Result<ObjectName, FieldError> {
    // `kubectl` fills in its context's namespace. We have none, and guessing `default` would put a
    // pod under another namespace's settings.
    let namespace = required(meta.namespace.as_deref(), "metadata.namespace")?;
    check_label(namespace).map_err(|message| FieldError::new("metadata.namespace", message))?;
    Ok(ObjectName { namespace: Arc::from(namespace), name: object_name(meta)? })
}

/// Metadata with the declarations about the mesh, beside other labels.
fn declaring(mesh: &Declaration, mut labels: BTreeMap<String, String>) -> ObjectMeta {
    let mut annotations = BTreeMap::new();
    mesh.write(&mut labels, &mut annotations);
    let some = |map: BTreeMap<String, String>| (!map.is_empty()).then_some(map);
    ObjectMeta { labels: some(labels), annotations: some(annotations), ..ObjectMeta::default() }
}

/// Metadata that names an object.
fn named(name: &ObjectName) -> ObjectMeta {
    ObjectMeta {
        namespace: Some(name.namespace.to_string()),
        name: Some(name.name.to_string()),
        ..ObjectMeta::default()
    }
}

/// `None` for a text that is not there.
fn some_text(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

fn texts<T: ToString>(all: &[T]) -> Vec<String> {
    all.iter().map(ToString::to_string).collect()
}

fn required<'a>(value: Option<&'a str>, field: &'static str) -> Result<&'a str, FieldError> {
    match value {
        Some(text) if !text.is_empty() => Ok(text),
        _ => Err(FieldError::new(field, "is missing").hint(format!("add {field}"))),
    }
}

/// A port number as Kubernetes writes it, 1 to 65535.
fn port_number(number: i32, field: impl FnOnce() -> String) -> Result<u16, FieldError> {
    match u16::try_from(number) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::new(field(), format!("{number} is not a port"))
            .hint("write a number from 1 to 65535")),
    }
}
