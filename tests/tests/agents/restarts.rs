//! An agent that is killed and comes back: what is closed stays closed, and nothing is left behind.

use std::{
    fs,
    io::{self, Write as _},
    net::IpAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use tests::{
    MESH_PORT, Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{Agent, Dirs, SOON},
    eventually,
    flow::Flow,
    kernel::{self, Inventory},
    probe::{self, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// Probes the strict pod all the time while `story` goes on; no probe may be answered.
fn while_probed(pair: &Pair<'_>, stranger: &Pod, story: impl FnOnce() -> Result<()>) -> Result<()> {
    let probers = [pair.prober(stranger, 0)?, pair.prober(stranger, MESH_PORT)?];
    story()?;
    for prober in probers {
        let probed = prober.finish()?;
        ensure!(probed.ok == 0 && probed.failed > 0, "the strict pod was open: {probed:?}");
    }
    Ok(())
}

/// Starts the server's agent again and waits until all is as it was: each program there once.
fn back_as(pair: &Pair<'_>, before: &Inventory) -> Result<()> {
    pair.agents[1].start_again()?;
    pair.agents[1].wait_enrolled(&[&pair.server])?;
    eventually(SOON, || pair.is_answered(&pair.client))?;
    // What an agent had loaded goes a moment after it.
    eventually(SOON, || {
        let now = Inventory::of(&pair.nodes[1])?;
        ensure!(
            (&now.links, &now.programs, &now.on_cgroup, &now.entries)
                == (&before.links, &before.programs, &before.on_cgroup, &before.entries),
            "{before:#?} became {now:#?}"
        );
        Ok(())
    })?;
    ensure!(kernel::lookups_in(&pair.server)? == 1, "sk_lookup is not there just once");
    let layouts = kernel::names(&pair.nodes[1].pin_dir())?;
    ensure!(layouts.len() == 1, "{layouts:?}");
    Ok(())
}

/// A pod object elsewhere that has had these addresses for longer.
fn thief(net: &Net, addresses: &[IpAddr]) -> Result<()> {
    let ips = addresses.iter().map(|address| format!("  - ip: \"{address}\"\n"));
    net.objects().write(
        THIEF,
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: thief\n  namespace: other\n  uid: {THIEF}\n  \
             creationTimestamp: \"2001-01-01T00:00:00Z\"\nspec:\n  nodeName: node1\n  \
             containers:\n  - {{name: main, image: none}}\nstatus:\n  phase: Running\n  \
             podIP: \"{}\"\n  podIPs:\n{}",
            addresses[0],
            ips.collect::<String>()
        ),
    )
}

/// Its file, and its UID.
const THIEF: &str = "thief.yaml";

#[test]
fn a_strict_pod_whose_address_is_taken_while_the_agent_is_away_stays_closed() {
    scenario("restarts-taken", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        pair.is_answered(&pair.client)?;
        let agent = &pair.agents[1];
        let all = pair.server.addresses();
        while_probed(&pair, &stranger, || {
            for taken in [&all[..1], &all[..]] {
                agent.kill9()?;
                thief(net, taken)?;
                agent.start_again()?;
                // A pod that has an address left is closed as it was. Without one it is held
                // besides.
                let said = eventually(SOON, || {
                    let said = agent.status()?.pod(&pair.server)?;
                    ensure!(said.code == "address_taken", "{said:?}");
                    Ok(said)
                })?;
                let is_held = taken.len() == all.len();
                ensure!((said.state == "held") == is_held, "{said:?}");
                for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
                    let spec = DialSpec { timeout_s: 1, ..DialSpec::say(to, "req 1\n") };
                    let seen = probe::dial(&stranger, &spec)?;
                    ensure!(seen.received == 0 && seen.end != End::Fin, "{to}: {seen:?}");
                }
                net.objects().remove(THIEF)?;
                agent.wait_enrolled(&[&pair.server])?;
                eventually(SOON, || pair.is_answered(&pair.client))?;
            }
            Ok(())
        })
    });
}

