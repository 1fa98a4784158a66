//! Failures, as the network would report them. The first is a reset, since `connect()` had
//! succeeded by then. Those within a second after it are the error that `connect()` would have had
//! without the mesh.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    PORT, Pair, Pod, PodSpec, SHOP,
    agent::SOON,
    eventually,
    exec::Place,
    probe::{self, Conn, DialSpec, End, Talk},
    scenario,
};

/// How long a failure is remembered (mesh-agent/src/kernel/failed.rs).
const MEMORY: Duration = Duration::from_secs(1);

/// What a busy machine may add to it.
const SLACK: Duration = Duration::from_millis(500);

fn dial(from: &Place, to: SocketAddr) -> Result<Conn> {
    let spec = DialSpec { timeout_s: 20, ..DialSpec::say(to, "x") };
    probe::dial(from, &spec)
}

/// Dials twice, the second time within a second: a reset, and then `then`. On a busy machine the
/// reset may be there before the client wakes up in `connect()`, so the first dial need not count
/// as connected.
fn twice(pair: &Pair<'_>, to: SocketAddr, then: End) -> Result<()> {
    // If the machine stands still for a second in between, the second dial is the first of another
    // pair.
    eventually(SOON, || {
        let first = dial(&pair.client, to)?;
        let all = || format!("{to}: {first:?}, then {then:?}");
        ensure!(first.end == End::Reset, "{}", all());
        let second = dial(&pair.client, to)?;
        ensure!(!second.connected && second.end == then, "{}: {second:?}", all());
        Ok(())
    })?;
    pair.agents[0].wait_flow("of the refusal", |flow| {
        flow.outcome == "refused_recently" && flow.original_destination == to
    })?;
    Ok(())
}

/// The router of the server's node does this with packets to the server.
fn route(pair: &Pair<'_>, what: &str) -> Result<()> {
    let Pod { v4, v6, .. } = &pair.server;
    for command in [format!("ip route {what} {v4}/32"), format!("ip -6 route {what} {v6}/128")] {
        pair.nodes[1].run(["sh", "-c", &command])?.success()?;
    }
    Ok(())
}

#[test]
fn a_refused_destination_is_refused_at_connect_for_a_second() {
    scenario("behaviour-refused", |net| {
        let pair = Pair::new(net)?;
        let other = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "other"))?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client, &other])?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        pair.agents[0].wait_peers(1)?;
        pair.agents[1].wait_peers(2)?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            twice(&pair, to, End::Refused)?;
        }
        let status = pair.agents[0].status()?;
        ensure!(status.pod_verdict(&pair.client, "refused_recently") >= 2, "{status:?}");
        let why = pair.agents[0].wait_flow("of the first", |flow| {
            flow.outcome == "application_refused" && flow.server.port == PORT
        })?;
        ensure!(why.is_mtls(), "{why:?}");
        // One pod's failure is not another's, nor is one port's.
        twice(&pair, pair.server.at(PORT), End::Refused)?;
        let seen = dial(&other, pair.server.at(PORT))?;
        ensure!(seen.end == End::Reset, "the other pod: {seen:?}");
        let seen = dial(&pair.client, pair.server.at(PORT + 1))?;
        ensure!(seen.end == End::Reset, "the other port: {seen:?}");
        let status = pair.agents[0].status()?;
        ensure!(status.pod_verdict(&other, "refused_recently") == 0, "{status:?}");
        // A destination that is there again is reached within the second.
        let _service = pair.serve(Talk::Exchange)?;
        let start = Instant::now();
        eventually(SOON, || {
            let seen = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(())
        })?;
        let took = start.elapsed();
        ensure!(took < MEMORY + SLACK, "it took {took:?}");
        Ok(())
    });
}

#[test]
fn a_destination_without_a_way_to_it_is_unreachable_at_the_second_dial() {
    scenario("behaviour-unreachable", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        route(&pair, "add unreachable")?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            twice(&pair, to, End::Unreachable)?;
        }
        route(&pair, "del unreachable")?;
        eventually(SOON, || {
            let seen = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(())
        })
    });
}

