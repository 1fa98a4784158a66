//! Nodemesh in a real Kubernetes: API server, kubelets, containerd, CNI and kube-proxy are the real
//! ones.
#![expect(clippy::print_stdout, reason = "figures are printed")]

// Tests begin in the order of their names: the longest, which mostly sleeps, is in here, and all
// others run beside it.
mod absence;
mod upkeep;

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    capture::Conn,
    cluster::{
        Cluster, Mesh, PATIENCE,
        shop::{self, GREETING, Load, address, container, curl, lives, server},
    },
    eventually,
    flow::Flow,
};

const WEB_AND_CART: [(u8, &str); 2] = [(1, "shop/web"), (2, "shop/cart")];

#[test]
fn one_apply_and_one_label() -> Result<()> {
    let cluster = Mesh::cluster()?;
    shop::open(&cluster)?;
    let before = lives(&cluster)?;
    let (nodes_before, objects_before) = (nodes(&cluster)?, cluster.objects()?);
    let mesh = Mesh::install(&cluster)?;
    let again = mesh.apply()?;
    ensure!(
        again.lines().all(|line| line.ends_with("unchanged")),
        "applied again, it changes something: {again}"
    );

    let cart = SocketAddr::new(address(&cluster, "cart")?, 8080);
    let get = || curl(&cluster, "web", "http://cart/");
    let capture = cluster.node(1).capture()?;
    ensure!(get()?.contains(GREETING));
    let recording = capture.stop()?;
    ensure!(recording.contains(GREETING), "unlabelled, it is not plaintext");

    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&WEB_AND_CART, "enrolled")?;
    mesh.wait_mtls(1, "shop/cart", || get().map(drop))?;
    let capture = cluster.node(1).capture()?;
    ensure!(get()?.contains(GREETING));
    ensure!(curl(&cluster, "near", "http://cart.shop.svc.cluster.local/")?.contains(GREETING));
    let recording = capture.stop()?;
    ensure!(!recording.contains(GREETING), "{:?}", recording.quote(GREETING));
    let to_cart = recording.to(cart);
    ensure!(
        !to_cart.is_empty()
            && to_cart.iter().all(|conn| conn.tls().is_some_and(|tls| tls.is_1_3())),
        "{to_cart:?}"
    );
    let flow = mesh
        .flows(2)?
        .into_iter()
        .rev()
        .find(|flow| flow.client.pod.as_deref() == Some("shop/web"));
    let flow = flow.context("cart's node knows no flow")?;
    ensure!(
        flow.client.identity.as_deref() == Some("spiffe://cluster.local/ns/shop/sa/default"),
        "{flow:#?}"
    );
    ensure!(lives(&cluster)? == before, "pods were restarted: {before}, {}", lives(&cluster)?);

    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh-"])?;
    mesh.wait_state(&WEB_AND_CART, "not_enrolled")?;
    let capture = cluster.node(1).capture()?;
    ensure!(get()?.contains(GREETING));
    ensure!(capture.stop()?.contains(GREETING), "unlabelled again, it is not plaintext");
    ensure!(lives(&cluster)? == before, "pods were restarted");

    // Taken away while pods are in the mesh, strict, and in use.
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    cluster.kubectl(["annotate", "namespace", "shop", "nodemesh.dev/mode=strict"])?;
    mesh.wait_strict(&WEB_AND_CART)?;
    let load = Load::start(&cluster, &mesh)?;
    load.more(0)?;
    ensure!(nodes(&cluster)? != nodes_before, "what the mesh changes is not looked at");
    ensure!(cluster.objects()? != objects_before, "what an apply makes is not looked at");
    everything_is_labelled(&cluster, &mesh, &load)?;
    mesh.delete()?;
    eventually(PATIENCE, || {
        let after = nodes(&cluster)?;
        ensure!(after == nodes_before, "before: {nodes_before:#?}\nafter: {after:#?}");
        Ok(())
    })?;
    nothing_is_left_of_it(&cluster, &objects_before)?;
    ensure!(get()?.contains(GREETING), "strict pods stay closed without a mesh");
    let (end, _) = load.more(0)?;
    load.more(end)?;
    cluster.down()
}

