//! Which pods the mesh finds in a real Kubernetes, and from when on: from their first process, also
//! if they ran before the agent did.
#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "figures are printed, and a panic is how a test fails"
)]

use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    cluster::{
        Cluster, Mesh, PATIENCE,
        shop::{self, IDLE, container, pod},
    },
    eventually, netns,
};

/// Stands in what servers answer.
const GREETING: &str = "greetings-from-a-pod";
/// Stands in what clients in pods send.
const SECRET: &str = "said-in-the-first-millisecond";
/// Stands in what clients outside the mesh send.
const KNOCK: &str = "knock-from-outside";

/// From a pod's first process to enrolled, for half of the pods and for nearly all, on two cores
/// that also run the cluster and other tests. The kubelet reports no address within the first
/// limit, so the agent must have found it by itself. Measured 28 ms and 95 ms; the aim is a p95 of
/// 100 ms, and that figure is printed.
const HALF_WITHIN: Duration = Duration::from_millis(150);
const NEARLY_ALL_WITHIN: Duration = Duration::from_secs(1);

/// The Jobs that are started at once, and how often with `--long`.
const JOBS: usize = 30;
const LONG_RUNS: usize = 3;

/// The pods that are measured.
const MEASURED: usize = 50;

/// A namespace in which everything is strict.
fn strict_namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name,
        "labels": {"nodemesh.dev/mesh": "enabled"},
        "annotations": {"nodemesh.dev/mode": "strict"},
    }})
}

/// Serves, and tells of each connection in its log.
fn server() -> String {
    format!(
        "mkdir -p /tmp/www; echo {GREETING} > /tmp/www/index.html; exec httpd -f -vv -p 8080 -h /tmp/www"
    )
}

/// Asks again and again from the first moment on: a line for each, `200 0` for what succeeds.
fn client(server: IpAddr) -> String {
    format!(
        "while :; do curl --silent --max-time 5 --output /dev/null --header 'Secret: {SECRET}' --write-out '%{{http_code}} %{{exitcode}}\\n' http://{server}:8080/; done"
    )
}

fn apply(cluster: &Cluster, items: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    cluster.kubectl_with(&list, ["apply", "-f", "-"]).map(drop)
}

/// As the kubelet has reported it, which is some time after the pod may talk.
fn address(cluster: &Cluster, pod: &str) -> Result<Ipv4Addr> {
    let of = ["-n", "shop", "get", "pod", pod, "-o", "jsonpath={.status.podIP}"];
    eventually(PATIENCE, || {
        cluster.kubectl(of)?.parse().with_context(|| format!("{pod}: no address"))
    })
}

fn curl(cluster: &Cluster, from: &str, server: Ipv4Addr) -> Result<String> {
    let url = format!("http://{server}:8080/");
    let command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "10", &url];
    cluster.kubectl(["-n", "shop", "exec", from, "--"].into_iter().chain(command))
}

fn log(cluster: &Cluster, node: u8, pod: &str, container: &str) -> Result<Vec<String>> {
    shop::log(cluster, node, "shop", pod, container)
}

