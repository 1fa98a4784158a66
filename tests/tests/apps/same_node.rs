//! Connections between two pods of one node, in the ways that `nodemesh.dev/same-node` names.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::{
    MESH_PORT, Neighbours, PORT, Pod, PodSpec,
    agent::SOON,
    eventually,
    flow::Flow,
    objects::{MODE, SAME_NODE},
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

fn ask(from: &Pod, spec: DialSpec) -> Result<Conn> {
    probe::dial(from, &DialSpec { timeout_s: 5, ..spec })
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[test]
fn without_tls_both_ends_are_still_known_and_strict_keeps_strangers_out() {
    scenario("same-node-local", |net| {
        let one = Neighbours::new(net, &[])?;
        let stranger = net.pod(&one.node, PodSpec::new("other", "stranger"))?;
        net.objects().annotate_pod(&one.server, MODE, Some("strict"))?;
        one.go(Some("local"))?;
        one.join()?;
        one.wait_for("local")?;
        let mut service = one.serve(Talk::Exchange)?;
        let before = one.agent.status()?;
        for to in [one.server.at(PORT), one.server.at6(PORT)] {
            let closed = ask(&one.client, DialSpec::say(SocketAddr::new(to.ip(), 1), "x"))?;
            ensure!(!closed.connected && closed.end == End::Refused, "{closed:?}");
            let known = one.agent.flows()?;
            let there = ask(&one.client, DialSpec::say(to, "x"))?;
            ensure!((there.end, &*there.first) == (End::Fin, "x"), "{there:?}");
            let is_it = |conn: &Conn| conn.local.map(canonical) == Some(to);
            let here = service.wait_conn("the connection", is_it)?;
            ensure!(here.peer.map(canonical) == there.local, "{here:?} does not see {there:?}");
            let flows = eventually(SOON, || {
                let flows = one.agent.flows_after(&known)?;
                ensure!(flows.iter().all(|flow| flow.outcome != "open"), "{flows:#?}");
                Ok(flows)
            })?;
            ensure!(flows.len() == 2, "{flows:#?}");
            for direction in ["outbound", "inbound"] {
                let flow = flows.iter().find(|flow| flow.direction == direction);
                let is_so = |flow: &&Flow| {
                    let who = [&flow.client, &flow.server].map(|it| it.identity.as_deref());
                    let expected = ["client", "server"]
                        .map(|account| format!("spiffe://cluster.local/ns/shop/sa/{account}"));
                    flow.security.kind == "local"
                        && who == expected.each_ref().map(|it| Some(it.as_str()))
                        && Some(flow.client.port) == there.local.map(|local| local.port())
                        && flow.original_destination == to
                        && flow.outcome == "closed"
                        && (flow.bytes.sent, flow.bytes.received) == (1, 1)
                };
                ensure!(flow.is_some_and(|flow| is_so(&flow)), "{direction}: {flows:#?}");
            }
        }
        let after = one.agent.status()?;
        ensure!(after.counters.sessions == before.counters.sessions, "a handshake was made");
        for bind in [None, Some(stranger.at(0)), Some(stranger.at(MESH_PORT))] {
            let seen =
                ask(&stranger, DialSpec { bind, ..DialSpec::say(one.server.at(PORT), "x") })?;
            ensure!(seen.end != End::Fin && seen.received == 0, "from {bind:?}: {seen:?}");
        }
        Ok(())
    });
}

#[test]
fn the_stricter_end_decides_and_what_cannot_be_read_is_strict() {
    scenario("same-node-stricter", |net| {
        let one = Neighbours::new(net, &["--same-node", "local"])?;
        one.join()?;
        one.wait_for("local")?;
        for pod in [&one.client, &one.server] {
            for way in ["tls", "lokal"] {
                net.objects().annotate_pod(pod, SAME_NODE, Some(way))?;
                one.wait_for("mtls")?;
            }
            let slip = |problem: &tests::agent::Problem| problem.message.contains("lokal");
            one.agent.wait_problem("of the slip", slip)?;
            net.objects().annotate_pod(pod, SAME_NODE, None)?;
            one.wait_for("local")?;
        }
        Ok(())
    });
}

/// A connection that is open while something changes goes on; the next one goes the new way.
#[test]
fn what_is_open_goes_on_and_is_nobodys_plaintext() {
    scenario("same-node-open", |net| {
        let one = Neighbours::new(net, &["--same-node", "local"])?;
        one.join()?;
        one.wait_for("local")?;
        let service = one.serve(Talk::Lines)?;
        let spec = DialSpec::new(one.server.at(PORT), Talk::Lines);
        let open = probe::load(&one.client, &DialSpec { keep_alive: true, workers: 1, ..spec })?;
        let is_carried = || -> Result<()> {
            open.wait_more(10)?;
            for pod in ["shop/client", "shop/server"] {
                let listed = one.agent.cli(&["reset", pod, "--dry-run"])?.success()?;
                ensure!(listed.contains("no connection"), "{listed}");
            }
            Ok(())
        };
        is_carried()?;
        one.go(Some("tls"))?;
        one.wait_for("mtls")?;
        is_carried()?;
        // The agent that has made it goes on with it, and the next one knows that.
        let successor = one.agent.take_over()?;
        let old = one.agent.replace(successor)?;
        one.agent.wait_enrolled(&[&one.client, &one.server])?;
        is_carried()?;
        let result = open.finish()?;
        ensure!((result.failed, result.connections) == (0, 1), "{result:#?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        drop(old);
        Ok(())
    });
}

/// The client's own firewall leads its agent's dial to another place, or changes its source: no
/// byte leaves without TLS, and no record says that the other pod has answered.
#[test]
fn who_is_not_the_pod_that_was_meant_gets_nothing() {
    scenario("same-node-elsewhere", |net| {
        let one = Neighbours::new(net, &["--same-node", "local"])?;
        let stranger = net.pod(&one.node, PodSpec::new("other", "stranger"))?;
        one.join()?;
        one.wait_for("local")?;
        let _server = one.serve(Talk::Exchange)?;
        let mut other = probe::serve(&stranger, &ServeSpec::new(PORT, Talk::Exchange))?;
        let (client, server) = (one.client.v4, one.server.v4);
        let rule = |hook: &str, does: &str| -> Result<()> {
            let rules = format!(
                "table ip led {{ chain there {{ type nat hook {hook}; \
                 ip daddr {server} tcp sport >= 61000 {does}; }}; }}"
            );
            one.client.run(["nft", &rules])?.success().map(drop)
        };
        let to = one.server.at(PORT);
        let dial = || ask(&one.client, DialSpec::say(to, "secret"));
        rule("output priority -100", &format!("tcp dport {PORT} dnat to {}", stranger.v4))?;
        let known = one.agent.flows()?;
        let seen = dial()?;
        ensure!(seen.end != End::Fin && seen.received == 0, "{seen:?}");
        let heard = other.wait_conn("what was led there", |_| true)?;
        ensure!(heard.received == 0, "{heard:?}");
        let flows = one.agent.flows_after(&known)?;
        let is_the_dial = |flow: &Flow| flow.direction == "outbound" && flow.outcome != "closed";
        ensure!(flows.iter().all(is_the_dial), "the other pod has seen nothing: {flows:#?}");
        one.client.run(["nft", "delete table ip led"])?.success()?;
        one.wait_for("local")?;
        rule("postrouting priority 100", &format!("snat to {client}:1024-60000"))?;
        let known = one.agent.flows()?;
        let seen = dial()?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "secret"), "{seen:?}");
        let flows = one.agent.flows_after(&known)?;
        ensure!(flows.iter().any(|it| it.is_mtls() && it.direction == "inbound"), "{flows:#?}");
        Ok(())
    });
}
