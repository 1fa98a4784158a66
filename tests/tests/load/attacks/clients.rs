//! Clients that are not in the mesh, or only pretend to be, against a pod of it and its node's
//! agent.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tests::{
    PORT, PodSpec, SHOP,
    agent::{Dirs, SOON},
    attack::{self, AttackSpec, Kind, Usage},
    certs::{self, Validity},
    eventually,
    exec::Place,
    flow::spiffe_id,
    kernel,
    masquerade::AGENTS_PORT,
    objects::MODE,
    probe::{self, DialSpec, End, ServeSpec, Talk},
    scenario,
};

use super::{Expected, NOISE_KIB, Scene, not_much_slower, others_are_served, says};

/// An attack on the victim: what it may not do to the others, to the agent and to the victim.
fn withstands(name: &str, spec: impl Fn(&Scene<'_>) -> AttackSpec, expected: Expected) {
    scenario(name, |net| {
        let scene = Scene::new(net)?;
        scene.others(50)?; // certificates, buffers
        let before = Usage::of(scene.agent())?;
        others_are_served(name, &scene, &before, &scene.attacker, &spec(&scene), expected)?;
        scene.unharmed()?;
        scene.recovered(&before)
    });
}

/// How many notes of connections to applications an agent may leave in the kernel at once, in the
/// next test.
const NOTES: u64 = 1_000;

/// Longer than the test takes. The application does not want to hear of clients that say nothing
/// (`TCP_DEFER_ACCEPT`, as Apache and nginx do by option).
const DEFER_S: i32 = 60;

#[test]
fn clients_that_reset_without_a_byte_at_a_server_that_waits_for_one() {
    scenario("attack-defer", |net| {
        let scene = Scene::new(net)?;
        let (node, server) = (&scene.pair.nodes[1], &scene.pair.server);
        let spec = ServeSpec { defer_s: DEFER_S, ..ServeSpec::new(PORT + 1, Talk::Exchange) };
        let _deferring = probe::serve(server, &ServeSpec { backlog: 4096, ..spec })?;
        let notes = || Ok::<_, anyhow::Error>(kernel::entries(node, "LEGS")?.len() as u64);
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        let spec = AttackSpec { hold: NOTES, ..AttackSpec::new(Kind::Silent, server.at(PORT + 1)) };
        let spec = spec.from(IpAddr::V4(scene.attacker.v4));
        // These connections are in the kernel's hands only: the application has been told of none.
        let attack = attack::start(&scene.attacker, &spec)?;
        eventually(SOON, || {
            let (now, tally) = (notes()?, attack.tally());
            ensure!(now >= NOTES, "{now} notes of {tally:?}");
            Ok(())
        })?;
        attack.stop()?;
        let expected = Expected { going: NOTES, most_kib: 7_500 };
        others_are_served("attack-defer", &scene, &before, &scene.attacker, &spec, expected)?;
        eventually(SOON, || {
            let left = notes()?;
            ensure!(left == 0, "{left} notes of connections that are gone");
            Ok(())
        })?;
        says(&scene.pair.client, server.at(PORT + 1), "first")?;
        scene.recovered(&before)
    });
}

#[test]
fn silent_connections() {
    let spec = |scene: &Scene<'_>| AttackSpec { hold: 2_000, ..scene.against_victim(Kind::Silent) };
    withstands("attack-silent", spec, Expected { going: 1_000, most_kib: 9_200 });
}

#[test]
fn a_client_hello_a_byte_at_a_time() {
    let spec = |scene: &Scene<'_>| AttackSpec { hold: 500, ..scene.against_victim(Kind::Drip) };
    withstands("attack-drip", spec, Expected { going: 500, most_kib: 7_000 });
}

#[test]
fn handshakes_that_are_never_finished() {
    let spec = |scene: &Scene<'_>| AttackSpec { workers: 4, ..scene.against_victim(Kind::Hello) };
    withstands("attack-hello", spec, Expected { going: 100, most_kib: NOISE_KIB });
}

#[test]
fn garbage() {
    let spec = |scene: &Scene<'_>| AttackSpec { workers: 4, ..scene.against_victim(Kind::Garbage) };
    withstands("attack-garbage", spec, Expected { going: 100, most_kib: NOISE_KIB });
}

/// Failed handshakes that one client may have with one pod in a second: docs/security.md.
const FAILURES_PER_SECOND: u64 = 64;

#[test]
fn garbage_on_the_agents_port() {
    scenario("attack-agents-port", |net| {
        let scene = Scene::new(net)?;
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        let to = scene.victim.at(AGENTS_PORT);
        let garbage = AttackSpec { workers: 4, ..AttackSpec::new(Kind::Garbage, to) };
        let garbage = garbage.from(IpAddr::V4(scene.attacker.v4));
        let expected = Expected { going: 100, most_kib: NOISE_KIB };
        others_are_served(
            "attack-agents-port",
            &scene,
            &before,
            &scene.attacker,
            &garbage,
            expected,
        )?;
        // Each failure keeps its place for a second, on this port as on any other.
        let count = 5 * FAILURES_PER_SECOND;
        let attack = attack::start(&scene.attacker, &garbage)?;
        let begun = Instant::now();
        attack.wait("heard to its end", |tally| tally.ended >= count)?;
        let took = begun.elapsed();
        let tally = attack.stop()?;
        println!("attack-agents-port: {tally:?} in {took:?}");
        let least = Duration::from_secs(count / FAILURES_PER_SECOND - 2);
        ensure!(took >= least, "{tally:?} in {took:?}, which should take {least:?}");
        scene.unharmed()?;
        scene.recovered(&before)
    });
}

/// Handshakes in progress that one client may have with one pod: docs/security.md.
const HANDSHAKES: u64 = 64;
/// How long each of them may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// What the agent may need for each connection that waits for its turn: half as much again as the
/// 9 KiB that were measured, with both its sockets and what is known of it. Without the limit it is
/// 37 KiB.
const WAITING_KIB: u64 = 14;

#[test]
fn client_hellos_after_a_silence() {
    scenario("attack-late", |net| {
        let scene = Scene::new(net)?;
        let open = net.pod(&scene.pair.nodes[1], PodSpec::new(SHOP, "open"))?;
        scene.agent().wait_enrolled(&[&open])?;
        let _application = attack::keep(&open, open.at(PORT))?;
        scene.others(50)?;
        let before = Usage::of(scene.agent())?;
        let quiet = scene.rounds()?;
        let spec = AttackSpec { hold: 3_000, ..AttackSpec::new(Kind::Late, open.at(PORT)) };
        let spec = spec.from(IpAddr::V4(scene.attacker.v4));
        let begun = Instant::now();
        let attack = attack::start(&scene.attacker, &spec)?;
        attack.wait("answered", |tally| tally.connected >= spec.hold && tally.answered > 0)?;
        let under = scene.rounds()?;
        let usage = Usage::of(scene.agent())?;
        let tally = attack.tally();
        let most = HANDSHAKES * (1 + begun.elapsed().as_secs() / HANDSHAKE.as_secs());
        println!("attack-late: {tally:?} {before:?} {usage:?} {quiet:?} {under:?}");
        ensure!(tally.answered <= most, "{tally:?}, of which {most} may be answered");
        let grown = usage.rss_kib.saturating_sub(before.rss_kib);
        let bound = WAITING_KIB * spec.hold;
        ensure!(grown <= bound, "{grown} KiB more, {bound} KiB may be: {before:?}, {usage:?}");
        not_much_slower(&quiet, &under)?;
        attack.stop()?;
        scene.unharmed()?;
        scene.recovered(&before)
    });
}

#[test]
fn half_open_connections_from_forged_addresses() {
    let spec = |scene: &Scene<'_>| AttackSpec {
        forge: Some([10, 244, 2, 0].into()),
        per_second: 20_000,
        ..scene.against_victim(Kind::Syn)
    };
    withstands("attack-syn", spec, Expected { going: 20_000, most_kib: NOISE_KIB });
}

