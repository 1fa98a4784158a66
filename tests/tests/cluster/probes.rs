//! What a strict pod takes in plaintext although it is strict, in a real Kubernetes: its own node's
//! kubelet, known by its sockets and not by its address, and whatever comes to ports that an
//! annotation leaves open.
#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::{io::Write as _, net::IpAddr};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    PORT, Pair, PodSpec,
    cluster::{
        Cluster, Mesh, PATIENCE,
        shop::{self, IDLE, container},
    },
    eventually,
    flow::Flow,
    masquerade::{Masquerade, Ports},
    objects::MODE,
    probe::{self, Conn, DialSpec, End, Event, Talk},
    scenario,
};

/// Ports of the strict pod: one that only the kubelet and the mesh reach, one that is left open
/// later.
const APP: u16 = 8080;
const METRICS: u16 = 9102;
const GRPC: u16 = 9000;

const PERMISSIVE_PORTS: &str = "nodemesh.dev/permissive-ports";

/// A port of the nodes' own range, from which nothing is dialled.
const FORGED_PORT: u16 = 40_001;

/// How many times in a second the kubelet probes `shop/guarded` over the network: see [`guarded`].
const PROBES_PER_SECOND: u64 = 5;

/// How many of them may fail until the agent has found another kubelet, or one that has moved to
/// another cgroup. It looks every two seconds. The third second is for a busy machine.
const UNTIL_FOUND: u64 = 3 * PROBES_PER_SECOND;

/// Tells in its log what it was asked for.
fn server(port: u16) -> String {
    format!(
        "mkdir -p /tmp/www && cd /tmp/www && echo hello | tee index.html > hook && exec httpd -f -vv -p {port} -h /tmp/www"
    )
}

/// Often, but patient with a busy machine: a pod that is refused for good still fails.
fn probe_of(handler: Value, failures: u32) -> Value {
    let mut probe = json!({"periodSeconds": 1, "timeoutSeconds": 5, "failureThreshold": failures});
    if let (Some(probe), Value::Object(handler)) = (probe.as_object_mut(), handler) {
        probe.extend(handler);
    }
    probe
}

