//! Pods of the mesh against others of their node, with what a pod may do to its own network.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use tests::{
    Node, PORT, Pod, PodSpec, SHOP,
    agent::SOON,
    attack::{self, AttackSpec, Kind, Times, Usage},
    eventually,
    exec::Place,
    kernel,
    probe::{self, DialSpec, End, ServeSpec, Talk},
    scenario,
};

use super::{Expected, NOISE_KIB, Scene, not_much_slower, others_are_served, says, served};

/// One of the ports that redirected connections carry.
const MAGIC: u16 = 60_990;

#[test]
fn dials_without_end_through_the_pods_own_agent() {
    scenario("attack-dials", |net| {
        let scene = Scene::new(net)?;
        let greedy = net.pod(&scene.pair.nodes[0], PodSpec::new(SHOP, "greedy"))?;
        scene.pair.agents[0].wait_enrolled(&[&greedy])?;
        scene.agent().wait_peers(2)?;
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        let spec = AttackSpec { workers: 4, ..AttackSpec::new(Kind::Dial, scene.victim.at(PORT)) };
        let expected = Expected { going: 100, most_kib: NOISE_KIB };
        others_are_served("attack-dials", &scene, &before, &greedy, &spec, expected)?;
        ensure!(scene.application.conns().iter().all(|conn| conn.received == 0));
        scene.recovered(&before)
    });
}

#[test]
fn a_pods_own_firewall_harms_the_pod_alone() {
    scenario("attack-firewall", |net| {
        const MARKER: &str = "firewall-marker-53c0";
        let scene = Scene::new(net)?;
        let client = &scene.pair.client;
        let to = scene.pair.server.at(PORT);
        let rules = |text: &str| client.run(["nft", text])?.success();
        let modest = net.pod(&scene.pair.nodes[0], PodSpec::new(SHOP, "modest"))?;
        scene.pair.agents[0].wait_enrolled(&[&modest])?;
        // The agent's dials are led to a server of the pod's own, which would like to read them.
        let false_peer = probe::serve(client, &ServeSpec::new(9999, Talk::Exchange))?;
        rules(
            "add table ip own; add chain ip own out { type nat hook output priority -100; }; \
               add rule ip own out tcp sport 61000-65535 redirect to :9999",
        )?;
        let seen = probe::dial(client, &DialSpec::say(to, MARKER))?;
        ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
        served(&modest, &scene.pair.server)?;
        scene.pair.agents[0].wait_flow("refused", |flow| {
            flow.client.address == IpAddr::V4(client.v4) && flow.outcome == "unexpected_message"
        })?;
        let heard = false_peer.conns();
        ensure!(
            !heard.is_empty() && heard.iter().all(|conn| !conn.first.contains(MARKER)),
            "{heard:?}"
        );
        // Dropped: the pod's dials hang until the agent gives up. Other pods' dials do not.
        rules(
            "flush table ip own; add chain ip own stop { type filter hook output priority 0; }; \
               add rule ip own stop tcp sport 61000-65535 drop",
        )?;
        let hanging =
            DialSpec { connections: 50, workers: 50, timeout_s: 10, ..DialSpec::say(to, MARKER) };
        let load = probe::load(client, &hanging)?;
        scene.pair.agents[0].wait_flow("begun", |flow| {
            flow.client.address == IpAddr::V4(client.v4) && flow.outcome == "open"
        })?;
        served(&modest, &scene.pair.server)?;
        scene.pair.agents[0]
            .wait_flow("given up", |flow| flow.outcome == "connection_timed_out")?;
        drop(load);
        rules("delete table ip own")?;
        eventually(SOON, || served(client, &scene.pair.server))
    });
}

/// Dials between `connect` and the agent that one pod may have: docs/security.md.
const MOST_PENDING: u64 = 16_384;
/// So many attempts fill that in two seconds, and leave processors free.
const PER_SECOND: u64 = 10_000;
/// Listens at the ports that the attacks dial: only dials to what answers get beyond their first
/// packet.
const LISTEN_EVERYWHERE: &str = "import selectors,socket\n\
    s=selectors.DefaultSelector()\n\
    for port in range(1,65): s.register(socket.create_server(('',port)),1)\n\
    print('ready',flush=True)\n\
    while 1:\n\
    \x20for key,_ in s.select(): key.fileobj.accept()[0].close()\n";
/// The code of a dial beyond that.
const REFUSED_SHARE: &str = "refused_pending_share";

/// No dial waits for a node's agent, and none is counted.
fn no_dials(node: &Node) -> Result<()> {
    let left = kernel::dials(node)?;
    ensure!(left.iter().all(|dials| *dials == 0), "{left:?} are counted");
    ensure!(kernel::entries(node, "PENDING")?.is_empty(), "entries are left");
    Ok(())
}