#[test]
fn peers_that_prove_who_they_are_and_never_open() {
    scenario("attack-mute", |net| {
        let scene = Scene::new(net)?;
        let pair = &scene.pair;
        let before = Usage::of(scene.agent())?;
        let anchor = certs::anchor_in(&Dirs::of(net).ca);
        let id = spiffe_id(SHOP, "client");
        let dir = net.tag().dir().join("mute");
        let leaf = certs::leaf(&dir, "client", &anchor, &id, Validity::Now)?;
        let (cert, key) = (leaf.cert.to_string_lossy(), leaf.key.to_string_lossy());
        let to = scene.victim.at(PORT).to_string();
        let mute = |port| {
            let from = pair.client.at(port).to_string();
            let words = ["openssl", "s_client", "-quiet", "-tls1_3", "-alpn", "nodemesh/1"];
            let more = ["-connect", &to, "-bind", &from, "-cert", &*cert, "-key", &*key];
            pair.beside_client().spawn(words.iter().chain(&more))
        };
        let _held = (61_700..61_720).map(mute).collect::<Result<Vec<_>>>()?;
        scene.agent().wait_flow("of one that has not opened", |flow| {
            flow.outcome == "open" && flow.client.identity.as_deref() == Some(&*id)
        })?;
        says(&pair.client, scene.victim.at(PORT), "beside")?;
        eventually(SOON * 2, || {
            let flows = scene.agent().flows()?;
            let over = flows.iter().filter(|flow| flow.outcome == "session_timed_out").count();
            ensure!(over == 20, "{over} have been ended");
            Ok(())
        })?;
        let conns = scene.application.conns();
        ensure!(conns.iter().all(|conn| conn.first == "beside"), "{conns:?}");
        scene.recovered(&before)
    });
}