fn pod(namespace: &str, name: &str, node: u8, more: Value) -> Value {
    let mut spec = json!({
        "nodeName": format!("node{node}"),
        "terminationGracePeriodSeconds": 0,
        "containers": [container("main", IDLE)],
    });
    if let (Some(spec), Value::Object(more)) = (spec.as_object_mut(), more) {
        spec.extend(more);
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

/// Strict from its first instant, with probes of all kinds, and a hook.
fn guarded() -> Value {
    let http = || json!({"httpGet": {"path": "/", "port": APP}});
    let mut app = container("app", &server(APP));
    app["startupProbe"] = probe_of(json!({"tcpSocket": {"port": APP}}), 60);
    app["readinessProbe"] = probe_of(http(), 30);
    app["livenessProbe"] = probe_of(http(), 30);
    // The next container begins when this one serves, and its hook asks this one.
    let serves = format!("until curl --silent --fail http://127.0.0.1:{APP}/; do sleep 0.1; done");
    app["lifecycle"] = json!({"postStart": {"exec": {"command": ["sh", "-c", serves]}}});
    let mut metrics = container("metrics", &server(METRICS));
    metrics["startupProbe"] = probe_of(json!({"exec": {"command": ["true"]}}), 60);
    metrics["readinessProbe"] = probe_of(json!({"exec": {"command": ["true"]}}), 30);
    metrics["livenessProbe"] = probe_of(json!({"tcpSocket": {"port": METRICS}}), 30);
    metrics["lifecycle"] = json!({"postStart": hook()});
    let mut grpc = container("grpc", &format!("exec mesh-probe health 0.0.0.0:{GRPC}"));
    let check = || json!({"grpc": {"port": GRPC}});
    grpc["startupProbe"] = probe_of(check(), 60);
    grpc["readinessProbe"] = probe_of(check(), 30);
    grpc["livenessProbe"] = probe_of(check(), 30);
    pod("shop", "guarded", 1, json!({"containers": [app, metrics, grpc]}))
}

/// Permissive, and called only by the kubelet.
fn watched() -> Value {
    let mut app = container("app", &server(APP));
    app["readinessProbe"] = probe_of(json!({"httpGet": {"path": "/", "port": APP}}), 30);
    let mut pod = pod("shop", "watched", 1, json!({"containers": [app]}));
    pod["metadata"]["annotations"] = json!({"nodemesh.dev/mode": "permissive"});
    pod
}

/// Asks the server on [`APP`]; a kubelet asks once.
fn hook() -> Value {
    json!({"httpGet": {"path": "/hook", "port": APP}})
}

/// How often a server's container was asked for what only hooks ask for.
fn hooks_seen(cluster: &Cluster, pod: &str, container: &str) -> Result<usize> {
    let log = shop::log(cluster, 1, "shop", pod, container)?;
    Ok(log.iter().filter(|line| line.ends_with("url:/hook")).count())
}

/// Probes of a pod, as its kubelet counts them.
#[derive(Debug, Default)]
struct Probed {
    passed: u64,
    failed: u64,
}

/// `shop/guarded`, strict, on node 1, with `shop/web` in the mesh on node 2. Outside the mesh:
/// `other/host` with the network of node 1, `other/stranger` on node 1, `other/far` on node 2.
struct Stage<'a> {
    cluster: &'a Cluster,
    mesh: Mesh<'a>,
    address: IpAddr,
}

impl<'a> Stage<'a> {
    fn new(cluster: &'a Cluster) -> Result<Self> {
        let mesh = Mesh::install(cluster)?;
        let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
            "labels": {"nodemesh.dev/mesh": "enabled"}, "annotations": {"nodemesh.dev/mode": "strict"}}});
        let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
            shop, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "other"}},
            guarded(), watched(), pod("shop", "web", 2, json!({})), pod("other", "stranger", 1, json!({})),
            pod("other", "far", 2, json!({})), pod("other", "host", 1, json!({"hostNetwork": true})),
        ]});
        cluster.kubectl_with(&objects.to_string(), ["apply", "-f", "-"])?;
        for namespace in ["shop", "other"] {
            let wait = ["wait", "--for=condition=Ready", "pod", "--all", "--timeout=120s"];
            let waited = cluster.kubectl(["-n", namespace].into_iter().chain(wait));
            waited.with_context(|| format!("{:#}", mesh.status(1).unwrap_or_default()))?;
        }
        mesh.wait_state(&[(1, "shop/guarded"), (2, "shop/web")], "enrolled")?;
        let of = ["-n", "shop", "get", "pod", "guarded", "-o", "jsonpath={.status.podIP}"];
        let address = cluster.kubectl(of)?.parse().context("no address")?;
        Ok(Self { cluster, mesh, address })
    }

    fn verdicts(&self, code: &str) -> Result<u64> {
        self.verdicts_of("guarded", code)
    }

    fn verdicts_of(&self, pod: &str, code: &str) -> Result<u64> {
        let status = self.mesh.status(1)?;
        Ok(status["pod_verdicts"][format!("shop/{pod}")][code].as_u64().unwrap_or(0))
    }

    /// Probes do not count as plaintext: users watch that count before they make a pod strict.
    fn probes_are_no_plaintext(&self) -> Result<()> {
        self.mesh.wait_state(&[(1, "shop/watched")], "enrolled")?;
        let before = self.verdicts_of("watched", "inbound_plaintext")?; // a probe may be on its way
        eventually(PATIENCE, || {
            let probes = self.verdicts_of("watched", "inbound_kubelet")?;
            let counted = || self.mesh.status(1).unwrap_or_default()["pod_verdicts"].clone();
            ensure!(probes > 5, "{probes} probes: {:#}", counted());
            Ok(())
        })?;
        let plaintext = self.verdicts_of("watched", "inbound_plaintext")?;
        ensure!(plaintext == before, "{} probes are counted as plaintext", plaintext - before);
        Ok(())
    }

    /// The kubelet's own count of its probes of the strict pod over the network, since it started
    /// or the pod did. Startup probes are left out: they begin before the servers listen.
    fn probed(&self) -> Result<Probed> {
        let page = ["get", "--raw", "/api/v1/nodes/node1/proxy/metrics/probes"];
        let page = self.cluster.kubectl(page)?;
        let mut probed = Probed::default();
        for line in page.lines().filter(|line| line.starts_with("prober_probe_total{")) {
            let is = |label: &str, value: &str| line.contains(&format!("{label}=\"{value}\""));
            let is_startup = is("probe_type", "Startup");
            // This one runs a program in the container.
            let is_exec = is("container", "metrics") && is("probe_type", "Readiness");
            if !is("namespace", "shop") || !is("pod", "guarded") || is_startup || is_exec {
                continue;
            }
            let count = line.rsplit_once(' ').context("no count")?.1.parse::<f64>()?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "it counts"
            )]
            let count = count as u64;
            *if is("result", "successful") { &mut probed.passed } else { &mut probed.failed } +=
                count;
        }
        Ok(probed)
    }

    /// Waits for some seconds of probes that pass, by the kubelet's count and by the mesh's. By
    /// then, no more than `most` may have failed since the kubelet started, and none meanwhile. The
    /// pod is well, and was never restarted. Returns how many have failed.
    fn probes_pass(&self, when: &str, most: u64) -> Result<u64> {
        let let_in = self.verdicts("inbound_kubelet")?;
        let before = self.probed()?;
        let now = self.wait_passed(&before, 3 * PROBES_PER_SECOND).context(when.to_owned())?;
        println!("{when}: {before:?}, then {now:?}");
        ensure!(before.failed <= most, "{when}: {before:?}, {most} may have failed");
        ensure!(now.failed == before.failed, "{when}: probes fail: {before:?}, then {now:?}");
        let more = self.verdicts("inbound_kubelet")? - let_in;
        ensure!(more > PROBES_PER_SECOND, "{when}: the mesh has let the kubelet in {more} times");
        eventually(PATIENCE, || {
            let of = "jsonpath={.status.conditions[?(@.type=='Ready')].status} {.status.containerStatuses[*].restartCount}";
            let state = self.cluster.kubectl(["-n", "shop", "get", "pod", "guarded", "-o", of])?;
            ensure!(state == "True 0 0 0", "{when}: {state}");
            Ok(())
        })?;
        Ok(now.failed)
    }

    /// Waits until so many more probes have passed.
    fn wait_passed(&self, before: &Probed, more: u64) -> Result<Probed> {
        eventually(PATIENCE, || {
            let now = self.probed()?;
            ensure!(now.passed >= before.passed + more, "{before:?}, then {now:?}");
            Ok(now)
        })
    }

    /// No agent runs on the node, and probes pass: the kernel lets the kubelet in.
    fn probes_pass_while_the_agent_is_away(&self) -> Result<()> {
        let killed = self.mesh.kill_agent(1)?;
        eventually(PATIENCE, || {
            let status = self.mesh.status_on_node(1)?;
            ensure!(status["pid"] != killed, "not yet another one");
            Ok(())
        })?;
        // A container that ends again so soon is started after 10 s.
        self.mesh.kill_agent(1)?;
        let before = self.probed()?;
        let now = self.wait_passed(&before, 4 * PROBES_PER_SECOND)?;
        ensure!(self.mesh.status_on_node(1).is_err(), "the agent was not away for so long");
        println!("while no agent runs: {before:?}, then {now:?}");
        ensure!(now.failed == before.failed, "probes fail: {before:?}, then {now:?}");
        Ok(())
    }

    /// What a client in a pod gets from a port of the strict pod.
    fn get(&self, from: &str, port: u16, options: &[&str]) -> Result<String> {
        let (namespace, pod) = from.split_once('/').context("no namespace")?;
        let url = format!("http://{}:{port}/", self.address);
        let command = ["curl", "--silent", "--show-error", "--fail", "--max-time", "10"];
        let argv = ["-n", namespace, "exec", pod, "--"].into_iter().chain(command);
        self.cluster.kubectl(argv.chain(options.iter().copied()).chain([&*url]))
    }

    fn is_refused(&self, from: &str, port: u16) -> Result<()> {
        let refused = self.verdicts("refused_strict")?;
        let got = self.get(from, port, &[]);
        ensure!(got.is_err(), "{from} gets in: {got:?}");
        let now = self.verdicts("refused_strict")?;
        ensure!(now > refused, "{from} was not refused as plaintext: {got:?}");
        Ok(())
    }

    /// A SYN out of another pod that claims the node's own address, from which the node dials its
    /// pods.
    fn forged_is_refused(&self) -> Result<()> {
        let gateway = self.cluster.node(1).run(["ip", "-4", "-o", "addr", "show", "cni0"])?;
        let gateway = gateway.split_whitespace().nth(3).and_then(|range| range.split('/').next());
        let from = format!("{}:{FORGED_PORT}", gateway.context("no bridge")?);
        let to = format!("{}:{APP}", self.address);
        let raw = ["mesh-probe", "raw", "--from", &from, "--to", &to, "--say", "hello"];
        let stranger = ["-n", "other", "exec", "stranger", "--"];
        let told = self.cluster.kubectl(stranger.into_iter().chain(raw))?;
        let seen: Event = serde_json::from_str(told.lines().last().context("no report")?)?;
        let Event::Conn(seen) = seen else { anyhow::bail!("{told}") };
        let Conn { connected, .. } = *seen;
        ensure!(!connected, "{told}");
        eventually(PATIENCE, || {
            let flows = self.mesh.flows(1)?;
            let is_it = |flow: &&Flow| {
                format!("{}:{}", flow.client.address, flow.client.port) == from
                    && flow.server.address == self.address
            };
            let flow = flows.iter().find(is_it).context("no record of the forged packet")?;
            ensure!(flow.outcome == "refused_strict", "{flow:#?}");
            Ok(())
        })
    }
}

