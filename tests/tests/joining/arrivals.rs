//! How a receiver knows that TLS follows: by the source port, and by a source that may be a pod.
//! Also: the look at first bytes, however late they come; and the rule about agents' source ports,
//! which outlives both a pod's time in the mesh and its agent.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::PathBuf,
    thread,
    time::Duration,
};

use anyhow::{Result, ensure};
use socket2::{Domain, Socket, Type};
use tests::{
    Net, Node, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{self, Agent, Dirs, SOON},
    eventually,
    exec::Place,
    flow::Flow,
    netns,
    objects::{MESH, MODE},
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// The mesh's source ports, of which each dial takes the next.
const MESH_PORTS: std::ops::RangeInclusive<u16> = 61_000..=65_535;

/// Tells the agents which addresses the nodes and their pods have.
fn tell_of_nodes(net: &Net, nodes: &[Node]) -> Result<()> {
    for (number, node) in (1..).zip(nodes) {
        let object = format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {}}}\nspec:\n  podCIDRs: \
             [\"10.244.{number}.0/24\", \"fd00:244:{number}::/64\"]\nstatus:\n  addresses: \
             [{{type: InternalIP, address: \"{}\"}}]\n",
            node.name,
            node.address()
        );
        net.objects().write(&format!("node-{}.yaml", node.name), &object)?;
    }
    Ok(())
}

/// Dials from a source port of the mesh.
fn dial_from_range(from: &Place, address: Ipv4Addr, to: &Pod, port: u16) -> Result<Conn> {
    let bind = Some((address, port).into());
    let say = DialSpec::say(to.at(PORT), "hello");
    probe::dial(from, &DialSpec { timeout_s: 3, bind, ..say })
}

fn answered(conn: &Conn) -> Result<()> {
    ensure!((conn.end, &*conn.first) == (End::Fin, "hello"), "{conn:?}");
    Ok(())
}

fn refused(conn: &Conn) -> Result<()> {
    let end = matches!(conn.end, End::Refused | End::Reset);
    ensure!(end && conn.received == 0, "not refused: {conn:?}");
    Ok(())
}

#[test]
fn only_what_may_be_a_pod_is_taken_for_an_agent() {
    scenario("arrivals-plausible", |net| {
        let pair = Pair::new(net)?;
        tell_of_nodes(net, &pair.nodes)?;
        let unknown = net.pod(&pair.nodes[0], PodSpec::new("other", "unknown"))?;
        let (outsider, address) = (net.outsider()?, Ipv4Addr::new(192, 168, 100, 200));
        pair.join()?;
        net.objects().remove_pod(&unknown)?;
        let _service = pair.serve(Talk::Exchange)?;
        let (node, at_node) = (&pair.nodes[0], pair.nodes[0].address());
        let looked_at = || -> Result<u64> { Ok(pair.agents[1].status()?.verdict("inbound_mesh")) };
        let before = looked_at()?;
        answered(&dial_from_range(&outsider, address, &pair.server, 61_500)?)?;
        answered(&dial_from_range(node, at_node, &pair.server, 61_500)?)?;
        // The bridge of the server's node, whose address no object names: kube-proxy masquerades
        // so.
        let (bridge, at_bridge) = (&pair.nodes[1], Ipv4Addr::new(10, 244, 2, 1));
        answered(&dial_from_range(bridge, at_bridge, &pair.server, 61_500)?)?;
        ensure!(looked_at()? == before, "a client that cannot be a pod was looked at");
        answered(&dial_from_range(&unknown, unknown.v4, &pair.server, 61_500)?)?;
        ensure!(looked_at()? == before + 1, "a client that may be a pod was not looked at");
        // With no agent to look, what may be TLS does not reach the application; the pod is
        // permissive.
        pair.agents[1].kill9()?;
        refused(&dial_from_range(&unknown, unknown.v4, &pair.server, 61_501)?)?;
        answered(&dial_from_range(&outsider, address, &pair.server, 61_501)?)?;
        answered(&dial_from_range(bridge, at_bridge, &pair.server, 61_501)?)?;
        answered(&dial_from_range(node, at_node, &pair.server, 61_501)?)
    });
}

#[test]
fn where_no_node_is_known_everybody_may_be_a_pod() {
    scenario("arrivals-any", |net| {
        let pair = Pair::new(net)?;
        let (outsider, address) = (net.outsider()?, Ipv4Addr::new(192, 168, 100, 200));
        pair.join()?;
        let _service = pair.serve(Talk::Exchange)?;
        answered(&dial_from_range(&outsider, address, &pair.server, 61_500)?)?;
        pair.agents[1].kill9()?;
        refused(&dial_from_range(&outsider, address, &pair.server, 61_501)?)?;
        // A client that does not dial from there is served.
        answered(&probe::dial(&outsider, &DialSpec::say(pair.server.at(PORT), "hello"))?)
    });
}

