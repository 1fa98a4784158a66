//! An object as the API server sends it. All kinds are asked for as this one type: kube's client
//! and watches are then compiled once, and an object that cannot be read does not break its watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::{ApiResource, DynamicResourceScope, Resource};
use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::super::kinds::Kind;

/// An object of any kind.
#[derive(Clone, Debug)]
pub(crate) struct ApiObject {
    meta: ObjectMeta,
    /// Everything, its metadata too.
    whole: Value,
}

impl ApiObject {
    /// What the API server calls a kind.
    pub(super) fn of(kind: &Kind) -> ApiResource {
        ApiResource {
            group: kind.group.to_owned(),
            version: kind.api_version.rsplit('/').next().unwrap_or_default().to_owned(),
            api_version: kind.api_version.to_owned(),
            kind: kind.name.to_owned(),
            plural: kind.plural.to_owned(),
        }
    }

    /// What stands at a path such as `/spec/nodeName` (RFC 6901).
    pub(crate) fn pointer(&self, path: &str) -> Option<&Value> {
        self.whole.pointer(path)
    }

    /// The object as it was sent.
    pub(crate) fn into_value(self) -> Value {
        self.whole
    }
}

impl<'de> Deserialize<'de> for ApiObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let whole = Value::deserialize(deserializer)?;
        let meta = match whole.get("metadata") {
            Some(meta) => ObjectMeta::deserialize(meta).map_err(de::Error::custom)?,
            None => ObjectMeta::default(),
        };
        Ok(Self { meta, whole })
    }
}

impl Resource for ApiObject {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(of: &ApiResource) -> Cow<'_, str> {
        of.kind.as_str().into()
    }

    fn group(of: &ApiResource) -> Cow<'_, str> {
        of.group.as_str().into()
    }

    fn version(of: &ApiResource) -> Cow<'_, str> {
        of.version.as_str().into()
    }

    fn api_version(of: &ApiResource) -> Cow<'_, str> {
        of.api_version.as_str().into()
    }

    fn plural(of: &ApiResource) -> Cow<'_, str> {
        of.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.meta
    }
}
