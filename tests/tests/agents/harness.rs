//! The harness itself, without an agent: the base of every other test.
use std::{panic::catch_unwind, path::Path, time::Duration};

use anyhow::{Result, ensure};
use tests::{
    Net, Node, Pod, PodSpec,
    exec::Process,
    netns,
    probe::{self, Conn, DialSpec, Digest, End, Noise, ServeSpec, Talk},
    scenario,
    tag::Tag,
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);

/// Two nodes with a pod each: a client on the first, a server on the second.
fn two(net: &Net) -> Result<([Node; 2], Pod, Pod)> {
    let nodes = [net.node("node1")?, net.node("node2")?];
    let client = net.pod(&nodes[0], PodSpec::new("shop", "client"))?;
    let server = net.pod(&nodes[1], PodSpec::new("shop", "server"))?;
    Ok((nodes, client, server))
}

#[test]
fn pods_reach_each_other_over_both_families() {
    scenario("reach", |net| {
        let (_, client, server) = two(net)?;
        let spec = ServeSpec::both_families(8080, Talk::Exchange);
        let mut service = probe::serve(&server, &spec)?;
        for (from, to) in [(client.at(0), server.at(8080)), (client.at6(0), server.at6(8080))] {
            let seen = probe::dial(&client, &DialSpec::say(to, "hello"))?;
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
            ensure!(seen.peer == Some(to) && seen.local.unwrap().ip() == from.ip(), "{seen:?}");
        }
        let conns = service.wait_conns(2)?;
        let from: Vec<_> = conns.iter().map(|c| c.peer.unwrap().ip().to_canonical()).collect();
        ensure!(from == client.addresses(), "{conns:?}");
        Ok(())
    });
}

#[test]
fn an_ordinary_program_runs_in_a_pod() {
    scenario("curl", |net| {
        let (_, client, server) = two(net)?;
        let banner = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nhi\n";
        let banner = banner.to_owned();
        let spec = ServeSpec { banner, ..ServeSpec::new(80, Talk::Sink) };
        let _service = probe::serve(&server, &spec)?;
        let url = format!("http://{}/", server.at(80));
        let page = client.run(["curl", "-sS", "--http0.9", "--max-time", "5", &url])?.success()?;
        ensure!(page == "hi\n", "{page}");
        let cgroup = client.run(["sh", "-c", "grep ^0:: /proc/self/cgroup"])?.success()?;
        let of_a_pod = cgroup.contains("/node1/pods/pod") && cgroup.trim_end().ends_with("/app");
        ensure!(of_a_pod, "{cgroup}");
        Ok(())
    });
}

#[test]
fn a_capture_has_what_went_over_the_link() {
    scenario("capture", |net| {
        let ([node1, _], client, server) = two(net)?;
        let _service = probe::serve(&server, &ServeSpec::both_families(8080, Talk::Exchange))?;
        let capture = node1.capture()?;
        let bind = Some((client.v4, 40_000).into());
        let say = DialSpec::say(server.at(8080), "the-marker");
        probe::dial(&client, &DialSpec { bind, send_bytes: 300_000, ..say })?;
        probe::dial(&client, &DialSpec::say(server.at6(8080), "sixth-marker"))?;
        let recording = capture.stop()?;
        ensure!(recording.contains("the-marker") && recording.contains("sixth-marker"));
        ensure!(!recording.contains("another-marker"));
        let conn = recording.one_to(server.at(8080))?;
        ensure!(conn.client == (client.v4, 40_000).into(), "{conn}");
        ensure!((conn.to_server.len(), conn.to_client.len()) == (300_010, 300_010), "{conn}");
        ensure!(conn.to_server == conn.to_client && conn.closed && !conn.reset, "{conn}");
        ensure!(conn.tls().is_none());
        recording.one_to(server.at6(8080))?;
        Ok(())
    });
}

#[test]
fn ends_of_connections_are_told_apart() {
    scenario("ends", |net| {
        let (_, client, server) = two(net)?;
        let mut service = probe::serve(&server, &ServeSpec::new(8080, Talk::Exchange))?;
        let to = server.at(8080);
        let reset =
            DialSpec { read_bytes: Some(3), reset: true, ..DialSpec::new(to, Talk::Exchange) };
        let seen = probe::dial(&client, &DialSpec { say: "abc".to_owned(), ..reset })?;
        ensure!(seen.end == End::SentReset, "{seen:?}");
        service.wait_conn("reset", |conn| conn.end == End::Reset && conn.received == 3)?;
        let refused = probe::dial(&client, &DialSpec::new(server.at(9), Talk::Exchange))?;
        ensure!((refused.end, refused.connected) == (End::Refused, false), "{refused:?}");
        let absent = (server.v4.to_bits() + 50).into();
        let absent = std::net::SocketAddrV4::new(absent, 1).into();
        let absent = DialSpec { timeout_s: 1, ..DialSpec::new(absent, Talk::Exchange) };
        let absent = probe::dial(&client, &absent)?;
        ensure!(matches!(absent.end, End::Timeout | End::Unreachable), "{absent:?}");
        Ok(())
    });
}