/// A pod whose dials do not get as far as its agent fills its share of them. Other pods notice
/// nothing, and it is reported.
fn has_its_share(
    scene: &Scene<'_>,
    greedy: &Pod,
    spec: &AttackSpec,
    quiet: &[Times],
) -> Result<()> {
    let (node, agent) = (&scene.pair.nodes[0], &scene.pair.agents[0]);
    let refused = |of: &Pod| Ok::<_, anyhow::Error>(agent.status()?.pod_verdict(of, REFUSED_SHARE));
    let before = refused(greedy)?;
    let attack = attack::start(greedy, spec)?;
    eventually(SOON * 6, || {
        let refused = refused(greedy)? - before;
        ensure!(refused >= 100, "{refused} refused: {:?}", attack.tally());
        Ok(())
    })?;
    let under = scene.rounds()?;
    println!("attack-pending, {:?}: {quiet:?} -> {under:?}, {:?}", spec.kind, attack.tally());
    not_much_slower(quiet, &under)?;
    let had = kernel::dials(node)?;
    // Programs on several CPUs may each have seen the last free place.
    let mut own = had.iter().skip(1);
    ensure!(own.all(|dials| *dials <= MOST_PENDING + 64), "{had:?}");
    agent.wait_problem("the greedy pod", |problem| {
        problem.code == "pending_share" && problem.message.contains("shop/greedy")
    })?;
    agent.wait_flow("refused", |flow| {
        flow.outcome == REFUSED_SHARE && flow.client.pod.as_deref() == Some("shop/greedy")
    })?;
    let of_others = refused(&scene.pair.client)?;
    ensure!(of_others == 0, "{of_others} dials of another pod were refused");
    attack.stop().map(drop)
}

#[test]
fn handshakes_that_the_pods_own_firewall_keeps_from_ending() {
    scenario("attack-pending", |net| {
        let scene = Scene::new(net)?;
        let (node, agent) = (&scene.pair.nodes[0], &scene.pair.agents[0]);
        let greedy = net.pod(node, PodSpec::new(SHOP, "greedy"))?;
        agent.wait_enrolled(&[&greedy])?;
        scene.others(50)?;
        let quiet = scene.rounds()?;
        // What a pod does to others by using processors and by packets sent again, it does without
        // a mesh, too.
        let outside = |kind, spec: &AttackSpec| {
            let spec = AttackSpec { kind, to: scene.attacker.at(PORT), ..spec.clone() };
            let attack = attack::start(&scene.attacker, &spec)?;
            attack.wait("under way", |tally| tally.ended + tally.connected >= spec.hold)?;
            let rounds = scene.rounds()?;
            println!("attack-pending, {kind:?} without the mesh: {quiet:?} -> {rounds:?}");
            attack.stop()?;
            Ok::<_, anyhow::Error>(rounds)
        };
        let mut everywhere = scene.pair.server.spawn(["python3", "-c", LISTEN_EVERYWHERE])?;
        everywhere.wait_for_line("ready", SOON)?;
        let to = scene.pair.server.at(0);
        let full_speed = AttackSpec { workers: 2, ..AttackSpec::new(Kind::Orphan, to) };
        let orphans = AttackSpec { per_second: PER_SECOND, ..full_speed.clone() };
        let deaf = AttackSpec {
            hold: MOST_PENDING + 1_000,
            per_second: PER_SECOND,
            ..AttackSpec::new(Kind::Deaf, to)
        };
        let beside_busy = outside(Kind::Orphan, &full_speed)?;
        let beside_deaf = outside(Kind::Deaf, &deaf)?;
        let rules = |text: &str| greedy.run(["nft", text])?.success();
        rules(
            "add table ip own; add chain ip own out { type filter hook output priority 0; }; \
               add rule ip own out tcp dport 60990-60997 tcp flags & (syn | ack) == ack drop",
        )?;
        has_its_share(&scene, &greedy, &orphans, &quiet)?;
        has_its_share(&scene, &greedy, &full_speed, &beside_busy)?;
        rules("delete table ip own")?;
        // The kernel would try for minutes to end them.
        greedy.run(["ss", "-t", "-K", "state", "fin-wait-1"])?.success()?;
        eventually(SOON, || no_dials(node))?;
        // Without any capability.
        has_its_share(&scene, &greedy, &deaf, &beside_deaf)?;
        eventually(SOON, || no_dials(node))?;
        ensure!(agent.status()?.problems.is_empty(), "{:?}", agent.status()?.problems);
        served(&greedy, &scene.pair.server)?;
        // The next agent counts from zero. What is given back then goes to the sum, too.
        agent.stop()?;
        agent.start_again()?;
        agent.wait_enrolled(&[&greedy, &scene.pair.client])?;
        eventually(SOON, || served(&greedy, &scene.pair.server))?;
        scene.others(50)?;
        eventually(SOON, || no_dials(node))
    });
}

