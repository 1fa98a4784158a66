//! What agents believe of the cluster, and what knowing a large one costs.
#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    cluster::{
        Cluster, Mesh, PATIENCE,
        bulk::{Bulk, Request},
        shop::{IDLE, pod},
    },
    eventually,
};

/// Answers its own name.
fn server(name: &str) -> String {
    format!(
        "mkdir -p /tmp/www && echo {name} > /tmp/www/index.html && exec httpd -f -p 8080 -h /tmp/www"
    )
}

#[test]
fn of_a_large_cluster_and_of_one_with_a_liar_in_it() -> Result<()> {
    let cluster = Mesh::cluster()?;
    let enabled = json!({"nodemesh.dev/mesh": "enabled"});
    let mut near = pod("near", 1, &server("near"));
    near["metadata"]["labels"]["nodemesh.dev/mesh"] = json!("disabled");
    let (mut here, mut there) =
        (pod("here", 1, &server("here")), pod("there", 2, &server("there")));
    for pod in [&mut here, &mut there] {
        pod["metadata"]["labels"]["app"] = json!("cart");
    }
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": enabled}},
        pod("web", 1, IDLE), here, there, near, pod("lone", 2, &server("lone")),
    ]});
    cluster.kubectl_with(&objects.to_string(), ["apply", "-f", "-"])?;
    let mesh = Mesh::install(&cluster)?;
    mesh.wait_state(&[(1, "shop/web"), (1, "shop/here")], "enrolled")?;
    mesh.wait_state(&[(2, "shop/there"), (2, "shop/lone")], "enrolled")?;
    services_are_balanced_as_kubernetes_says(&cluster, &mesh)?;
    a_dispute_about_an_honest_announcement_never_means_plaintext(&cluster, &mesh)?;
    a_false_claim_is_told_and_ends(&cluster, &mesh)?;
    neither_a_false_boot_nor_a_deleted_node_takes_pods_out_of_the_mesh(&cluster, &mesh)?;
    a_thousand_nodes(&cluster, &mesh)?;
    cluster.down()
}

fn address(cluster: &Cluster, pod: &str) -> Result<String> {
    cluster.kubectl(["-n", "shop", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"])
}

fn curl(cluster: &Cluster, url: &str) -> Result<String> {
    let curl = ["curl", "--silent", "--show-error", "--insecure", "--max-time", "5", url];
    cluster.kubectl(["-n", "shop", "exec", "web", "--"].into_iter().chain(curl))
}

/// Which servers answer a service, by name, in 12 connections from a pod on node 1.
fn answers(cluster: &Cluster, service: &str) -> Result<BTreeSet<String>> {
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do curl --silent --show-error --max-time 5 http://{service}/ || exit 1; done"
    );
    let all = cluster.kubectl(["-n", "shop", "exec", "web", "--", "sh", "-c", &script])?;
    Ok(all.lines().map(str::to_owned).collect())
}

fn services_are_balanced_as_kubernetes_says(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    for (node, zone) in [("node1", "a"), ("node2", "b")] {
        cluster.kubectl(["label", "node", node, &format!("topology.kubernetes.io/zone={zone}")])?;
    }
    let service = |name: &str, more: Value| {
        let mut spec =
            json!({"selector": {"app": "cart"}, "ports": [{"port": 80, "targetPort": 8080}]});
        if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
            spec.extend(more);
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    };
    let there = address(cluster, "there")?;
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        service("any", json!({"type": "NodePort"})),
        service("sticky", json!({"sessionAffinity": "ClientIP"})),
        service("local", json!({"internalTrafficPolicy": "Local"})),
        service("zonal", json!({"trafficDistribution": "PreferClose"})),
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "by-hand", "namespace": "shop"},
            "spec": {"ports": [{"port": 80}]}},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "by-hand", "namespace": "shop", "labels": {"kubernetes.io/service-name": "by-hand"}},
            "ports": [{"port": 8080}], "endpoints": [{"addresses": [there]}]},
    ]});
    cluster.kubectl_with(&objects.to_string(), ["apply", "-f", "-"])?;
    let by = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let of_nobody_else = |name: &str| -> Result<()> {
        let flows = mesh.flows(1)?;
        let of_it = format!("shop/{name}");
        let carried = flows.iter().filter(|flow| flow.service.as_ref() == Some(&of_it));
        let last: Vec<_> = carried.rev().take(12).collect();
        let all_mtls = last.len() == 12 && last.iter().all(|flow| flow.is_mtls());
        ensure!(all_mtls, "{name}: {last:#?}");
        Ok(())
    };
    for (name, wanted) in [
        ("any", by(&["here", "there"])),
        ("local", by(&["here"])),
        ("zonal", by(&["here"])),
        ("by-hand", by(&["there"])),
    ] {
        // What EndpointSlices and MeshNodes say takes a moment.
        eventually(PATIENCE, || {
            let found = answers(cluster, name)?;
            ensure!(found == wanted, "{name}: {found:?}");
            of_nobody_else(name)
        })?;
    }
    eventually(PATIENCE, || {
        let first = answers(cluster, "sticky")?;
        ensure!(first.len() == 1 && answers(cluster, "sticky")? == first, "{first:?}");
        of_nobody_else("sticky")
    })?;
    let not_carried = mesh.status(1)?["not_carried"].clone();
    ensure!(
        not_carried[0]["service"] == "shop/any" && not_carried[0]["node_port"].is_u64(),
        "{not_carried:#}"
    );
    Ok(())
}