#[test]
fn packets_from_the_victims_own_address() {
    scenario("attack-own", |net| {
        let scene = Scene::new(net)?;
        let before = scene.agent().status()?;
        // IPv4 drops them itself (a martian source); IPv6 does not.
        for port in [PORT, 60_990] {
            let to = scene.victim.at6(port);
            let forge = Some(IpAddr::V6(scene.victim.v6));
            let spec = AttackSpec { forge, per_second: 5_000, ..AttackSpec::new(Kind::Syn, to) };
            let attack = attack::start(&scene.attacker, &spec)?;
            attack.wait("sent", |tally| tally.connected >= 3_000)?;
            attack.stop()?;
        }
        // They did arrive, and were taken for the pod's own; but the pod has dialled nothing.
        let after = scene.agent().status()?;
        let arrived =
            |code| after.pod_verdict(&scene.victim, code) - before.pod_verdict(&scene.victim, code);
        ensure!(
            arrived("inbound_own_address") > 0 && arrived("refused_not_noted") > 0,
            "{after:?}"
        );
        ensure!(after.counters == before.counters, "{:?} {:?}", before.counters, after.counters);
        scene.unharmed()?;
        scene.recovered(&Usage::of(scene.agent())?)
    });
}

#[test]
fn the_address_of_a_peer_taken_over() {
    scenario("attack-heist", |net| {
        let scene = Scene::new(net)?;
        // A peer on the victim's own node, whose address the attacker takes: its link is down, as
        // after a won ARP race.
        let peer = net.pod(&scene.pair.nodes[1], PodSpec::new(SHOP, "peer"))?;
        scene.agent().wait_enrolled(&[&peer])?;
        let say = |place: &Place, words: &str| place.run(words.split(' '))?.success();
        say(&peer, "ip link set eth0 down")?;
        say(&scene.attacker, &format!("ip addr add {}/24 dev eth0", peer.v4))?;
        say(&scene.victim, "ip neigh flush dev eth0")?;
        for (port, words) in [(0, "plain"), (61_500, "plain"), (61_501, "\u{16}\u{3}\u{1}")] {
            let bind = Some((peer.v4, port).into());
            let spec = DialSpec { bind, ..DialSpec::say(scene.victim.at(PORT), words) };
            let seen = probe::dial(&scene.attacker, &spec)?;
            ensure!(
                seen.received == 0 && matches!(seen.end, End::Reset | End::Refused | End::Fin),
                "{seen:?}"
            );
        }
        let hello = AttackSpec::new(Kind::Hello, scene.victim.at(PORT)).from(IpAddr::V4(peer.v4));
        let attack = attack::start(&scene.attacker, &hello)?;
        attack.wait("heard", |tally| tally.ended >= 10)?;
        attack.stop()?;
        for code in ["refused_strict", "not_tls"] {
            scene.agent().wait_flow(code, |flow| {
                flow.client.address == IpAddr::V4(peer.v4) && flow.outcome == code
            })?;
        }
        scene.unharmed()
    });
}

