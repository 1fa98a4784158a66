//! The control plane: etcd, the API server, its controllers, the scheduler, and the DNS server.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    machine::Machine,
    plan::{DNS_SERVICE, Plan, SERVICES},
};

/// Where the API server listens.
pub(super) const API_PORT: u16 = 6443;

/// Where the DNS server listens.
pub(super) const DNS_PORT: u16 = 53;

/// The programs, in the order in which they are started.
pub(super) const ETCD: &str = "etcd";
pub(super) const API_SERVER: &str = "kube-apiserver";
pub(super) const AFTER_API: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "coredns"];

/// How long a connection to the API server's port may take: it is on this machine.
const CONNECT: Duration = Duration::from_secs(1);

/// Where the certificates are on the machine.
const PKI: &str = "/etc/kubernetes";

/// Starts one of the programs.
pub(super) fn start(machine: &Machine, plan: &Plan, program: &str) -> Result<()> {
    let argv = match program {
        ETCD => etcd(),
        API_SERVER => api_server(plan),
        "kube-controller-manager" => controllers(),
        "kube-scheduler" => words(&[
            "kube-scheduler",
            "--kubeconfig=PKI/kube-scheduler.conf",
            "--leader-elect=false",
        ]),
        _ => dns_server(machine)?,
    };
    machine.start(program, &argv)
}

/// Whether a server listens on the API server's port.
pub(super) fn is_listening(plan: &Plan) -> bool {
    let address = SocketAddr::from((plan.control().0, API_PORT));
    TcpStream::connect_timeout(&address, CONNECT).is_ok()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| word.replace("PKI", PKI)).collect()
}

/// Only the API server reaches etcd, on the machine's own loopback. What etcd writes need not
/// outlive a power cut.
fn etcd() -> Vec<String> {
    words(&[
        "etcd",
        "--data-dir=/var/lib/etcd",
        "--unsafe-no-fsync",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        "--log-level=warn",
    ])
}

fn api_server(plan: &Plan) -> Vec<String> {
    let mut argv = words(&[
        API_SERVER,
        "--etcd-servers=http://127.0.0.1:2379",
        "--client-ca-file=PKI/ca.crt",
        "--tls-cert-file=PKI/kube-apiserver.crt",
        "--tls-private-key-file=PKI/kube-apiserver.key",
        "--kubelet-certificate-authority=PKI/ca.crt",
        "--kubelet-client-certificate=PKI/kubelet-client.crt",
        "--kubelet-client-key=PKI/kubelet-client.key",
        // Otherwise `exec` and `logs` look for nodes by name, in a DNS that does not know them.
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local",
        "--service-account-key-file=PKI/accounts.pub",
        "--service-account-signing-key-file=PKI/accounts.key",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
    ]);
    argv.push(format!("--service-cluster-ip-range={SERVICES}"));
    argv.push(format!("--advertise-address={}", plan.control().0));
    argv.push(format!("--secure-port={API_PORT}"));
    argv
}

fn controllers() -> Vec<String> {
    words(&[
        "kube-controller-manager",
        "--kubeconfig=PKI/kube-controller-manager.conf",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        "--service-account-private-key-file=PKI/accounts.key",
        "--root-ca-file=PKI/ca.crt",
        "--cluster-signing-cert-file=PKI/ca.crt",
        "--cluster-signing-key-file=PKI/ca.key",
        // The defaults (20, 30) suit large clusters, and make a new cluster's accounts wait.
        "--kube-api-qps=200",
        "--kube-api-burst=400",
    ])
}

/// There are no names but the cluster's.
fn dns_server(machine: &Machine) -> Result<Vec<String>> {
    let corefile = format!(
        ".:{DNS_PORT} {{\n  errors\n  ready 127.0.0.1:8181\n  cache 5\n  \
         kubernetes cluster.local in-addr.arpa ip6.arpa {{\n    kubeconfig {PKI}/coredns.conf\n  }}\n  \
         template ANY ANY {{\n    rcode NXDOMAIN\n  }}\n}}\n"
    );
    let file = "/etc/coredns/Corefile";
    let path = machine.file(file);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(path, corefile)?;
    Ok(words(&["coredns", "-conf", file]))
}

/// What makes the DNS server part of the cluster: its role, and the service that all pods ask.
pub(super) fn dns_objects(plan: &Plan) -> Vec<serde_json::Value> {
    use serde_json::json;
    let ports = [("dns", "UDP"), ("dns-tcp", "TCP")];
    let list = |names: &[&str], group: &str| json!({ "apiGroups": [group], "resources": names, "verbs": ["list", "watch"] });
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": super::pki::DNS_USER },
            "rules": [
                list(&["endpoints", "services", "pods", "namespaces"], ""),
                list(&["endpointslices"], "discovery.k8s.io"),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": super::pki::DNS_USER },
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": super::pki::DNS_USER,
            },
            "subjects": [{
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "User",
                "name": super::pki::DNS_USER,
            }],
        }),
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": { "name": "kube-dns", "namespace": "kube-system" },
            "spec": {
                "clusterIP": DNS_SERVICE,
                "ports": ports.map(|(name, protocol)| {
                    json!({ "name": name, "protocol": protocol, "port": DNS_PORT })
                }),
            },
        }),
        // The DNS server is no pod, so that names resolve before the first pod runs, whatever
        // becomes of pods.
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": { "kubernetes.io/service-name": "kube-dns" },
            },
            "addressType": "IPv4",
            "endpoints": [{
                "addresses": [plan.control().0.to_string()],
                "conditions": { "ready": true },
            }],
            "ports": ports.map(|(name, protocol)| {
                json!({ "name": name, "protocol": protocol, "port": DNS_PORT })
            }),
        }),
    ]
}
