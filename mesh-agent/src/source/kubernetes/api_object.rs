//! An object as the API server sends it. All kinds are asked for as this one type: kube's client
//! and watches are then compiled once, and an object that cannot be read does not break its watch.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::core::{ApiResource, DynamicResourceScope, NamespaceResourceScope, Resource};
use kube::{Api, Client};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// An object of any kind.
#[derive(Clone, Debug)]
pub(crate) struct ApiObject {
    /// What is needed to follow it: names, versions, and whether it is going.
    meta: ObjectMeta,
    /// The object as it was sent, but for `metadata.managedFields`, which can be most of it.
    whole: Value,
}

impl ApiObject {
    /// All objects of a kind.
    pub(crate) fn all<K: Resource<DynamicType = ()>>(client: &Client) -> Api<Self> {
        Api::all_with(client.clone(), &ApiResource::erase::<K>(&()))
    }

    /// The objects of a kind in one namespace.
    pub(crate) fn namespaced<K>(client: &Client, namespace: &str) -> Api<Self>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced_with(client.clone(), namespace, &ApiResource::erase::<K>(&()))
    }

    /// What stands at a path such as `/spec/nodeName` (RFC 6901).
    pub(crate) fn pointer(&self, path: &str) -> Option<&Value> {
        self.whole.pointer(path)
    }

    /// The object as it was sent, but for `metadata.managedFields`.
    pub(crate) fn into_value(self) -> Value {
        self.whole
    }
}

impl<'de> Deserialize<'de> for ApiObject {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut whole = Value::deserialize(deserializer)?;
        if let Some(meta) = whole.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("managedFields");
        }
        let field = |name: &str| whole.get("metadata").and_then(|meta| meta.get(name));
        let text = |name: &str| field(name).and_then(Value::as_str).map(str::to_owned);
        let texts = |name: &str| {
            let texts = field(name)?.as_array()?;
            Some(texts.iter().filter_map(Value::as_str).map(str::to_owned).collect())
        };
        let meta = ObjectMeta {
            name: text("name"),
            namespace: text("namespace"),
            uid: text("uid"),
            resource_version: text("resourceVersion"),
            deletion_timestamp: field("deletionTimestamp")
                .and_then(|it| Time::deserialize(it).ok()),
            finalizers: texts("finalizers"),
            ..ObjectMeta::default()
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_object_is_read_whatever_stands_in_it() {
        let odd = json!({"metadata": {
            "name": "web", "uid": 7, "finalizers": ["orphan", null],
            "deletionTimestamp": "2026-01-01T00:00:00Z", "managedFields": [{"manager": "kubectl"}],
        }, "spec": "none"});
        let object: ApiObject = serde_json::from_value(odd).unwrap();
        assert_eq!((object.meta().name.as_deref(), &object.meta().uid), (Some("web"), &None));
        assert_eq!(object.meta().finalizers.as_deref().unwrap_or_default(), ["orphan"]);
        assert!(object.meta().deletion_timestamp.is_some());
        assert_eq!(object.pointer("/spec"), Some(&"none".into()));
        assert_eq!(object.pointer("/metadata/managedFields"), None);
        let none: ApiObject = serde_json::from_value(json!({"metadata": null})).unwrap();
        assert_eq!(none.meta(), &ObjectMeta::default());
    }
}
