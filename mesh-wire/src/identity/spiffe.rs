//! SPIFFE ids: the only form of a workload's name that is ever compared.
//!
//! An id is parsed once, strictly, into a type that is always valid. We accept exactly what
//! Kubernetes can produce (`spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`). That is
//! narrower than the SPIFFE standard: two spellings of one identity must not exist.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

const SCHEME: &str = "spiffe://";
/// SPIFFE-ID §2.1: a trust domain has at most 255 bytes.
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
/// RFC 1123 label, as Kubernetes limits namespaces.
const MAX_NAMESPACE_BYTES: usize = 63;
/// RFC 1123 subdomain, as Kubernetes limits service accounts.
const MAX_SERVICE_ACCOUNT_BYTES: usize = 253;

/// The name of a trust domain, for instance `cluster.local`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// The trust domain as it appears in a SPIFFE id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The SPIFFE id of the trust domain itself, which a CA certificate carries.
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}", self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = SpiffeIdError;

    /// # Errors
    /// Empty, longer than 255 bytes, or other characters than `a-z 0-9 . - _`.
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN_BYTES || !text.bytes().all(valid) {
            return Err(SpiffeIdError::TrustDomain);
        }
        Ok(Self(text.into()))
    }
}

/// The identity of a service account: `spiffe://<trust-domain>/ns/<namespace>/sa/<account>`.
///
/// Cheap to clone; equal if and only if the texts are equal.
#[derive(Clone)]
pub struct SpiffeId {
    text: Arc<str>,
    trust_domain: TrustDomain,
    namespace_at: usize,
    account_at: usize,
}

impl SpiffeId {
    /// The identity of `account` in `namespace`.
    ///
    /// # Errors
    /// A part is not a name that Kubernetes could have accepted.
    pub fn new(
        trust_domain: &TrustDomain,
        namespace: &str,
        account: &str,
    ) -> Result<Self, SpiffeIdError> {
        if !is_label(namespace, MAX_NAMESPACE_BYTES) {
            return Err(SpiffeIdError::Namespace);
        }
        if !is_subdomain(account, MAX_SERVICE_ACCOUNT_BYTES) {
            return Err(SpiffeIdError::ServiceAccount);
        }
        let namespace_at = SCHEME.len() + trust_domain.0.len() + "/ns/".len();
        let account_at = namespace_at + namespace.len() + "/sa/".len();
        let text = format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}").into();
        Ok(Self { text, trust_domain: trust_domain.clone(), namespace_at, account_at })
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain that vouches for it.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        let end = self.account_at.saturating_sub("/sa/".len());
        self.text.get(self.namespace_at..end).unwrap_or_default()
    }

    /// The Kubernetes service account.
    pub fn service_account(&self) -> &str {
        self.text.get(self.account_at..).unwrap_or_default()
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    /// # Errors
    /// Anything but exactly `spiffe://<td>/ns/<ns>/sa/<sa>`: another number of segments, a port,
    /// user, query, fragment or percent sign, or names that Kubernetes would not accept.
    fn from_str(text: &str) -> Result<Self, SpiffeIdError> {
        let rest = text.strip_prefix(SCHEME).ok_or(SpiffeIdError::Scheme)?;
        let mut parts = rest.split('/');
        let trust_domain: TrustDomain = parts.next().unwrap_or_default().parse()?;
        let path = (parts.next(), parts.next(), parts.next(), parts.next(), parts.next());
        let (Some("ns"), Some(namespace), Some("sa"), Some(account), None) = path else {
            return Err(SpiffeIdError::Path);
        };
        Self::new(&trust_domain, namespace, account)
    }
}

/// Why a text is not one of our SPIFFE ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeIdError {
    /// Another scheme, or none.
    #[error("a SPIFFE id starts with `spiffe://`")]
    Scheme,
    /// Empty, too long, a port or user part, or characters that SPIFFE forbids.
    #[error("the trust domain must be 1 to 255 of a-z, 0-9, '.', '-' and '_', without a port")]
    TrustDomain,
    /// Another path than `/ns/<namespace>/sa/<service-account>`.
    #[error("the path must be exactly /ns/<namespace>/sa/<service-account>")]
    Path,
    /// Not an RFC 1123 label.
    #[error("the namespace is not a name that Kubernetes accepts (RFC 1123 label)")]
    Namespace,
    /// Not an RFC 1123 subdomain.
    #[error("the service account is not a name that Kubernetes accepts (RFC 1123 subdomain)")]
    ServiceAccount,
}

impl PartialEq for SpiffeId {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for SpiffeId {}

impl std::hash::Hash for SpiffeId {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.text.hash(state);
    }
}

impl PartialOrd for SpiffeId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for SpiffeId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn is_label(text: &str, max_bytes: usize) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= max_bytes
        && text.bytes().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_subdomain(text: &str, max_bytes: usize) -> bool {
    text.len() <= max_bytes && text.split('.').all(|label| is_label(label, max_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_valid_id_is_taken_apart() {
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/web.v2-x".parse().unwrap();
        assert_eq!(id.trust_domain().as_str(), "cluster.local");
        assert_eq!(id.namespace(), "shop");
        assert_eq!(id.service_account(), "web.v2-x");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/web.v2-x");
        assert_eq!(id, SpiffeId::new(id.trust_domain(), "shop", "web.v2-x").unwrap());
    }

    #[test]
    fn everything_else_is_refused_by_name() {
        use SpiffeIdError as E;
        let long = format!("spiffe://td/ns/{}/sa/b", "a".repeat(64));
        for (text, why) in [
            ("", E::Scheme),
            ("https://td/ns/a/sa/b", E::Scheme),
            ("SPIFFE://td/ns/a/sa/b", E::Scheme),
            ("spiffe:///ns/a/sa/b", E::TrustDomain),
            ("spiffe://TD/ns/a/sa/b", E::TrustDomain),
            ("spiffe://td:443/ns/a/sa/b", E::TrustDomain),
            ("spiffe://user@td/ns/a/sa/b", E::TrustDomain),
            ("spiffe://td?x/ns/a/sa/b", E::TrustDomain),
            ("spiffe://td", E::Path),
            ("spiffe://td/", E::Path),
            ("spiffe://td/ns/a/sa", E::Path),
            ("spiffe://td/ns/a/sa/b/", E::Path),
            ("spiffe://td/ns/a/sa/b/c", E::Path),
            ("spiffe://td/sa/a/ns/b", E::Path),
            ("spiffe://td//ns/a/sa/b", E::Path),
            ("spiffe://td/ns//sa/b", E::Namespace),
            ("spiffe://td/ns/a.b/sa/b", E::Namespace),
            ("spiffe://td/ns/../sa/b", E::Namespace),
            ("spiffe://td/ns/%61/sa/b", E::Namespace),
            (long.as_str(), E::Namespace),
            ("spiffe://td/ns/a/sa/", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b?q=1", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b#f", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/-b", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/b\0", E::ServiceAccount),
            ("spiffe://td/ns/a/sa/ü", E::ServiceAccount),
        ] {
            assert_eq!(text.parse::<SpiffeId>().unwrap_err(), why, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in ".{0,80}|spiffe://[a-z.]{1,9}/ns/[a-z-]{1,9}/sa/[a-z.-]{1,9}") {
            if let Ok(id) = text.parse::<SpiffeId>() {
                prop_assert_eq!(id.as_str(), text.as_str());
                let again = SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account());
                prop_assert_eq!(again.unwrap(), id);
            }
        }
    }
}
