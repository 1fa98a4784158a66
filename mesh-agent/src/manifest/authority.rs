//! The interim CA: its key lies in a Secret that every agent reads. A CA as a service will take its place.

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde_json::json;

use super::access::{account, role, role_binding, unprivileged};
use super::{Manifest, ManifestError, NAMESPACE, Part, part};

/// The Secret with `ca.crt`, `ca.key` and `anchors.pem`.
pub(super) const SECRET: &str = "nodemesh-ca";
/// Makes it, once.
const MAKER: &str = "make-ca";

pub(super) fn parts(chosen: &Manifest) -> Result<Vec<Part>, ManifestError> {
    // A Job cannot be changed: another image, say one that exists, is another Job.
    let job = format!("{MAKER}-{}", short_hash(&[&chosen.image, &chosen.trust_domain]));
    Ok(vec![
        part::<ServiceAccount>(
            "INTERIM: the CA's key is in the Secret nodemesh-ca, and every agent signs with it. Whoever reads that Secret, or takes over\na node, can be anybody in the mesh. A CA of its own, which only signs for pods that run on the asking node, replaces this.",
            account(MAKER),
        )?,
        part::<Role>(
            "",
            role(
                MAKER,
                &json!([
                    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
                    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [SECRET], "verbs": ["get"]},
                ]),
            ),
        )?,
        part::<RoleBinding>("", role_binding(MAKER))?,
        part::<Job>(
            "Makes the Secret if it is not there; does nothing if it is.",
            json!({
                "apiVersion": "batch/v1", "kind": "Job",
                "metadata": {"name": job, "namespace": NAMESPACE},
                "spec": {
                    "backoffLimit": 20,
                    "ttlSecondsAfterFinished": 60,
                    "template": {
                        "metadata": {"labels": {"app.kubernetes.io/name": MAKER, "app.kubernetes.io/part-of": "nodemesh"}},
                        "spec": {
                            "serviceAccountName": MAKER,
                            "automountServiceAccountToken": true,
                            "restartPolicy": "OnFailure",
                            "tolerations": [{"operator": "Exists"}],
                            "containers": [{
                                "name": MAKER,
                                "image": chosen.image,
                                "imagePullPolicy": "IfNotPresent",
                                "args": ["ca", "init", "--secret", format!("{NAMESPACE}/{SECRET}"), "--trust-domain", chosen.trust_domain],
                                "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
                                "securityContext": unprivileged(),
                            }],
                        },
                    },
                },
            }),
        )?,
    ])
}

/// Eight hexadecimal digits of a SHA-256.
fn short_hash(texts: &[&str]) -> String {
    let all = texts.join("\n");
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, all.as_bytes());
    let first = hash.as_ref().first_chunk().copied().unwrap_or_default();
    format!("{:08x}", u32::from_be_bytes(first))
}
