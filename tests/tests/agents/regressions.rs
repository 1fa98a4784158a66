//! What an adversarial review found, each defect as the scenario in which it showed.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, SocketAddrV6, TcpStream},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;
use socket2::{Domain, Socket, Type};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{self, Agent, Dirs, SOON},
    eventually,
    exec::Place,
    flow::{Flow, spiffe_id},
    netns,
    objects::{self, MODE},
    probe::{self, Conn, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// A pair whose server is in this mode, and a pod outside the mesh on the server's bridge.
fn with_neighbour<'a>(net: &'a Net, mode: &str) -> Result<(Pair<'a>, Pod)> {
    let pair = Pair::new(net)?;
    net.objects().annotate_pod(&pair.server, MODE, Some(mode))?;
    let neighbour = net.pod(&pair.nodes[1], PodSpec::new("other", "neighbour"))?;
    pair.join()?;
    Ok((pair, neighbour))
}

fn dial(from: &Place, to: SocketAddr) -> Result<Conn> {
    probe::dial(from, &DialSpec { timeout_s: 2, ..DialSpec::say(to, "hello") })
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

/// For what must not happen later either, for instance when a grace period ends or a sweep runs.
fn throughout(time: Duration, holds: impl Fn() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        holds().with_context(|| format!("after {:?}", start.elapsed()))?;
    }
    Ok(())
}

/// Runs a program to its end, and returns what it printed.
fn say(place: &Place, words: &str) -> Result<String> {
    place.run(words.split(' '))?.success()
}