#[test]
fn a_client_hello_after_the_banner_is_reset_and_no_byte_of_it_read() {
    scenario("arrivals-late", |net| {
        let pair = Pair::new(net)?;
        let neighbour = net.pod(&pair.nodes[1], PodSpec::new("other", "neighbour"))?;
        pair.join()?;
        let spec =
            ServeSpec { banner: "welcome".to_owned(), ..ServeSpec::new(PORT, Talk::Exchange) };
        let mut service = probe::serve(&pair.server, &spec)?;
        let (from, to) = (neighbour.at(61_500), pair.server.at(PORT));
        let (heard, end) = speak_after(&neighbour, from, to, b"welcome", &client_hello())?;
        ensure!(heard == b"welcome" && end == End::Reset, "{end:?} after {heard:?}");
        let seen = service.wait_conn("late one", |conn| conn.end == End::Reset)?;
        ensure!(seen.received == 0, "{seen:?}");
        pair.agents[1].wait_flow("late", |flow| flow.outcome == "late_client_hello")?;
        // An ordinary client of such a server is served.
        let from = neighbour.at(61_501);
        let (heard, end) = speak_after(&neighbour, from, to, b"welcome", b"hello")?;
        ensure!(heard == b"welcomehello" && end == End::Fin, "{end:?} after {heard:?}");
        Ok(())
    });
}

#[test]
fn who_is_looked_at_when_the_agent_dies_gets_a_reset() {
    scenario("arrivals-killed", |net| {
        let pair = Pair::new(net)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        let neighbour = net.pod(&pair.nodes[1], PodSpec::new("other", "neighbour"))?;
        pair.join()?;
        let (from, to) = (neighbour.at(61_500), pair.server.at(PORT));
        let mut silent = netns::inside(&neighbour.netns, || -> Result<TcpStream> {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&from.into())?;
            socket.connect(&to.into())?;
            Ok(socket.into())
        })??;
        silent.set_read_timeout(Some(SOON))?;
        eventually(SOON, || {
            let accepted = pair.agents[1].status()?.counters.accepted_inbound;
            ensure!(accepted == 1, "{accepted} accepted");
            Ok(())
        })?;
        pair.agents[1].kill9()?;
        let end = silent.read(&mut [0]).map_err(|error| End::from(&error));
        ensure!(end == Err(End::Reset), "{end:?}");
        Ok(())
    });
}

#[test]
fn a_peer_that_has_just_left_is_served_although_it_dials_from_the_range() {
    scenario("arrivals-left-peer", |net| {
        let pair = Pair::meshed(net)?;
        let spec =
            ServeSpec { banner: "welcome".to_owned(), ..ServeSpec::new(PORT, Talk::Exchange) };
        let _service = probe::serve(&pair.server, &spec)?;
        // The server's agent still takes the client for a peer. What runs beside the client is not
        // redirected.
        let beside = pair.beside_client();
        let (from, to) = (pair.client.at(61_500), pair.server.at(PORT));
        let (heard, end) = speak_after(&beside, from, to, b"", b"hello")?;
        ensure!(heard == b"welcomehello" && end == End::Fin, "{end:?} after {heard:?}");
        let (heard, end) = speak_after(&beside, pair.client.at(61_501), to, b"welcome", b"hello")?;
        ensure!(heard == b"welcomehello" && end == End::Fin, "{end:?} after {heard:?}");
        // A strict pod does not trust that source.
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        eventually(SOON, || refused(&probe::dial(&beside, &DialSpec::say(to, "hello"))?))?;
        let (heard, _) = speak_after(&beside, pair.client.at(61_502), to, b"", b"hello")?;
        ensure!(heard.is_empty(), "{heard:?}");
        Ok(())
    });
}

