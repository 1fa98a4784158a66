//! Clients with many connections, against what all pods of a node share.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pod, PodSpec, SHOP,
    agent::{Agent, Dirs, SOON},
    attack::{self, AttackSpec, Kind, Usage},
    eventually,
    flow::Flow,
    objects::MODE,
    probe::{self, DialSpec, End, ServeSpec, Talk},
    scenario,
};

use super::{Bound, Scene, not_much_slower, plan, served, within_bound};

/// What the kernel may hold for each agent's sockets if one pod does all it can: the budget of 256
/// MiB, what arrives until that is noticed, and a little for each connection
/// (`proxy/socket_memory.rs`). Measured up to 236 MiB.
const SOCKET_MIB: u64 = 384;

#[test]
fn servers_that_do_not_read_leave_the_kernel_its_memory() {
    const CONNECTIONS: u64 = 600;
    /// Full once nothing has been taken for so long.
    const STILL: Duration = Duration::from_secs(2);
    /// By how much the agent's memory may grow: half as much again as the 58 MiB that were
    /// measured.
    const FILL_KIB: u64 = 88_000;
    /// What the first buffers hold is more.
    const FILLED: u64 = CONNECTIONS * 64 * 1024;
    scenario("attack-fill", |net| {
        let scene = Scene::new(net)?;
        let greedy = net.pod(&scene.pair.nodes[0], PodSpec::new(SHOP, "greedy"))?;
        scene.pair.agents[0].wait_enrolled(&[&greedy])?;
        scene.agent().wait_peers(2)?;
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        let (quiet, quiet_stream) = (scene.rounds()?, stream(&scene)?);
        println!("attack-fill: a stream takes {quiet_stream:?}");
        let port = PORT + 1;
        let _deaf = attack::keep(&scene.victim, ([0, 0, 0, 0], port).into())?;
        let spec =
            AttackSpec { hold: CONNECTIONS, ..AttackSpec::new(Kind::Fill, scene.victim.at(port)) };
        let attack = attack::start(&greedy, &spec)?;
        // Until all is full: nothing has been taken for a while.
        let (mut last, mut since) = (0, Instant::now());
        eventually(SOON * 6, || {
            let tally = attack.tally();
            if tally.said != last {
                (last, since) = (tally.said, Instant::now());
            }
            ensure!(tally.open == CONNECTIONS && tally.said > FILLED, "{tally:?}");
            ensure!(since.elapsed() >= STILL, "it is still taken: {tally:?}");
            Ok(())
        })?;
        let held = [agents_sockets(&greedy)?, agents_sockets(&scene.victim)?];
        println!("attack-fill: {:?}, {held:?} bytes of the kernel's memory", attack.tally());
        // The victim's agent is full before the greedy pod's, which takes little from an
        // application in advance.
        let problem =
            scene.agent().wait_problem("the victim", |of| of.code == "socket_memory_share")?;
        ensure!(problem.message.contains("shop/victim"), "{problem:?}");
        let most = SOCKET_MIB << 20;
        ensure!(held.iter().all(|bytes| *bytes <= most), "{held:?} bytes, {most} may be");
        let (under, under_stream) = (scene.rounds()?, stream(&scene)?);
        println!("attack-fill: {quiet:?} -> {under:?}; the stream takes {under_stream:?}");
        not_much_slower(&quiet, &under)?;
        let most = if plan()?.1 { STREAM } else { STREAM_BUSY }.of(micros(quiet_stream));
        ensure!(micros(under_stream) <= most, "{quiet_stream:?}, beside it {under_stream:?}");
        within_bound("attack-fill", &before, &Usage::of(scene.agent())?, FILL_KIB)?;
        attack.stop()?;
        for agent in &scene.pair.agents {
            eventually(SOON, || {
                let problems = agent.status()?.problems;
                ensure!(problems.is_empty(), "{problems:?}");
                Ok(())
            })?;
        }
        scene.recovered(&before)
    });
}

/// Of the others' stream.
const STREAM_BYTES: u64 = 128 << 20;
/// By how much it may get slower.
const STREAM: Bound = Bound { times: 2, more_us: 20_000 };
const STREAM_BUSY: Bound = Bound { times: 2, more_us: 500_000 };

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How long it takes; the shorter of two.
fn stream(scene: &Scene<'_>) -> Result<Duration> {
    let port = PORT + 2;
    let spec =
        ServeSpec { send_bytes: STREAM_BYTES, quiet: true, ..ServeSpec::new(port, Talk::Bulk) };
    let _service = probe::serve(&scene.pair.server, &spec)?;
    let once = || {
        let begun = Instant::now();
        let dial = DialSpec {
            half_close: true,
            timeout_s: 60,
            ..DialSpec::new(scene.pair.server.at(port), Talk::Bulk)
        };
        let seen = probe::dial(&scene.pair.client, &dial)?;
        ensure!((seen.received, seen.end) == (STREAM_BYTES, End::Fin), "{seen:?}");
        Ok(begun.elapsed())
    };
    Ok(once()?.min(once()?))
}

