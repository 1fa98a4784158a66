//! Service addresses: which endpoint is chosen, and what happens when one does not answer.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::SOON,
    eventually,
    flow::Flow,
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

const VIP: &str = "10.96.0.10:80";

/// A pair, and a second pod behind the same service, on the client's node.
fn service(net: &Net) -> Result<(Pair<'_>, Pod)> {
    let pair = Pair::new(net)?;
    let second = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "second"))?;
    let vip: SocketAddr = VIP.parse()?;
    net.objects().service(SHOP, "cart", &[vip], PORT, &[&pair.server, &second])?;
    net.objects().label_namespace(SHOP, Some("enabled"))?;
    pair.agents[0].wait_enrolled(&[&pair.client, &second])?;
    pair.agents[1].wait_enrolled(&[&pair.server])?;
    pair.agents[0].wait_peers(1)?;
    pair.agents[1].wait_peers(2)?;
    Ok((pair, second))
}

fn dial(pair: &Pair<'_>, connections: u64) -> Result<Vec<Conn>> {
    let spec = DialSpec { connections, workers: 4, ..DialSpec::say(VIP.parse()?, "hello") };
    probe::dial_all(&pair.client, &spec)
}

#[test]
fn connections_are_spread_over_the_endpoints() {
    scenario("services-spread", |net| {
        let (pair, second) = service(net)?;
        let mut one = pair.serve(Talk::Exchange)?;
        let mut two = probe::serve(&second, &ServeSpec::new(PORT, Talk::Exchange))?;
        let conns = dial(&pair, 100)?;
        ensure!(conns.iter().all(|c| (c.end, &*c.first) == (End::Fin, "hello")), "{conns:?}");
        let counts = [one.wait_conns(20)?.len(), two.wait_conns(20)?.len()];
        ensure!(counts.iter().sum::<usize>() == 100, "{counts:?}");
        Ok(())
    });
}

#[test]
fn an_endpoint_that_does_not_listen_is_passed_over_or_a_reset_with_a_reason() {
    scenario("services-refused", |net| {
        let (pair, _second) = service(net)?;
        let _one = pair.serve(Talk::Exchange)?;
        let first = dial(&pair, 1)?;
        ensure!(first.iter().all(|conn| conn.end == End::Fin), "the other was there: {first:?}");
        eventually(SOON, || {
            let conns = dial(&pair, 20)?;
            let ends = |end| conns.iter().filter(|conn| conn.end == end).count();
            ensure!(ends(End::Fin) + ends(End::Reset) == 20, "{conns:?}");
            ensure!(ends(End::Fin) > 0 && ends(End::Reset) > 0, "{conns:?}");
            Ok(())
        })?;
        // One endpoint is on the client's node, whose agent then has a record of both sides.
        let refused =
            |flow: &Flow| flow.outcome == "application_refused" && flow.direction == "outbound";
        let flow = pair.agents[0].wait_flow("refused", refused)?;
        ensure!(flow.service.as_deref() == Some("shop/cart"), "{flow:?}");
        ensure!(flow.fault.as_deref() == Some("application"), "{flow:?}");
        Ok(())
    });
}

#[test]
fn endpoints_come_and_go() {
    scenario("services-change", |net| {
        let (pair, second) = service(net)?;
        let (vip, _one) = (VIP.parse()?, pair.serve(Talk::Exchange)?);
        let mut two = probe::serve(&second, &ServeSpec::new(PORT, Talk::Exchange))?;
        net.objects().service(SHOP, "cart", &[vip], PORT, &[&second])?;
        eventually(SOON, || {
            let before = two.conns().len();
            dial(&pair, 10)?;
            let new = two.wait_conns(before + 1)?.len() - before;
            ensure!(new == 10, "only {new} of 10 went to the only endpoint");
            Ok(())
        })?;
        // None is ready, as the agent sees it. kube-proxy may see it otherwise, so the agent
        // answers.
        net.objects().service_with(SHOP, "cart", &[vip], PORT, &[&second], false)?;
        eventually(SOON, || {
            let seen = probe::dial(&pair.client, &DialSpec::say(vip, "hello"))?;
            ensure!(matches!(seen.end, End::Reset | End::Refused), "{seen:?}");
            Ok(())
        })?;
        pair.agents[0].wait_flow("without an endpoint", |flow| {
            flow.outcome == "no_endpoint" && flow.service.as_deref() == Some("shop/cart")
        })?;
        // None is left: the service is not the mesh's business any more, and no client is told that
        // it ended well. kube-proxy, which would answer for it, is not here.
        net.objects().service(SHOP, "cart", &[vip], PORT, &[])?;
        eventually(SOON, || {
            let spec = DialSpec { timeout_s: 1, ..DialSpec::say(vip, "hello") };
            let seen = probe::dial(&pair.client, &spec)?;
            ensure!(seen.end != End::Fin, "{seen:?}");
            Ok(())
        })?;
        Ok(())
    });
}

#[test]
fn an_endpoint_outside_the_mesh_is_reached_in_plaintext() {
    scenario("services-mixed", |net| {
        let pair = Pair::new(net)?;
        let plain = net.pod(&pair.nodes[1], PodSpec::new("legacy", "plain"))?;
        net.objects().service("legacy", "old", &[VIP.parse()?], PORT, &[&plain, &pair.server])?;
        pair.join()?;
        let mut old = probe::serve(&plain, &ServeSpec::new(PORT, Talk::Exchange))?;
        let mut new = pair.serve(Talk::Exchange)?;
        let conns = dial(&pair, 40)?;
        ensure!(conns.iter().all(|c| (c.end, &*c.first) == (End::Fin, "hello")), "{conns:?}");
        for server in [&mut old, &mut new] {
            let conns = server.wait_conns(1)?;
            let from = |c: &Conn| c.peer.map(|peer| peer.ip().to_canonical());
            ensure!(conns.iter().all(|c| from(c) == Some(pair.client.v4.into())), "{conns:?}");
        }
        Ok(())
    });
}
