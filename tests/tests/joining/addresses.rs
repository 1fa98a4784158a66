//! What applications are told: the client, that it talks to what it dialled; the server, that the
//! client pod called.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use tests::{
    PORT, Pair, PodSpec, SHOP,
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// What the server was told, as it tells the client ([`Talk::Report`]).
#[derive(Debug, Deserialize)]
struct Told {
    accepted: SocketAddr,
    peer: SocketAddr,
    option: SocketAddr,
    local: SocketAddr,
}

/// Dials, and returns what both sides were told.
fn ask(pair: &Pair<'_>, spec: &DialSpec) -> Result<(Conn, Told)> {
    let seen = probe::dial(&pair.client, spec)?;
    ensure!(seen.end == End::Fin, "{seen:?}");
    // The report is one line of plain JSON, escaped for ours.
    let text = seen.first.replace("\\\"", "\"").replace("\\n", "");
    let told = serde_json::from_str(&text).with_context(|| format!("{seen:?}"))?;
    Ok((seen, told))
}

/// Checks all that both sides were told. Families may differ where a socket takes both: then the
/// canonical address counts.
fn check(pair: &Pair<'_>, spec: &DialSpec, dialled: SocketAddr, reached: SocketAddr) -> Result<()> {
    let (seen, told) = ask(pair, spec)?;
    let from: IpAddr = if dialled.ip().to_canonical().is_ipv4() {
        pair.client.v4.into()
    } else {
        pair.client.v6.into()
    };
    let all = format!("{spec:?}\n{seen:?}\n{told:?}");
    let (peer, local) = (seen.peer.context("no peer")?, seen.local.context("no local")?);
    ensure!(peer == dialled, "the client's getpeername is not what it dialled, {dialled}: {all}");
    ensure!(local.ip().to_canonical() == from, "the client's getsockname is not its own: {all}");
    ensure!(told.accepted.ip().to_canonical() == from, "accept does not show the client: {all}");
    ensure!(told.accepted.port() == local.port(), "accept shows another port: {all}");
    ensure!(told.peer == told.accepted, "getpeername differs from accept: {all}");
    ensure!(told.option == told.accepted, "SO_PEERNAME differs from accept: {all}");
    ensure!(seen.peer_option == Some(peer), "SO_PEERNAME differs from getpeername: {all}");
    ensure!(told.local.ip().to_canonical() == reached.ip(), "the server's getsockname: {all}");
    ensure!(told.local.port() == reached.port(), "the server's getsockname: {all}");
    Ok(())
}

#[test]
fn pod_addresses_of_both_families() {
    scenario("addresses", |net| {
        let pair = Pair::meshed(net)?;
        let server = &pair.server;
        let v4 = ServeSpec { listen: server.at(8081), ..ServeSpec::new(0, Talk::Report) };
        let v6 = ServeSpec { listen: server.at6(8082), v6only: true, ..v4.clone() };
        let any4 = ServeSpec::new(8083, Talk::Report);
        let any6 = ServeSpec { v6only: true, ..ServeSpec::both_families(8084, Talk::Report) };
        let _services: Vec<_> = [&v4, &v6, &any4, &any6]
            .iter()
            .map(|spec| probe::serve(server, spec))
            .collect::<Result<_>>()?;
        for to in [server.at(8081), server.at6(8082), server.at(8083), server.at6(8084)] {
            check(&pair, &DialSpec::say(to, "x"), to, to)?;
        }
        Ok(())
    });
}

#[test]
fn clients_of_both_families_reach_an_application_on_all_addresses() {
    scenario("addresses-dual", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Report)?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            let (_, told) = ask(&pair, &DialSpec::say(to, "x"))?;
            // An IPv4 client of an IPv6 socket is shown in the mapped form, as without the mesh.
            let mapped = matches!(told.peer.ip(), IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some());
            ensure!(mapped == to.is_ipv4(), "{told:?}");
            check(&pair, &DialSpec::say(to, "x"), to, to)?;
        }
        Ok(())
    });
}

#[test]
fn an_ipv4_address_dialled_on_an_ipv6_socket() {
    scenario("addresses-mapped", |net| {
        let pair = Pair::meshed(net)?;
        let _service = probe::serve(&pair.server, &ServeSpec::new(PORT, Talk::Report))?;
        let to = pair.server.at(PORT);
        let mapped = SocketAddr::from((pair.server.v4.to_ipv6_mapped(), PORT));
        check(&pair, &DialSpec { mapped: true, ..DialSpec::say(to, "x") }, mapped, to)
    });
}