/// `kubectl label namespace --all`, strict as well: it neither adds the agents to the mesh nor
/// holds them, and the mesh goes on.
fn everything_is_labelled(cluster: &Cluster, mesh: &Mesh<'_>, load: &Load<'_>) -> Result<()> {
    let agents = [1, 2].map(|node| mesh.agent(node));
    let (begin, failed) = load.more(0)?;
    let all = ["namespace", "--all", "--overwrite"];
    cluster.kubectl(["label"].into_iter().chain(all).chain(["nodemesh.dev/mesh=enabled"]))?;
    cluster.kubectl(["annotate"].into_iter().chain(all).chain(["nodemesh.dev/mode=strict"]))?;
    for (node, agent) in (1..).zip(agents) {
        mesh.wait_problem(node, "mesh_namespace", "the mesh itself runs in namespace nodemesh")?;
        let agent = agent?.replace("pod/", "nodemesh/");
        let found = mesh.state_of(node, &agent)?;
        ensure!(found["state"] == "not_enrolled" && found["code"] == "mesh_namespace", "{found:#}");
    }
    // A held agent would not get through to the API server again.
    ensure!(mesh.sever(1)? > 0, "nothing to cut");
    let (end, failed_after) = load.more(begin)?;
    ensure!(failed_after.len() == failed.len(), "{failed_after:?}");
    mesh.wait_ready()?;
    let mine = ["namespace", "nodemesh", "--overwrite"];
    cluster.kubectl(["label"].into_iter().chain(mine).chain(["nodemesh.dev/mesh=disabled"]))?;
    [1, 2].into_iter().try_for_each(|node| mesh.wait_no_problem(node))?;
    let (_, failed_after) = load.more(end)?;
    ensure!(failed_after.len() == failed.len(), "{failed_after:?}");
    let of = "jsonpath={.items[*].status.containerStatuses[0].restartCount}";
    let restarts = cluster.kubectl([
        "-n",
        "nodemesh",
        "get",
        "pods",
        "-l",
        "app.kubernetes.io/name=mesh-agent",
        "-o",
        of,
    ])?;
    ensure!(restarts == "0 0", "agents were restarted: {restarts}");
    Ok(())
}

/// An uninstalled mesh has left no object: nothing of the cluster as a whole, no right, no secret.
fn nothing_is_left_of_it(cluster: &Cluster, before: &[String]) -> Result<()> {
    eventually(PATIENCE, || {
        let after = cluster.objects()?;
        let left: Vec<_> = after.iter().filter(|object| !before.contains(object)).collect();
        let gone: Vec<_> = before.iter().filter(|object| !after.contains(object)).collect();
        ensure!(left.is_empty() && gone.is_empty(), "left: {left:#?}, gone: {gone:#?}");
        Ok(())
    })
}

/// All that the mesh could leave on the nodes and in the shop's pods.
fn nodes(cluster: &Cluster) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for node in cluster.nodes() {
        for command in [
            "find /sys/fs/bpf -mindepth 1 | sort",
            // The kubelet makes this directory for the agents' volume, and leaves it.
            "ls -A /run/nodemesh 2>/dev/null || true",
            "find /run -mindepth 1 -maxdepth 1 ! -path /run/nodemesh | sort",
            "find /etc /opt /run /var/lib/cni /var/lib/kubelet -iname '*mesh*' ! -path /run/nodemesh ! -path '*/rootfs/*' 2>/dev/null | sort",
            "ip rule; ip -6 rule; ip route; ip -6 route | grep -v ' dev veth'", // a pod's own
            &format!("find {} -maxdepth 1 -type d | sort", tests::cgroup::mount().display()),
            "grep -r . /proc/sys/net/ipv4/conf /proc/sys/net/ipv6/conf 2>/dev/null | grep -v /veth | sort",
            "nft list tables",
        ] {
            found.push(format!("{}: {command}\n{}", node.name, node.run(["sh", "-c", command])?));
        }
    }
    for pod in ["web", "cart", "near"] {
        let setting = "/proc/sys/net/ipv4/ip_local_reserved_ports";
        let command = ["-n", "shop", "exec", pod, "--", "cat", setting];
        found.push(format!("{pod}: {}", cluster.kubectl(command)?));
    }
    Ok(found)
}

