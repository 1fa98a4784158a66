//! What there is to be meshed in a cluster: namespace `shop`, with servers, clients and load.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Cluster, Mesh, PATIENCE, TEST_IMAGE};
use crate::eventually;

/// Stands in what servers answer.
pub const GREETING: &str = "greetings-from-cart";

/// A pod that runs a script of busybox's shell.
pub fn pod(name: &str, node: u8, script: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": name}},
        "spec": {
            "nodeName": format!("node{node}"),
            "terminationGracePeriodSeconds": 0,
            "containers": [container("main", script)],
        },
    })
}

/// A container that does so.
pub fn container(name: &str, script: &str) -> Value {
    json!({
        "name": name, "image": TEST_IMAGE, "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", script],
    })
}

/// The script of a server: it says [`GREETING`] on port 8080.
pub fn server() -> String {
    format!(
        "mkdir -p /tmp/www && echo {GREETING} > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"
    )
}

/// The script of a pod that does nothing.
pub const IDLE: &str = "exec sleep 100000";

/// `shop/web` on node 1; `shop/cart`, a server, on node 2; `shop/near`, a server, on node 1; a
/// service for each server.
pub fn open(cluster: &Cluster) -> Result<()> {
    let service = |name: &str, more: Value| {
        let mut spec =
            json!({"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]});
        merge(&mut spec, more);
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    };
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
        pod("web", 1, IDLE), pod("cart", 2, &server()), pod("near", 1, &server()),
        service("cart", json!({"type": "NodePort"})), service("near", json!({})),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "headless", "namespace": "shop"},
            "spec": {"clusterIP": "None", "selector": {"app": "cart"}}},
    ]});
    cluster.kubectl_with(&objects.to_string(), ["apply", "-f", "-"])?;
    ready(cluster, "shop")
}

fn merge(into: &mut Value, from: Value) {
    if let (Some(into), Value::Object(from)) = (into.as_object_mut(), from) {
        into.extend(from);
    }
}

/// Waits until all pods of a namespace are ready.
pub fn ready(cluster: &Cluster, namespace: &str) -> Result<()> {
    let wait = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
    cluster.kubectl(["-n", namespace].into_iter().chain(wait)).map(drop)
}

/// What a client in a pod of namespace shop gets.
pub fn curl(cluster: &Cluster, from: &str, url: &str) -> Result<String> {
    let command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "10", url];
    cluster.kubectl(["-n", "shop", "exec", from, "--"].into_iter().chain(command))
}

/// The address of a pod of namespace shop.
pub fn address(cluster: &Cluster, pod: &str) -> Result<IpAddr> {
    let of = ["-n", "shop", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"];
    cluster.kubectl(of)?.parse().context("no address")
}

/// UIDs, start times and restarts of the shop's pods.
pub fn lives(cluster: &Cluster) -> Result<String> {
    let of = "jsonpath={range .items[*]}{.metadata.uid} {.status.startTime} {.status.containerStatuses[*].restartCount} {.status.containerStatuses[*].containerID}{'\\n'}{end}";
    cluster.kubectl(["-n", "shop", "get", "pods", "-o", of])
}

/// A pod on node 1 that asks `shop/cart` again and again.
#[derive(Debug)]
pub struct Load<'a> {
    cluster: &'a Cluster,
}

impl<'a> Load<'a> {
    /// Returns when it is in the mesh.
    pub fn start(cluster: &'a Cluster, mesh: &Mesh<'_>) -> Result<Self> {
        // The pause leaves as much time again for the cluster and other tests.
        let script = asking("http://cart/", "sleep 0.02;");
        let items = json!({"apiVersion": "v1", "kind": "List", "items": [pod("load", 1, &script)]});
        cluster.kubectl_with(&items.to_string(), ["apply", "-f", "-"])?;
        mesh.wait_state(&[(1, "shop/load")], "enrolled")?;
        Ok(Self { cluster })
    }

    /// What it was answered so far: `200 0`, or else curl's HTTP code and exit code. Asks the node,
    /// since the API server may be away.
    pub fn answers(&self) -> Result<Vec<String>> {
        answers(self.cluster, "shop", "load")
    }

    /// Waits for more than 50 answers beyond `than`. Returns how many there are then, and all that
    /// are failures.
    pub fn more(&self, than: usize) -> Result<(usize, Vec<String>)> {
        eventually(PATIENCE, || {
            let answers = self.answers()?;
            ensure!(answers.len() > than + 50, "{} answers", answers.len());
            let bad = answers.iter().filter(|line| *line != "200 0").cloned();
            Ok((answers.len(), bad.collect()))
        })
    }

    /// Waits until 50 answers in a row are good. Returns how many there are then, and the failures.
    pub fn settled(&self, than: usize) -> Result<(usize, Vec<String>)> {
        eventually(PATIENCE, || {
            let (count, failed) = self.more(than)?;
            let (count, later) = self.more(count)?;
            ensure!(failed == later, "the load still fails");
            Ok((count, later))
        })
    }
}

/// The script of a client that asks a URL again and again, with a pause (`sleep` of busybox) or
/// none. It prints the HTTP code and curl's exit code of each answer.
pub fn asking(url: &str, pause: &str) -> String {
    format!(
        "while :; do curl --silent --max-time 10 --output /dev/null --write-out '%{{http_code}} %{{exitcode}}\n' {url}; {pause} done"
    )
}

/// What a client on node 1 that runs [`asking`] has printed so far.
pub fn answers(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Vec<String>> {
    log(cluster, 1, namespace, pod, "main")
}

/// What a pod's container has said, asked on its node.
pub fn log(
    cluster: &Cluster,
    node: u8,
    namespace: &str,
    pod: &str,
    container: &str,
) -> Result<Vec<String>> {
    let log = format!("cat /var/log/pods/{namespace}_{pod}_*/{container}/*.log");
    let log = cluster.node(node).run(["sh", "-c", &log])?;
    // TIME stdout F 200 0
    Ok(log.lines().filter_map(|line| Some(line.splitn(4, ' ').last()?.to_owned())).collect())
}