#[test]
fn a_cleanup_leaves_peers_the_time_to_hear_of_it() {
    scenario("arrivals-cleanup", |net| {
        let (stale, pair) = StalePair::new(net)?;
        let service = probe::serve(&pair.server, &ServeSpec::new(PORT, Talk::Lines))?;
        let to = DialSpec::new(pair.server.at(PORT), Talk::Lines);
        let load = probe::load(&pair.client, &DialSpec { workers: 2, ..to })?;
        load.wait_more(20)?;
        pair.there.kill9()?;
        thread::scope(|scope| -> Result<()> {
            let cleanup = scope.spawn(|| mesh_agent_cleanup(&pair.nodes[1]));
            // The client's agent hears of it when some more dials have failed.
            let nothing = eventually(SOON, || {
                let said = fs::read_to_string(&stale.fresh)?;
                ensure!(said.contains("\"pods\": []"), "the announcement is still there: {said}");
                Ok(said)
            })?;
            let failed = load.progress().failed;
            eventually(SOON, || {
                let now = load.progress();
                ensure!(now.failed > failed + 20, "{now:?}");
                Ok(())
            })?;
            fs::write(&stale.known, nothing)?;
            cleanup.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        ensure!(!stale.fresh.exists(), "the announcement is still there");
        fs::remove_file(&stale.known)?;
        load.wait_more(20)?;
        load.finish()?;
        let garbage = service.garbage();
        ensure!(garbage.is_empty(), "{} times TLS: {garbage:?}", garbage.len());
        Ok(())
    });
}

#[test]
fn an_agent_that_is_told_to_stop_while_it_starts_does_both_in_order() {
    scenario("arrivals-stop", |net| {
        let node = net.node("node1")?;
        net.agent(&node)?.stop()?; // there are a CA and its directories
        let again = node.agent_place().spawn(agent::run_argv(&node, &Dirs::of(net)))?;
        eventually(SOON, || {
            ensure!(again.stderr().contains("holds the CA's key"), "not begun: {}", again.stderr());
            Ok(())
        })?;
        again.stop()?.success().map(drop)
    });
}

#[test]
fn with_no_source_port_left_a_dial_is_refused_and_never_leaves_the_range() {
    scenario("arrivals-ports", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let taken = netns::inside(&pair.client.netns, || {
            let take = |port| -> Result<Socket> {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
                socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
                Ok(socket)
            };
            MESH_PORTS.map(take).collect::<Result<Vec<_>>>()
        })??;
        let capture = pair.nodes[0].capture()?;
        let conn = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
        refused(&conn)?;
        pair.agents[0].wait_flow("without a port", |flow| flow.outcome == "no_source_port")?;
        let recording = capture.stop()?;
        ensure!(recording.to(pair.server.at(PORT)).is_empty(), "it has dialled from elsewhere");
        drop(taken);
        answered(&probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?)
    });
}

#[test]
fn the_rule_about_source_ports_outlives_agents_and_the_pods_object() {
    scenario("arrivals-rule", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let neighbour = net.pod(&pair.nodes[1], PodSpec::new("other", "neighbour"))?;
        let mut ports = 61_500..;
        let mut holds = |what: &str| -> Result<()> {
            let port = ports.next().unwrap_or(61_000);
            let conn = dial_from_range(&neighbour, neighbour.v4, &pair.server, port)?;
            refused(&conn).map_err(|error| error.context(what.to_owned()))?;
            answered(&probe::dial(&neighbour, &DialSpec::say(pair.server.at(PORT), "hello"))?)
        };
        net.objects().label_namespace(SHOP, None)?;
        pair.agents[1].wait_state(&pair.server, "not_enrolled")?;
        // For a minute from here, and from each agent's start.
        holds("when it has left")?;
        pair.agents[1].kill9()?;
        holds("when the agent is away")?;
        pair.agents[1].start_again()?;
        holds("when another agent runs")?;
        net.objects().remove_pod(&pair.server)?;
        eventually(SOON, || {
            let known = pair.agents[1].status()?.pods;
            ensure!(known.iter().all(|pod| pod.name != pair.server.name), "{known:?}");
            Ok(())
        })?;
        holds("when its object is gone")?;
        pair.agents[1].stop()?;
        pair.agents[1].start_again()?;
        holds("when an agent runs that has never heard of it")?;
        // When the pod goes, all its pins go.
        let pins = || Ok::<_, std::io::Error>(fs::read_dir(pods_pins(&pair.nodes[1])?)?.count());
        ensure!(pins()? > 0, "nothing is attached");
        net.destroy(&pair.server)?;
        net.wait_freed(&pair.nodes[1], &pair.server)?;
        eventually(SOON, || {
            let left = pins()?;
            ensure!(left == 0, "{left} programs stay attached");
            Ok(())
        })
    });
}

#[test]
fn a_minute_after_a_pod_has_left_clients_may_dial_from_any_port() {
    scenario("arrivals-over", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let neighbour = net.pod(&pair.nodes[1], PodSpec::new("other", "neighbour"))?;
        let dial = |port| dial_from_range(&neighbour, neighbour.v4, &pair.server, port);
        net.objects().label_namespace(SHOP, None)?;
        pair.agents[1].wait_state(&pair.server, "not_enrolled")?;
        refused(&dial(61_500)?)?;
        // A new agent begins the minute anew.
        pair.agents[1].kill9()?;
        pair.agents[1].start_again()?;
        let mut ports = 61_501..;
        eventually(Duration::from_mins(3), || {
            answered(&dial(ports.next().unwrap_or(65_535))?)?;
            let attached = fs::read_dir(pods_pins(&pair.nodes[1])?)?.count();
            ensure!(attached == 0, "{attached} programs stay attached");
            Ok(())
        })
    });
}

