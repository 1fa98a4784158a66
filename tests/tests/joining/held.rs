//! Held pods, unclassified pods, and agents that do not answer: nothing passes in plaintext, and
//! all are released or answered again by themselves.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::signal::Signal;
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{self, Agent, Dirs, SOON},
    capture, eventually,
    exec::Place,
    kernel,
    objects::{EXCLUDE_PORTS, MESH, MODE},
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// Longer than the age at which the programs call a heartbeat stale, with room for a busy machine.
const SILENT: Duration = Duration::from_secs(12);

fn dial(from: &Place, to: &Pod) -> Result<Conn> {
    probe::dial(from, &DialSpec { timeout_s: 2, ..DialSpec::say(to.at(PORT), "hello") })
}

fn answered(conn: &Conn) -> Result<()> {
    ensure!((conn.end, &*conn.first) == (End::Fin, "hello"), "{conn:?}");
    Ok(())
}

fn strict_spec(name: &str) -> PodSpec {
    PodSpec::new("vault", name).label(MESH, "enabled").annotation(MODE, "strict")
}

/// The pods of a [`Pair`] that serve, and a strict one that is starting.
fn starting(net: &Net) -> Result<(Pair<'_>, Pod)> {
    let pair = Pair::new(net)?;
    let held = net.pod(&pair.nodes[1], strict_spec("held").starting())?;
    pair.agents[1].wait_state(&held, "held")?;
    Ok((pair, held))
}

