//! `mesh-agent ca init --secret`: makes a CA in a Secret of the cluster, which agents mount as their CA directory.

use std::collections::BTreeMap;
use std::time::SystemTime;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::PostParams;
use kube::{Api, Client};

use super::init::{CA_LIFETIME, make};
use super::{ANCHORS, CA_CERTIFICATE, CA_KEY, CaError};
use crate::identity::TrustDomain;

/// Makes the Secret with the three files of a CA directory. `false`: one is there already, and is left as it is.
///
/// # Errors
/// The API server refuses, or no key could be made.
pub async fn init_secret(
    client: Client,
    namespace: &str,
    name: &str,
    trust_domain: &TrustDomain,
) -> Result<bool, CaError> {
    let not_after = SystemTime::now() + CA_LIFETIME;
    let (certificate, key) =
        make(trust_domain, not_after).map_err(|detail| CaError::Crypto { detail })?;
    let file = |name: &str, content: &str| (name.to_owned(), ByteString(content.into()));
    let secret = Secret {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        data: Some(BTreeMap::from([
            file(CA_CERTIFICATE, &certificate),
            file(CA_KEY, &key),
            file(ANCHORS, &certificate),
        ])),
        ..Secret::default()
    };
    match Api::namespaced(client, namespace).create(&PostParams::default(), &secret).await {
        Ok(_made) => Ok(true),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(false),
        Err(error) => {
            let secret = format!("{namespace}/{name}");
            Err(CaError::Secret { secret, error: Box::new(error) })
        }
    }
}