#[test]
fn a_pod_made_to_leave_while_its_agent_was_away_still_takes_its_peers_dials() {
    scenario("arrivals-grace", |net| {
        let (_stale, pair) = StalePair::new(net)?;
        let StalePair { client, server, there, .. } = &pair;
        let _service = probe::serve(server, &ServeSpec::new(PORT, Talk::Exchange))?;
        let dial = || {
            let say = DialSpec::say(server.at(PORT), "hello");
            probe::dial(client, &DialSpec { timeout_s: 3, ..say })
        };
        answered(&dial()?)?;
        there.kill9()?;
        net.objects().label_pod(server, None)?;
        refused(&dial()?)?;
        there.start_again()?;
        there.wait_state(server, "leaving")?;
        eventually(SOON, || answered(&dial()?))?; // the refusal is remembered for a moment
        there.wait_flow("over mTLS", Flow::is_mtls)?;
        there.wait_state(server, "not_enrolled")?;
        refused(&dial()?)?;
        ensure!(there.status()?.verdict("refused_left") > 0, "by whom was it refused?");
        Ok(())
    });
}

/// Two pods in the mesh. The client's agent has heard of the server once, and hears nothing after.
struct StalePair {
    nodes: [Node; 2],
    client: Pod,
    server: Pod,
    there: Agent,
    _here: Agent,
}

/// The server's announcement.
struct News {
    /// What its agent writes.
    fresh: PathBuf,
    /// What the client's agent reads.
    known: PathBuf,
}

impl StalePair {
    fn new(net: &Net) -> Result<(News, Self)> {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let labelled = |name| PodSpec::new(SHOP, name).label(MESH, "enabled");
        let client = net.pod(&nodes[0], labelled("client"))?;
        let server = net.pod(&nodes[1], labelled("server"))?;
        let dirs = Dirs::of(net);
        let stale = Dirs { announce: net.tag().dir().join("stale"), ..dirs.clone() };
        let (fresh, known) = (dirs.announce.join("node2.json"), stale.announce.join("node2.json"));
        let there = net.agent(&nodes[1])?;
        there.wait_enrolled(&[&server])?;
        eventually(SOON, || Ok(fs::metadata(&fresh).map(drop)?))?;
        fs::create_dir_all(&stale.announce)?;
        fs::copy(&fresh, &known)?;
        let here = Agent::start(&nodes[0], stale, &[])?;
        here.wait_enrolled(&[&client])?;
        here.wait_peers(1)?;
        Ok((News { fresh, known }, Self { nodes, client, server, there, _here: here }))
    }
}

/// As [`Agent::cleanup`], for a thread of its own.
fn mesh_agent_cleanup(node: &Node) -> Result<()> {
    let mut argv = vec![agent::program().into_os_string(), "cleanup".into()];
    argv.extend(["--pin-dir".into(), node.pin_dir().into_os_string()]);
    argv.extend(["--runtime-dir".into(), node.runtime_dir().into_os_string()]);
    node.run(argv)?.success().map(drop)
}

/// The directory in which the programs on a node's pods are pinned.
fn pods_pins(node: &Node) -> Result<PathBuf, std::io::Error> {
    let version = fs::read_dir(node.pin_dir())?.flatten().next();
    version
        .map(|version| version.path().join("pods"))
        .ok_or_else(|| std::io::ErrorKind::NotFound.into())
}

/// Connects, says something once it has heard something, ends its direction. Returns all that came
/// back, and the end.
fn speak_after(
    from: &Place,
    bind: SocketAddr,
    to: SocketAddr,
    after: &[u8],
    say: &[u8],
) -> Result<(Vec<u8>, End)> {
    netns::inside(&from.netns, || -> Result<(Vec<u8>, End)> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&bind.into())?;
        socket.connect(&to.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON))?;
        let mut heard = vec![0; after.len()];
        stream.read_exact(&mut heard)?;
        stream.write_all(say)?;
        // Perhaps it has been reset already.
        let _ended = stream.shutdown(std::net::Shutdown::Write);
        match stream.read_to_end(&mut heard) {
            Ok(_) => Ok((heard, End::Fin)),
            Err(error) => Ok((heard, End::from(&error))),
        }
    })?
}

/// A `ClientHello` that offers nodemesh/1 (RFC 8446 §4.1.2), complete enough to be taken for an
/// agent's.
fn client_hello() -> Vec<u8> {
    let alpn = [&[0, 16, 0, 13, 0, 11, 10][..], b"nodemesh/1"].concat();
    // Version, random, no session id, one cipher suite, no compression; then the length of the
    // extensions.
    let head = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 0x01, 1, 0, 0, 17]].concat();
    [&[22, 3, 1, 0, 64, 1, 0, 0, 60][..], &head, &alpn].concat()
}