/// What status says is wrong, as text.
fn problems(mesh: &Mesh<'_>) -> Result<String> {
    Ok(mesh.status(1)?["problems"].to_string())
}

/// Applies objects that contradict what node 2 announces of the pod `lone`. Waits until node 1's
/// agent tells of it, and dials the pod: over mutual TLS as before.
fn contradicted(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
    lie: &[&str],
    objects: &Value,
    told: &[&str],
) -> Result<()> {
    cluster.kubectl_with(&objects.to_string(), lie.iter().copied())?;
    eventually(PATIENCE, || {
        let problems = problems(mesh)?;
        let missing = told.iter().find(|told| !problems.contains(**told));
        ensure!(missing.is_none(), "{missing:?} is not in {problems}");
        Ok(())
    })?;
    is_reached_over_mutual_tls(cluster, mesh)
}

/// The pod that no service leads to.
fn is_reached_over_mutual_tls(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let lone = address(cluster, "lone")?;
    let capture = cluster.node(1).capture()?;
    let secret = "secret-of-the-request";
    let answer = curl(cluster, &format!("http://{lone}:8080/?{secret}"))?;
    let wire = capture.stop()?;
    ensure!(answer.contains("lone"), "{answer}");
    ensure!(!wire.contains(secret), "plaintext: {:?}", wire.quote(secret));
    let flows = mesh.flows(1)?;
    let last = flows.iter().rev().find(|flow| flow.server.address.to_string() == lone);
    let last = last.context("no record of the dial")?;
    let identity = last.server.identity.as_deref().unwrap_or_default();
    ensure!(last.is_mtls() && identity.ends_with("/ns/shop/sa/default"), "{last:#?}");
    Ok(())
}