#[test]
fn a_strict_pod_that_cannot_be_enrolled_again_is_closed_as_long_as_it_is_meant_to_be() {
    scenario("restarts-unlabelled", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        pair.is_answered(&pair.client)?;
        let agent = &pair.agents[1];
        agent.kill9()?;
        // A pod can do this to itself: the next agent finds no place for its listeners.
        let listen = ([127, 7, 0, 1], 60_989).into();
        let taken = probe::serve(&pair.server, &ServeSpec { listen, ..ServeSpec::default() })?;
        while_probed(&pair, &stranger, || {
            agent.start_again()?;
            eventually(SOON, || {
                let said = agent.status()?.pod(&pair.server)?;
                ensure!(said.code == "no_listener", "{said:?}");
                Ok(())
            })
        })?;
        // The pod is no longer meant to be closed.
        net.objects().label_pod(&pair.server, Some("disabled"))?;
        agent.wait_state(&pair.server, "not_enrolled")?;
        eventually(SOON, || pair.is_answered(&stranger))?;
        let reserved = pair.server.run(["sysctl", "-n", "net.ipv4.ip_local_reserved_ports"])?;
        ensure!(reserved.success()?.trim().is_empty(), "the ports are still reserved");
        // If it is meant to be closed again, it is not believed to be closed still.
        net.objects().label_pod(&pair.server, None)?;
        agent.wait_state(&pair.server, "held")?;
        let seen = pair.ask(&stranger)?;
        ensure!(seen.end != End::Fin, "{seen:?}");
        drop(taken);
        agent.wait_enrolled(&[&pair.server])?;
        eventually(SOON, || pair.is_answered(&pair.client))?;
        let seen = pair.ask(&stranger)?;
        ensure!(seen.end == End::Refused, "{seen:?}");
        Ok(())
    });
}

#[test]
fn what_another_version_pinned_is_replaced_without_a_gap() {
    scenario("restarts-version", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        pair.is_answered(&pair.client)?;
        let before = Inventory::of(&pair.nodes[1])?;
        let ours = kernel::layout(&pair.nodes[1])?;
        while_probed(&pair, &stranger, || {
            for other in ["v0", "v99"] {
                pair.agents[1].kill9()?;
                // Just what an agent of that version would have left, links to running programs and
                // all.
                fs::rename(&ours, ours.with_file_name(other))?;
                back_as(&pair, &before)?;
                let log = pair.agents[1].log();
                ensure!(log.contains(other), "nothing said of {other}: {log}");
            }
            Ok(())
        })
    });
}

#[test]
fn a_pinned_map_of_another_shape_is_replaced_without_a_gap() {
    scenario("restarts-shape", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        pair.is_answered(&pair.client)?;
        let before = Inventory::of(&pair.nodes[1])?;
        let map = kernel::layout(&pair.nodes[1])?.join("maps/LOCAL");
        while_probed(&pair, &stranger, || {
            pair.agents[1].kill9()?;
            fs::remove_file(&map)?;
            let shape = "type hash key 20 value 8 entries 64 name LOCAL";
            let words = ["bpftool", "map", "create", &map.to_string_lossy()].map(str::to_owned);
            pair.nodes[1]
                .run(words.into_iter().chain(shape.split(' ').map(str::to_owned)))?
                .success()?;
            back_as(&pair, &before)?;
            let log = pair.agents[1].log();
            ensure!(log.contains("LOCAL") && log.contains("replaced"), "nothing said: {log}");
            Ok(())
        })
    });
}