#[test]
fn a_strict_pod_is_closed_from_its_first_instant_and_after_a_reboot_once_the_agent_is_up()
-> Result<()> {
    let cluster = Mesh::cluster()?;
    let mesh = a_node_that_is_not_ready_gets_no_pods(&cluster)?;

    // The addresses that node 1 gives next are dialled all the time, from before pods have them.
    let cart = address(&cluster, "cart")?;
    let next = address(&cluster, "first")?;
    let outside = Knocks::start(&cluster, next)?;
    let link = cluster.node(1).capture()?;
    let bridge = cluster.node(1).capture_pods(next)?;
    let early: Vec<String> = (1..=5).map(|number| format!("early-{number}")).collect();
    let pods = early.iter().map(|name| {
        let mut pod = pod(name, 1, &client(cart.into()));
        let containers = pod["spec"]["containers"].as_array_mut().expect("it has some");
        containers.push(container("server", &server()));
        pod
    });
    apply(&cluster, &pods.collect::<Vec<_>>())?;
    let mut addresses = Vec::new();
    for name in &early {
        eventually(PATIENCE, || {
            let said = log(&cluster, 1, name, "main")?;
            ensure!(said.iter().any(|line| line == "200 0"), "{name}: {said:?}");
            Ok(())
        })?;
        addresses.push(address(&cluster, name)?);
    }
    shop::ready(&cluster, "shop")?;
    ensure!(
        addresses.iter().all(|address| outside.dialled.contains(address)),
        "{addresses:?} were not dialled: {:?}",
        outside.dialled
    );
    for recording in [link.stop()?, bridge.stop()?] {
        for word in [SECRET, GREETING] {
            ensure!(!recording.contains(word), "{:?}", recording.quote(word));
        }
    }
    ensure!(outside.answers() == 0, "a pod outside the mesh was answered");
    let told: Vec<_> = mesh.flows(1)?;
    let of_early =
        |pod: &Option<String>| pod.as_deref().is_some_and(|pod| pod.starts_with("shop/early-"));
    let plain: Vec<_> = told
        .iter()
        .filter(|flow| of_early(&flow.client.pod) || of_early(&flow.server.pod))
        .filter(|flow| flow.security.kind == "plaintext")
        .collect();
    ensure!(plain.is_empty(), "{plain:#?}");
    let outsider = IpAddr::from(cluster.node(2).address);
    let mut refusals: BTreeMap<String, usize> = BTreeMap::new();
    for flow in told.iter().filter(|flow| flow.client.address == outsider) {
        *refusals.entry(flow.verdict.clone()).or_default() += 1;
    }
    println!("dials from outside were told: {refusals:?}");
    ensure!(
        !refusals.is_empty() && refusals.keys().all(|code| code.starts_with("refused_")),
        "{refusals:?}"
    );
    for name in &early {
        let failed: Vec<_> =
            log(&cluster, 1, name, "main")?.into_iter().filter(|line| line != "200 0").collect();
        ensure!(failed.is_empty(), "{name}: dials failed before it was in the mesh: {failed:?}");
        let served = log(&cluster, 1, name, "server")?;
        let foreign = served.iter().find(|line| line.contains(&outsider.to_string()));
        ensure!(foreign.is_none(), "{name} was reached: {foreign:?}");
    }

    a_reboot(&cluster, &mesh, &outside, &early)?;
    outside.stop();
    cluster.down()
}

/// Nodes with the start-up taint get no ordinary pods until their agents are ready. Leaves
/// `shop/cart`, a server on node 2, and `shop/first` on node 1.
fn a_node_that_is_not_ready_gets_no_pods(cluster: &Cluster) -> Result<Mesh<'_>> {
    let taint = ["taint", "nodes", "--all", "nodemesh.dev/not-ready:NoSchedule"];
    cluster.kubectl(taint.into_iter().chain(["team=a:PreferNoSchedule"]))?;
    let mut scheduled = pod("first", 1, IDLE);
    let spec = scheduled["spec"].as_object_mut().context("no spec")?;
    spec.remove("nodeName");
    spec.insert("nodeSelector".to_owned(), json!({"kubernetes.io/hostname": "node1"}));
    apply(cluster, &[strict_namespace("shop"), pod("cart", 2, &server()), scheduled])?;
    let of_first = |path: &str| cluster.kubectl(["-n", "shop", "get", "pod", "first", "-o", path]);
    eventually(PATIENCE, || {
        let why = of_first("jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}")?;
        ensure!(why.contains("untolerated taint"), "{why:?}");
        Ok(())
    })?;
    let mesh = Mesh::install(cluster)?;
    eventually(PATIENCE, || {
        let taints = cluster.kubectl([
            "get",
            "nodes",
            "-o",
            "jsonpath={range .items[*]}{.spec.taints[*].key} {end}",
        ])?;
        ensure!(taints.split_whitespace().eq(["team", "team"]), "{taints}");
        Ok(())
    })?;
    shop::ready(cluster, "shop")?;
    mesh.wait_state(&[(1, "shop/first"), (2, "shop/cart")], "enrolled")?;

    // The account that removes the taint may write nothing else.
    let token = cluster.kubectl(["-n", "nodemesh", "create", "token", "untaint"])?;
    let patch = |patch: Value| {
        let patch =
            ["patch", "node", "node1", "--type=merge", "-p", &patch.to_string()].map(str::to_owned);
        let argv: Vec<&str> = patch.iter().map(String::as_str).collect();
        cluster.kubectl_by_token(token.trim(), "", &argv)
    };
    for (wrong, field) in [
        (json!({"spec": {"taints": null}}), "taint"),
        (json!({"spec": {"unschedulable": true}}), "unschedulable"),
        (json!({"metadata": {"labels": {"a": "b"}}}), "labels"),
        (json!({"metadata": {"annotations": {"a": "b"}}}), "annotations"),
    ] {
        let refused = patch(wrong).unwrap_err().to_string();
        ensure!(refused.contains("untaint may") && refused.contains(field), "{refused}");
    }
    for (verb, what) in [
        ("delete", "nodes"),
        ("get", "secrets"),
        ("list", "secrets"),
        ("watch", "secrets"),
        ("patch", "pods"),
        ("create", "pods"),
    ] {
        ensure!(!mesh.account_may("untaint", verb, what)?, "{verb} {what}");
    }
    ensure!(mesh.account_may("untaint", "patch", "nodes")?, "an account's rights are not seen");
    Ok(mesh)
}