#[test]
fn a_strict_pod_can_neither_dial_nor_be_dialled_before_it_is_enrolled() {
    scenario("held", |net| {
        let (pair, held) = starting(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let own = probe::serve(&held, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        let link = pair.nodes[1].capture()?;
        let waits = |spec: &DialSpec| {
            let seen = probe::dial(&held, &DialSpec { timeout_s: 2, ..spec.clone() })?;
            ensure!(seen.end == End::Timeout && !seen.connected, "{spec:?}: {seen:?}");
            Ok(())
        };
        for to in [pair.server.at(PORT), pair.server.at6(PORT), pair.client.at(PORT)] {
            waits(&DialSpec::say(to, "secret"))?;
        }
        let to = DialSpec::say(pair.server.at(PORT), "secret");
        waits(&DialSpec { mapped: true, ..to.clone() })?;
        waits(&DialSpec { bind: Some(held.at(5060)), ..to.clone() })?;
        // Not for ever.
        let seen = probe::dial(&held, &DialSpec { timeout_s: 60, ..to })?;
        ensure!(seen.end == End::Refused, "{seen:?}");
        for from in [&*pair.client, &*pair.nodes[1]] {
            let seen = dial(from, &held)?;
            ensure!(seen.end == End::Timeout && !seen.connected, "{}: {seen:?}", from.name);
        }
        // It may talk to itself.
        let to_itself = DialSpec::say(([127, 0, 0, 1], PORT).into(), "hello");
        answered(&probe::dial(&held, &to_itself)?)?;
        ensure!(
            own.conns()
                .iter()
                .all(|conn| conn.peer.is_some_and(|p| p.ip().to_canonical().is_loopback())),
            "{:?}",
            own.conns()
        );
        ensure!(!link.stop()?.contains("secret"), "plaintext of a held pod on the link");
        let status = pair.agents[1].status()?;
        ensure!(status.verdict("redirect_held") >= 6, "{:?}", status.verdicts);
        ensure!(status.verdict("refused_held_inbound") >= 2, "{:?}", status.verdicts);

        net.objects().pod_runs(&held)?;
        pair.agents[1].wait_enrolled(&[&held])?;
        answered(&dial(&held, &pair.server)?)?;
        let stranger = dial(&pair.client, &held)?;
        ensure!(matches!(stranger.end, End::Refused | End::Reset), "{stranger:?}");
        Ok(())
    });
}

/// What a held pod dials waits, and then goes where it should: into the mesh, outside it, or to an
/// excluded port.
#[test]
fn what_a_held_pod_dials_waits_until_it_is_enrolled() {
    const DIALS: u64 = 30;
    scenario("held-waits", |net| {
        let (pair, held) = starting(net)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        pair.join()?;
        let serve = ServeSpec::both_families(PORT, Talk::Exchange);
        let excluded = 9090;
        net.objects().annotate_pod(&held, EXCLUDE_PORTS, Some(&excluded.to_string()))?;
        let elsewhere = ServeSpec::both_families(excluded, Talk::Exchange);
        let _services = [
            probe::serve(&pair.server, &serve)?,
            probe::serve(&stranger, &serve)?,
            probe::serve(&pair.server, &elsewhere)?,
        ];
        let spec = |to| DialSpec { timeout_s: 30, ..DialSpec::say(to, "hello") };
        let many = |to| DialSpec { connections: DIALS, workers: DIALS, ..spec(to) };
        let bound = DialSpec { bind: Some(held.at(5060)), ..spec(pair.server.at(PORT)) };
        let specs = [
            many(pair.server.at(PORT)),
            spec(pair.server.at6(PORT)),
            spec(stranger.at(PORT)),
            spec(pair.server.at(excluded)),
            bound,
        ];
        thread::scope(|scope| {
            let held_pod = &held;
            let dial = |spec| scope.spawn(move || probe::dial_all(held_pod, spec));
            let dials: Vec<_> = specs.iter().map(dial).collect();
            let waiting = DIALS + specs.len() as u64 - 1;
            // The next of their packets after 10 s, that of the eleventh second, is let go.
            eventually(Duration::from_secs(9), || {
                let held = pair.agents[1].status()?.verdict("redirect_held");
                ensure!(held == waiting, "{held} of {waiting} wait");
                Ok(())
            })?;
            net.objects().pod_runs(&held)?;
            for (spec, dial) in specs.iter().zip(dials) {
                for conn in dial.join().map_err(|_panic| anyhow!("a dial's thread"))?? {
                    answered(&conn)?;
                    ensure!(conn.peer == Some(spec.to), "{spec:?}: {conn:?}");
                }
            }
            Ok(())
        })?;
        let security = |address: SocketAddr| {
            let flow = pair.agents[1].wait_flow("of a held dial", |flow| {
                flow.verdict == "redirect_held" && flow.original_destination == address
            })?;
            Ok::<_, anyhow::Error>((flow.is_mtls(), flow.security.why))
        };
        ensure!(security(pair.server.at(PORT))?.0 && security(pair.server.at6(PORT))?.0);
        ensure!(security(stranger.at(PORT))?.1.as_deref() == Some("not_meshed"));
        ensure!(security(pair.server.at(excluded))?.1.as_deref() == Some("port_excluded"));
        Ok(())
    });
}

#[test]
fn a_dropped_client_gets_through_once_the_pod_is_enrolled() {
    scenario("held-late", |net| {
        let pair = Pair::meshed(net)?;
        let held = net.pod(&pair.nodes[1], strict_spec("held").starting())?;
        let _own = probe::serve(&held, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        pair.agents[1].wait_state(&held, "held")?;
        let first = dial(&pair.client, &held)?;
        ensure!(first.end == End::Timeout, "{first:?}");
        net.objects().pod_runs(&held)?;
        pair.agents[1].wait_enrolled(&[&held])?;
        eventually(SOON, || answered(&dial(&pair.client, &held)?))
    });
}

#[test]
fn a_starting_pod_stays_held_also_without_an_agent() {
    scenario("held-stays", |net| {
        let (pair, held) = starting(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let waits = || {
            let seen = dial(&held, &pair.server)?;
            ensure!(!seen.connected && seen.end == End::Timeout, "{seen:?}");
            Ok(())
        };
        waits()?;
        pair.agents[1].kill9()?;
        waits()?;
        pair.agents[1].start_again()?;
        pair.agents[1].wait_state(&held, "held")?;
        waits()?;
        // A pod that is no longer meant to be in the mesh is released.
        net.objects().label_pod(&held, Some("disabled"))?;
        pair.agents[1].wait_state(&held, "not_enrolled")?;
        answered(&dial(&held, &pair.server)?)?;
        // The same after an agent that was away at that time.
        net.objects().label_pod(&held, Some("enabled"))?;
        pair.agents[1].wait_state(&held, "held")?;
        pair.agents[1].kill9()?;
        net.objects().label_pod(&held, Some("disabled"))?;
        waits()?;
        pair.agents[1].start_again()?;
        eventually(SOON, || answered(&dial(&held, &pair.server)?))
    });
}

#[test]
fn a_permissive_pod_is_never_held() {
    scenario("held-not", |net| {
        let pair = Pair::new(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let spec = PodSpec::new(SHOP, "starting").label(MESH, "enabled").starting();
        let pod = net.pod(&pair.nodes[1], spec)?;
        let status = pair.agents[1].wait_state(&pod, "not_enrolled")?;
        ensure!(status.code == "no_address", "{status:?}");
        answered(&dial(&pod, &pair.server)?)
    });
}

#[test]
fn a_strict_pod_whose_settings_cannot_be_read_is_held_and_says_so() {
    scenario("held-slip", |net| {
        let pair = Pair::new(net)?;
        let is_held = |pod: &Pod, slip: &str| {
            let own = probe::serve(pod, &ServeSpec::both_families(PORT, Talk::Exchange))?;
            let status = pair.agents[1].wait_state(pod, "held")?;
            ensure!(status.reason.contains(&format!("{slip:?}")), "{status:?}");
            let seen = dial(pod, &pair.server)?;
            ensure!(seen.end == End::Refused, "{slip}: {seen:?}");
            pair.agents[1].wait_flow("of the held pod", |flow| flow.outcome == "refused_held")?;
            let seen = dial(&pair.client, pod)?;
            ensure!(seen.end == End::Timeout && own.conns().is_empty(), "{slip}: {seen:?}");
            Ok(())
        };
        let on_node2 = |spec| net.pod(&pair.nodes[1], spec);
        let mode = strict_spec("mode").annotation(MODE, "strikt");
        is_held(&on_node2(mode)?, "strikt")?;
        let ports = strict_spec("ports").annotation(EXCLUDE_PORTS, "http");
        is_held(&on_node2(ports)?, "http")?;
        // As long as no readable label wants it in the mesh, the mesh leaves it alone.
        let label = on_node2(strict_spec("label").label(MESH, "enable"))?;
        let status = pair.agents[1].wait_state(&label, "not_enrolled")?;
        ensure!(status.code == "invalid_setting", "{status:?}");
        net.objects().label_namespace(&label.namespace, Some("enabled"))?;
        is_held(&label, "enable")
    });
}

#[test]
fn a_pod_that_takes_the_listeners_ports_first_harms_itself_alone() {
    scenario("held-ports", |net| {
        let pair = Pair::new(net)?;
        let modest = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "modest"))?;
        let _service = pair.serve(Talk::Exchange)?;
        let listen = ([127, 7, 0, 1], 60_989).into();
        let taken = probe::serve(&pair.client, &ServeSpec { listen, ..ServeSpec::default() })?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&modest])?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        let said = eventually(SOON, || {
            let said = pair.agents[0].status()?.pod(&pair.client)?;
            ensure!(said.code == "no_listener", "{said:?}");
            Ok(said)
        })?;
        ensure!(said.reason.contains("does something in the pod listen"), "{said:?}");
        answered(&dial(&modest, &pair.server)?)?;
        // It goes on in plaintext as before, unless it is to be strict.
        answered(&dial(&pair.client, &pair.server)?)?;
        net.objects().annotate_pod(&pair.client, MODE, Some("strict"))?;
        pair.agents[0].wait_state(&pair.client, "held")?;
        let seen = dial(&pair.client, &pair.server)?;
        ensure!(seen.end == End::Refused, "{seen:?}");
        drop(taken);
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        eventually(SOON, || answered(&dial(&pair.client, &pair.server)?))
    });
}

#[test]
fn a_node_may_refuse_pods_that_nobody_has_classified() {
    scenario("held-unclassified", |net| {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let server = net.pod(&nodes[0], PodSpec::new(SHOP, "server"))?;
        let known = net.pod(&nodes[1], PodSpec::new(SHOP, "known"))?;
        let open = net.agent(&nodes[0])?;
        let agent = Agent::start(&nodes[1], Dirs::of(net), &["--unclassified", "refuse"])?;
        let serve = ServeSpec::both_families(PORT, Talk::Exchange);
        let _services = (probe::serve(&server, &serve)?, probe::serve(&known, &serve)?);
        answered(&dial(&known, &server)?)?;
        answered(&dial(&server, &known)?)?;
        answered(&dial(&nodes[1], &server)?)?;
        let refused = |pod: &Pod| {
            let seen = dial(pod, &server)?;
            ensure!(seen.end == End::Refused, "{seen:?}");
            let seen = dial(&server, pod)?;
            ensure!(seen.end == End::Timeout && !seen.connected, "{seen:?}");
            Ok(())
        };
        let new = net.pod(&nodes[1], PodSpec::new(SHOP, "new").unknown())?;
        let _own = probe::serve(&new, &serve)?;
        refused(&new)?;
        let verdicts = agent.status()?;
        ensure!(verdicts.verdict("refused_unclassified") >= 1, "{:?}", verdicts.verdicts);
        ensure!(verdicts.verdict("refused_unclassified_inbound") >= 1, "{:?}", verdicts.verdicts);
        net.objects().pod_runs(&new)?;
        eventually(SOON, || answered(&dial(&new, &server)?))?;
        answered(&dial(&server, &new)?)?;
        // While the agent is away, a new pod is refused and a known one goes on.
        agent.kill9()?;
        let newest = net.pod(&nodes[1], PodSpec::new(SHOP, "newest"))?;
        let _own = probe::serve(&newest, &serve)?;
        refused(&newest)?;
        answered(&dial(&new, &server)?)?;
        agent.start_again()?;
        eventually(SOON, || answered(&dial(&newest, &server)?))?;
        // A node without that setting leaves such pods alone.
        let elsewhere = net.pod(&nodes[0], PodSpec::new(SHOP, "elsewhere").unknown())?;
        answered(&dial(&elsewhere, &server)?)?;
        drop(open);
        Ok(())
    });
}

#[test]
fn without_its_namespace_nobody_knows_a_pod_that_does_not_say_it_all_itself() {
    scenario("held-namespace", |net| {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let server = net.pod(&nodes[0], PodSpec::new(SHOP, "server"))?;
        let agent = Agent::start(&nodes[1], Dirs::of(net), &["--unclassified", "refuse"])?;
        let _service = probe::serve(&server, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        let silent = net.pod(&nodes[1], PodSpec::new("lost", "silent"))?;
        let strict = |name: &str| PodSpec::new("lost", name).annotation(MODE, "strict");
        let unlabelled = net.pod(&nodes[1], strict("unlabelled"))?;
        eventually(SOON, || answered(&dial(&silent, &server)?))?;
        let refused = |pod: &Pod, verdict: &str| {
            let before = agent.status()?.verdict(verdict);
            let seen = dial(pod, &server)?;
            ensure!(seen.end == End::Refused, "{seen:?}");
            let after = agent.status()?.verdict(verdict);
            ensure!(after > before, "not {verdict}: {before}, {after}");
            Ok(())
        };
        net.objects().remove("namespace-lost.yaml")?;
        for pod in [&silent, &unlabelled] {
            eventually(SOON, || refused(pod, "refused_unclassified"))?;
            ensure!(agent.status()?.pod(pod)?.code == "namespace_missing");
        }
        // A pod that carries its own label.
        let strict = net.pod(&nodes[1], strict("strict").label(MESH, "enabled"))?;
        let said = agent.wait_state(&strict, "held")?;
        ensure!(said.code == "namespace_missing", "{said:?}");
        refused(&strict, "refused_held")?;
        // Once its namespace is there, it is in the mesh, and the others are known to be outside
        // it.
        net.objects().label_namespace("lost", None)?;
        agent.wait_enrolled(&[&strict])?;
        eventually(SOON, || answered(&dial(&silent, &server)?))?;
        eventually(SOON, || answered(&dial(&unlabelled, &server)?))
    });
}

#[test]
fn a_strict_pod_whose_namespace_object_goes_is_never_open() {
    scenario("held-never", |net| {
        let pair = Pair::new(net)?;
        let strict = net.pod(&pair.nodes[1], strict_spec("strict"))?;
        pair.join_with(&strict)?;
        let _own = probe::serve(&strict, &ServeSpec::both_families(PORT, Talk::Lines))?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let probing = DialSpec { timeout_s: 1, ..DialSpec::new(strict.at(PORT), Talk::Lines) };
        let prober = probe::load(&stranger, &probing)?;
        for _ in 0..3 {
            net.objects().remove("namespace-vault.yaml")?;
            let said = pair.agents[1].wait_state(&strict, "leaving")?;
            ensure!(said.code == "leaving", "{said:?}");
            pair.agents[1].wait_state(&strict, "held")?;
            net.objects().label_namespace("vault", None)?;
            pair.agents[1].wait_enrolled(&[&strict])?;
        }
        let seen = prober.finish()?;
        ensure!(seen.ok == 0 && seen.failed > 0, "the strict pod was open: {seen:?}");
        Ok(())
    });
}

#[test]
fn refusing_the_unclassified_needs_a_cgroup_of_the_pods_alone() {
    scenario("held-root", |net| {
        let node = net.node("node1")?;
        let dirs = Dirs::of(net);
        agent::ca_init(&dirs)?;
        std::fs::create_dir_all(&dirs.announce)?;
        let mut argv = agent::run_argv(&node, &dirs);
        let option = argv.iter().position(|word| word == "--cgroup").context("no --cgroup")?;
        argv[option + 1] = tests::cgroup::mount().into();
        argv.extend(["--unclassified".into(), "refuse".into()]);
        let refused = node.agent_place().run(argv)?;
        ensure!(!refused.status.success(), "the agent has started");
        let error = refused.stderr;
        ensure!(error.contains("--unclassified refuse needs --cgroup"), "{error}");
        Ok(())
    });
}

#[test]
fn what_a_node_announced_holds_whatever_its_node_says_until_its_pods_are_others() {
    scenario("held-reboot", |net| {
        let pair = Pair::meshed(net)?;
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let file = format!("node-{}.yaml", pair.nodes[1].name);
        let booted = |boot_id: &str| {
            let boot_id = boot_id.trim();
            let node = format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\nstatus:\n  nodeInfo:\n    \
                 architecture: ''\n    bootID: {boot_id:?}\n    containerRuntimeVersion: ''\n    \
                 kernelVersion: ''\n    kubeProxyVersion: ''\n    kubeletVersion: ''\n    \
                 machineID: ''\n    operatingSystem: ''\n    osImage: ''\n    systemUUID: ''\n",
                pair.nodes[1].name
            );
            net.objects().write(&file, &node)
        };
        let here = &pair.agents[0];
        let _service = pair.serve(Talk::Exchange)?;
        let is_mtls = || {
            let link = pair.nodes[0].capture()?;
            answered(&dial(&pair.client, &pair.server)?)?;
            ensure!(!link.stop()?.contains("hello"), "plaintext");
            Ok(())
        };
        booted(&boot_id)?;
        here.wait_peers(1)?;
        booted("another")?;
        let is_told = |code: &'static str| {
            let node = format!("MeshNode {}: ", pair.nodes[1].name);
            here.wait_problem(code, |it| it.code == code && it.message.contains(&node))
        };
        let said = is_told("announcement_doubted")?;
        ensure!(said.message.contains("its Node says that it is in boot \"another\""), "{said:?}");
        is_mtls()?;
        // Its Node goes, its announcement goes with it, and its agent is away.
        let announced = Dirs::of(net).announce.join(format!("{}.json", pair.nodes[1].name));
        let word = std::fs::read(&announced)?;
        pair.agents[1].kill9()?;
        net.objects().remove(&file)?;
        std::fs::remove_file(&announced)?;
        is_told("announcement_missing")?;
        here.wait_peers(1)?;
        let link = pair.nodes[0].capture()?;
        let seen = dial(&pair.client, &pair.server)?;
        ensure!(seen.first.is_empty() && seen.end != End::Fin, "{seen:?}");
        ensure!(!link.stop()?.contains("hello"), "plaintext");
        // Neither announcement holds longer than the pod's object.
        booted("another")?;
        std::fs::write(&announced, word)?;
        is_told("announcement_doubted")?;
        here.wait_peers(1)?;
        net.objects().remove_pod(&pair.server)?;
        here.wait_peers(0)?;
        answered(&dial(&pair.client, &pair.server)?)
    });
}