#[test]
fn services_and_workloads_of_every_kind() -> Result<()> {
    let cluster = Mesh::cluster()?;
    shop::open(&cluster)?;
    // A node whose init has mounted no bpffs, as some distributions do not: its agent mounts it.
    let bpffs =
        || cluster.node(2).run(["sh", "-c", "grep ' /sys/fs/bpf bpf ' /proc/mounts || true"]);
    cluster.node(2).run(["umount", "/sys/fs/bpf"])?;
    ensure!(bpffs()?.is_empty(), "there is another");
    let mesh = Mesh::install(&cluster)?;
    ensure!(bpffs()?.lines().count() == 1, "{}", bpffs()?);
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&[(1, "shop/web"), (2, "shop/cart"), (1, "shop/near")], "enrolled")?;
    let is = |path: &str| cluster.kubectl(["-n", "shop", "get", "service", "cart", "-o", path]);
    let cluster_ip = is("jsonpath={.spec.clusterIP}")?;
    let node_port = is("jsonpath={.spec.ports[0].nodePort}")?;
    let cart = address(&cluster, "cart")?;
    let urls = [
        format!("http://{cluster_ip}/"),
        "http://cart/".to_owned(),
        "http://headless:8080/".to_owned(),
        format!("http://{cart}:8080/"),
        "http://near/".to_owned(), // on the client's own node
    ];
    let carried_by = |node: u8, direction: &str, client: &str| -> Result<usize> {
        let is = |flow: &&Flow| {
            let pod = flow.client.pod.as_deref().unwrap_or_default();
            flow.direction == direction && flow.is_mtls() && pod.starts_with(client)
        };
        Ok(mesh.flows(node)?.iter().filter(is).count())
    };
    let carries = |url: &str| {
        let told = eventually(PATIENCE, || {
            let before = carried_by(1, "outbound", "shop/web")?;
            ensure!(curl(&cluster, "web", url)?.contains(GREETING));
            ensure!(carried_by(1, "outbound", "shop/web")? > before, "not over mutual TLS");
            Ok(())
        });
        told.with_context(|| url.to_owned())
    };
    for url in &urls {
        carries(url)?;
    }
    // From outside the cluster: not from the mesh, and let in by a permissive pod.
    for node in cluster.nodes() {
        let url = format!("http://{}:{node_port}/", node.address);
        let outside = ["curl", "--silent", "--fail", "--max-time", "10", &url];
        let got = cluster.control().place()?.run(outside)?.success()?;
        ensure!(got.contains(GREETING), "{url}: {got}");
    }

    // A strict Job: what it says goes over mutual TLS or not at all.
    let workloads = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIP": "None", "selector": {"app": "db"}}},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once", "namespace": "shop"}, "spec": {
            "template": {"metadata": {"labels": {"app": "once"}, "annotations": {"nodemesh.dev/mode": "strict"}}, "spec": {"restartPolicy": "OnFailure",
                "containers": [container("main", "curl --fail --silent --retry 5 --retry-all-errors http://cart/")]}}}},
        {"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db", "namespace": "shop"}, "spec": {
            "serviceName": "db", "replicas": 2, "selector": {"matchLabels": {"app": "db"}},
            "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"terminationGracePeriodSeconds": 0,
                "containers": [container("main", &server())]}}}},
    ]});
    cluster.kubectl_with(&workloads.to_string(), ["apply", "-f", "-"])?;
    let done = ["-n", "shop", "wait", "--for=condition=Complete", "job/once", "--timeout=120s"];
    cluster.kubectl(done)?;
    let rolled = ["-n", "shop", "rollout", "status", "statefulset/db", "--timeout=120s"];
    cluster.kubectl(rolled)?;
    ensure!(carried_by(2, "inbound", "shop/once-")? > 0, "the Job was not carried");
    carries("http://db-1.db:8080/")?;

    over_ipv6(&cluster, &mesh)?;

    let owner = "jsonpath={.metadata.ownerReferences[0].kind}/{.metadata.ownerReferences[0].name}";
    let owner = cluster.kubectl(["get", "meshnode", "node1", "-o", owner])?;
    ensure!(owner == "Node/node1", "{owner}");
    // Everything above was done with these alone: BPF, NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_CHROOT,
    // SYS_PTRACE; no PERFMON.
    let pid = mesh.status_on_node(1)?["pid"].to_string();
    let rights = cluster.node(1).run(["grep", "CapEff", &format!("/proc/{pid}/status")])?;
    ensure!(rights.trim().ends_with("00000080002c3000"), "{rights}");
    cluster.down()
}