/// What the kernel has for the sockets of the agent in a pod, in bytes.
fn agents_sockets(pod: &Pod) -> Result<u64> {
    let told = pod.run(["ss", "-tmnH"])?.success()?;
    let mut sum = 0;
    let words: Vec<&str> = told.split_whitespace().collect();
    // STATE RECV-Q SEND-Q LOCAL PEER skmem:(r0,rb131072,t0,tb87040,f0,w0,o0,bl0,d0)
    for line in words.windows(3) {
        let [local, peer, memory] = line else { continue };
        let Some(memory) = memory.strip_prefix("skmem:(r") else { continue };
        let port = |of: &str| of.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let host = |of: &str| of.rsplit_once(':').map(|(host, _)| host.to_owned());
        let (Some(from), Some(to)) = (port(local), port(peer)) else { continue };
        let is_agents = from >= 60_988 || (to >= 61_000 && host(local) != host(peer));
        if is_agents {
            let number = |text: &str| text.split(',').next().and_then(|n| n.parse::<u64>().ok());
            let queued = memory.split(",w").nth(1).and_then(number);
            sum += number(memory).context("received")? + queued.context("queued")?;
        }
    }
    Ok(sum)
}

/// Two clients on one node, two servers on the other, and agents that carry few connections.
fn crowded(net: &Net, most: &str) -> Result<([Agent; 2], [Pod; 2], [Pod; 2])> {
    let nodes = [net.node("node1")?, net.node("node2")?];
    let options = ["--max-connections", most];
    let clients = [
        net.pod(&nodes[0], PodSpec::new(SHOP, "greedy"))?,
        net.pod(&nodes[0], PodSpec::new(SHOP, "modest"))?,
    ];
    let servers = [
        net.pod(&nodes[1], PodSpec::new(SHOP, "crowded"))?,
        net.pod(&nodes[1], PodSpec::new(SHOP, "beside"))?,
    ];
    let start = |node| Agent::start(node, Dirs::of(net), &options);
    let agents = [start(&nodes[0])?, start(&nodes[1])?];
    net.objects().label_namespace(SHOP, Some("enabled"))?;
    agents[0].wait_enrolled(&[&clients[0], &clients[1]])?;
    agents[1].wait_enrolled(&[&servers[0], &servers[1]])?;
    agents.iter().try_for_each(|agent| agent.wait_peers(2))?;
    Ok((agents, clients, servers))
}

#[test]
fn connections_without_end() {
    scenario("attack-hold", |net| {
        let ([outbound, inbound], [greedy, modest], [crowded, beside]) = crowded(net, "100")?;
        let serve = |pod| probe::serve(pod, &ServeSpec::both_families(PORT, Talk::Lines));
        let _services = [serve(&crowded)?, serve(&beside)?];
        let before = [Usage::of(&outbound)?, Usage::of(&inbound)?];
        let spec = AttackSpec {
            hold: 200,
            per_second: 500,
            ..AttackSpec::new(Kind::Hold, crowded.at(PORT))
        };
        let attack = attack::start(&greedy, &spec)?;
        // The greedy pod's own agent or the server's stops it: it gets four fifths, not more.
        // Refusals are remembered, so that most of its dials end in the kernel.
        eventually(SOON, || {
            let (usage, tally) = (Usage::of(&outbound)?, attack.tally());
            ensure!(usage.open >= 70 && tally.ended > 1_000, "{usage:?} {tally:?}");
            let mut flows = outbound.flows()?;
            flows.extend(inbound.flows()?);
            let told = |flow: &Flow| {
                flow.outcome.starts_with("limit_connections")
                    && flow.client.pod.as_deref() == Some("shop/greedy")
            };
            ensure!(flows.iter().any(told), "no record says why");
            Ok(())
        })?;
        ensure!(Usage::of(&outbound)?.open <= 81, "{:?}", Usage::of(&outbound)?);
        served(&modest, &crowded).context("another client of the same server")?;
        served(&modest, &beside).context("another pair")?;
        let held = attack.tally();
        attack.stop()?;
        for (agent, before) in [&outbound, &inbound].into_iter().zip(before) {
            eventually(SOON, || {
                let now = Usage::of(agent)?;
                ensure!(
                    now.open == 0 && now.descriptors <= before.descriptors,
                    "{before:?} {now:?}"
                );
                Ok(())
            })?;
        }
        // What has just been refused is remembered for a second.
        eventually(SOON, || served(&greedy, &crowded)).with_context(|| format!("after {held:?}"))
    });
}

#[test]
fn a_client_that_takes_all_of_a_pod() {
    scenario("attack-source", |net| {
        let ([_outbound, inbound], [_, modest], [crowded, beside]) = crowded(net, "100")?;
        let node = net.node("node3")?;
        let stranger = net.pod(&node, PodSpec::new("other", "stranger"))?;
        net.objects().annotate_pod(&crowded, MODE, Some("strict"))?;
        eventually(SOON, || {
            let mode = inbound.status()?.pod(&crowded)?.mode;
            ensure!(mode.as_deref() == Some("strict"), "{mode:?}");
            Ok(())
        })?;
        let serve = |pod| probe::serve(pod, &ServeSpec::both_families(PORT, Talk::Lines));
        let _services = [serve(&crowded)?, serve(&beside)?];
        let spec = AttackSpec { hold: 200, ..AttackSpec::new(Kind::Silent, crowded.at(PORT)) };
        let attack = attack::start(&stranger, &spec.from(IpAddr::V4(stranger.v4)))?;
        inbound.wait_flow("refused", |flow| flow.outcome == "limit_connections_of_client")?;
        ensure!(Usage::of(&inbound)?.open <= 77, "{:?}", Usage::of(&inbound)?);
        served(&modest, &crowded).context("another client of the same server")?;
        served(&modest, &beside).context("another server")?;
        inbound.wait_flow("out of patience", |flow| flow.outcome == "refused_strict")?;
        attack.stop().map(drop)
    });
}