/// Strict pods run on node 1, and its agent is gone with everything it had put there, as after a
/// reboot.
fn a_reboot(cluster: &Cluster, mesh: &Mesh<'_>, outside: &Knocks, early: &[String]) -> Result<()> {
    let node = cluster.node(1);
    cluster.stop_kubelet(1)?; // or it would start the agent at once
    let pid = mesh.status_on_node(1)?["pid"].to_string();
    node.run(["kill", "-KILL", &pid])?;
    ensure!(outside.answers() == 0, "pins outlive the agent, and what they close");
    node.run(["sh", "-c", "rm -r /sys/fs/bpf/nodemesh* /run/nodemesh/*"])?;
    // The documented gap: pods that run before the agent does are open until it is up.
    eventually(PATIENCE, || {
        ensure!(outside.answers() > 0, "closed without a program of ours");
        Ok(())
    })?;
    cluster.start_kubelet(1)?;
    let names: Vec<String> = early.iter().map(|name| format!("shop/{name}")).collect();
    let pods: Vec<(u8, &str)> = names.iter().map(|name| (1, name.as_str())).collect();
    eventually(PATIENCE * 2, || mesh.status_on_node(1).map(drop))?;
    mesh.wait_state(&pods, "enrolled")?;
    // What is under way when a pod is enrolled may still be answered.
    eventually(PATIENCE, || {
        let before = outside.answers();
        thread::sleep(Duration::from_secs(1)); // longer than a knock waits for its answer
        ensure!(outside.answers() == before, "strict pods answer a pod outside the mesh");
        Ok(())
    })?;
    let before = outside.answers();
    let (link, bridge) = (node.capture()?, node.capture_pods(address(cluster, "first")?)?);
    for name in early {
        let asked = log(cluster, 1, name, "main")?.len();
        eventually(PATIENCE, || {
            let said = log(cluster, 1, name, "main")?;
            let succeeded = said.iter().skip(asked).any(|line| line == "200 0");
            ensure!(succeeded, "{name} reaches no pod: {:?}", said.last());
            Ok(())
        })?;
    }
    for recording in [link.stop()?, bridge.stop()?] {
        for word in [SECRET, GREETING] {
            ensure!(!recording.contains(word), "{:?}", recording.quote(word));
        }
    }
    ensure!(outside.answers() == before, "strict pods answer a pod outside the mesh");
    Ok(())
}

/// Dials pods' addresses from node 2 itself, again and again.
struct Knocks {
    dialled: Vec<Ipv4Addr>,
    answers: Arc<Mutex<usize>>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
}

impl Knocks {
    /// At the addresses that follow `after`.
    fn start(cluster: &Cluster, after: Ipv4Addr) -> Result<Self> {
        let dialled: Vec<Ipv4Addr> =
            (1..=16).map(|more| Ipv4Addr::from_bits(after.to_bits() + more)).collect();
        let (answers, stop) = (Arc::default(), Arc::<AtomicBool>::default());
        let start = |address: &Ipv4Addr| {
            let (netns, server) =
                (cluster.node(2).netns.clone(), SocketAddr::from((*address, 8080)));
            let (answers, stop) = (Arc::clone(&answers), Arc::clone(&stop));
            thread::Builder::new().spawn(move || knock(&netns, server, &answers, &stop))
        };
        let threads = dialled.iter().map(start).collect::<std::io::Result<_>>()?;
        Ok(Self { dialled, answers, stop, threads })
    }