#[test]
fn service_addresses() {
    scenario("addresses-service", |net| {
        let pair = Pair::new(net)?;
        let vips: [SocketAddr; 2] = ["10.96.0.10:80".parse()?, "[fd00:96::10]:80".parse()?];
        net.objects().service(SHOP, "cart", &vips, PORT, &[&pair.server])?;
        pair.join()?;
        let _service = pair.serve(Talk::Report)?;
        for (vip, reached) in vips.into_iter().zip([pair.server.at(PORT), pair.server.at6(PORT)]) {
            check(&pair, &DialSpec::say(vip, "x"), vip, reached)?;
        }
        let flow = pair.agents[0].wait_flow("of the service", |flow| flow.service.is_some())?;
        ensure!(flow.service.as_deref() == Some("shop/cart"), "{flow:?}");
        ensure!(vips.contains(&flow.original_destination) && flow.server.port == PORT, "{flow:?}");
        Ok(())
    });
}

#[test]
fn a_source_port_that_the_client_has_chosen() {
    scenario("addresses-bound", |net| {
        let pair = Pair::meshed(net)?;
        let (one, other) = (ServeSpec::new(8081, Talk::Report), ServeSpec::new(8082, Talk::Report));
        let _services = [probe::serve(&pair.server, &one)?, probe::serve(&pair.server, &other)?];
        let bind = Some(pair.client.at(45_000));
        for to in [pair.server.at(8081), pair.server.at(8082), pair.server.at(8081)] {
            let spec = DialSpec { bind, ..DialSpec::say(to, "x") };
            check(&pair, &spec, to, to)?;
            let (seen, _) = ask(&pair, &spec)?;
            ensure!(seen.local == bind, "{seen:?}");
        }
        Ok(())
    });
}

#[test]
fn two_pods_of_one_node() {
    scenario("addresses-same-node", |net| {
        let mut pair = Pair::new(net)?;
        pair.server = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "neighbour"))?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client, &pair.server])?;
        let _service = pair.serve(Talk::Report)?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            check(&pair, &DialSpec::say(to, "x"), to, to)?;
        }
        pair.agents[0].wait_flow("over mTLS", tests::flow::Flow::is_mtls)?;
        Ok(())
    });
}

#[test]
fn a_pod_reaches_itself_as_without_the_mesh() {
    scenario("addresses-self", |net| {
        let mut pair = Pair::meshed(net)?;
        pair.server = pair.client.clone();
        let _service = pair.serve(Talk::Report)?;
        for to in [pair.client.at(PORT), pair.client.at6(PORT)] {
            check(&pair, &DialSpec::say(to, "x"), to, to)?;
        }
        let localhost =
            probe::dial(&pair.client, &DialSpec::say(([127, 0, 0, 1], PORT).into(), "x"))?;
        ensure!(
            localhost.end == End::Fin && localhost.first.contains("127.0.0.1"),
            "{localhost:?}"
        );
        ensure!(pair.agents[0].flows()?.is_empty(), "{:?}", pair.agents[0].flows()?);
        Ok(())
    });
}

#[test]
fn a_port_where_nobody_listens_is_never_a_clean_end() {
    scenario("addresses-refused", |net| {
        let pair = Pair::meshed(net)?;
        for to in [pair.server.at(9), pair.server.at6(9)] {
            let seen = probe::dial(&pair.client, &DialSpec::say(to, "x"))?;
            ensure!(matches!(seen.end, End::Reset | End::Refused), "{seen:?}");
        }
        let flow = pair.agents[0].wait_flow("refused", |flow| flow.server.port == 9)?;
        ensure!(!flow.reason.is_empty() && flow.outcome != "finished", "{flow:?}");
        Ok(())
    });
}

/// Sockets of both kinds on both sides. The kernel connects and accepts for an MPTCP socket through
/// another one.
#[test]
fn mptcp_clients_and_servers() {
    scenario("addresses-mptcp", |net| {
        let pair = Pair::meshed(net)?;
        let server = &pair.server;
        let tcp = ServeSpec::both_families(8081, Talk::Report);
        let mptcp = ServeSpec { listen: server.at(8082), mptcp: true, ..tcp.clone() };
        let mptcp6 = ServeSpec { listen: server.at6(8082), ..mptcp.clone() };
        let both = ServeSpec { mptcp: true, ..ServeSpec::both_families(8083, Talk::Report) };
        let _services: Vec<_> = [&tcp, &mptcp, &mptcp6, &both]
            .iter()
            .map(|spec| probe::serve(server, spec))
            .collect::<Result<_>>()?;
        for (port, client) in [(8081, true), (8082, false), (8082, true), (8083, true)] {
            for to in [server.at(port), server.at6(port)] {
                let redirected = || -> Result<u64> {
                    Ok(pair.agents[0].status()?.pod_verdict(&pair.client, "redirect_peer"))
                };
                let before = redirected()?;
                check(&pair, &DialSpec { mptcp: client, ..DialSpec::say(to, "x") }, to, to)?;
                ensure!(redirected()? == before + 1, "{to} was not redirected");
            }
            let mapped = SocketAddr::from((server.v4.to_ipv6_mapped(), port));
            let spec =
                DialSpec { mptcp: client, mapped: true, ..DialSpec::say(server.at(port), "x") };
            check(&pair, &spec, mapped, server.at(port))?;
        }
        // Of many at once, each is told its own addresses.
        let many = DialSpec {
            mptcp: true,
            workers: 8,
            connections: 200,
            ..DialSpec::say(server.at(8081), "x")
        };
        let seen = probe::dial_all(&pair.client, &many)?;
        ensure!(seen.len() == 200, "{} connections", seen.len());
        for conn in seen {
            ensure!(conn.peer == Some(server.at(8081)) && conn.end == End::Fin, "{conn:?}");
        }
        Ok(())
    });
}