#[test]
fn an_agent_restarted_under_load_never_dials_in_plaintext() {
    const MARKER: &str = "restart-marker-7c1d";
    scenario("regress-restart", |net| {
        let pair = Pair::new(net)?;
        // The more pods there are, the longer the agent takes when it comes back.
        let more: Vec<Pod> = (0..14)
            .map(|number| net.pod(&pair.nodes[0], PodSpec::new(SHOP, &format!("more{number}"))))
            .collect::<Result<_>>()?;
        join_with(&pair, &more)?;
        let service = pair.serve(Talk::Lines)?;
        let capture = pair.nodes[0].capture()?;
        let load = probe::load(
            &pair.client,
            &DialSpec {
                workers: 3,
                pause_ms: 2,
                timeout_s: 2,
                marker: MARKER.to_owned(),
                ..DialSpec::new(pair.server.at(PORT), Talk::Lines)
            },
        )?;
        let mut plain = Vec::new();
        let ends: [fn(&Agent) -> Result<()>; 2] = [Agent::stop, Agent::kill9];
        for agent in &pair.agents {
            for end in ends {
                load.wait_more(50)?;
                end(agent)?;
                agent.start_again()?;
                load.wait_more(50)?;
                let flows = agent.flows()?;
                ensure!(flows.iter().any(Flow::is_mtls), "nothing in the mesh: {flows:?}");
                plain.extend(flows.into_iter().filter(|flow| flow.security.kind == "plaintext"));
            }
        }
        let (result, recording) = (load.finish()?, capture.stop()?);
        ensure!(!recording.contains(MARKER), "in plaintext: {:?}", recording.quote(MARKER));
        ensure!(plain.is_empty(), "{} in plaintext: {:#?}", plain.len(), plain.first());
        let to = pair.server.at(PORT);
        ensure!(recording.to(to).iter().any(|conn| conn.tls().is_some()), "no TLS: {result:?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        Ok(())
    });
}

/// [`Pair::join`] with more pods on the client's node.
fn join_with(pair: &Pair<'_>, more: &[Pod]) -> Result<()> {
    pair.net.objects().label_namespace(SHOP, Some("enabled"))?;
    let here: Vec<&Pod> = more.iter().chain([&pair.client]).collect();
    pair.agents[0].wait_enrolled(&here)?;
    pair.agents[1].wait_enrolled(&[&pair.server])?;
    pair.agents[0].wait_peers(1)?;
    pair.agents[1].wait_peers(here.len())
}

/// What a server was told of its connection ([`Talk::Report`]).
#[derive(Debug, Deserialize)]
struct Told {
    accepted: SocketAddr,
    peer: SocketAddr,
    local: SocketAddr,
}

#[test]
fn a_service_that_leads_back_to_its_caller_answers() {
    scenario("regress-hairpin", |net| {
        let pair = Pair::new(net)?;
        let vips: [SocketAddr; 2] = ["10.96.0.10:80".parse()?, "[fd00:96::10]:80".parse()?];
        net.objects().service(SHOP, "self", &vips, PORT, &[&pair.client])?;
        pair.join()?;
        let spec = ServeSpec::both_families(PORT, Talk::Report);
        let mut service = probe::serve(&pair.client, &spec)?;
        for (count, (vip, own)) in vips.into_iter().zip(pair.client.addresses()).enumerate() {
            let seen = dial(&pair.client, vip)?;
            let heard = service.wait_conns(count + 1)?;
            let all = format!("{seen:?}\n{heard:?}\n{:?}", pair.agents[0].flows()?);
            ensure!(heard.iter().all(|conn| conn.first == "hello"), "not what was said: {all}");
            ensure!(seen.end == End::Fin && seen.peer == Some(vip), "{all}");
            let text = seen.first.replace("\\\"", "\"").replace("\\n", "");
            let told: Told = serde_json::from_str(&text).with_context(|| all.clone())?;
            let port = seen.local.context("no local address")?.port();
            let canonical = |of: SocketAddr| SocketAddr::new(of.ip().to_canonical(), of.port());
            ensure!(canonical(told.accepted) == (own, port).into(), "accept: {all}");
            ensure!(told.peer == told.accepted, "getpeername: {all}");
            ensure!(canonical(told.local) == (own, PORT).into(), "getsockname: {all}");
        }
        Ok(())
    });
}

#[test]
fn a_strict_pod_is_closed_on_addresses_that_kubernetes_does_not_know() {
    scenario("regress-addresses", |net| {
        let (pair, neighbour) = with_neighbour(net, "strict")?;
        let service = pair.serve(Talk::Exchange)?;
        say(&pair.server, "ip addr add 10.244.2.77/24 dev eth0")?;
        let targets = [SocketAddr::from(([10, 244, 2, 77], PORT)), link_local(&pair, &neighbour)?];
        let seen = targets.map(|to| dial(&neighbour, to));
        ensure!(
            seen.iter().all(|seen| seen.as_ref().is_ok_and(|seen| refused(seen).is_ok())),
            "not refused at each of {targets:?}: {seen:#?}"
        );
        ensure!(service.conns().is_empty(), "{:?}", service.conns());
        net.objects().annotate_pod(&pair.server, MODE, Some("permissive"))?;
        for to in targets {
            eventually(SOON, || answered(&dial(&neighbour, to)?))
                .with_context(|| format!("permissive, at {to}"))?;
        }
        // And back, without a new enrolment.
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        for to in targets {
            eventually(SOON, || refused(&dial(&neighbour, to)?))
                .with_context(|| format!("strict again, at {to}"))?;
        }
        answered(&dial(&pair.client, pair.server.at(PORT))?)
    });
}

/// The server's link-local address, as the neighbour has to dial it.
fn link_local(pair: &Pair<'_>, neighbour: &Place) -> Result<SocketAddr> {
    let shown = say(&pair.server, "ip -6 -o addr show dev eth0 scope link")?;
    let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/64"));
    let address = address.with_context(|| format!("no address in {shown}"))?.parse()?;
    let shown = say(neighbour, "ip -o link show dev eth0")?;
    let index = shown.split(':').next().context("no index")?.parse()?;
    Ok(SocketAddrV6::new(address, PORT, 0, index).into())
}

#[test]
fn a_completed_pod_takes_nothing_from_the_next_holder_of_its_address() {
    scenario("regress-next", |net| {
        let (pair, neighbour) = with_neighbour(net, "permissive")?;
        // The old pod is done and its address free, but its namespace is still there.
        let file = objects::pod_file(&pair.server);
        let text = fs::read_to_string(net.objects().dir().join(&file))?;
        net.objects().write(&file, &text.replace("phase: Running", "phase: Succeeded"))?;
        say(&pair.server, "ip link del eth0")?;
        let spec = PodSpec::new(SHOP, "successor").annotation(MODE, "strict");
        let successor = net.pod_at(&pair.nodes[1], spec, pair.server.number())?;
        ensure!(successor.v4 == pair.server.v4);
        say(&pair.nodes[1], "ip neigh flush dev cni0")?;
        say(&neighbour, "ip neigh flush dev eth0")?;
        let _service = probe::serve(&successor, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        pair.agents[1].wait_enrolled(&[&successor])?;
        let tell = || format!("{:?}", pair.agents.each_ref().map(Agent::status));
        let by_peer = || answered(&dial(&pair.client, successor.at(PORT))?).with_context(tell);
        let by_stranger = || refused(&dial(&neighbour, successor.at(PORT))?).with_context(tell);
        by_stranger()?;
        eventually(SOON, by_peer)?;
        // The old pod's grace ends in this time.
        throughout(Duration::from_secs(6), || by_stranger().and_then(|()| by_peer()))?;
        let id = spiffe_id(SHOP, "successor");
        pair.agents[0].wait_flow("to the successor", |flow| {
            flow.is_mtls() && flow.server.identity.as_ref() == Some(&id)
        })?;
        Ok(())
    });
}

#[test]
fn a_file_that_cannot_be_read_at_the_start_leaves_strict_pods_closed() {
    scenario("regress-file", |net| {
        let (pair, neighbour) = with_neighbour(net, "strict")?;
        let service = pair.serve(Talk::Exchange)?;
        let stranger = || refused(&dial(&neighbour, pair.server.at(PORT))?);
        stranger()?;
        pair.agents[1].stop()?;
        let file = objects::pod_file(&pair.server);
        net.objects().write(&file, "kind: Pod\n  broken: [\n")?;
        pair.agents[1].start_again()?;
        let named = |problem: &agent::Problem| problem.message.contains(&file);
        pair.agents[1].wait_problem("the file", named)?;
        throughout(Duration::from_secs(4), || {
            stranger().with_context(|| format!("{:?}", pair.agents[1].status()))
        })?;
        ensure!(service.conns().is_empty(), "{:?}", service.conns());
        // Mended: any change writes the object anew.
        net.objects().annotate_pod(&pair.server, "mended", Some("true"))?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        eventually(SOON, || answered(&dial(&pair.client, pair.server.at(PORT))?))?;
        stranger()
    });
}

#[test]
fn a_killed_agent_resets_what_it_carried() {
    /// More than can be carried before the kill.
    const BYTES: u64 = 4 << 30;
    /// So much has certainly begun to arrive.
    const BEGUN: u64 = 1 << 20;
    scenario("regress-kill", |net| {
        let pair = Pair::meshed(net)?;
        let spec = ServeSpec { send_bytes: BYTES, ..ServeSpec::new(PORT, Talk::Bulk) };
        let mut service = probe::serve(&pair.server, &spec)?;
        for which in [1, 0] {
            let (client, to) = (&pair.client, pair.server.at(PORT));
            let before = loopback_bytes(client)?;
            let (seen, killed) = thread::scope(|scope| {
                let spec = DialSpec { say: "go".to_owned(), ..DialSpec::new(to, Talk::Exchange) };
                let dialling = scope.spawn(move || probe::dial(client, &spec));
                // The agent's leg to the client goes over the pod's loopback.
                let begun = eventually(SOON, || {
                    let bytes = loopback_bytes(client)? - before;
                    ensure!(bytes > BEGUN, "only {bytes} have come");
                    Ok(())
                });
                let killed = begun.and_then(|()| pair.agents[which].kill9());
                (dialling.join().expect("no panic"), killed)
            });
            killed?;
            let (seen, heard) = (seen?, service.wait_conns(2 - which)?);
            let all = format!("agent {which}: {seen:?}\n{heard:?}");
            ensure!(seen.received > 0 && seen.received < BYTES, "{all}");
            ensure!(seen.end == End::Reset, "the client: {all}");
            ensure!(heard.iter().all(|conn| conn.end == End::Reset), "the server: {all}");
            pair.agents[which].start_again()?;
            pair.agents.iter().zip([client, &pair.server]).try_for_each(|(agent, pod)| {
                agent.wait_enrolled(&[pod])?;
                agent.wait_peers(1)
            })?;
        }
        Ok(())
    });
}

/// What has gone over a pod's loopback interface.
fn loopback_bytes(pod: &Place) -> Result<u64> {
    let devices = netns::inside(&pod.netns, || fs::read_to_string("/proc/thread-self/net/dev"))??;
    let lo = devices.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let received = lo.and_then(|line| line.split_whitespace().next());
    Ok(received.with_context(|| format!("no lo in {devices}"))?.parse()?)
}

#[test]
fn connections_through_the_mesh_take_no_ephemeral_port_of_the_server() {
    scenario("regress-ports", |net| {
        let (pair, neighbour) = with_neighbour(net, "permissive")?;
        netns::inside(&pair.server.netns, || {
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40099")
        })??;
        let _service = pair.serve(Talk::Exchange)?;
        let _others = probe::serve(&neighbour, &ServeSpec::new(PORT, Talk::Exchange))?;
        let many = DialSpec { workers: 4, ..DialSpec::say(pair.server.at(PORT), "hello") };
        let conns = probe::dial_all(&pair.client, &DialSpec { connections: 300, ..many })?;
        ensure!(conns.len() == 300, "{} connections", conns.len());
        conns.iter().try_for_each(answered)?;
        let through = pair.agents[1].flows()?.iter().filter(|flow| flow.is_mtls()).count();
        ensure!(through >= 300, "only {through} went through the mesh");
        let out = DialSpec { connections: 20, ..DialSpec::say(neighbour.at(PORT), "hello") };
        probe::dial_all(&pair.server, &out)?.iter().try_for_each(answered)
    });
}

#[test]
fn a_pod_whose_object_is_deleted_under_load_never_reads_tls() {
    scenario("regress-deleted", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        let load = probe::load(
            &pair.client,
            &DialSpec { workers: 4, ..DialSpec::new(pair.server.at(PORT), Talk::Lines) },
        )?;
        let file = objects::pod_file(&pair.server);
        let text = fs::read_to_string(net.objects().dir().join(&file))?;
        for round in 0..4 {
            load.wait_more(100)?;
            net.objects().remove(&file)?;
            pair.agents[0].wait_peers(0)?;
            load.wait_more(100)?;
            let garbage = service.garbage();
            ensure!(garbage.is_empty(), "round {round}: {} times TLS: {garbage:?}", garbage.len());
            net.objects().write(&file, &text)?;
            pair.agents[1].wait_enrolled(&[&pair.server])?;
            pair.agents[0].wait_peers(1)?;
        }
        let result = load.finish()?;
        let garbage = service.garbage();
        ensure!(garbage.is_empty(), "{} times TLS: {garbage:?}\n{result:#?}", garbage.len());
        Ok(())
    });
}

#[test]
fn an_agent_started_with_another_cgroup_takes_its_programs_there() {
    scenario("regress-cgroup", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Report)?;
        let [node, _] = &pair.nodes;
        let other = node.pods_cgroup().with_file_name("other-pods");
        let moved = Place { cgroup: other.join("client"), ..Place::clone(&pair.client) };
        fs::create_dir_all(&moved.cgroup)?;
        pair.agents[0].stop()?;
        let mut argv = agent::run_argv(node, &Dirs::of(net));
        let at = argv.iter().position(|word| word == "--cgroup").context("no --cgroup")?;
        argv[at + 1] = other.into_os_string();
        let again = node.agent_place().spawn(argv)?;
        pair.agents[0].wait_enrolled(&[&pair.client]).with_context(|| again.stderr())?;
        pair.agents[0].wait_peers(1)?;
        let redirected =
            || -> Result<u64> { Ok(pair.agents[0].status()?.verdict("redirect_peer")) };
        let before = redirected()?;
        let seen = dial(&moved, pair.server.at(PORT))?;
        let now = redirected()?;
        ensure!(now == before + 1, "{before} redirected, then {now}: {seen:?}");
        ensure!(seen.peer == Some(pair.server.at(PORT)) && seen.end == End::Fin, "{seen:?}");
        pair.agents[0].wait_flow("over mTLS", Flow::is_mtls)?;
        // Where it was before, it is no more.
        let seen = dial(&pair.client, pair.server.at(PORT))?;
        ensure!(redirected()? == now && seen.end == End::Fin, "still at the old cgroup: {seen:?}");
        again.stop()?.success().map(drop)
    });
}

