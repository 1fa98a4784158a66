//! One agent hands its node over to another while the node is in use.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tests::{
    Node, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{Agent, Dirs, SOON},
    eventually,
    exec::Place,
    kernel::{self, Inventory},
    objects::{MESH, MODE},
    probe::{self, Client, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
    successor::Successor,
};

/// Longer than an agent waits for its successor: 30 s.
const PATIENCE: Duration = Duration::from_secs(45);

/// How long an agent lets open connections end: `--drain-seconds`.
const DRAIN: Duration = Duration::from_secs(2);
const DRAINS: [&str; 2] = ["--drain-seconds", "2"];

/// How often a node is handed over.
const HAND_OVERS: usize = 10;

fn dial(from: &Place, pair: &Pair<'_>) -> Result<Conn> {
    probe::dial(from, &DialSpec { timeout_s: 2, ..DialSpec::say(pair.server.at(PORT), "req 1\n") })
}

fn answered(conn: &Conn) -> Result<()> {
    ensure!((conn.end, &*conn.first) == (End::Fin, "ok 1\\n"), "{conn:?}");
    Ok(())
}

/// Requests on connections of their own, or all on one.
fn load(from: &Place, pair: &Pair<'_>, workers: u64, keep_alive: bool) -> Result<Client> {
    let lines = DialSpec::new(pair.server.at(PORT), Talk::Lines);
    probe::load(from, &DialSpec { workers, keep_alive, pause_ms: 2, timeout_s: 5, ..lines })
}

/// What the kernel holds once no connection is being made.
fn at_rest(node: &Node) -> Result<Inventory> {
    eventually(SOON, || {
        let now = Inventory::of(node)?;
        let entries = |map: &str| now.entries.get(map).copied().unwrap_or(0);
        ensure!((entries("PENDING"), entries("LEGS")) == (0, 0), "{now:?}");
        let dials = kernel::dials(node)?;
        ensure!(dials.iter().all(|dials| *dials == 0), "{dials:?} are counted");
        ensure!(entries("AGENT_CGROUPS") == 1, "an agent that has ended may still dial: {now:?}");
        Ok(now)
    })
}

/// Waits until the kernel holds what it held before; what an agent had loaded goes a moment after
/// it.
fn wait_back(node: &Node, before: &Inventory) -> Result<()> {
    eventually(SOON, || {
        let now = at_rest(node)?;
        ensure!(now == *before, "{before:#?} became {now:#?}");
        Ok(())
    })
}

#[test]
fn handed_over_ten_times_under_load() {
    scenario("handover-load", |net| {
        let (pair, stranger) = Pair::strict(net, &DRAINS)?;
        let service = pair.serve(Talk::Lines)?;
        answered(&dial(&pair.client, &pair)?)?;
        let before = [at_rest(&pair.nodes[0])?, at_rest(&pair.nodes[1])?];
        let prober = load(&stranger, &pair, 1, false)?;
        let new = load(&pair.client, &pair, 3, false)?;
        for round in 0..HAND_OVERS {
            let agent = &pair.agents[round % 2];
            let kept = load(&pair.client, &pair, 4, true)?;
            kept.wait_more(40)?;
            new.wait_more(50)?;
            let start = Instant::now();
            let old = agent.take_over()?;
            let took = start.elapsed();
            new.wait_more(50)?;
            // Connections inside the old agent go on.
            kept.wait_more(100)?;
            ensure!(kept.progress().failed == 0, "cut at once: {:?}", kept.progress());
            let output = old.wait(SOON)?;
            let ended = start.elapsed();
            ensure!(output.status.success(), "{output}");
            ensure!(output.stderr.contains("handed over"), "{output}");
            // Both agents carried a part of each connection. The one that has ended reports what it
            // cut through the other one.
            let cut = eventually(SOON, || {
                let cut: Vec<_> =
                    agent.flows()?.into_iter().filter(|f| f.outcome == "drain_deadline").collect();
                ensure!(cut.len() >= 4, "{cut:#?}");
                Ok(cut)
            })?;
            ensure!(
                cut.iter().all(|flow| flow.bytes.sent > 100 && flow.bytes.received > 100),
                "{cut:#?}"
            );
            let kept = kept.finish()?;
            println!(
                "in charge after {took:.3?}; {} cut, the process gone {ended:.3?} after it began; {} requests on kept connections",
                cut.len(),
                kept.ok
            );
            ensure!(ended >= DRAIN, "{ended:?}");
        }
        let result = new.finish()?;
        println!("{} new connections, {} failed", result.connections, result.failed);
        ensure!(result.failed == 0, "{result:?}");
        let attempts = prober.finish()?;
        ensure!(
            attempts.ok == 0 && attempts.failed > 1000,
            "the strict pod was open: {attempts:?}"
        );
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        pair.nodes.iter().zip(&before).try_for_each(|(node, before)| wait_back(node, before))
    });
}