    /// How often a client outside the mesh got an answer.
    fn answers(&self) -> usize {
        *self.answers.lock().expect("no thread panicked")
    }

    fn stop(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().expect("a thread panicked").expect("a namespace cannot be entered");
        }
    }
}

impl Drop for Knocks {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn knock(
    netns: &Path,
    server: SocketAddr,
    answers: &Mutex<usize>,
    stop: &AtomicBool,
) -> Result<()> {
    netns::inside(netns, || {
        while !stop.load(Ordering::Relaxed) {
            // A SYN that is dropped is sent again after a second: a new dial is sooner.
            let dialled = TcpStream::connect_timeout(&server, Duration::from_millis(50));
            let Ok(mut stream) = dialled else {
                // A shorter pause makes more packets than tcpdump can keep up with.
                thread::sleep(Duration::from_millis(25));
                continue;
            };
            drop(stream.set_read_timeout(Some(Duration::from_millis(500))));
            drop(stream.write_all(format!("GET / HTTP/1.0\r\nFrom: {KNOCK}\r\n\r\n").as_bytes()));
            let mut said = Vec::new();
            drop(stream.read_to_end(&mut said));
            if !said.is_empty() {
                *answers.lock().expect("no thread panicked") += 1;
            }
        }
    })
}

#[test]
fn pods_of_every_kind_are_found_or_it_is_said_why_not() -> Result<()> {
    let cluster = Mesh::cluster()?;
    apply(&cluster, &[strict_namespace("shop"), pod("cart", 2, &server()), pod("web", 1, IDLE)])?;
    shop::ready(&cluster, "shop")?;
    let mesh = Mesh::install(&cluster)?;
    mesh.wait_state(&[(1, "shop/web"), (2, "shop/cart")], "enrolled")?;
    let cart = address(&cluster, "cart")?;

    kinds(&cluster, &mesh, cart)?;
    mistakes(&cluster)?;
    a_sandbox_that_is_made_anew(&cluster, &mesh, cart)?;
    what_is_wrong_is_told(&cluster, &mesh)?;
    jobs(&cluster, &mesh, cart)?;
    soon_enough(&cluster, &mesh)?;
    cluster.down()
}

fn kinds(cluster: &Cluster, mesh: &Mesh<'_>, cart: Ipv4Addr) -> Result<()> {
    // A static pod: its cgroup has another name than its object.
    let fixed = pod("fixed", 1, &server()).to_string();
    let write = "printf %s \"$1\" > /etc/kubernetes/manifests/fixed.json";
    cluster.node(1).run(["sh", "-c", write, "sh", &fixed])?;

    let get = format!(
        "curl --fail --silent --retry 20 --retry-all-errors --retry-delay 1 http://{cart}:8080/"
    );
    let mut parts = pod("parts", 1, IDLE);
    let mut sidecar = container("sidecar", IDLE);
    sidecar["restartPolicy"] = json!("Always");
    parts["spec"]["initContainers"] = json!([container("init", &get), sidecar]);

    let mut host = pod("host", 1, IDLE);
    host["spec"]["hostNetwork"] = json!(true);

    let mut once = pod("once", 1, &get);
    once["spec"]["restartPolicy"] = json!("Never");

    // As seen from the node, a kernel of its own: no process has the pod's address.
    let mut alien = pod("alien", 1, "ip address flush dev eth0; exec sleep 100000");
    let admin = json!({"capabilities": {"add": ["NET_ADMIN"]}});
    alien["spec"]["containers"][0]["securityContext"] = admin.clone();
    alien["metadata"]["labels"]["nodemesh.dev/mesh"] = json!("disabled");

    // Takes another pod's address, as soon as it can.
    let take = format!(
        "ip address add {cart}/32 dev eth0 && ip address add 10.9.9.9/32 dev eth0 && echo taken && exec sleep 100000"
    );
    let mut thief = pod("thief", 1, &take);
    thief["spec"]["containers"][0]["securityContext"] = admin;

    apply(cluster, &[parts, host, once, alien, thief])?;
    mesh.wait_state(&[(1, "shop/fixed-node1"), (1, "shop/parts")], "enrolled")?;
    let fixed = mesh.state_of(1, "shop/fixed-node1")?;
    ensure!(fixed["mode"] == "strict", "{fixed:#}");
    let fixed = address(cluster, "fixed-node1")?;
    eventually(PATIENCE, || {
        ensure!(curl(cluster, "web", fixed)?.contains(GREETING));
        let flows = mesh.flows(1)?;
        let is = |pod: &Option<String>| pod.as_deref() == Some("shop/fixed-node1");
        ensure!(flows.iter().any(|flow| is(&flow.server.pod) && flow.is_mtls()));
        Ok(())
    })?;
    ensure!(log(cluster, 1, "parts", "init")?.concat().contains(GREETING));

    let is = |pod: &str, state: &str, code: &str| {
        eventually(PATIENCE, || {
            let found = mesh.state_of(1, pod)?;
            ensure!(found["state"] == state && found["code"] == code, "{found:#}");
            ensure!(found["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
            Ok(())
        })
    };
    is("shop/host", "not_enrolled", "host_network")?;
    is("shop/once", "not_enrolled", "completed")?;
    is("shop/alien", "not_enrolled", "pod_opted_out")?;
    let label = ["label", "pod", "alien", "nodemesh.dev/mesh-"];
    cluster.kubectl(["-n", "shop"].into_iter().chain(label))?;
    is("shop/alien", "held", "netns_not_found")?;

    let own = address(cluster, "thief")?;
    mesh.wait_state(&[(1, "shop/thief")], "enrolled")?;
    eventually(PATIENCE, || {
        let said = log(cluster, 1, "thief", "main")?;
        ensure!(said == ["taken"], "{said:?}");
        Ok(())
    })?;
    thread::sleep(Duration::from_secs(5)); // time to be looked at again
    let claimed = mesh.state_of(1, "shop/thief")?["addresses"].to_string();
    ensure!(claimed.contains(&own.to_string()), "{claimed}");
    ensure!(!claimed.contains(&cart.to_string()) && !claimed.contains("10.9.9.9"), "{claimed}");
    ensure!(curl(cluster, "web", cart)?.contains(GREETING), "a pod's address was taken from it");
    Ok(())
}

/// A setting that cannot be read, and an announcement of an address that another node's pod has.
fn mistakes(cluster: &Cluster) -> Result<()> {
    let parts = address(cluster, "parts")?;
    let slip = ["annotate", "pod", "parts", "nodemesh.dev/exclude-ports=http"];
    cluster.kubectl(["-n", "shop"].into_iter().chain(slip))?;
    let lie = json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "node9"},
        "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": [{
            "uid": "u9", "namespace": "shop", "name": "ghost", "serviceAccount": "default",
            "addresses": [parts.to_string()], "mode": "permissive", "generation": 1}]}});
    cluster.kubectl_with(&lie.to_string(), ["create", "-f", "-"]).map(drop)
}