/// Objects that others may write: an account that may write `EndpointSlice`s, a node with its own
/// credentials, and another agent with its token.
fn a_dispute_about_an_honest_announcement_never_means_plaintext(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
) -> Result<()> {
    let lone = address(cluster, "lone")?;
    is_reached_over_mutual_tls(cluster, mesh)?;
    let announced = format!("{lone} is announced for pod shop/lone");
    let over_tls = "dialled over TLS as pod shop/lone on node2";

    let node3 = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node3"}});
    cluster.kubectl_with(&node3.to_string(), ["create", "-f", "-"])?;
    let addresses = json!({"status": {"addresses": [{"type": "InternalIP", "address": lone}]}});
    let patch = addresses.to_string();
    let own_status = ["patch", "node", "node3", "--subresource=status", "--type=merge", "-p"];
    let own_status = [&own_status[..], &[patch.as_str()]].concat();
    let told = [announced.as_str(), "Node node3 has it as a node's own address", over_tls];
    contradicted(cluster, mesh, &own_status, &Value::Null, &told)?;
    cluster.kubectl(["delete", "node", "node3"])?;

    let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "lie", "namespace": "default"},
        "ports": [{"port": 1}], "endpoints": [{"addresses": [lone], "nodeName": "node1"}]});
    let told = [announced.as_str(), "EndpointSlice default/lie", over_tls];
    contradicted(cluster, mesh, &["apply", "-f", "-"], &slice, &told)?;

    // The EndpointSlice above contradicts node 2's range of pod addresses, so ranges prove nothing
    // any more: only time decides between two claims. The liar's name comes before `node2`, so an
    // agent that went by names would believe it.
    let claim = json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "a-liar"},
        "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": [{"uid": "false", "namespace": "shop",
            "name": "liar", "serviceAccount": "liar", "addresses": [lone], "mode": "permissive",
            "excludePorts": "8080", "generation": 1}]}});
    let claimed = format!("{lone} is announced for pod shop/liar, but also for pod shop/lone");
    contradicted(cluster, mesh, &["create", "-f", "-"], &claim, &[&claimed, over_tls])?;

    // An agent that starts with both claims there knows from its predecessor which came first.
    mesh.kill_agent(1)?;
    eventually(PATIENCE, || {
        mesh.status_on_node(1)?;
        ensure!(problems(mesh)?.contains(&claimed), "{}", problems(mesh)?);
        Ok(())
    })?;
    mesh.wait_state(&[(1, "shop/web")], "enrolled")?;
    is_reached_over_mutual_tls(cluster, mesh)?;

    cluster.kubectl(["delete", "meshnode", "a-liar"])?;
    cluster.kubectl(["delete", "endpointslice", "lie"])?;
    nothing_is_wrong(mesh)?;
    is_reached_over_mutual_tls(cluster, mesh)
}

fn nothing_is_wrong(mesh: &Mesh<'_>) -> Result<()> {
    eventually(PATIENCE, || {
        let problems = problems(mesh)?;
        ensure!(problems == "[]", "still wrong: {problems}");
        Ok(())
    })
}

/// The MeshNode of node 2 claims other pods' addresses for its own pods.
fn a_false_claim_is_told_and_ends(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let api = cluster.kubectl([
        "config",
        "view",
        "--minify",
        "-o",
        "jsonpath={.clusters[0].cluster.server}",
    ])?;
    let outside =
        api.trim_start_matches("https://").rsplit_once(':').context("no port")?.0.to_owned();
    let near = address(cluster, "near")?;
    let near_url = format!("http://{near}:8080/");
    let node3 = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node3"},
        "spec": {"podCIDR": "10.250.3.0/24", "podCIDRs": ["10.250.3.0/24"]}});
    cluster.kubectl_with(&node3.to_string(), ["create", "-f", "-"])?;

    // Its agent would put it right at once.
    let agent = mesh.status(2)?["pid"].to_string();
    cluster.node(2).run(["kill", "-STOP", &agent])?;
    let before: Value =
        serde_json::from_str(&cluster.kubectl(["get", "meshnode", "node2", "-o", "json"])?)?;
    let mut pods = before["spec"]["pods"].as_array().cloned().context("no pods")?;
    let claims = [
        (outside.as_str(), "announcement_doubted", "it lies outside of"),
        ("10.250.3.7", "announcement_doubted", "it lies in the range of pod addresses of node3"),
        (near.as_str(), "disputed_address", "the object of pod shop/near"),
    ];
    for (number, (address, ..)) in claims.iter().enumerate() {
        pods.push(json!({"uid": format!("false-{number}"), "namespace": "shop", "name": "cart", "serviceAccount": "liar",
            "addresses": [address], "mode": "permissive", "generation": 1}));
    }
    let lie = json!({"spec": {"pods": pods}}).to_string();
    cluster.kubectl(["patch", "meshnode", "node2", "--type=merge", "-p", &lie])?;
    eventually(PATIENCE, || {
        let problems = mesh.status(1)?["problems"].clone();
        let problems = problems.as_array().context("no problems")?;
        for (address, code, why) in &claims {
            let told = format!("{address} is announced for pod shop/cart, but ");
            let is_told = |problem: &&Value| {
                let message = problem["message"].as_str().unwrap_or_default();
                problem["code"] == *code && message.contains(&told) && message.contains(why)
            };
            ensure!(problems.iter().any(|it| is_told(&it)), "{told}… {why}: {problems:#?}");
        }
        Ok(())
    })?;
    // A claimed address is not dialled in plaintext, whatever is there.
    let got = curl(cluster, &near_url);
    ensure!(got.is_err(), "a disputed address was dialled: {got:?}");
    let refused = mesh.flows(1)?;
    let refused = refused.iter().rev().find(|flow| flow.server.address.to_string() == near);
    ensure!(refused.is_some_and(|flow| flow.outcome == "disputed_address"), "{refused:#?}");
    ensure!(curl(cluster, &format!("{api}/version")).is_err(), "a claimed address was dialled");

    // Nor does deleting the MeshNode take its pods out of the mesh.
    cluster.kubectl(["delete", "meshnode", "node2"])?;
    eventually(PATIENCE, || {
        let problems = problems(mesh)?;
        ensure!(problems.contains("announcement_missing"), "{problems}");
        ensure!(problems.contains("node2 has not withdrawn"), "{problems}");
        Ok(())
    })?;
    let lone = format!("http://{}:8080/?secret-of-the-request", address(cluster, "lone")?);
    let capture = cluster.node(1).capture()?;
    ensure!(curl(cluster, &lone).is_err(), "its agent is stopped, and a pod was reached");
    ensure!(!capture.stop()?.contains("secret-of-the-request"), "plaintext");

    cluster.node(2).run(["kill", "-CONT", &agent])?;
    nothing_is_wrong(mesh)?;
    is_reached_over_mutual_tls(cluster, mesh)?;
    ensure!(curl(cluster, &near_url)?.contains("near"));
    curl(cluster, &format!("{api}/version"))?;
    // The same while the agent runs: an agent that has just handed over could write this.
    mesh.wait_state(&[(2, "shop/there")], "enrolled")?;
    let nothing = json!({"spec": {"pods": []}}).to_string();
    cluster.kubectl(["patch", "meshnode", "node2", "--type=merge", "-p", &nothing])?;
    eventually(PATIENCE, || {
        let pods =
            cluster.kubectl(["get", "meshnode", "node2", "-o", "jsonpath={.spec.pods[*].name}"])?;
        ensure!(pods.split(' ').any(|pod| pod == "there"), "{pods}");
        Ok(())
    })?;
    cluster.kubectl(["delete", "node", "node3"]).map(drop)
}