#[test]
fn probes_of_strict_pods_pass_and_nobody_passes_for_one() -> Result<()> {
    let cluster = Mesh::cluster()?;
    let stage = Stage::new(&cluster)?;
    stage.probes_pass("from the start", 0)?;
    stage.probes_are_no_plaintext()?;
    hooks_pass(&stage)?;
    stage.is_refused("other/host", APP)?;
    stage.is_refused("other/stranger", APP)?;
    stage.forged_is_refused()?;

    cluster.stop_kubelet(1)?;
    cluster.start_kubelet(1)?;
    cluster.wait_nodes()?;
    // A new kubelet does not know all pods at once.
    stage.mesh.wait_state(&[(1, "shop/guarded")], "enrolled")?;
    stage.wait_passed(&Probed::default(), PROBES_PER_SECOND)?; // it counts anew
    let failed = stage.probes_pass("after the kubelet was restarted", UNTIL_FOUND)?;
    stage.probes_pass_while_the_agent_is_away()?;
    // Before, its counters belong to no pod.
    stage.mesh.wait_state(&[(1, "shop/guarded")], "enrolled")?;
    let failed = stage.probes_pass("after the agent was restarted", failed)?;

    permissive_ports(&stage)?;
    let failed = kubelet_in_the_root(&stage, failed)?;

    // These programs alone let the kubelet in.
    cluster.node(1).run(["sh", "-c", "rm /sys/fs/bpf/nodemesh/v*/links/nm_kubelet_*"])?;
    let refused = stage.verdicts("refused_strict")?;
    eventually(PATIENCE, || {
        let now = stage.verdicts("refused_strict")?;
        ensure!(now > refused + 5, "{refused} refused before, {now} now");
        let now = stage.probed()?;
        ensure!(now.failed > failed + 5, "what is refused does not count as failed: {now:?}");
        Ok(())
    })?;
    let unheard = hooked("unheard", "postStart");
    cluster.kubectl_with(&unheard.to_string(), ["apply", "-f", "-"])?;
    eventually(PATIENCE, || {
        let of = "--field-selector=reason=FailedPostStartHook,involvedObject.name=unheard";
        let events = cluster.kubectl(["-n", "shop", "get", "events", of, "-o", "name"])?;
        ensure!(!events.is_empty(), "a hook passes that is not the kubelet's");
        Ok(())
    })?;
    cluster.down()
}

