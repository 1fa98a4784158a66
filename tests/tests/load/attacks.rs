//! What a hostile pod can do to the agent and, through it, to another pod (docs/security.md has the
//! list). Nothing gets through, other pods are served, memory stays in its bound, and all is as
//! before when the attack stops.
//!
//! How much slower other pods get is promised for a machine that does nothing else.
//! `NODEMESH_ATTACK_ROUNDS=5 cargo test --test load attacks -- --test-threads 1` asserts it so.
#![expect(clippy::print_stdout, reason = "figures, for a reader of the output")]

mod clients;
mod crowds;
mod members;

use std::{
    env,
    net::{IpAddr, SocketAddr},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{Agent, SOON},
    attack::{self, AttackSpec, Kind, MeasureSpec, Times, Usage},
    eventually,
    exec::Place,
    objects::MODE,
    probe::{self, DialSpec, End, ServeSpec, Server, Talk},
};

/// When an attack is under way, and what it may cost.
#[derive(Clone, Copy)]
struct Expected {
    /// How many connections it has made then.
    going: u64,
    /// By how much the agent's memory may have grown, in KiB: half as much again as the most that
    /// was measured, or [`NOISE_KIB`].
    most_kib: u64,
}

/// What the allocator keeps after some hundreds of requests, in KiB. Attacks that hold no
/// connection measured up to 1,500.
const NOISE_KIB: u64 = 4_096;

/// By how much an attack may slow others down.
struct Bound {
    times: u64,
    /// And what the scheduler alone may add, in µs.
    more_us: u64,
}

/// What is promised: docs/security.md. Half of the requests keep to it wherever they are measured.
const QUIET: Bound = Bound { times: 2, more_us: 2_000 };
/// For the slowest hundredth, where another attack's test runs at the same time on two cores: what
/// computes there takes some milliseconds from a request now and then.
const BUSY: Bound = Bound { times: 3, more_us: 10_000 };

impl Bound {
    fn of(&self, quiet_us: u64) -> u64 {
        quiet_us * self.times + self.more_us
    }
}

/// How many rounds there are, without the attack and with it, and whether the machine does nothing
/// else.
fn plan() -> Result<(usize, bool)> {
    match env::var("NODEMESH_ATTACK_ROUNDS") {
        Ok(rounds) => Ok((rounds.parse().context("NODEMESH_ATTACK_ROUNDS")?, true)),
        Err(_) => Ok((3, false)),
    }
}

/// Requests in each round.
const REQUESTS: u64 = 200;

/// A client and a server in the mesh that have nothing to do with the attack. A strict victim, and
/// an attacker outside the mesh, on the server's node.
struct Scene<'a> {
    pair: Pair<'a>,
    _service: Server,
    victim: Pod,
    application: Server,
    attacker: Pod,
}