/// As Kubernetes' users look for it: Events, and the log. `shop/alien` is held.
fn what_is_wrong_is_told(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let told = |namespace: &str, of: &str, reason: &str, words: &str| {
        let of = format!("--field-selector=involvedObject.name={of},type=Warning");
        let show = "jsonpath={range .items[*]}{.reason}: {.message} ({.reportingComponent}/{.reportingInstance}){\"\\n\"}{end}";
        eventually(PATIENCE, || {
            let events = cluster.kubectl(["-n", namespace, "get", "events", &of, "-o", show])?;
            let is_it = |line: &&str| {
                line.starts_with(reason) && line.contains(words) && line.contains("nodemesh.dev/")
            };
            let lines = events.lines().filter(is_it).count();
            ensure!(lines > 0, "{reason} {words}: {events}");
            Ok(lines)
        })
    };
    let held = told("shop", "alien", "Held", "netns_not_found")?;
    ensure!(held == 1, "{held} Events of one thing");
    told("shop", "parts", "InvalidSetting", "nodemesh.dev/exclude-ports")?;
    let speakers = told("default", "node9", "Announcement", "shop/ghost")?;
    ensure!(speakers <= 2, "{speakers} agents tell of it");
    let described = cluster.kubectl(["-n", "shop", "describe", "pod", "alien"])?;
    ensure!(described.contains("Held") && described.contains("netns_not_found"), "{described}");
    let log = cluster.kubectl(["-n", "nodemesh", "logs", &mesh.agent(1)?])?;
    let lines = log.lines().filter(|line| line.contains("shop/alien") && line.contains("Held"));
    ensure!(lines.count() == 1, "{log}");
    let counters = mesh.status(1)?["counters"].clone();
    let written = counters["events_written"].as_u64().unwrap_or(0);
    ensure!(written >= 2 && counters["events_failed"] == 0, "{counters:#}");
    cluster.kubectl(["delete", "meshnode", "node9"])?;
    let mended = ["annotate", "pod", "parts", "nodemesh.dev/exclude-ports-"];
    cluster.kubectl(["-n", "shop"].into_iter().chain(mended)).map(drop)
}