#[test]
fn a_stuck_agents_dials_are_refused_and_go_on_when_it_does() {
    scenario("held-stuck", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        answered(&dial(&pair.client, &pair.server)?)?;
        let refused = || {
            let seen = dial(&pair.client, &pair.server)?;
            ensure!(seen.end == End::Refused, "{seen:?}");
            Ok(())
        };
        // The client's agent is stuck, then the server's: dials are refused at once instead of
        // hanging.
        for (agent, verdict) in
            pair.agents.iter().zip(["refused_agent_silent", "refused_agent_silent_inbound"])
        {
            agent.signal(Signal::SIGSTOP)?;
            let stuck = eventually(SILENT, || match dial(&pair.client, &pair.server)?.end {
                End::Refused | End::Reset => Ok(()),
                end => anyhow::bail!("{end:?}"),
            });
            let still =
                stuck.and_then(|()| if verdict.ends_with("silent") { refused() } else { Ok(()) });
            agent.signal(Signal::SIGCONT)?;
            still?;
            eventually(SOON, || answered(&dial(&pair.client, &pair.server)?))?;
            let status = agent.status()?;
            ensure!(status.verdict(verdict) > 0, "{verdict}: {:?}", status.verdicts);
        }
        Ok(())
    });
}

/// Dials again and again and waits for nothing, a minute at most. Prints when each dial begins, in
/// seconds, and its port.
const DIALS: &str = "\
import collections, socket, sys, time
dials = collections.deque()
for _ in range(60_000):
    dial = socket.socket()
    dial.setblocking(False)
    begun = time.time()
    dial.connect_ex((sys.argv[1], int(sys.argv[2])))
    print(f'{begun:.6f} {dial.getsockname()[1]}', flush=True)
    dials.append(dial)
    if len(dials) > 100:
        dials.popleft().close()
    time.sleep(0.001)