/// Attackers: an account that may patch `nodes/status`, and one that may delete Nodes.
fn neither_a_false_boot_nor_a_deleted_node_takes_pods_out_of_the_mesh(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
) -> Result<()> {
    let brief = pod("brief", 2, &server("brief"));
    cluster.kubectl_with(&brief.to_string(), ["apply", "-f", "-"])?;
    mesh.wait_state(&[(2, "shop/brief")], "enrolled")?;
    let node: Value =
        serde_json::from_str(&cluster.kubectl(["get", "node", "node2", "-o", "json"])?)?;
    cluster.stop_kubelet(2)?; // it would put the Node right
    let false_boot = json!({"status": {"nodeInfo": {"bootID": "false"}}}).to_string();
    let patch = ["patch", "node", "node2", "--subresource=status", "--type=merge", "-p"];
    cluster.kubectl(patch.into_iter().chain([&*false_boot]))?;
    mesh.wait_problem(1, "announcement_doubted", "its Node says that it is in boot \"false\"")?;
    is_reached_over_mutual_tls(cluster, mesh)?;

    cluster.kubectl(["delete", "node", "node2"])?;
    mesh.wait_problem(1, "announcement_missing", "node2 has not withdrawn the 3 pods")?;
    is_reached_over_mutual_tls(cluster, mesh)?;
    // The announced pods end with their objects, which an agent of another node asks for.
    cluster.kubectl(["-n", "shop", "delete", "pod", "brief", "--force", "--grace-period=0"])?;
    mesh.wait_problem(2, "announcement_not_written", "node2")?;
    mesh.wait_problem(1, "announcement_missing", "node2 has not withdrawn the 2 pods")?;
    is_reached_over_mutual_tls(cluster, mesh)?;

    let (labels, spec) = (&node["metadata"]["labels"], &node["spec"]);
    let again = json!({"apiVersion": "v1", "kind": "Node", "spec": spec,
        "metadata": {"name": "node2", "labels": labels}});
    cluster.kubectl_with(&again.to_string(), ["create", "-f", "-"])?;
    cluster.start_kubelet(2)?;
    [1, 2].into_iter().try_for_each(|node| mesh.wait_no_problem(node))?;
    is_reached_over_mutual_tls(cluster, mesh)
}