#[test]
fn a_successor_that_dies_leaves_the_old_agent_in_charge() {
    scenario("handover-next", |net| {
        let (pair, stranger) = Pair::strict(net, &DRAINS)?;
        let _service = pair.serve(Talk::Lines)?;
        answered(&dial(&pair.client, &pair)?)?;
        let before = at_rest(&pair.nodes[1])?;
        let prober = load(&stranger, &pair, 1, false)?;
        let mut survived = 0;
        // Kills the successor at times from before it asks until after it has switched.
        for delay_ms in (0..10).map(|step| step * 20) {
            let agent = &pair.agents[1];
            let successor = agent.spawn_successor()?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(delay_ms) {
                answered_or_cut(&dial(&pair.client, &pair)?)?;
            }
            drop(successor); // SIGKILL
            let old = agent.pid()?.as_raw();
            // Either the old agent goes on, or it had handed over; then it ends, and the next one
            // starts afresh.
            let goes_on = eventually(SOON, || match agent.status() {
                Ok(status) if i64::from(status.pid) == i64::from(old) => Ok(true),
                other => {
                    ensure!(!agent.is_running()?, "the old agent runs, and says {other:?}");
                    Ok(false)
                }
            })?;
            if goes_on {
                survived += 1;
                eventually(SOON, || answered(&dial(&pair.client, &pair)?))?;
                let flow = agent.wait_flow("refused", |flow| flow.verdict == "refused_strict")?;
                ensure!(flow.outcome == "refused_strict", "{flow:?}");
            } else {
                agent.wait_end()?;
                agent.start_again()?;
            }
            eventually(SOON, || answered(&dial(&pair.client, &pair)?))?;
        }
        println!("{survived} of 10 successors died before they had switched");
        ensure!(survived > 0, "no successor died early enough");
        let attempts = prober.finish()?;
        ensure!(attempts.ok == 0, "the strict pod was open: {attempts:?}");
        wait_back(&pair.nodes[1], &before)
    });
}

/// A strict pod that is starting.
fn starting(pair: &Pair<'_>) -> Result<Pod> {
    let spec = PodSpec::new("vault", "held").label(MESH, "enabled").annotation(MODE, "strict");
    pair.net.pod(&pair.nodes[1], spec.starting())
}

/// Checks that the dial of a pod that is held or unknown gets no answer: it is refused, or waits.
fn unanswered(from: &Pod, to: &Pod) -> Result<()> {
    let seen =
        probe::dial(from, &DialSpec { timeout_s: 2, ..DialSpec::say(to.at(PORT), "req 1\n") })?;
    let waits = !seen.connected && seen.end == End::Timeout;
    ensure!(waits || seen.end == End::Refused, "{}: {seen:?}", from.name);
    Ok(())
}