#[test]
fn a_client_hello_that_comes_late_is_not_for_the_application() {
    /// Six times as long as the agent waits before it turns to the application.
    const LATE: Duration = Duration::from_millis(300);
    scenario("regress-late", |net| {
        let (pair, neighbour) = with_neighbour(net, "permissive")?;
        let mut service = pair.serve(Talk::Exchange)?;
        let to = pair.server.at(PORT);
        let heard = speak_late(&neighbour, neighbour.at(61_500), to, LATE, &client_hello())?;
        ensure!(!heard.windows(8).any(|bytes| bytes == b"nodemesh"), "it came back: {heard:?}");
        let flow = pair.agents[1].wait_flow("of the late one, at its end", |flow| {
            flow.client.address == IpAddr::V4(neighbour.v4)
                && flow.client.port == 61_500
                && flow.outcome != "open"
        })?;
        ensure!(flow.security.kind != "plaintext" && flow.bytes.sent == 0, "{flow:?}");
        // A client as slow as that, but no agent, is served.
        let heard = speak_late(&neighbour, neighbour.at(61_501), to, LATE, b"hello")?;
        ensure!(heard == b"hello", "{heard:?}");
        service.wait_conn("the ordinary one", |conn| conn.first == "hello")?;
        let others: Vec<_> =
            service.conns().into_iter().filter(|conn| conn.first != "hello").collect();
        ensure!(others.iter().all(|conn| conn.received == 0), "{others:?}");
        Ok(())
    });
}