#[test]
fn a_destination_that_never_answers_is_a_timeout_at_the_second_dial() {
    scenario("behaviour-timeout", |net| {
        let pair = Pair::meshed(net)?;
        route(&pair, "add blackhole")?;
        let first = dial(&pair.client, pair.server.at(PORT))?;
        ensure!(first.end == End::Reset, "{first:?}");
        let start = Instant::now();
        let second = dial(&pair.client, pair.server.at(PORT))?;
        ensure!(!second.connected && second.end == End::Timeout, "{second:?}");
        ensure!(start.elapsed() < MEMORY, "not at once: {:?}", start.elapsed());
        ensure!(second.error.as_ref().is_some_and(|e| e.contains("110")), "{second:?}");
        Ok(())
    });
}

#[test]
fn a_service_is_refused_only_if_all_its_endpoints_are() {
    scenario("behaviour-service", |net| {
        let pair = Pair::new(net)?;
        let spare = net.pod(&pair.nodes[1], PodSpec::new(SHOP, "spare"))?;
        let vip = |host: u8| SocketAddr::from(([10, 96, 0, host], 80));
        net.objects().service(SHOP, "one", &[vip(1)], PORT, &[&pair.server])?;
        net.objects().service(SHOP, "two", &[vip(2)], PORT, &[&pair.server, &spare])?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_enrolled(&[&pair.server, &spare])?;
        pair.agents[0].wait_peers(2)?;
        pair.agents[1].wait_peers(1)?;
        twice(&pair, vip(1), End::Refused)?;
        // Half of the endpoints fail: a dial may fail, but not because another one has failed.
        let _service = probe::serve(&spare, &probe::ServeSpec::new(PORT, Talk::Exchange))?;
        let spec = DialSpec { connections: 40, ..DialSpec::say(vip(2), "x") };
        let seen = probe::dial_all(&pair.client, &spec)?;
        let count = |end| seen.iter().filter(|conn| conn.end == end).count();
        let (reached, reset) = (count(End::Fin), count(End::Reset));
        ensure!(reached + reset == seen.len(), "refused at connect: {seen:?}");
        ensure!(reached > 0 && reset > 0, "{seen:?}");
        Ok(())
    });
}

#[test]
fn other_refusals_are_told_as_the_network_would() {
    scenario("behaviour-errno", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        // From an address that is not the pod's: a second one, unknown to Kubernetes.
        let add = "ip addr add 10.244.1.99/32 dev lo";
        pair.client.run(["sh", "-c", add])?.success()?;
        let bind = Some(([10, 244, 1, 99], 0).into());
        let spec = DialSpec { bind, ..DialSpec::say(pair.server.at(PORT), "x") };
        let seen = probe::dial(&pair.client, &spec)?;
        ensure!(!seen.connected && seen.end == End::NoAddress, "{seen:?}");
        pair.agents[0].wait_flow("foreign", |flow| flow.outcome == "refused_foreign_source")?;
        // One of the ports that only redirected connections carry.
        let seen = dial(&pair.client, pair.client.at(60_990))?;
        ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
        pair.agents[0].wait_flow("magic", |flow| flow.outcome == "refused_magic_port")?;
        Ok(())
    });
}

#[test]
fn an_agent_that_is_restarted_is_not_held_against_its_pods() {
    scenario("behaviour-agent", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        pair.agents[1].kill9()?;
        eventually(SOON, || {
            let first = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(first.end == End::Reset, "{first:?}");
            let second = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(!second.connected && second.end == End::Refused, "{second:?}");
            Ok(())
        })?;
        pair.agents[1].start_again()?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        let start = Instant::now();
        eventually(SOON, || {
            let seen = dial(&pair.client, pair.server.at(PORT))?;
            ensure!(seen.end == End::Fin && seen.first == "x", "{seen:?}");
            Ok(())
        })?;
        let took = start.elapsed();
        ensure!(took < MEMORY / 2 + SLACK, "it took {took:?}");
        // Our own agent is away: nothing listens where the dial is redirected to.
        pair.agents[0].kill9()?;
        let seen = dial(&pair.client, pair.server.at(PORT))?;
        ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
        pair.agents[0].start_again().context("the client's agent")
    });
}