#[test]
fn pins_that_are_missing_are_made_again() {
    scenario("restarts-missing", |net| {
        let (pair, _) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        pair.is_answered(&pair.client)?;
        let before = Inventory::of(&pair.nodes[1])?;
        let layout = kernel::layout(&pair.nodes[1])?;
        for pin in ["links/nm_connect4", "links/nm_sockops", "maps/PORTS", "maps/ENROLLED"] {
            pair.agents[1].kill9()?;
            fs::remove_file(layout.join(pin))?;
            back_as(&pair, &before).with_context(|| format!("without {pin}"))?;
        }
        Ok(())
    });
}

#[test]
fn an_agent_of_another_node_is_not_disturbed() {
    scenario("restarts-two", |net| {
        let pair = Pair::new(net)?;
        let local = net.pod(&pair.nodes[1], PodSpec::new(SHOP, "local"))?;
        pair.join_with(&local)?;
        let _service = pair.serve(Talk::Lines)?;
        pair.is_answered(&local)?;
        let before = Inventory::of(&pair.nodes[1])?;
        let spec = DialSpec {
            workers: 2,
            pause_ms: 2,
            ..DialSpec::new(pair.server.at(PORT), Talk::Lines)
        };
        let load = probe::load(&local, &spec)?;
        let other = &pair.agents[0];
        let steps: [fn(&Agent) -> Result<()>; 7] = [
            Agent::kill9,
            Agent::start_again,
            Agent::stop,
            Agent::cleanup,
            Agent::start_again,
            Agent::kill9,
            Agent::cleanup,
        ];
        for step in steps {
            step(other)?;
            load.wait_more(50)?;
        }
        let result = load.finish()?;
        ensure!(result.failed == 0, "{result:?}");
        let flow = pair.agents[1]
            .wait_flow("in the mesh", |flow| flow.between(&local, &pair.server, PORT))?;
        ensure!(flow.is_mtls(), "{flow:?}");
        let now = Inventory::of(&pair.nodes[1])?;
        ensure!(
            (&now.links, &now.programs, &now.on_cgroup)
                == (&before.links, &before.programs, &before.on_cgroup),
            "{before:#?} became {now:#?}"
        );
        Ok(())
    });
}

#[test]
fn a_drain_says_what_it_cut() {
    scenario("restarts-drain", |net| {
        let (pair, _) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        // The client's agent again, with a deadline of a second.
        pair.agents[0].stop()?;
        let agent = Agent::start(&pair.nodes[0], Dirs::of(net), &["--drain-seconds", "1"])?;
        agent.wait_enrolled(&[&pair.client])?;
        eventually(SOON, || pair.is_answered(&pair.client))?;
        let kept = DialSpec {
            keep_alive: true,
            workers: 3,
            ..DialSpec::new(pair.server.at(PORT), Talk::Lines)
        };
        let kept = probe::load(&pair.client, &kept)?;
        kept.wait_more(50)?;
        let mut follow = agent.follow_flows()?;
        follow.wait_for_line("closed", SOON)?; // it follows
        let start = Instant::now();
        agent.begin_stop()?;
        let output = agent.wait_output()?;
        let took = start.elapsed();
        ensure!(output.status.success() && took >= Duration::from_secs(1), "{took:?}: {output}");
        ensure!(
            output.stderr.contains("cut=3") && output.stderr.contains("shop/client"),
            "{output}"
        );
        // A follower is told of each, with what it had carried.
        let told = follow.wait(SOON)?.success()?;
        let cut: Vec<Flow> =
            told.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let cut: Vec<_> = cut.iter().filter(|flow| flow.outcome == "drain_deadline").collect();
        ensure!(
            cut.len() == 3 && cut.iter().all(|f| f.is_mtls() && f.bytes.received > 50),
            "{cut:#?}"
        );
        let result = kept.finish()?;
        ensure!(
            result.failures.iter().any(|failure| failure.contains("reset")),
            "not reset: {result:?}"
        );
        Ok(())
    });
}

