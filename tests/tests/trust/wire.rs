//! What goes over the link between the nodes: plaintext before the label, TLS 1.3 between the same
//! two addresses after it.

use std::net::SocketAddr;

use anyhow::{Result, ensure};
use tests::{
    PORT, Pair, SHOP,
    capture::Recording,
    flow::spiffe_id,
    probe::{self, DialSpec, End, Talk},
    scenario,
};

/// The client says it and the server says it back, so that it would show in either direction.
const MARKER: &str = "plainly-to-be-seen-marker";

/// The first source port of agents' dials (docs/wire.md).
const MESH_PORTS: u16 = 61_000;

/// Dials these addresses, one after the other, each with the marker. Returns what went over the
/// link.
fn talk(pair: &Pair<'_>, to: &[SocketAddr]) -> Result<Recording> {
    let capture = pair.nodes[0].capture()?;
    for to in to {
        let seen = probe::dial(&pair.client, &DialSpec::say(*to, MARKER))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, MARKER), "{to}: {seen:?}");
    }
    capture.stop()
}

#[test]
fn the_marker_is_on_the_link_before_the_label_and_not_after_it() {
    scenario("wire", |net| {
        let pair = Pair::new(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let to = [pair.server.at(PORT), pair.server.at6(PORT)];

        let before = talk(&pair, &to)?;
        ensure!(before.contains(MARKER));
        for to in to {
            let conn = before.one_to(to)?;
            ensure!(conn.tls().is_none() && conn.to_client == MARKER.as_bytes(), "{conn}");
        }

        pair.join()?;
        let after = talk(&pair, &to)?;
        ensure!(!after.contains(MARKER), "plaintext: {:?}", after.quote(MARKER));
        for (from, to) in pair.client.addresses().into_iter().zip(to) {
            let conn = after.one_to(to)?;
            ensure!(conn.tls().is_some_and(|tls| tls.is_1_3()), "{conn}, {:?}", conn.tls());
            ensure!(conn.client.ip() == from && conn.client.port() >= MESH_PORTS, "{conn}");
        }

        pair.leave()?;
        let again = talk(&pair, &to)?;
        ensure!(again.contains(MARKER) && again.one_to(to[0])?.tls().is_none());
        Ok(())
    });
}

#[test]
fn a_service_address_becomes_a_pod_address_and_its_target_port_on_the_link() {
    scenario("wire-service", |net| {
        let pair = Pair::new(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let vips: [SocketAddr; 2] = ["10.96.0.10:80".parse()?, "[fd00:96::10]:80".parse()?];
        net.objects().service(SHOP, "cart", &vips, PORT, &[&pair.server])?;
        pair.join()?;
        let after = talk(&pair, &vips)?;
        ensure!(!after.contains(MARKER), "plaintext: {:?}", after.quote(MARKER));
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            let conn = after.one_to(to)?;
            ensure!(conn.tls().is_some_and(|tls| tls.is_1_3()), "{conn}, {:?}", conn.tls());
        }
        Ok(())
    });
}

#[test]
fn both_nodes_record_who_talked_to_whom() {
    scenario("wire-flows", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let to = pair.server.at(PORT);
        let seen =
            probe::dial(&pair.client, &DialSpec { send_bytes: 1000, ..DialSpec::say(to, "x") })?;
        let (client, server) = (spiffe_id(SHOP, "client"), spiffe_id(SHOP, "server"));
        for (agent, direction) in pair.agents.iter().zip(["outbound", "inbound"]) {
            let flow = agent.wait_flow(direction, |flow| {
                flow.direction == direction && flow.outcome != "open"
            })?;
            ensure!(flow.between(&pair.client, &pair.server, PORT) && flow.is_mtls(), "{flow:?}");
            ensure!(flow.client.identity.as_ref() == Some(&client), "{flow:?}");
            ensure!(flow.server.identity.as_ref() == Some(&server), "{flow:?}");
            ensure!(flow.client.pod.as_deref() == Some("shop/client"), "{flow:?}");
            ensure!(flow.server.pod.as_deref() == Some("shop/server"), "{flow:?}");
            ensure!(Some(flow.client.port) == seen.local.map(|a| a.port()), "{flow:?} {seen:?}");
            ensure!((flow.bytes.sent, flow.bytes.received) == (1001, 1001), "{flow:?}");
            ensure!(flow.original_destination == to, "{flow:?}");
            ensure!(!flow.reason.is_empty(), "{flow:?}");
        }
        Ok(())
    });
}