/// The kernel spreads connections over the group by a hash of the addresses and ports that it sees.
/// For the mesh's connections it sees the agent's legs.
#[test]
fn a_reuseport_group_keeps_its_spread() {
    const GROUP: u64 = 4;
    const CONNECTIONS: u64 = 400;
    scenario("addresses-reuseport", |net| {
        let pair = Pair::meshed(net)?;
        let spec = ServeSpec { group: GROUP, ..ServeSpec::both_families(PORT, Talk::Exchange) };
        let mut service = probe::serve(&pair.server, &spec)?;
        let many = DialSpec::say(pair.server.at(PORT), "x");
        let many = DialSpec { workers: 4, connections: CONNECTIONS, ..many };
        let dialled = probe::dial_all(&pair.client, &many)?;
        ensure!(dialled.iter().all(|conn| conn.end == End::Fin), "{dialled:?}");
        let conns = service.wait_conns(CONNECTIONS as usize)?;
        for listener in 0..GROUP {
            let share = conns.iter().filter(|conn| conn.listener == listener).count() as u64;
            // A fair share is 100; half of that would be six standard deviations off.
            ensure!(share > CONNECTIONS / GROUP / 2, "listener {listener} has {share}");
        }
        Ok(())
    });
}

#[test]
fn sockets_bound_to_a_device() {
    scenario("addresses-device", |net| {
        let pair = Pair::meshed(net)?;
        let device = || "eth0".to_owned();
        let bound = ServeSpec { device: device(), ..ServeSpec::both_families(8081, Talk::Report) };
        let _services = [probe::serve(&pair.server, &bound)?, pair.serve(Talk::Report)?];
        for port in [8081, PORT] {
            for to in [pair.server.at(port), pair.server.at6(port)] {
                let spec = DialSpec { device: device(), ..DialSpec::say(to, "x") };
                check(&pair, &spec, to, to)?;
                pair.agents[0].wait_flow("over mTLS", |flow| {
                    flow.is_mtls() && flow.original_destination == to
                })?;
            }
        }
        Ok(())
    });
}

#[test]
fn a_source_port_of_the_meshs_range_that_the_client_has_chosen() {
    scenario("addresses-mesh-port", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Report)?;
        for (to, from) in [
            (pair.server.at(PORT), pair.client.at(61_500)),
            (pair.server.at6(PORT), pair.client.at6(61_500)),
        ] {
            let spec = DialSpec { bind: Some(from), ..DialSpec::say(to, "x") };
            check(&pair, &spec, to, to)?;
        }
        let status = pair.agents[0].status()?;
        ensure!(status.pod_verdict(&pair.client, "redirect_peer") == 2, "{status:?}");
        Ok(())
    });
}

#[test]
fn what_listens_on_loopback_alone_is_refused_as_without_the_mesh() {
    scenario("addresses-loopback", |net| {
        let pair = Pair::new(net)?;
        let listen = ([127, 0, 0, 1], PORT).into();
        let listen6: SocketAddr = format!("[::1]:{PORT}").parse()?;
        let specs = [listen, listen6]
            .map(|listen| ServeSpec { listen, ..ServeSpec::new(0, Talk::Exchange) });
        let services =
            [probe::serve(&pair.server, &specs[0])?, probe::serve(&pair.server, &specs[1])?];
        let dial = |to| probe::dial(&pair.client, &DialSpec::say(to, "x"));
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            let seen = dial(to)?;
            ensure!(seen.end == End::Refused, "without the mesh: {seen:?}");
        }
        pair.join()?;
        for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
            let seen = dial(to)?;
            ensure!(!seen.connected && seen.end == End::Refused, "{to}: {seen:?}");
            pair.agents[1].wait_flow("refused", |flow| {
                flow.original_destination == to && flow.outcome == "application_refused"
            })?;
        }
        // Its own pod still reaches it.
        let own = probe::dial(&pair.server, &DialSpec::say(listen, "x"))?;
        ensure!(own.end == End::Fin && own.first == "x", "{own:?}");
        ensure!(services.iter().map(|service| service.conns().len()).sum::<usize>() <= 1);
        Ok(())
    });
}