impl<'a> Scene<'a> {
    fn new(net: &'a Net) -> Result<Self> {
        let pair = Pair::new(net)?;
        let node = &pair.nodes[1];
        let victim = net.pod(node, PodSpec::new(SHOP, "victim").annotation(MODE, "strict"))?;
        let attacker = net.pod(node, PodSpec::new("other", "attacker"))?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_enrolled(&[&pair.server, &victim])?;
        pair.agents[0].wait_peers(2)?;
        pair.agents[1].wait_peers(1)?;
        let service = pair.serve(Talk::Lines)?;
        let application = probe::serve(&victim, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        Ok(Self { pair, _service: service, victim, application, attacker })
    }

    /// The agent that is attacked.
    fn agent(&self) -> &Agent {
        &self.pair.agents[1]
    }

    /// As an agent would dial the victim, from the attacker's pod.
    fn against_victim(&self, kind: Kind) -> AttackSpec {
        AttackSpec::new(kind, self.victim.at(PORT)).from(IpAddr::V4(self.attacker.v4))
    }

    /// How long the others' requests take.
    fn others(&self, count: u64) -> Result<Times> {
        let to = self.pair.server.at(PORT);
        attack::measure(&self.pair.client, &MeasureSpec { to, count, keep_alive: false })
    }

    /// The same, in every round.
    fn rounds(&self) -> Result<Vec<Times>> {
        (0..plan()?.0).map(|_| self.others(REQUESTS)).collect()
    }

    /// Nothing has reached the victim's application, and its peers still do.
    fn unharmed(&self) -> Result<()> {
        let conns = self.application.conns();
        ensure!(conns.is_empty(), "the application saw {conns:?}");
        Ok(())
    }

    /// All is as it was, and the victim can be reached over the mesh.
    fn recovered(&self, before: &Usage) -> Result<()> {
        eventually(SOON, || {
            let now = Usage::of(self.agent())?;
            ensure!(now.open == 0, "still open: {now:?}");
            ensure!(now.descriptors <= before.descriptors, "descriptors: {before:?}, {now:?}");
            Ok(())
        })?;
        says(&self.pair.client, self.victim.at(PORT), "after")
    }
}

/// Whether the agent's memory has grown by no more than that since.
fn within_bound(name: &str, before: &Usage, now: &Usage, most_kib: u64) -> Result<()> {
    let grown = now.rss_kib.saturating_sub(before.rss_kib);
    println!("{name}: the agent's memory has grown by {grown} KiB, {most_kib} may be");
    ensure!(grown <= most_kib, "{grown} KiB more, {most_kib} may be: {before:?}, {now:?}");
    Ok(())
}

/// The middle one.
fn median(mut all: Vec<u64>) -> u64 {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// What others feel of an attack, measured without and with it by turns.
fn others_are_served(
    name: &str,
    scene: &Scene<'_>,
    before: &Usage,
    from: &Place,
    spec: &AttackSpec,
    expected: Expected,
) -> Result<()> {
    let (mut quiet, mut under) = (Vec::new(), Vec::new());
    for _ in 0..plan()?.0 {
        quiet.push(scene.others(REQUESTS)?);
        let attack = attack::start(from, spec)?;
        attack.wait("under way", |tally| tally.connected >= expected.going)?;
        under.push(scene.others(REQUESTS)?);
        let usage = Usage::of(scene.agent())?;
        println!("{name}: {:?}, {usage:?}", attack.stop()?);
        within_bound(name, before, &usage, expected.most_kib)?;
    }
    let p99 = |times: &[Times]| median(times.iter().map(|times| times.p99_us).collect());
    let p50 = |times: &[Times]| median(times.iter().map(|times| times.p50_us).collect());
    let of = |times: &[Times]| (p50(times), p99(times));
    println!("{name}: p50 and p99 {:?} -> {:?} us", of(&quiet), of(&under));
    not_much_slower(&quiet, &under)
}

/// All of the others' requests are answered, and about as fast: a round without the attack is
/// compared with one under it.
fn not_much_slower(quiet: &[Times], under: &[Times]) -> Result<()> {
    let failed: u64 = quiet.iter().chain(under).map(|times| times.failed).sum();
    ensure!(failed == 0, "{failed} requests of others failed: {quiet:?} {under:?}");
    let p50 = |times: &[Times]| median(times.iter().map(|times| times.p50_us).collect());
    let (is, most) = (p50(under), QUIET.of(p50(quiet)));
    ensure!(is <= most, "half take more than {is} µs, {most} may be: {quiet:?} {under:?}");
    let p99 = |times: &[Times]| times.iter().map(|times| times.p99_us).collect::<Vec<_>>();
    let (quiet, under) = (p99(quiet), p99(under));
    if plan()?.1 {
        // Hundredths of what may be.
        let pairs = quiet.iter().zip(&under);
        let shares = pairs.map(|(quiet, under)| under * 100 / QUIET.of(*quiet)).collect();
        ensure!(median(shares) <= 100, "slower, in µs: {quiet:?} {under:?}");
    } else {
        let most = BUSY.of(median(quiet.clone()));
        let is = median(under.clone());
        ensure!(is <= most, "{is} µs, {most} may be: {quiet:?} {under:?}");
    }
    Ok(())
}

/// What is said to a server is heard, and comes back.
fn says(from: &Place, to: SocketAddr, words: &str) -> Result<()> {
    let seen = probe::dial(from, &DialSpec::say(to, words))?;
    ensure!((seen.end, &*seen.first) == (End::Fin, words), "{to}, {words}: {seen:?}");
    Ok(())
}

/// Whether requests are answered.
fn served(from: &Place, to: &Pod) -> Result<()> {
    let times =
        attack::measure(from, &MeasureSpec { to: to.at(PORT), count: 30, keep_alive: false })?;
    ensure!((times.ok, times.failed) == (30, 0), "{}: {times:?}", to.name);
    Ok(())
}