/// By pods' own addresses, and by services with both families or IPv6 alone; on the client's node
/// and across.
fn over_ipv6(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let service = |name: &str, of: &str, families: Value| {
        let mut spec =
            json!({"selector": {"app": of}, "ports": [{"port": 80, "targetPort": 8080}]});
        if let (Some(spec), Value::Object(families)) = (spec.as_object_mut(), families) {
            spec.extend(families);
        }
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
    };
    let only = || json!({"ipFamilyPolicy": "SingleStack", "ipFamilies": ["IPv6"]});
    let services = json!({"apiVersion": "v1", "kind": "List", "items": [
        service("cart-dual", "cart", json!({"ipFamilyPolicy": "RequireDualStack"})),
        service("near-dual", "near", json!({"ipFamilyPolicy": "PreferDualStack"})),
        service("cart-six", "cart", only()), service("near-six", "near", only()),
        service("cart-names", "cart", json!({"clusterIP": "None", "ipFamilyPolicy": "RequireDualStack"})),
    ]});
    cluster.kubectl_with(&services.to_string(), ["apply", "-f", "-"])?;
    let six = |what: &str, path: &str| -> Result<Ipv6Addr> {
        let path = format!("jsonpath={{{path}}}");
        let told = cluster.kubectl(["-n", "shop", "get", what, "-o", &path])?;
        told.parse().with_context(|| format!("{what}: {told:?} is no address"))
    };
    let of_pod = |name: &str| six(&format!("pod/{name}"), ".status.podIPs[1].ip");
    let of_service = |name: &str| six(&format!("service/{name}"), ".spec.clusterIPs[1]");
    let (cart, near) = (of_pod("cart")?, of_pod("near")?);
    let urls = [
        ("shop/cart", format!("http://[{cart}]:8080/")),
        ("shop/near", format!("http://[{near}]:8080/")),
        ("shop/cart", format!("http://[{}]/", of_service("cart-dual")?)),
        ("shop/near", format!("http://[{}]/", of_service("near-dual")?)),
        ("shop/cart", "http://cart-dual/".to_owned()),
        ("shop/cart", "http://cart-six/".to_owned()),
        ("shop/near", "http://near-six/".to_owned()),
        ("shop/cart", "http://cart-names:8080/".to_owned()),
    ];
    let flows_to = |server: &str| -> Result<usize> {
        let is = |flow: &&Flow| {
            flow.direction == "outbound"
                && flow.is_mtls()
                && flow.client.pod.as_deref() == Some("shop/web")
                && flow.server.pod.as_deref() == Some(server)
                && flow.original_destination.is_ipv6()
                && flow.server.address.is_ipv6()
        };
        Ok(mesh.flows(1)?.iter().filter(is).count())
    };
    let carries = |server: &str, url: &str| -> Result<()> {
        let before = flows_to(server)?;
        let get = ["curl", "-6", "--silent", "--show-error", "--fail", "--max-time", "10", url];
        let got = cluster.kubectl(["-n", "shop", "exec", "web", "--"].into_iter().chain(get))?;
        ensure!(got.contains(GREETING), "{got}");
        ensure!(flows_to(server)? > before, "not over mutual TLS and IPv6");
        Ok(())
    };
    for (server, url) in &urls {
        let told = eventually(PATIENCE, || carries(server, url)); // the service is new
        told.with_context(|| url.clone())?;
    }
    let capture = cluster.node(1).capture()?;
    for (server, url) in &urls {
        carries(server, url).with_context(|| url.clone())?;
    }
    let recording = capture.stop()?;
    ensure!(!recording.contains(GREETING), "{:?}", recording.quote(GREETING));
    let to_cart = recording.to(SocketAddr::from((cart, 8080)));
    let is_1_3 = |conn: &&Conn| conn.tls().is_some_and(|tls| tls.is_1_3());
    let older = recording.older().iter().filter(|conn| conn.server == (cart, 8080).into());
    let kept: Vec<_> = older.collect();
    ensure!(to_cart.len() + kept.len() > 0 && to_cart.iter().all(is_1_3), "{to_cart:?}");
    ensure!(kept.iter().all(|session| session.is_sealed()), "{kept:?}");

    let from_outside = || {
        let url = format!("http://[{cart}]:8080/");
        cluster.node(1).place()?.run(["curl", "--silent", "--show-error", "--max-time", "5", &url])
    };
    ensure!(from_outside()?.success()?.contains(GREETING), "permissive is closed");
    let mode = |is: &str| cluster.kubectl(["-n", "shop", "annotate", "pod", "cart", is]);
    mode("nodemesh.dev/mode=strict")?;
    mesh.wait_strict(&[(2, "shop/cart")])?;
    let refused = from_outside()?;
    // curl: the connection could not be made.
    ensure!(refused.status.code() == Some(7), "strict is not closed: {refused}");
    let is_refusal =
        |flow: &Flow| flow.outcome == "refused_strict" && flow.server.address == IpAddr::from(cart);
    ensure!(mesh.flows(2)?.iter().any(is_refusal), "no record of the refusal");
    carries("shop/cart", "http://cart-six/")?;
    mode("nodemesh.dev/mode-").map(drop)
}