";

/// What a strict pod dials goes past the mesh before an agent first starts, and never again once
/// that agent has held the pod. Nor does it when an agent starts after one that had other tables in
/// the kernel.
#[test]
fn what_a_strict_pod_dials_never_goes_past_the_mesh_again() {
    const STARTS: usize = 3;
    scenario("held-first-start", |net| {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let client = net.pod(&nodes[0], strict_spec("client"))?;
        let server = net.pod(&nodes[1], PodSpec::new(SHOP, "server").label(MESH, "enabled"))?;
        let there = net.agent(&nodes[1])?;
        there.wait_enrolled(&[&server])?;
        let service = probe::serve(&server, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        let (address, port) = (server.v4.to_string(), PORT.to_string());
        // Runs `start`. Returns when the pod was first seen held, and when the dials began whose
        // own SYN was on the wire.
        let record = |start: &mut dyn FnMut() -> Result<()>| -> Result<_> {
            let link = nodes[0].capture()?;
            let before = service.conns().len();
            let dials = client.spawn(["python3", "-c", DIALS, &address, &port])?;
            eventually(SOON, || {
                ensure!(service.conns().len() > before, "no dial has come");
                Ok(())
            })?;
            let (done, node) = (AtomicBool::new(false), &nodes[0]);
            let held = thread::scope(|scope| {
                let watch = scope.spawn(|| {
                    while !done.load(Ordering::Relaxed) {
                        let egress = |holds: Vec<String>| {
                            holds.iter().any(|it| it.ends_with("nm_held_egress"))
                        };
                        if kernel::holds(node).is_ok_and(egress) {
                            return Some(SystemTime::now());
                        }
                        thread::sleep(Duration::from_millis(1));
                    }
                    None
                });
                let started = start();
                done.store(true, Ordering::Relaxed);
                let held = watch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                started.map(|()| held)
            })?;
            eventually(SOON, || answered(&dial(&client, &server)?))?;
            let said = dials.stdout();
            drop(dials);
            let mut begun: BTreeMap<u16, Vec<SystemTime>> = BTreeMap::new();
            for line in said.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
                let (seconds, port) = line.trim_end().split_once(' ').context("no port")?;
                let at = UNIX_EPOCH + Duration::from_secs_f64(seconds.parse()?);
                begun.entry(port.parse()?).or_default().push(at);
            }
            // A port may have been used before.
            let begun = |conn: &capture::Conn| {
                let of_port = begun.get(&conn.client.port())?.iter();
                of_port.copied().filter(|begun| *begun <= conn.begun).max()
            };
            let recording = link.stop()?;
            let own = recording.to(server.at(PORT)).into_iter().filter_map(begun);
            Ok((held, own.collect::<Vec<_>>()))
        };
        let mut here: Option<Agent> = None;
        for _ in 0..STARTS {
            if let Some(earlier) = here.take() {
                earlier.stop()?;
                earlier.cleanup()?;
            }
            let (held, own) = record(&mut || {
                let agent = net.agent(&nodes[0])?;
                agent.wait_enrolled(&[&client])?;
                here = Some(agent);
                Ok(())
            })?;
            let held = held.context("it was never held")?;
            let late: Vec<_> = own.iter().filter(|begun| **begun > held).collect();
            ensure!(late.is_empty(), "held at {held:?}, and past the mesh after that: {late:?}");
            ensure!(!own.is_empty(), "it was closed without an agent");
        }
        let here = here.context("no agent")?;
        let (_, own) = record(&mut || {
            here.kill9()?;
            let layout = kernel::layout(&nodes[0])?;
            std::fs::rename(&layout, layout.with_file_name("v0"))?;
            here.start_again()?;
            here.wait_enrolled(&[&client])
        })?;
        ensure!(own.is_empty(), "past the mesh while the layout changed: {own:?}");
        Ok(())
    });
}