#[test]
fn dials_that_the_kernel_refuses() {
    let spec = |scene: &Scene<'_>| AttackSpec::new(Kind::Dial, scene.victim.at(PORT));
    scenario("attack-records", |net| {
        let scene = Scene::new(net)?;
        scene.others(20)?;
        let attack = attack::start(&scene.attacker, &spec(&scene))?;
        attack.wait("under way", |tally| tally.ended >= 20_000)?;
        let tally = attack.stop()?;
        ensure!(tally.connected == 0, "{tally:?}");
        // The records of the others' connections are still there, and the flood is reported, in few
        // words.
        eventually(SOON, || {
            let told = Refusals::of(&scene)?;
            ensure!(told.others >= 20, "{} of 20 records are left", told.others);
            ensure!(told.records <= 1_000, "{told:?}");
            ensure!(told.counted >= tally.ended, "{told:?} of {tally:?}");
            told.account_for_all()
        })?;
        // While the agent does not read the kernel's reports, those of one flood leave room for
        // those of others.
        let other =
            net.pod(&scene.pair.nodes[1], PodSpec::new(SHOP, "other").annotation(MODE, "strict"))?;
        scene.agent().wait_enrolled(&[&other])?;
        scene.agent().signal(Signal::SIGSTOP)?;
        let attack = attack::start(&scene.attacker, &spec(&scene))?;
        attack.wait("more than the ring has room for", |tally| tally.ended >= 10_000)?;
        let seen = probe::dial(&scene.attacker, &DialSpec::say(other.at(PORT), "x"));
        scene.agent().signal(Signal::SIGCONT)?;
        attack.stop()?;
        ensure!(!seen?.connected);
        scene.agent().wait_flow("of the other pod", |flow| {
            flow.outcome == "refused_strict" && flow.server.pod.as_deref() == Some("shop/other")
        })?;
        let told = eventually(SOON, || {
            let told = Refusals::of(&scene)?;
            told.account_for_all()?;
            Ok(told)
        })?;
        println!("attack-records: {told:?}");
        ensure!(told.lost > 0, "nothing was lost, so that no loss was counted: {told:?}");
        scene.unharmed()
    });
}

/// What the victim's agent says of the dials to it that the kernel has refused.
#[derive(Debug)]
struct Refusals {
    /// By the kernel's own count.
    counted: u64,
    /// Records of a single one.
    records: u64,
    /// Those for which other records stand, a record for many.
    alike: u64,
    /// Those that found no room in the buffer. They have no record.
    lost: u64,
    /// Records of other connections.
    others: u64,
}

impl Refusals {
    fn of(scene: &Scene<'_>) -> Result<Self> {
        let told = scene.agent().cli(&["flows", "-o", "json"])?.success()?;
        let told: Vec<Value> = told.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
        let victim = Value::from(scene.victim.v4.to_string());
        let is = |flow: &&Value| {
            flow["outcome"] == "refused_strict" && flow["server"]["address"] == victim
        };
        let refused: Vec<_> = told.iter().filter(is).collect();
        let alike = |flow: &Value| flow["alike"].as_u64().unwrap_or(0);
        let status = scene.agent().status()?;
        Ok(Self {
            counted: status.pod_verdict(&scene.victim, "refused_strict"),
            records: refused.iter().filter(|flow| alike(flow) == 0).count() as u64,
            alike: refused.iter().map(|flow| alike(flow)).sum(),
            lost: status.counters.events_lost,
            others: told.iter().filter(|flow| flow["outcome"] == "closed").count() as u64,
        })
    }

    /// Each refusal has a record, or stands behind one, or was counted as lost.
    fn account_for_all(&self) -> Result<()> {
        let accounted = self.records + self.alike + self.lost;
        ensure!(accounted == self.counted, "{accounted} are accounted for: {self:?}");
        Ok(())
    }
}