#[test]
fn connections_that_are_open_take_nothing_of_their_pods_share_of_dials() {
    const OPEN: u64 = 500;
    scenario("attack-open", |net| {
        let scene = Scene::new(net)?;
        let (node, agent, client) =
            (&scene.pair.nodes[0], &scene.pair.agents[0], &scene.pair.client);
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        let port = PORT + 1;
        let _keeps = attack::keep(&scene.victim, ([0, 0, 0, 0], port).into())?;
        let to = scene.victim.at(port);
        let spec = AttackSpec { hold: OPEN, ..AttackSpec::new(Kind::Silent, to) };
        let attack = attack::start(client, &spec)?;
        let all_are_open = || {
            let open = [Usage::of(agent)?.open, Usage::of(scene.agent())?.open];
            ensure!(open == [OPEN; 2], "{open:?} {:?}", attack.tally());
            no_dials(node)
        };
        eventually(SOON, all_are_open)?;
        // These connections are reset, and dialled again.
        agent.kill9()?;
        agent.start_again()?;
        agent.wait_enrolled(&[client])?;
        eventually(SOON, all_are_open)?;
        attack.stop()?;
        eventually(SOON, || no_dials(node))?;
        scene.recovered(&before)
    });
}

/// A pod with `CAP_NET_ADMIN` over its network namespace may destroy its own listeners. From there
/// the kernel must find none of another pod's, whatever addresses it is asked with.
#[test]
fn listeners_destroyed_by_a_pod() {
    scenario("attack-destroy", |net| {
        let scene = Scene::new(net)?;
        let thief = net.pod(&scene.pair.nodes[1], PodSpec::new(SHOP, "thief"))?;
        scene.agent().wait_enrolled(&[&thief])?;
        scene.pair.agents[0].wait_peers(3)?;
        // Not at the victims' port: the kernel finds sockets in the thief's own namespace that
        // listen at any address.
        let spec = ServeSpec::both_families(PORT + 1, Talk::Exchange);
        let _application = probe::serve(&thief, &spec)?;
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        // A peer's dial to the victim, its own dial to the mesh, both families, a strict pod and a
        // permissive one.
        let (victim, server) = (&scene.victim, &scene.pair.server);
        let stranger: IpAddr = "10.244.1.99".parse()?;
        let stranger6: IpAddr = "fd00:244:1::99".parse()?;
        for (to, from) in [
            (victim.at(PORT), stranger),
            (victim.at6(PORT), stranger6),
            (server.at(PORT), stranger),
            (victim.at(MAGIC), victim.v4.into()),
            (server.at6(MAGIC), server.v6.into()),
        ] {
            let spec = AttackSpec::new(Kind::Destroy, to).from(from);
            let attack = attack::start(&thief, &spec)?;
            attack.wait("tried", |tally| tally.connected + tally.ended >= 100)?;
            let tally = attack.stop()?;
            ensure!(tally.connected == 0, "{} of {to} were destroyed", tally.connected);
        }
        ensure!(scene.others(50)?.ok == 50);
        let say = |from: &Place, to| says(from, to, "heard");
        say(&scene.pair.client, victim.at(PORT))?;
        // Its own listeners, as often as they are made anew.
        let own = AttackSpec { per_second: 200, ..AttackSpec::new(Kind::Destroy, thief.at(PORT)) };
        let own = own.from(stranger);
        let expected = Expected { going: 2, most_kib: NOISE_KIB };
        others_are_served("attack-destroy", &scene, &before, &thief, &own, expected)?;
        let attack = attack::start(&thief, &own)?;
        scene.agent().wait_problem("the thief", |problem| {
            problem.code == "listener_lost" && problem.message.contains("shop/thief")
        })?;
        attack.stop()?;
        eventually(SOON, || say(&scene.pair.client, thief.at(PORT + 1)))?;
        eventually(SOON, || say(&thief, victim.at(PORT)))?;
        let told = scene.agent().log().matches("destroys the agent's listeners").count();
        ensure!((1..=2).contains(&told), "told {told} times: {}", scene.agent().log());
        eventually(SOON * 2, || {
            let problems = scene.agent().status()?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(())
        })?;
        scene.recovered(&before)
    });
}