#[test]
fn an_agent_whose_runtime_is_stuck_ends_itself() {
    scenario("restarts-stuck", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Lines)?;
        let agent = &pair.agents[1];
        // Its watchdog, its log and everything else run on; only the runtime's threads are stopped,
        // for good.
        let stop =
            pair.nodes[1].spawn(["python3", "-c", STOP_WORKERS, &agent.pid()?.to_string()])?;
        while_probed(&pair, &stranger, || {
            let output = agent.wait_output()?;
            ensure!(output.status.signal() == Some(Signal::SIGABRT as i32), "{output}");
            ensure!(
                output.stderr.contains("no progress") && output.stderr.contains("mesh "),
                "{output}"
            );
            ensure!(output.stderr.contains("t (tracing stop)"), "{output}");
            agent.start_again()?;
            eventually(SOON, || pair.is_answered(&pair.client))
        })?;
        stop.wait(SOON).map(drop)
    });
}

/// Stops every thread called `mesh` of a process (ptrace(2): SEIZE, INTERRUPT), and reaps them when
/// they die.
const STOP_WORKERS: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
task = f"/proc/{sys.argv[1]}/task"
for thread in os.listdir(task):
    if open(f"{task}/{thread}/comm").read().strip() == "mesh":
        for request in (0x4206, 0x4207):
            if libc.ptrace(request, int(thread), None, None):
                sys.exit(os.strerror(ctypes.get_errno()))
try:
    while True:
        os.waitpid(-1, 0x40000000)
except ChildProcessError:
    pass
"#;

/// Where memory is limited by cgroup v1; on a machine that has only v2 the test is skipped.
const MEMORY: &str = "/sys/fs/cgroup/memory";

#[test]
fn an_agent_out_of_memory_leaves_strict_pods_closed() {
    if !Path::new(MEMORY).join("memory.limit_in_bytes").exists() {
        let reason = "no memory controller of cgroup v1";
        writeln!(io::stdout(), "skip: an_agent_out_of_memory: {reason}").unwrap();
        return;
    }
    scenario("restarts-memory", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let sink = probe::serve(
            &pair.server,
            &ServeSpec { quiet: true, ..ServeSpec::both_families(PORT + 1, Talk::Sink) },
        )?;
        let _service = pair.serve(Talk::Lines)?;
        let agent = &pair.agents[1];
        let limit = Limit::new(&net.tag().to_string(), agent, 4 * 1024 * 1024)?;
        while_probed(&pair, &stranger, || {
            // More than fits: each busy connection takes some 200 KiB.
            let to = pair.server.at(PORT + 1);
            let flood = DialSpec {
                send_bytes: 20_000_000,
                connections: 200,
                workers: 200,
                timeout_s: 3,
                half_close: true,
                ..DialSpec::new(to, Talk::Exchange)
            };
            drop(probe::dial_all(&pair.client, &flood)?);
            let output = agent.wait_output()?;
            ensure!(output.status.signal() == Some(Signal::SIGKILL as i32), "not killed: {output}");
            agent.start_again()?;
            eventually(SOON, || pair.is_answered(&pair.client))
        })?;
        sink.stop()?;
        limit.remove()
    });
}

/// A memory cgroup with one process in it.
struct Limit(PathBuf);

impl Limit {
    /// Limits the memory allocated from now on to that many bytes.
    fn new(tag: &str, agent: &Agent, bytes: u64) -> Result<Self> {
        let limit = Self(Path::new(MEMORY).join(format!("nodemesh-{tag}")));
        fs::create_dir(&limit.0)?;
        fs::write(limit.0.join("memory.limit_in_bytes"), bytes.to_string())?;
        fs::write(limit.0.join("cgroup.procs"), agent.pid()?.to_string())?;
        Ok(limit)
    }

    fn remove(&self) -> Result<()> {
        eventually(SOON, || Ok(fs::remove_dir(&self.0)?))
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if self.0.exists() {
            // A process that is still in it belongs to a failed test, which ends it.
            let _left_for_the_next_run = fs::remove_dir(&self.0);
        }
    }
}