/// Announced by node 2.
const REMOTE: usize = 2;
const NODES: usize = 1_000;
const PODS_PER_NODE: usize = 30;
/// Announcements that change while traffic is measured.
const CHANGES: usize = 200;
/// For one change: its announcement, as the watch sends it, and what else the agent hears meanwhile
/// (leases, statuses of nodes). 30 pods make 7 KB; 10.6 KB were measured.
const MAX_BYTES_PER_CHANGE: u64 = 16 * 1024;
/// What 1,000 nodes with 30,000 pods may cost an agent, built for debugging. Measured 46 MB.
const MAX_MEMORY_KB: u64 = 70 * 1024;
/// The same of one that begins with them, and has parsed all lists at once. Measured 76 MB.
const MAX_MEMORY_AT_ONCE_KB: u64 = 115 * 1024;
/// How long an agent may take to know them once they are there. Measured 0.4 s; wide, since the
/// machine does other things too. What the agent does for them is counted besides.
const MAX_CATCH_UP: Duration = Duration::from_secs(5);

/// What an agent's processes and network say.
struct Cost {
    memory_kb: u64,
    received: u64,
    /// Entries of the kernel's tables that were written, and pods that were judged.
    writes: u64,
    judged: u64,
}

impl Cost {
    fn of_agent(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<Self> {
        let now = mesh.status_on_node(1)?;
        let count = |name: &str| now["counters"][name].as_u64().with_context(|| name.to_owned());
        let pid = now["pid"].to_string();
        let read = |file: &str| cluster.node(1).run(["cat", &format!("/proc/{pid}/{file}")]);
        let status = read("status")?;
        let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let memory = memory.and_then(|text| text.trim().split(' ').next()?.parse().ok());
        // It has a network of its own, and only the API server talks to it there.
        let net = read("net/dev")?;
        let eth0 = net.lines().find_map(|line| line.trim().strip_prefix("eth0:"));
        let received = eth0.and_then(|text| text.split_whitespace().next()?.parse().ok());
        Ok(Self {
            memory_kb: memory.context("no VmRSS")?,
            received: received.context("no eth0")?,
            writes: count("table_writes")?,
            judged: count("judged")?,
        })
    }
}

fn range(node: usize) -> String {
    format!("100.{}.{}.0/24", 64 + node / 256, node % 256)
}

/// `generation` is that of the first pod.
fn announced(node: usize, generation: usize) -> Value {
    let pods = (0..PODS_PER_NODE).map(|pod| {
        json!({
            "uid": format!("{node:08x}-0000-4000-8000-{pod:012x}"),
            "namespace": format!("team-{}", node % 50),
            "name": format!("service-{}-6f7c9d8b5c-x{pod:04}", node % 100),
            "serviceAccount": format!("service-{}", node % 100),
            "addresses": [format!("100.{}.{}.{}", 64 + node / 256, node % 256, pod + 2)],
            "mode": "permissive",
            "generation": if pod == 0 { generation } else { 1 },
        })
    });
    json!({"bootId": "b", "trustDomain": "cluster.local", "pods": pods.collect::<Vec<_>>()})
}

fn a_thousand_nodes(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let bulk = Bulk::of(cluster)?;
    let before = Cost::of_agent(cluster, mesh)?;
    let node = |node: usize| Request {
        method: "POST",
        path: "/api/v1/nodes".to_owned(),
        body: json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("fake-{node}")},
            "spec": {"podCIDR": range(node), "podCIDRs": [range(node)], "unschedulable": true}}),
    };
    let namespace = |namespace: usize| Request {
        method: "POST",
        path: "/api/v1/namespaces".to_owned(),
        body: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": format!("team-{namespace}")}}),
    };
    let mesh_nodes = "/apis/nodemesh.dev/v1alpha1/meshnodes";
    let mesh_node = |node: usize| Request {
        method: "POST",
        path: mesh_nodes.to_owned(),
        body: json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode",
            "metadata": {"name": format!("fake-{node}")}, "spec": announced(node, 1)}),
    };
    let since = Instant::now();
    let all = (0..50).map(namespace).chain((0..NODES).map(node)).chain((0..NODES).map(mesh_node));
    bulk.send(&all.collect::<Vec<_>>())?;
    let written = since.elapsed();
    let since = Instant::now();
    let known = NODES * PODS_PER_NODE + REMOTE;
    eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        ensure!(status["remote_peers"] == known, "{} of {known}", status["remote_peers"]);
        Ok(())
    })?;
    let caught_up = since.elapsed();
    let status = mesh.status_on_node(1)?;
    ensure!(status["problems"] == json!([]), "{:#}", status["problems"]);
    let after = Cost::of_agent(cluster, mesh)?;

    // Each change is one pod of one node.
    let change = |number: usize| Request {
        method: "PATCH",
        path: format!("{mesh_nodes}/fake-{}", number % NODES),
        body: json!({"spec": announced(number % NODES, 2 + number)}),
    };
    let since = Instant::now();
    bulk.send(&(0..CHANGES).map(change).collect::<Vec<_>>())?;
    let took = since.elapsed();
    // It comes after all of them.
    let last = Request {
        method: "PATCH",
        path: format!("{mesh_nodes}/fake-0"),
        body: json!({"spec": {"pods": []}}),
    };
    bulk.send(&[last])?;
    eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        ensure!(status["remote_peers"] == known - PODS_PER_NODE, "{}", status["remote_peers"]);
        Ok(())
    })?;
    let changed = Cost::of_agent(cluster, mesh)?;

    // One that begins has to list all of it.
    mesh.kill_agent(1)?;
    let since = Instant::now();
    let again = eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        let is_there = status["remote_peers"] == known - PODS_PER_NODE
            && status["knowledge"] == json!({"from": "source", "as_of": null, "age_s": 0});
        ensure!(is_there, "{} known: {:#}", status["remote_peers"], status["knowledge"]);
        Cost::of_agent(cluster, mesh)
    })?;
    let began = since.elapsed();
    // An agent that writes much waits long in between.
    let kept: u64 = eventually(PATIENCE, || {
        let file = "/run/nodemesh/world.jsonl";
        let nodes = cluster.node(1).run(["grep", "-c", "\"kind\":\"MeshNode\"", file])?;
        ensure!(nodes.trim() == (NODES + 2).to_string(), "{} MeshNodes on disk", nodes.trim());
        Ok(cluster.node(1).run(["stat", "-c", "%s", file])?.trim().parse()?)
    })?;
    let per_change = (changed.received - after.received) / CHANGES as u64;
    println!(
        "{NODES} nodes with {PODS_PER_NODE} announced pods each, of which an agent (debug build) knows:"
    );
    println!("  written in {written:.1?}, known {caught_up:.1?} later");
    println!(
        "  memory {} KB before, {} KB with them, {} KB in an agent that began with them",
        before.memory_kb, after.memory_kb, again.memory_kb
    );
    println!(
        "  received while they came: {} KB; by the one that began with them, in {began:.1?}: {} KB",
        (after.received - before.received) / 1024,
        (again.received - changed.received.min(again.received)) / 1024
    );
    println!("  {CHANGES} changes of one pod each in {took:.1?}: {per_change} bytes each");
    println!("  on disk: {} KB", kept / 1024);
    let (writes, judged) = (after.writes - before.writes, after.judged - before.judged);
    let later = (changed.writes - after.writes, changed.judged - after.judged);
    println!("  {writes} entries written, {judged} pods judged; for the changes {later:?}");
    // Each pod has one address and no port, so it takes one entry. Half as many again are for what
    // is written anew as nodes come.
    let pods = (NODES * PODS_PER_NODE) as u64;
    ensure!((pods..=pods * 3 / 2).contains(&writes), "{writes} entries written for {pods} pods");
    ensure!(caught_up < MAX_CATCH_UP, "known after {caught_up:?}");
    ensure!(after.memory_kb < before.memory_kb + MAX_MEMORY_KB, "{} KB", after.memory_kb);
    ensure!(again.memory_kb < before.memory_kb + MAX_MEMORY_AT_ONCE_KB, "{} KB", again.memory_kb);
    ensure!(per_change < MAX_BYTES_PER_CHANGE, "{per_change} bytes for each change");
    Ok(())
}