/// A server with one hook, and some seconds for it to be asked in the end.
fn hooked(name: &str, when: &str) -> Value {
    let mut app = container("app", &server(APP));
    app["lifecycle"] = json!({when: hook()});
    pod("shop", name, 1, json!({"containers": [app], "terminationGracePeriodSeconds": 10}))
}

/// What the kubelet asks when a container begins and when it is to end.
fn hooks_pass(stage: &Stage<'_>) -> Result<()> {
    ensure!(hooks_seen(stage.cluster, "guarded", "app")? == 1, "no hook after the start");
    let ending = hooked("ending", "preStop");
    stage.cluster.kubectl_with(&ending.to_string(), ["apply", "-f", "-"])?;
    stage.mesh.wait_strict(&[(1, "shop/ending")])?;
    let wait = ["wait", "--for=condition=Ready", "pod/ending", "--timeout=120s"];
    stage.cluster.kubectl(["-n", "shop"].into_iter().chain(wait))?;
    ensure!(hooks_seen(stage.cluster, "ending", "app")? == 0);
    stage.cluster.kubectl(["-n", "shop", "delete", "pod", "ending", "--wait=false"])?;
    eventually(PATIENCE, || {
        ensure!(hooks_seen(stage.cluster, "ending", "app")? == 1, "no hook before the end");
        Ok(())
    })
}

/// A kubelet without a cgroup of its own is in one above all pods.
fn kubelet_in_the_root(stage: &Stage<'_>, failed: u64) -> Result<u64> {
    let root = "for dir in /sys/fs/cgroup /sys/fs/cgroup/unified; do test -e $dir/cgroup.controllers && echo $(pgrep -o -x kubelet) > $dir/cgroup.procs; done; cat /proc/$(pgrep -o -x kubelet)/cgroup";
    let cgroups = stage.cluster.node(1).run(["sh", "-c", root])?;
    if !cgroups.lines().any(|line| line == "0::/") {
        let why = "the root of cgroup v2 takes no process where it passes controllers on";
        writeln!(std::io::stdout(), "skip: a kubelet in the root: {why}")?;
        return Ok(failed);
    }
    // Those that fail until it is found there are over when others pass.
    stage.wait_passed(&stage.probed()?, PROBES_PER_SECOND)?;
    let when = "with the kubelet in the root of the cgroups";
    let failed = stage.probes_pass(when, failed + UNTIL_FOUND)?;
    stage.is_refused("other/host", APP)?;
    stage.is_refused("other/stranger", APP)?;
    Ok(failed)
}

