//! Names from outside, checked once and given types of their own, so that they cannot be confused.
//!
//! The API server guarantees these forms. A file or another node's announcement does not, and the
//! names end up in SPIFFE ids, file names and pin paths.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest DNS-1123 subdomain (RFC 1123 and Kubernetes `validation.DNS1123SubdomainMaxLength`).
const MAX_SUBDOMAIN_BYTES: usize = 253;
/// Longest DNS-1123 label.
const MAX_LABEL_BYTES: usize = 63;

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $parse:path) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Errors: one sentence that quotes the name and says what is allowed.
            pub fn parse(text: &str) -> Result<Self, String> {
                $parse(text)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = String;
            fn try_from(text: String) -> Result<Self, String> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A pod's `metadata.uid`, the key of a workload, since names are used again. A UUID from
    /// Kubernetes; in files any text of letters, digits, `-` and `.`.
    PodUid,
    check_uid
);
name_type!(
    /// A node's name, as in `spec.nodeName`.
    NodeName,
    check_subdomain
);

/// Namespace and name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name within it.
    pub name: Arc<str>,
}

impl ObjectName {
    /// Takes both as they are; the caller has checked them when parsing.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: Arc::from(namespace), name: Arc::from(name) }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn check_uid(text: &str) -> Result<(), String> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'.';
    let leading_dot = text.starts_with('.');
    if text.is_empty() || text.len() > MAX_SUBDOMAIN_BYTES + MAX_LABEL_BYTES + 1 || leading_dot {
        return Err(format!("{text:?} is not a usable uid"));
    }
    if !text.bytes().all(allowed) {
        return Err(format!(
            "the uid {text:?} has a character other than letters, digits, - and ."
        ));
    }
    Ok(())
}

/// A DNS-1123 subdomain: pods, services, nodes, service accounts.
pub fn check_subdomain(text: &str) -> Result<(), String> {
    let good = text.len() <= MAX_SUBDOMAIN_BYTES && text.split('.').all(is_label);
    if good { Ok(()) } else { Err(format!("{text:?} is not a DNS name in lower case")) }
}

/// A DNS-1123 label: namespaces.
pub(crate) fn check_label(text: &str) -> Result<(), String> {
    if text.len() <= MAX_LABEL_BYTES && is_label(text) {
        Ok(())
    } else {
        Err(format!("{text:?} is not one DNS label in lower case"))
    }
}

fn is_label(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_leave_a_directory_or_a_spiffe_path_are_refused() {
        for bad in ["", ".", "..", "../x", "a/b", "A", "a..b", "-a", "a-", "a b"] {
            assert!(NodeName::parse(bad).is_err(), "{bad:?}");
        }
        for bad in ["", "..", ".x", "a/b", "a b", "a\0"] {
            assert!(PodUid::parse(bad).is_err(), "{bad:?}");
        }
        assert_eq!(NodeName::parse("a.b-1").unwrap().as_str(), "a.b-1");
        assert!(check_label("a.b").is_err());
        assert!(check_subdomain(&"a".repeat(254)).is_err());
    }

    #[test]
    fn a_bad_name_is_refused_by_serde_too() {
        assert_eq!(
            serde_json::from_str::<NodeName>("\"../x\"").unwrap_err().to_string(),
            "\"../x\" is not a DNS name in lower case"
        );
        assert_eq!(serde_json::to_string(&PodUid::parse("u1").unwrap()).unwrap(), "\"u1\"");
    }
}
