//! Stop and remove are different: a stopped agent's rules stay, a removed one leaves nothing.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{
    Node, PORT, Pair, Pod, PodSpec, SHOP,
    agent::SOON,
    eventually,
    exec::Place,
    flow::Flow,
    netns,
    objects::MODE,
    probe::{self, Conn, DialSpec, End, Talk},
    scenario,
};

fn dial(from: &Place, pair: &Pair<'_>) -> Result<Conn> {
    probe::dial(from, &DialSpec { timeout_s: 2, ..DialSpec::say(pair.server.at(PORT), "hello") })
}

fn answered(conn: &Conn) -> Result<()> {
    ensure!((conn.end, &*conn.first) == (End::Fin, "hello"), "{conn:?}");
    Ok(())
}

/// Whether what was dialled is closed, and nothing of the application came.
fn closed(conn: &Conn) -> Result<()> {
    let end = matches!(conn.end, End::Refused | End::Reset | End::NotPermitted | End::Timeout);
    ensure!(end && conn.received == 0, "{conn:?}");
    Ok(())
}

fn pins(node: &Node) -> usize {
    std::fs::read_dir(node.pin_dir()).map_or(0, Iterator::count)
}

#[test]
fn a_stopped_agent_leaves_strict_pods_closed() {
    scenario("lifecycle-stop", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let mut service = pair.serve(Talk::Exchange)?;
        closed(&dial(&stranger, &pair)?)?;
        answered(&dial(&pair.client, &pair)?)?;
        pair.agents[1].stop()?;
        ensure!(pins(&pair.nodes[1]) > 0, "nothing is pinned");
        closed(&dial(&stranger, &pair)?)?;
        // The peer's agent still dials with TLS, which no agent accepts: never plaintext instead.
        let capture = pair.nodes[0].capture()?;
        closed(&dial(&pair.client, &pair)?)?;
        ensure!(!capture.stop()?.contains("hello"));
        pair.agents[1].start_again()?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        eventually(SOON, || answered(&dial(&pair.client, &pair)?))?;
        closed(&dial(&stranger, &pair)?)?;
        let seen = service.wait_conns(2)?;
        ensure!(
            seen.iter().all(|c| c.peer.is_some_and(|p| p.ip().to_canonical() == pair.client.v4)),
            "{seen:?}"
        );
        Ok(())
    });
}

#[test]
fn a_killed_agent_leaves_strict_pods_closed() {
    scenario("lifecycle-kill", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let _service = pair.serve(Talk::Exchange)?;
        answered(&dial(&pair.client, &pair)?)?;
        pair.agents[1].kill9()?;
        closed(&dial(&stranger, &pair)?)?;
        closed(&dial(&pair.client, &pair)?)?;
        // The client's agent too: its pod must not fall back to plaintext.
        pair.agents[0].kill9()?;
        closed(&dial(&pair.client, &pair)?)?;
        for (agent, pod) in pair.agents.iter().zip([&pair.client, &pair.server]) {
            agent.start_again()?;
            agent.wait_enrolled(&[pod])?;
        }
        eventually(SOON, || answered(&dial(&pair.client, &pair)?))?;
        closed(&dial(&stranger, &pair)?)
    });
}

#[test]
fn a_killed_agent_leaves_a_permissive_pod_open_to_plaintext() {
    scenario("lifecycle-open", |net| {
        let pair = Pair::new(net)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let _service = pair.serve(Talk::Exchange)?;
        pair.join()?;
        pair.agents[1].kill9()?;
        answered(&dial(&stranger, &pair)?)?;
        closed(&dial(&pair.client, &pair)?)
    });
}

#[test]
fn sigterm_lets_connections_end_by_themselves() {
    scenario("lifecycle-drain", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        let to = pair.server.at(PORT);
        let kept = probe::load(
            &pair.client,
            &DialSpec { keep_alive: true, ..DialSpec::new(to, Talk::Lines) },
        )?;
        kept.wait_more(50)?;
        pair.agents[0].begin_stop()?;
        kept.wait_more(50)?;
        let result = kept.finish()?;
        ensure!((result.failed, result.connections) == (0, 1), "{result:?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        // The last connection has ended, and so does the agent.
        pair.agents[0].wait_end()
    });
}

#[test]
fn cleanup_leaves_nothing() {
    scenario("lifecycle-cleanup", |net| {
        let pair = Pair::new(net)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        let name =
            |pod: &Pod| pod.netns.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let prints = || [&pair.client, &pair.server].map(|pod| netns::fingerprint(&name(pod)));
        let before = prints();
        let service = pair.serve(Talk::Exchange)?;
        pair.join()?;
        answered(&dial(&pair.client, &pair)?)?;
        // One agent could tidy up before, the other could not.
        pair.agents[0].stop()?;
        pair.agents[1].kill9()?;
        for (agent, node) in pair.agents.iter().zip(&pair.nodes) {
            ensure!(pins(node) > 0, "nothing is pinned");
            agent.cleanup()?;
            ensure!(
                !node.pin_dir().exists(),
                "pins stay: {:?}",
                std::fs::read_dir(node.pin_dir())?.collect::<Vec<_>>()
            );
        }
        // Without a mesh, the strict pod is an ordinary one.
        answered(&dial(&pair.client, &pair)?)?;
        service.stop()?;
        for (before, after) in before.into_iter().zip(prints()) {
            let differ = netns::differences(&before?, &after?);
            ensure!(differ.is_empty(), "{differ:#?}");
        }
        // A second cleanup does no harm.
        pair.agents[0].cleanup()
    });
}

#[test]
fn enrolment_changes_nothing_but_the_reserved_ports() {
    scenario("lifecycle-pod", |net| {
        let pair = Pair::new(net)?;
        let name = pair.client.netns.file_name().context("a name")?.to_string_lossy().into_owned();
        let before = netns::fingerprint(&name)?;
        pair.join()?;
        let differ = netns::differences(&before, &netns::fingerprint(&name)?);
        let ours = |line: &String| {
            line.contains("ip_local_reserved_ports") || line.starts_with("listener ")
        };
        let others: Vec<_> = differ.iter().filter(|line| !ours(line)).collect();
        ensure!(others.is_empty() && !differ.is_empty(), "{differ:#?}");
        Ok(())
    });
}

#[test]
fn an_agent_that_comes_back_finds_its_pods_in_the_mesh() {
    scenario("lifecycle-back", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        for _ in 0..2 {
            for (agent, pod) in pair.agents.iter().zip([&pair.client, &pair.server]) {
                agent.stop()?;
                agent.start_again()?;
                agent.wait_enrolled(&[pod])?;
            }
            pair.agents[0].wait_peers(1)?;
            eventually(Duration::from_secs(5), || answered(&dial(&pair.client, &pair)?))?;
            pair.agents[0].wait_flow("over mTLS", Flow::is_mtls)?;
        }
        ensure!(net.objects().label_namespace(SHOP, None).is_ok());
        pair.agents[0].wait_state(&pair.client, "not_enrolled").map(drop)
    });
}