/// The sandbox's process ends: the kubelet makes another, with the same UID and another namespace.
fn a_sandbox_that_is_made_anew(cluster: &Cluster, mesh: &Mesh<'_>, cart: Ipv4Addr) -> Result<()> {
    let before = mesh.state_of(1, "shop/web")?;
    let uid = before["uid"].as_str().context("no uid")?;
    let first = processes(cluster, 1)?.get(uid).copied().context("web has no process")?;
    cluster.node(1).run(["kill", "-KILL", &first.pid.to_string()])?;
    eventually(PATIENCE * 2, || {
        let now = mesh.state_of(1, "shop/web")?;
        ensure!(now["uid"] == before["uid"], "another pod");
        ensure!(now["state"] == "enrolled" && now["netns"] != before["netns"], "{now:#}");
        ensure!(now["mode"] == "strict");
        Ok(())
    })?;
    let capture = cluster.node(1).capture()?;
    eventually(PATIENCE, || {
        ensure!(curl(cluster, "web", cart)?.contains(GREETING));
        Ok(())
    })?;
    ensure!(!capture.stop()?.contains(GREETING), "plaintext from a pod whose sandbox is new");
    Ok(())
}

/// Jobs whose first instruction is a dial: one request each, never repeated.
fn jobs(cluster: &Cluster, mesh: &Mesh<'_>, cart: Ipv4Addr) -> Result<()> {
    let waited = || {
        Ok::<_, anyhow::Error>(mesh.status(1)?["verdicts"]["redirect_held"].as_u64().unwrap_or(0))
    };
    let runs = if tests::is_long() { LONG_RUNS } else { 1 };
    let before = waited()?;
    for run in 0..runs {
        let names: Vec<String> = (0..JOBS).map(|number| format!("once-{run}-{number}")).collect();
        let job = |name: &String| {
            let get =
                format!("curl --silent --show-error --fail --max-time 30 http://{cart}:8080/");
            let mut template = pod(name, 1, &get);
            template["spec"]["restartPolicy"] = json!("Never");
            let metadata = json!({"labels": template["metadata"]["labels"]});
            let parts = json!({"metadata": metadata, "spec": template["spec"]});
            json!({"apiVersion": "batch/v1", "kind": "Job",
                "metadata": {"namespace": "shop", "name": name},
                "spec": {"backoffLimit": 0, "template": parts}})
        };
        apply(cluster, &names.iter().map(job).collect::<Vec<_>>())?;
        let ended = "jsonpath={range .items[*]}{.metadata.name} {.status.succeeded} {.status.failed}{\"\\n\"}{end}";
        eventually(PATIENCE * 2, || {
            let jobs = cluster.kubectl(["-n", "shop", "get", "jobs", "-o", ended])?;
            let own: Vec<&str> =
                jobs.lines().filter(|line| line.starts_with(&format!("once-{run}-"))).collect();
            ensure!(
                own.len() == JOBS && own.iter().all(|line| line.split(' ').nth(1) == Some("1")),
                "{own:?}"
            );
            Ok(())
        })?;
    }
    println!("{} of {} first dials had to wait", waited()? - before, runs * JOBS);
    Ok(())
}