#[test]
fn what_a_dead_successor_has_changed_is_as_it_was() {
    scenario("handover-undone", |net| {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let client = net.pod(&nodes[0], PodSpec::new(SHOP, "client"))?;
        let server = net.pod(&nodes[1], PodSpec::new(SHOP, "server").annotation(MODE, "strict"))?;
        let known = net.pod(&nodes[1], PodSpec::new("other", "known"))?;
        let refuse = ["--unclassified", "refuse"];
        let agents = [net.agent(&nodes[0])?, Agent::start(&nodes[1], Dirs::of(net), &refuse)?];
        let pair = Pair { net, nodes, agents, client, server };
        pair.join()?;
        let held = starting(&pair)?;
        let (node, agent) = (&pair.nodes[1], &pair.agents[1]);
        agent.wait_state(&held, "held")?;
        let _service = pair.serve(Talk::Lines)?;
        let open = ServeSpec::both_families(PORT, Talk::Lines);
        let _open = probe::serve(&pair.client, &open)?;
        let unknown = net.pod(node, PodSpec::new("other", "unknown").unknown())?;
        let works = || {
            answered(&dial(&pair.client, &pair)?)?;
            let to_client = DialSpec::say(pair.client.at(PORT), "req 1\n");
            answered(&probe::dial(&known, &DialSpec { timeout_s: 2, ..to_client })?)?;
            unanswered(&known, &pair.server)?;
            unanswered(&held, &pair.client)?;
            unanswered(&unknown, &pair.client)
        };
        works()?;
        let facts = || -> Result<_> {
            let beats = |(key, _): &(Vec<u8>, Vec<u8>)| key.iter().all(|byte| *byte == 0);
            let mut told = kernel::entries(node, "NODE")?;
            told.retain(|entry| !beats(entry));
            Ok((at_rest(node)?, kernel::holds(node)?, told))
        };
        let before = facts()?;
        ensure!(before.1.len() == 4, "four programs hold a pod: {before:?}");

        let successor = Successor::ask(node)?;
        // A successor writes another world and other settings: no pod known, held or refused.
        for map in ["CLASSIFIED", "ENROLLED", "HELD", "LOCAL", "ADDRESSES", "PORTS"] {
            let all = kernel::entries(node, map)?;
            let empty: Vec<_> = all.into_iter().map(|(key, _)| (key, None)).collect();
            kernel::write(node, map, &empty)?;
        }
        let told = kernel::entries(node, "NODE")?;
        let nothing = |(key, value): (Vec<u8>, Vec<u8>)| (key, Some(vec![0; value.len()]));
        kernel::write(node, "NODE", &told.into_iter().map(nothing).collect::<Vec<_>>())?;
        let layout = kernel::layout(node)?;
        for pin in kernel::holds(node)? {
            std::fs::remove_file(layout.join("held").join(pin))?;
        }
        std::fs::remove_file(layout.join("links/nm_unclassified_ingress"))?;
        ensure!(works().is_err(), "nothing has changed");
        drop(successor);
        eventually(SOON, || {
            let now = facts()?;
            ensure!(now == before, "{before:#?} became {now:#?}");
            Ok(())
        })?;
        eventually(SOON, works)?;
        net.objects().pod_runs(&held)?;
        agent.wait_enrolled(&[&held])?;
        eventually(SOON, || answered(&dial(&held, &pair)?))
    });
}

#[test]
fn a_strict_pod_that_appears_while_a_hand_over_stands_still_is_held() {
    scenario("handover-appears", |net| {
        let (pair, _) = Pair::strict(net, &DRAINS)?;
        let open = ServeSpec::both_families(PORT, Talk::Lines);
        let _services = (pair.serve(Talk::Lines)?, probe::serve(&pair.client, &open)?);
        let successor = Successor::ask(&pair.nodes[1])?;
        let held = starting(&pair)?;
        eventually(SOON, || unanswered(&held, &pair.client))?;
        // Connections that have nothing to do with it go on.
        answered(&dial(&pair.client, &pair)?)?;
        drop(successor);
        let agent = &pair.agents[1];
        agent.wait_state(&held, "held")?;
        unanswered(&held, &pair.client)?;
        // A successor that lives finds it held, keeps it so, and releases it when it is enrolled.
        let old = agent.take_over()?;
        agent.wait_state(&held, "held")?;
        unanswered(&held, &pair.client)?;
        net.objects().pod_runs(&held)?;
        agent.wait_enrolled(&[&held])?;
        eventually(SOON, || answered(&dial(&held, &pair)?))?;
        eventually(SOON, || {
            let holds = kernel::holds(&pair.nodes[1])?;
            ensure!(holds.is_empty(), "{holds:?}");
            Ok(())
        })?;
        old.wait(SOON)?.success().map(drop)
    });
}