/// `nodemesh.dev/permissive-ports` opens one port to plaintext, and only while it can be read.
fn permissive_ports(stage: &Stage<'_>) -> Result<()> {
    let annotate = |what: &str, name: &str, value: &str| {
        let annotation = format!("{PERMISSIVE_PORTS}{value}");
        stage.cluster.kubectl(["-n", "shop", "annotate", what, name, &annotation, "--overwrite"])
    };
    annotate("namespace", "shop", "=9102")?;
    for from in ["other/host", "other/far"] {
        eventually(PATIENCE, || stage.get(from, METRICS, &[]).map(drop))?;
        stage.is_refused(from, APP)?;
    }
    ensure!(stage.verdicts("inbound_permissive_port")? >= 2);
    // From the ports that agents use, the agent has to look first.
    let agents_ports = ["--local-port", "62000-62999"];
    stage.get("other/far", METRICS, &agents_ports)?;
    let got = stage.get("other/far", APP, &agents_ports);
    ensure!(got.is_err(), "strict is open to the look: {got:?}");
    let looked_at = |flow: &Flow| {
        flow.server.port == APP && flow.client.port >= 62_000 && flow.outcome == "refused_strict"
    };
    ensure!(stage.mesh.flows(1)?.iter().any(looked_at), "no record of the refusal: {got:?}");
    let guarded = stage.mesh.state_of(1, "shop/guarded")?;
    ensure!(guarded["mode"] == "strict" && guarded["permissive_ports"] == "9102", "{guarded:#}");
    // The mesh still comes over mutual TLS.
    stage.get("shop/web", METRICS, &[])?;
    let of_web = |flow: &Flow| flow.client.pod.as_deref() == Some("shop/web");
    let flow = stage.mesh.flows(1)?.into_iter().rev().find(of_web).context("no flow of web")?;
    ensure!(flow.is_mtls() && flow.server.port == METRICS, "{flow:#?}");

    annotate("pod", "guarded", "=91o2")?;
    eventually(PATIENCE, || stage.is_refused("other/host", METRICS))?;
    let status = stage.mesh.status(1)?;
    let problems = status["problems"].as_array().cloned().unwrap_or_default();
    let told = problems.iter().any(|problem| {
        problem["code"] == "invalid_setting"
            && problem["message"].as_str().is_some_and(|text| text.contains("91o2"))
    });
    ensure!(told, "{problems:#?}");
    ensure!(stage.mesh.state_of(1, "shop/guarded")?["state"] == "enrolled");
    annotate("pod", "guarded", "-")?;
    eventually(PATIENCE, || stage.get("other/host", METRICS, &[]).map(drop))?;
    annotate("namespace", "shop", "-")?;
    eventually(PATIENCE, || stage.is_refused("other/host", METRICS))
}

/// Where the path changes the source, a strict pod would refuse the TLS of its peers; a port that
/// is left open would not.
#[test]
fn no_tls_reaches_an_application_at_a_port_that_is_left_open() {
    scenario("permissive-port", |net| {
        let pair = Pair::new(net)?;
        let stranger = net.pod(&pair.nodes[1], PodSpec::new("other", "stranger"))?;
        for (key, value) in [(MODE, "strict"), (PERMISSIVE_PORTS, "8000-8100")] {
            net.objects().annotate_pod(&pair.server, key, Some(value))?;
        }
        let service = pair.serve(Talk::Exchange)?;
        pair.join()?;
        let hello = DialSpec::say(pair.server.at(PORT), "hello");
        let rule = Masquerade::on(&pair.nodes[0], Ports::Low)?;
        let seen = probe::dial(&pair.client, &hello)?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        pair.agents[0].wait_flow("by the agents' port", |flow| {
            flow.is_mtls() && flow.security.wire_port.as_deref() == Some("agents")
        })?;
        let seen = probe::dial(&stranger, &hello)?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        rule.remove();
        let conns = service.conns();
        ensure!(conns.iter().all(|conn| conn.first == "hello"), "{conns:?}");
        Ok(())
    });
}
