//! Everything that dials. Whatever system call connects is captured. What dials without a TCP
//! socket is not captured, is never believed, and is counted where it arrives.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec,
    exec::Place,
    objects::MODE,
    probe::{self, Conn, DialSpec, End, Manner, RawSpec, Talk},
    scenario,
};

const MANNERS: [Manner; 5] = [
    Manner::NonBlocking,
    Manner::Blocking,
    Manner::FastOpenSend,
    Manner::FastOpenConnect,
    Manner::IoUring,
];

/// How many dials of the client have been redirected.
fn redirected(pair: &Pair<'_>) -> Result<u64> {
    Ok(pair.agents[0].status()?.pod_verdict(&pair.client, "redirect_peer"))
}

/// Dials, and checks that the intended server answered, once, and over the mesh.
fn captured(pair: &Pair<'_>, spec: &DialSpec) -> Result<Conn> {
    let before = redirected(pair)?;
    let seen = probe::dial(&pair.client, spec)?;
    let all = || format!("{spec:?}: {seen:?}");
    ensure!(seen.end == End::Fin && seen.first == spec.say, "{}", all());
    ensure!(seen.peer == Some(spec.to) && seen.peer_option == seen.peer, "{}", all());
    let count = redirected(pair)? - before;
    ensure!(count == 1, "redirected {count} times: {}", all());
    let port = seen.local.context("no local address")?.port();
    pair.agents[0]
        .wait_flow("over mTLS", |flow| {
            flow.is_mtls() && flow.client.port == port && flow.original_destination == spec.to
        })
        .with_context(all)?;
    Ok(seen)
}

#[test]
fn every_system_call_that_connects_is_captured() {
    scenario("dialling-calls", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let capture = pair.nodes[0].capture()?;
        for manner in MANNERS {
            for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
                for mptcp in [false, true] {
                    // Twice: the second dial finds what the first has left in the kernel's memory
                    // of fast open.
                    for _ in 0..2 {
                        captured(
                            &pair,
                            &DialSpec { manner, mptcp, ..DialSpec::say(to, "marker") },
                        )?;
                    }
                }
            }
        }
        ensure!(!capture.stop()?.contains("marker"), "it was seen on the link");
        Ok(())
    });
}

#[test]
fn a_socket_that_connects_again_goes_where_it_says() {
    scenario("dialling-again", |net| {
        let pair = Pair::meshed(net)?;
        let stranger = net.pod(&pair.nodes[1], PodSpec::new("other", "stranger"))?;
        let _services = [pair.serve(Talk::Exchange)?, serve_at(&stranger)?];
        let (peer, other) = (pair.server.at(PORT), stranger.at(PORT));
        for manner in MANNERS {
            let spec =
                |first, to| DialSpec { manner, first: Some(first), ..DialSpec::say(to, "x") };
            // From the mesh to a server outside it, with nothing left of the first dial.
            let before = redirected(&pair)?;
            let seen = probe::dial(&pair.client, &spec(peer, other))?;
            ensure!(seen.end == End::Fin && seen.peer == Some(other), "{manner:?}: {seen:?}");
            ensure!(redirected(&pair)? == before + 1, "only the first is the mesh's");
            // The other way round, and from one peer's port to another's. Without the mesh, the
            // dial to port 9 fails and leaves nothing to disconnect. Through the mesh it succeeds,
            // and is disconnected.
            captured(&pair, &spec(other, peer))?;
            captured(&pair, &spec(stranger.at(9), peer))?;
        }
        // Both in the mesh: the port that refuses, then the one that answers.
        let before = redirected(&pair)?;
        let first = Some(pair.server.at(9));
        let seen = probe::dial(&pair.client, &DialSpec { first, ..DialSpec::say(peer, "x") })?;
        ensure!(seen.end == End::Fin && seen.peer == Some(peer), "{seen:?}");
        ensure!(redirected(&pair)? == before + 2, "{seen:?}");
        Ok(())
    });
}

fn serve_at(pod: &Pod) -> Result<probe::Server> {
    probe::serve(pod, &probe::ServeSpec::both_families(PORT, Talk::Exchange))
}

/// A pair and a pod beside the client that is not in the mesh, all ready for raw sockets.
fn with_raw(net: &Net) -> Result<(Pair<'_>, Pod)> {
    let pair = Pair::new(net)?;
    let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
    net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
    pair.join()?;
    // The kernel would reset connections that no socket of its own has made.
    for pod in [&pair.client, &stranger] {
        for port in [45_000, 45_001, 61_007, 61_008] {
            let silence = format!("ip rule add ipproto tcp sport {port} blackhole");
            pod.run(["sh", "-c", &silence])?.success()?;
        }
    }
    Ok((pair, stranger))
}