/// Connects, is silent for some time, says something, ends its direction, and returns all that
/// comes back.
fn speak_late(
    from: &Place,
    bind: SocketAddr,
    to: SocketAddr,
    after: Duration,
    say: &[u8],
) -> Result<Vec<u8>> {
    netns::inside(&from.netns, || -> Result<Vec<u8>> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.bind(&bind.into())?;
        socket.connect(&to.into())?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON))?;
        thread::sleep(after); // the silence is what is tested
        stream.write_all(say)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut heard = Vec::new();
        match stream.read_to_end(&mut heard) {
            Err(error) if End::from(&error) != End::Reset => Err(error.into()),
            _ => Ok(heard),
        }
    })?
}

/// A `ClientHello` that offers nodemesh/1 (RFC 8446 §4.1.2), complete enough to be taken for an
/// agent's.
fn client_hello() -> Vec<u8> {
    const ALPN: &[u8] = b"nodemesh/1";
    let with_length = |body: &[u8]| [&(body.len() as u16).to_be_bytes()[..], body].concat();
    let name = [&[ALPN.len() as u8][..], ALPN].concat();
    let alpn = [&[0, 16][..], &with_length(&with_length(&name))].concat();
    let versions = [0, 43, 0, 3, 2, 3, 4];
    let extensions = with_length(&[&versions[..], &alpn].concat());
    // Version and random, no session id, one cipher suite, no compression.
    let head = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
    let body = [head, extensions].concat();
    let handshake = [&[1, 0][..], &with_length(&body)].concat();
    [&[22, 3, 1][..], &with_length(&handshake)].concat()
}