#[test]
fn both_sides_of_every_script_agree() {
    scenario("scripts", |net| {
        let (_, client, server) = two(net)?;
        let mut service = probe::serve(&server, &ServeSpec::new(8080, Talk::Script))?;
        let spec = DialSpec {
            connections: 200,
            workers: 8,
            ..DialSpec::new(server.at(8080), Talk::Script)
        };
        let mut there = probe::dial_all(&client, &spec)?;
        let mut here = service.wait_conns(200)?;
        there.sort_by_key(|c| c.seed);
        here.sort_by_key(|c| c.seed);
        for (there, here) in there.iter().zip(&here) {
            let crossed =
                |a: &Conn, b: &Conn| (a.sent, &a.sent_hash) == (b.received, &b.received_hash);
            ensure!(crossed(there, here) && crossed(here, there), "{there:?}\n{here:?}");
            let ends = matches!(
                (there.end, here.end),
                (End::Fin, End::Fin) | (End::SentReset, End::Reset) | (End::Reset, End::SentReset)
            );
            ensure!(ends, "{there:?}\n{here:?}");
        }
        Ok(())
    });
}

#[test]
fn many_bytes_both_ways_at_once() {
    const BYTES: u64 = 64 << 20;
    scenario("bulk", |net| {
        let (_, client, server) = two(net)?;
        let spec = ServeSpec { send_bytes: BYTES, seed: 2, ..ServeSpec::new(8080, Talk::Bulk) };
        let _service = probe::serve(&server, &spec)?;
        let spec =
            DialSpec { send_bytes: BYTES, seed: 1, ..DialSpec::new(server.at(8080), Talk::Bulk) };
        let seen = probe::dial(&client, &spec)?;
        let (mut bytes, mut digest) = (vec![0; BYTES as usize], Digest::default());
        Noise::new(2).fill(&mut bytes);
        digest.update(&bytes);
        ensure!((seen.received, &seen.received_hash) == (BYTES, &digest.hex()), "{seen:?}");
        Ok(())
    });
}

#[test]
fn a_load_counts_answers_and_failures() {
    scenario("load", |net| {
        let (_, client, server) = two(net)?;
        let service = probe::serve(&server, &ServeSpec::new(8080, Talk::Lines))?;
        for keep_alive in [false, true] {
            let spec = DialSpec::new(server.at(8080), Talk::Lines);
            let load = probe::load(&client, &DialSpec { keep_alive, workers: 2, ..spec })?;
            load.wait_more(50)?;
            let result = load.finish()?;
            ensure!(result.failed == 0 && result.ok >= 50, "{result:?}");
            ensure!((result.connections == 2) == keep_alive, "{result:?}");
        }
        probe::dial(&client, &DialSpec::say(server.at(8080), "\u{16}\u{3}\u{1} is no request"))?;
        wait_until(SOON, "garbage is told", || !service.garbage().is_empty())?;
        service.stop()?;
        let load = probe::load(&client, &DialSpec::new(server.at(8080), Talk::Lines))?;
        wait_until(SOON, "a request fails", || load.progress().failed > 0)?;
        let result = load.finish()?;
        ensure!(result.ok == 0 && !result.failures.is_empty(), "{result:?}");
        Ok(())
    });
}

#[test]
fn nothing_is_left_even_after_a_panic() {
    let (mut tag, mut process): (Option<Tag>, Option<Process>) = (None, None);
    let story = catch_unwind(std::panic::AssertUnwindSafe(|| {
        let net = Net::new("panic").expect("a net");
        tag = Some(net.tag().clone());
        let (_, client, _) = two(&net).expect("two pods");
        // A grandchild in the background too: it is in the cgroup, though no process waits for it.
        let mut sleeper =
            client.spawn(["sh", "-c", "sleep 1000 & echo ready; sleep 1000"]).unwrap();
        sleeper.wait_for_line("ready", Duration::from_secs(5)).unwrap();
        assert!(!net.tag().leftovers().is_empty());
        process = Some(sleeper);
        panic!("on purpose");
    }));
    let panic = story.expect_err("it panics");
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"on purpose"));
    let tag = tag.expect("was set");
    assert_eq!(tag.leftovers(), Vec::<String>::new());
    assert!(!netns::names().iter().any(|name| name.starts_with(&tag.netns(""))));
    assert!(!process.unwrap().is_running().unwrap());
    assert!(!Path::new(&tag.dir()).exists());
}