/// The Ethernet address of a pod's next hop.
fn gateway(pod: &Place) -> Result<String> {
    let table = pod.run(["cat", "/proc/net/arp"])?.success()?;
    let entry = table.lines().find(|line| line.starts_with("10.244.1.1 "));
    let address = entry.and_then(|line| line.split_whitespace().nth(3));
    Ok(address.with_context(|| format!("no gateway in {table}"))?.to_owned())
}

#[test]
fn raw_and_packet_sockets_are_not_believed() {
    const GET: &str = "GET /marker HTTP/1.0\r\n\r\n";
    scenario("dialling-raw", |net| {
        let (pair, stranger) = with_raw(net)?;
        let service = pair.serve(Talk::Exchange)?;
        let to = pair.server.at(PORT);
        // An ordinary dial, so that the neighbours know each other.
        captured(&pair, &DialSpec::say(to, "x"))?;
        let seen = probe::dial(&stranger, &DialSpec::say(to, "x"))?;
        ensure!(seen.end == End::Refused, "{seen:?}");
        let known = service.conns().len();
        let verdict = |code: &str| -> Result<u64> {
            Ok(pair.agents[1].status()?.pod_verdict(&pair.server, code))
        };
        let ours = redirected(&pair)?;
        for pod in [&pair.client, &stranger] {
            for (device, port, mesh_port) in [("", 45_000, 61_007), ("eth0", 45_001, 61_008)] {
                let spec = |port| -> Result<RawSpec> {
                    let (say, device) = (GET.to_owned(), device.to_owned());
                    let gateway = if device.is_empty() { String::new() } else { gateway(pod)? };
                    let from = pod.at(port);
                    Ok(RawSpec { from, to, device, gateway, say, ..RawSpec::default() })
                };
                let all = |what: &Conn| format!("{} over {device:?}: {what:?}", pod.name);
                // An ordinary port: refused before the agent, and counted there.
                let (strict, mesh) = (verdict("refused_strict")?, verdict("inbound_mesh")?);
                let seen = probe::raw(pod, &spec(port)?)?;
                ensure!(!seen.connected && seen.end == End::Refused, "{}", all(&seen));
                ensure!(verdict("refused_strict")? > strict, "not counted: {}", all(&seen));
                // A port that says "TLS follows": the agent gets to see the connection, and no
                // application does.
                let seen = probe::raw(pod, &spec(mesh_port)?)?;
                ensure!(seen.connected && seen.end != End::Timeout, "{}", all(&seen));
                ensure!(!seen.first.contains("marker"), "{}", all(&seen));
                ensure!(verdict("inbound_mesh")? > mesh, "not counted: {}", all(&seen));
                let from: SocketAddr = pod.at(mesh_port);
                pair.agents[1].wait_flow("of the forged port", |flow| {
                    flow.client.address == from.ip()
                        && flow.client.port == from.port()
                        && ["not_tls", "refused_strict"].contains(&&*flow.outcome)
                })?;
            }
        }
        ensure!(redirected(&pair)? == ours, "a raw socket is no dial");
        let conns = service.conns();
        ensure!(conns.len() == known, "the application saw {:?}", &conns[known..]);
        Ok(())
    });
}

#[test]
fn a_permissive_pod_counts_raw_sockets_as_plaintext() {
    scenario("dialling-raw-open", |net| {
        let (pair, stranger) = with_raw(net)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("permissive"))?;
        tests::eventually(tests::agent::SOON, || {
            let mode = pair.agents[1].status()?.pod(&pair.server)?.mode;
            ensure!(mode.as_deref() == Some("permissive"), "{mode:?}");
            Ok(())
        })?;
        let _service = pair.serve(Talk::Exchange)?;
        let to = pair.server.at(PORT);
        for pod in [&pair.client, &stranger] {
            let count = || -> Result<u64> {
                Ok(pair.agents[1].status()?.pod_verdict(&pair.server, "inbound_plaintext"))
            };
            let before = count()?;
            let spec =
                RawSpec { from: pod.at(45_000), to, say: "raw".to_owned(), ..RawSpec::default() };
            let seen = probe::raw(pod, &spec)?;
            ensure!(seen.connected && seen.first == "raw", "{}: {seen:?}", pod.name);
            ensure!(count()? > before, "not counted: {}", pod.name);
        }
        Ok(())
    });
}
