//! The cluster's certificate authority, and what it says of each of the cluster's programs.

use std::{
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use serde_json::json;

use super::plan::{API_SERVICE, CONTROL, NODES, Plan, node_name};

/// Groups that Kubernetes' own roles know (Kubernetes documentation, "Using RBAC Authorization").
const MASTERS: &str = "system:masters";
const NODE_GROUP: &str = "system:nodes";

/// The user of the DNS server; its role is among the cluster's objects.
pub(super) const DNS_USER: &str = "system:coredns";

/// Writes everything into the plan's directory of certificates.
pub(super) fn make(plan: &Plan) -> Result<()> {
    let dir = plan.pki();
    fs::create_dir_all(&dir)?;
    let authority = Authority::new(&dir)?;
    // What signs the tokens of service accounts is only a pair of keys.
    let accounts = KeyPair::generate()?;
    fs::write(dir.join("accounts.key"), accounts.serialize_pem())?;
    fs::write(dir.join("accounts.pub"), accounts.public_key_pem())?;

    let (v4, v6) = plan.control();
    let mut names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(|name| SanType::DnsName(name.try_into().expect("ASCII")))
        .to_vec();
    names.push(SanType::DnsName("kubernetes.default.svc.cluster.local".try_into()?));
    let addresses = API_SERVICE.map(|address| address.parse().expect("an address"));
    let loopback = [IpAddr::from([127, 0, 0, 1])];
    for address in addresses.into_iter().chain(loopback).chain([v4.into(), v6.into()]) {
        names.push(SanType::IpAddress(address));
    }
    authority.issue("kube-apiserver", "kube-apiserver", None, names)?;
    authority.issue("kubelet-client", "kube-apiserver-kubelet-client", Some(MASTERS), vec![])?;
    let users = [
        ("admin", "kubernetes-admin", Some(MASTERS)),
        ("kube-controller-manager", "system:kube-controller-manager", None),
        ("kube-scheduler", "system:kube-scheduler", None),
        ("kube-proxy", "system:kube-proxy", None),
        ("coredns", DNS_USER, None),
    ];
    for (file, user, group) in users {
        authority.issue(file, user, group, vec![])?;
        kubeconfig(plan, file)?;
    }
    for node in 1..=NODES {
        let (name, (v4, v6)) = (node_name(node), plan.node(node));
        let user = format!("system:node:{name}");
        let mut names = vec![SanType::DnsName(name.as_str().try_into()?)];
        names.extend([v4.into(), v6.into()].map(SanType::IpAddress));
        authority.issue(&name, &user, Some(NODE_GROUP), names)?;
        kubeconfig(plan, &name)?;
    }
    Ok(())
}

/// The file with which an administrator reaches the API server.
pub(super) fn admin(plan: &Plan) -> PathBuf {
    plan.pki().join("admin.conf")
}

/// Copies what a machine needs into its `/etc/kubernetes`: for the control plane everything, for a
/// node its own.
pub(super) fn hand_out(plan: &Plan, machine: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(plan.pki())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let stem = name.split('.').next().unwrap_or_default();
        if machine == CONTROL || name == "ca.crt" || [machine, "kube-proxy"].contains(&stem) {
            fs::copy(entry.path(), to.join(&name)).with_context(|| name)?;
        }
    }
    Ok(())
}

/// A kubeconfig that names the certificate files beside it.
fn kubeconfig(plan: &Plan, user: &str) -> Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{
            "name": plan.name(),
            "cluster": { "server": plan.api(), "certificate-authority": "ca.crt" },
        }],
        "users": [{
            "name": user,
            "user": {
                "client-certificate": format!("{user}.crt"),
                "client-key": format!("{user}.key"),
            },
        }],
        "contexts": [{ "name": plan.name(), "context": { "cluster": plan.name(), "user": user } }],
        "current-context": plan.name(),
    });
    fs::write(plan.pki().join(format!("{user}.conf")), serde_json::to_string_pretty(&config)?)?;
    Ok(())
}

struct Authority<'a> {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: &'a Path,
}

impl<'a> Authority<'a> {
    fn new(dir: &'a Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        params.distinguished_name.push(DnType::CommonName, "nodemesh test cluster");
        let key = KeyPair::generate()?;
        fs::write(dir.join("ca.key"), key.serialize_pem())?;
        let issuer = CertifiedIssuer::self_signed(params, key)?;
        fs::write(dir.join("ca.crt"), issuer.pem())?;
        Ok(Self { issuer, dir })
    }

    /// Writes `FILE.crt` and `FILE.key` for a user of Kubernetes, and a server if it has `names`.
    fn issue(
        &self,
        file: &str,
        user: &str,
        group: Option<&str>,
        names: Vec<SanType>,
    ) -> Result<()> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, user);
        if let Some(group) = group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if !names.is_empty() {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.subject_alt_names = names;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        fs::write(self.dir.join(format!("{file}.crt")), certificate.pem())?;
        fs::write(self.dir.join(format!("{file}.key")), key.serialize_pem())?;
        Ok(())
    }
}