/// How long it takes from a pod's first process until it is enrolled.
fn soon_enough(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let names: Vec<String> = (0..MEASURED).map(|number| format!("many-{number}")).collect();
    // Some at a time, as a rollout does.
    for some in names.chunks(5) {
        let pods: Vec<Value> = some.iter().map(|name| pod(name, 1, IDLE)).collect();
        apply(cluster, &pods)?;
        let all: Vec<String> = some.iter().map(|name| format!("shop/{name}")).collect();
        let all: Vec<(u8, &str)> = all.iter().map(|name| (1, name.as_str())).collect();
        mesh.wait_state(&all, "enrolled")?;
    }
    let started = processes(cluster, 1)?;
    let mut took = Vec::new();
    for pod in mesh.status(1)?["pods"].as_array().context("no pods")? {
        let name = pod["name"].as_str().unwrap_or_default();
        if !name.starts_with("many-") {
            continue;
        }
        let since: SystemTime = rfc3339(pod["since"].as_str().context("no time")?)?;
        let uid = pod["uid"].as_str().unwrap_or_default();
        let first = started.get(uid).with_context(|| format!("{name} has no process"))?;
        let after = since.duration_since(first.started);
        took.push(after.with_context(|| format!("{name} was enrolled before it started"))?);
    }
    took.sort();
    ensure!(took.len() == MEASURED, "{} pods", took.len());
    let at = |percent: usize| took[(MEASURED * percent).div_ceil(100) - 1];
    println!(
        "from a pod's first process to enrolled, {MEASURED} pods: p50 {:?}, p95 {:?}, max {:?}",
        at(50),
        at(95),
        at(100)
    );
    ensure!(at(50) <= HALF_WITHIN && at(95) <= NEARLY_ALL_WITHIN, "{took:?}");
    Ok(())
}

/// A pod's oldest process.
#[derive(Debug, Clone, Copy)]
struct First {
    /// As its node sees it.
    pid: u32,
    /// To 10 ms: the kernel counts in ticks.
    started: SystemTime,
}

/// The oldest process of each pod of a node, by the UID that its cgroup names.
fn processes(cluster: &Cluster, node: u8) -> Result<BTreeMap<String, First>> {
    let script = format!(
        "find {}/kubepods -name cgroup.procs | while read procs; do while read pid; do echo \"$procs $(cat /proc/$pid/stat)\"; done < $procs; done",
        tests::cgroup::mount().display()
    );
    let listed = cluster.node(node).run(["sh", "-c", &script])?;
    // One kernel, one clock: the node's uptime is this machine's. Like start times, it counts every
    // hundredth of a second that has begun, so measured times are rather too long than too short.
    let (now, uptime) = (SystemTime::now(), fs::read_to_string("/proc/uptime")?);
    let uptime: f64 = uptime.split(' ').next().context("no uptime")?.parse()?;
    let booted = now - Duration::from_secs_f64(uptime + 0.01);
    let mut found: BTreeMap<String, First> = BTreeMap::new();
    for line in listed.lines() {
        let Some((cgroup, stat)) = line.split_once(' ') else { continue };
        let uid = cgroup.split('/').find_map(|part| part.strip_prefix("pod"));
        let (Some(uid), Some((_, fields))) = (uid, stat.rsplit_once(") ")) else { continue };
        let pid: u32 = stat.split(' ').next().unwrap_or_default().parse()?;
        // Field 22 of proc_pid_stat(5), in hundredths of a second.
        let ticks: f64 = fields.split(' ').nth(19).context("no start")?.parse()?;
        let first = First { pid, started: booted + Duration::from_secs_f64(ticks / 100.0) };
        let known = found.entry(uid.to_owned()).or_insert(first);
        if (first.started, first.pid) < (known.started, known.pid) {
            *known = first;
        }
    }
    Ok(found)
}

/// A time as the agent prints it; `date` reads it.
fn rfc3339(text: &str) -> Result<SystemTime> {
    let date = std::process::Command::new("date").args(["-u", "+%s.%N", "-d", text]).output()?;
    let seconds: f64 = String::from_utf8(date.stdout)?.trim().parse()?;
    Ok(UNIX_EPOCH + Duration::from_secs_f64(seconds))
}
