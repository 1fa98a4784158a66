//! `v1/Namespace`.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{declaring, object_name};
use crate::objects::NamespaceObject;
use crate::origin::{FieldError, Origin};
use crate::settings::Declaration;

impl NamespaceObject {
    /// Converts an object that was read at the place `locate` adds to its origin.
    pub fn parse(
        namespace: &Namespace,
        locate: impl FnOnce(Origin) -> Origin,
    ) -> Result<Self, FieldError> {
        let meta = &namespace.metadata;
        let name = object_name(meta)?;
        let mesh = Declaration::parse(meta.labels.as_ref(), meta.annotations.as_ref());
        Ok(Self { origin: locate(Origin::api("Namespace", None, &name)), name, mesh })
    }
}

impl From<&NamespaceObject> for Namespace {
    /// What is kept of it, as it is read.
    fn from(namespace: &NamespaceObject) -> Self {
        let NamespaceObject { origin: _, name, mesh } = namespace;
        let metadata = declaring(mesh, BTreeMap::new());
        let metadata = ObjectMeta { name: Some(name.to_string()), ..metadata };
        Self { metadata, ..Self::default() }
    }
}

impl TryFrom<&Namespace> for NamespaceObject {
    type Error = FieldError;
    fn try_from(namespace: &Namespace) -> Result<Self, FieldError> {
        Self::parse(namespace, |origin| origin)
    }
}