#[test]
fn an_agent_speaks_for_its_own_node_alone() -> Result<()> {
    const NAMESPACE: &str = "elsewhere";
    let cluster = Mesh::cluster()?;
    // In any namespace: the policies must not go by a name that users may change.
    let mesh = Mesh::install_in(&cluster, NAMESPACE)?;
    let token = |node| {
        let agent = mesh.agent(node)?;
        let bound = agent.strip_prefix("pod/").context("not a pod")?;
        cluster.kubectl([
            "-n",
            NAMESPACE,
            "create",
            "token",
            "mesh-agent",
            "--bound-object-kind=Pod",
            "--bound-object-name",
            bound,
        ])
    };
    let token = token(1)?;
    let mesh_node = |name: &str| {
        json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": name},
            "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": []}})
        .to_string()
    };
    // The administrator's kubeconfig has a certificate; a token is believed only without one.
    let as_agent = |input: &str, argv: &[&str]| cluster.kubectl_by_token(token.trim(), input, argv);
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=test", "-f", "-"];
    for other in ["node2", "node3"] {
        let refused = as_agent(&mesh_node(other), &apply).unwrap_err().to_string();
        let why = format!("the agent of node node1 may not write the MeshNode {other}");
        ensure!(refused.contains(&why), "{refused}");
    }
    let refused = as_agent("", &["delete", "meshnode", "node2"]).unwrap_err().to_string();
    ensure!(refused.contains("may not write the MeshNode node2"), "{refused}");
    as_agent(&mesh_node("node1"), &apply)?;
    // A token without a pod names no node.
    let unbound = cluster.kubectl(["-n", NAMESPACE, "create", "token", "mesh-agent"])?;
    let refused = cluster.kubectl_by_token(unbound.trim(), &mesh_node("node1"), &apply);
    let refused = refused.unwrap_err().to_string();
    ensure!(refused.contains("names no node"), "{refused}");
    // The account that removes the start-up taint may change nothing else of nodes.
    let untaint = cluster.kubectl(["-n", NAMESPACE, "create", "token", "untaint"])?;
    let patch = ["patch", "node", "node1", "-p", r#"{"metadata": {"labels": {"a": "b"}}}"#];
    let refused = cluster.kubectl_by_token(untaint.trim(), "", &patch).unwrap_err().to_string();
    ensure!(refused.contains("untaint may not write metadata.labels"), "{refused}");
    // Users write what their rights allow, and a MeshNode is deleted with its Node.
    cluster.kubectl_with(&mesh_node("of-no-node"), ["create", "-f", "-"])?;
    cluster.kubectl(["delete", "meshnode", "of-no-node"])?;
    // An agent says what is wrong in its own name, and changes nothing that other agents say.
    let event = |name: &str, controller: &str, instance: &str| {
        json!({"apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": name, "namespace": "default"}, "eventTime": "2026-01-01T00:00:00.000000Z",
            "reportingController": controller, "reportingInstance": instance,
            "action": "Enrol", "reason": "Held", "type": "Warning", "note": "x",
            "regarding": {"apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "name": "node1"}})
        .to_string()
    };
    let ours = "nodemesh.dev/mesh-agent";
    let create = ["create", "--validate=false", "-f", "-"];
    as_agent(&event("own", ours, "node1"), &create)?;
    for (controller, instance) in [(ours, "node2"), ("kubelet", "node1")] {
        let refused = as_agent(&event("other", controller, instance), &create).unwrap_err();
        ensure!(refused.to_string().contains("signed as those of its own node"), "{refused}");
    }
    cluster.kubectl_with(&event("kubelets", "kubelet", "node1"), ["create", "-f", "-"])?;
    let changed = event("kubelets", "kubelet", "node1").replace("\"Held\"", "\"Forged\"");
    for (change, why) in [
        (event("kubelets", ours, "node1"), "field is immutable"),
        (changed, "is immutable"),
        (event("kubelets", "kubelet", "node1"), "signed as those of its own node"),
    ] {
        let refused = as_agent(&change, &apply).unwrap_err().to_string();
        ensure!(refused.contains(why), "{refused}");
    }
    // It may not write anything else, nor read secrets.
    for (verb, what) in [
        ("patch", "nodes"),
        ("patch", "pods"),
        ("get", "secrets"),
        ("list", "secrets"),
        ("watch", "secrets"),
        ("create", "secrets"),
        ("create", "pods"),
        ("create", "pods/exec"),
        ("create", "serviceaccounts/token"),
        // Of the older API group, whose events are not signed.
        ("create", "events"),
        ("delete", "events"),
    ] {
        ensure!(!mesh.account_may("mesh-agent", verb, what)?, "an agent may {verb} {what}");
    }
    ensure!(
        mesh.account_may("mesh-agent", "watch", "pods")?,
        "rights in all namespaces are not seen"
    );
    // By a Role of one namespace, for one name: a right to the CA's key would look like this.
    ensure!(mesh.account_may("make-ca", "get", "secrets")?, "rights by a RoleBinding are not seen");
    cluster.down()
}

#[test]
fn agents_are_replaced_under_load() -> Result<()> {
    let cluster = Mesh::cluster()?;
    shop::open(&cluster)?;
    let mesh = Mesh::install(&cluster)?;
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&WEB_AND_CART, "enrolled")?;
    let load = Load::start(&cluster, &mesh)?;
    let (start, failed_before) = load.more(0)?;
    let agents = [mesh.agent(1)?, mesh.agent(2)?];
    let since = Instant::now();
    cluster.kubectl(["-n", "nodemesh", "rollout", "restart", "ds/mesh-agent"])?;
    mesh.wait_ready()?;
    let ready = since.elapsed();
    // The old agents drain, and then take down what the new ones must not miss.
    mesh.wait_gone(&agents)?;
    let gone = since.elapsed();
    let (end, _) = load.more(start)?;
    let (end, failed) = load.more(end)?;
    println!(
        "{} requests while both agents were replaced, the new ones ready after {ready:.1?} and the old ones gone after {gone:.1?}; {} failed",
        end - start,
        failed.len() - failed_before.len()
    );
    ensure!(failed == failed_before, "{failed:?}");
    ensure!(mesh.agent(1)? != agents[0] && mesh.agent(2)? != agents[1], "the same agents");
    let flows = mesh.flows(2)?;
    // The open one may be in its handshake.
    let ended: Vec<&Flow> = flows.iter().filter(|flow| flow.outcome != "open").collect();
    let plain: Vec<_> = ended.iter().filter(|flow| !flow.is_mtls()).collect();
    ensure!(ended.len() > 50 && plain.is_empty(), "{} flows, of these {plain:#?}", ended.len());
    killed_under_load(&cluster, &mesh, &load, end)?;
    cluster.down()
}

/// The kubelet starts a killed agent again. Until then dials into the mesh are refused; nothing
/// goes in plaintext instead.
fn killed_under_load(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
    load: &Load<'_>,
    before: usize,
) -> Result<()> {
    let (start, failed_before) = load.more(before)?;
    let restarts = || -> Result<String> {
        let agent = mesh.agent(1)?;
        let of = "jsonpath={.status.containerStatuses[0].restartCount}";
        cluster.kubectl(["-n", "nodemesh", "get", &agent, "-o", of])
    };
    let restarted_before = restarts()?;
    let capture = cluster.node(1).capture()?;
    let since = Instant::now();
    mesh.kill_agent(1)?;
    // Several in a row, so that what a dying agent still did does not count.
    let end = eventually(PATIENCE, || {
        let answers = load.answers()?;
        let failed = answers.iter().filter(|answer| *answer != "200 0").count();
        let last = answers.iter().rev().take(20);
        ensure!(failed > failed_before.len(), "no failure has been noticed yet");
        ensure!(last.clone().count() == 20 && last.clone().all(|answer| answer == "200 0"));
        Ok(answers.len())
    })?;
    let took = since.elapsed();
    let recording = capture.stop()?;
    ensure!(!recording.contains(GREETING), "{:?}", recording.quote(GREETING));
    ensure!(restarts()? != restarted_before, "the agent was not started again");
    let (_, failed) = load.more(end)?;
    println!(
        "an agent killed under load: {} of {} requests failed, all right again after {took:.1?}",
        failed.len() - failed_before.len(),
        end - start
    );
    Ok(())
}