#[test]
fn a_successor_that_is_too_slow_changes_nothing_any_more() {
    scenario("handover-slow", |net| {
        let (pair, _) = Pair::strict(net, &DRAINS)?;
        let _service = pair.serve(Talk::Lines)?;
        let (node, agent) = (&pair.nodes[1], &pair.agents[1]);
        let mut successor = agent.spawn_successor()?;
        successor.wait_for_line("taking over", SOON)?;
        successor.signal(Signal::SIGSTOP)?;
        eventually(PATIENCE, || {
            ensure!(agent.log().contains("this one goes on"), "it waits: {}", agent.log());
            Ok(())
        })?;
        eventually(SOON, || answered(&dial(&pair.client, &pair)?))?;
        let (before, programs) = (at_rest(node)?, kernel::programs_on(node)?);
        successor.signal(Signal::SIGCONT)?;
        let output = successor.wait(SOON)?;
        ensure!(!output.status.success(), "{output}");
        ensure!(output.stderr.contains("was not ready to take over within 20 s"), "{output}");
        let now = kernel::programs_on(node)?;
        ensure!(now == programs, "the successor has swapped programs: {programs:?} became {now:?}");
        wait_back(node, &before)?;
        answered(&dial(&pair.client, &pair)?)
    });
}

/// A pod that the successor cannot take in at once is served by the old agent until it can.
#[test]
fn a_pod_that_cannot_be_taken_in_is_served_until_it_can() {
    scenario("handover-late", |net| {
        let (pair, _) = Pair::strict(net, &DRAINS)?;
        let _service = pair.serve(Talk::Lines)?;
        let (agent, server) = (&pair.agents[1], &pair.server);
        answered(&dial(&pair.client, &pair)?)?;
        let set = |range: &str| {
            let write = format!("echo {range} > /proc/sys/net/ipv4/ip_local_port_range");
            server.run(["sh", "-c", &write])?.success().map(drop)
        };
        // All ports that it dials from are the mesh's: a pod is not taken in then (no_ports_left).
        set("61000 62000")?;
        let new = load(&pair.client, &pair, 3, false)?;
        let mut successor = agent.spawn_successor()?;
        successor.wait_for_line("pod cannot be enrolled", SOON)?;
        new.wait_more(50)?;
        set("32768 60987")?;
        let old = agent.replace(successor)?;
        new.wait_more(50)?;
        agent.wait_enrolled(&[server])?;
        let result = new.finish()?;
        ensure!(result.failed == 0, "{result:?}");
        old.wait(SOON)?.success().map(drop)
    });
}

fn answered_or_cut(conn: &Conn) -> Result<()> {
    if conn.end == End::Reset { Ok(()) } else { answered(conn) }
}

#[test]
fn an_old_agent_that_dies_leaves_its_successor_in_charge() {
    scenario("handover-old", |net| {
        let (pair, stranger) = Pair::strict(net, &DRAINS)?;
        let _service = pair.serve(Talk::Lines)?;
        let prober = load(&stranger, &pair, 1, false)?;
        for delay_ms in (0..10).map(|step| step * 20) {
            let agent = &pair.agents[1];
            let old = agent.replace(agent.spawn_successor()?)?;
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(delay_ms) {
                answered(&dial(&pair.client, &pair)?)?;
            }
            drop(old); // SIGKILL, unless it has ended by itself: nothing was open
            eventually(SOON, || answered(&dial(&pair.client, &pair)?))?;
            eventually(SOON, || {
                ensure!(i64::from(agent.status()?.pid) == i64::from(agent.pid()?.as_raw()));
                Ok(())
            })?;
        }
        let attempts = prober.finish()?;
        ensure!(attempts.ok == 0, "the strict pod was open: {attempts:?}");
        at_rest(&pair.nodes[1]).map(drop)
    });
}

#[test]
fn who_takes_over_by_mistake_is_told() {
    scenario("handover-mistake", |net| {
        let (pair, _) = Pair::strict(net, &DRAINS)?;
        let said = |options: &[&str]| -> Result<String> {
            let process = Agent::spawn_beside(&pair.agents[1], options)?;
            let output = process.wait(SOON)?;
            ensure!(!output.status.success(), "{output}");
            Ok(output.stderr)
        };
        let pid = pair.agents[1].pid()?.to_string();
        let told = said(&[])?;
        ensure!(told.contains(&pid) && told.contains("--take-over"), "{told}");
        let told = said(&["--node", "another", "--take-over"])?;
        ensure!(told.contains("node2") && told.contains("--node"), "{told}");
        ensure!(pair.agents[1].status()?.pid.to_string() == pid);
        let _service = pair.serve(Talk::Lines)?;
        answered(&dial(&pair.client, &pair)?)
    });
}
