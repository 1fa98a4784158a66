//! Sessions that are kept for the next connection: what they spare, and when they must not be used.

use std::{process::Command, thread::sleep, time::Duration};

use anyhow::{Result, ensure};
use tests::{
    Net, Pair, PodSpec, SHOP,
    agent::{Agent, Dirs, SOON, Sessions},
    attack::{self, MeasureSpec},
    eventually,
    exec::Place,
    objects::MODE,
    probe::{self, DialSpec, ServeSpec, Talk},
    scenario,
};

/// Longer than a session without a connection counts as warm. Until then, data goes with OPEN.
const NO_LONGER_WARM: Duration = Duration::from_millis(1500);

/// Longer than an agent that has handed over may take to end.
const PATIENCE: Duration = Duration::from_secs(45);

fn sessions(agent: &Agent) -> Result<Sessions> {
    Ok(agent.status()?.counters.sessions)
}

/// Handshakes that the client's agent has made for connections.
fn handshakes(pair: &Pair<'_>) -> Result<u64> {
    Ok(sessions(&pair.agents[0])?.handshakes_outbound)
}

fn sessions_kept(pair: &Pair<'_>) -> Result<usize> {
    Ok(sessions(&pair.agents[0])?.kept_outbound)
}

/// Waits until a connection of the client needs no handshake.
fn warm(pair: &Pair<'_>) -> Result<()> {
    eventually(SOON, || {
        let before = handshakes(pair)?;
        pair.is_answered(&pair.client)?;
        ensure!(handshakes(pair)? == before, "a handshake again");
        Ok(())
    })
}

/// After the change, the next connection makes a handshake, and none fails.
fn begins_anew(pair: &Pair<'_>, what: &str, change: impl FnOnce() -> Result<()>) -> Result<()> {
    warm(pair)?;
    change()?;
    makes_a_handshake(pair, what, &pair.client)
}

fn makes_a_handshake(pair: &Pair<'_>, what: &str, from: &Place) -> Result<()> {
    let before = handshakes(pair)?;
    pair.is_answered(from)?;
    ensure!(handshakes(pair)? > before, "{what}: a session was used again");
    Ok(())
}

#[test]
fn a_thousand_connections_of_a_warm_pair_make_no_handshake() {
    scenario("sessions-thousand", |net| {
        let pair = Pair::meshed(net)?;
        let _server = pair.serve(Talk::Lines)?;
        // As many sessions as connections at once. One after the other then always finds an idle
        // one, although the last may not have ended everywhere.
        let to = pair.server.at(tests::PORT);
        let load =
            probe::load(&pair.client, &DialSpec { workers: 8, ..DialSpec::new(to, Talk::Lines) })?;
        load.wait_more(100)?;
        load.finish()?;
        let all = || -> Result<Sessions> {
            let (client, server) = (sessions(&pair.agents[0])?, sessions(&pair.agents[1])?);
            ensure!(client.kept_outbound > 0 && client.kept_outbound == server.kept_inbound);
            Ok(Sessions {
                handshakes_inbound: server.handshakes_inbound,
                reused_inbound: server.reused_inbound,
                ..client
            })
        };
        let before = eventually(SOON, all)?;
        let spec = MeasureSpec { to, count: 1000, ..MeasureSpec::default() };
        let times = attack::measure(&pair.client, &spec)?;
        println!("a connection and its answer: {times:?}");
        ensure!((times.ok, times.failed) == (1000, 0), "{times:?}");
        let after = eventually(SOON, all)?;
        let expected = Sessions {
            reused_outbound: before.reused_outbound + 1000,
            reused_inbound: before.reused_inbound + 1000,
            ..before
        };
        ensure!(after == expected, "{before:?}, then {after:?}");
        Ok(())
    });
}

#[test]
fn a_session_serves_one_pod_in_one_state_only() {
    scenario("sessions-state", |net| {
        let pair = Pair::new(net)?;
        let sibling = PodSpec::new(SHOP, "client2").service_account("client");
        let sibling = net.pod(&pair.nodes[0], sibling)?;
        let join = || {
            net.objects().label_namespace(SHOP, Some("enabled"))?;
            pair.agents[0].wait_enrolled(&[&pair.client, &sibling])?;
            pair.agents[1].wait_enrolled(&[&pair.server])?;
            pair.agents[0].wait_peers(1)?;
            pair.agents[1].wait_peers(2)
        };
        join()?;
        let service = pair.serve(Talk::Lines)?;
        warm(&pair)?;
        makes_a_handshake(&pair, "another pod of the account", &sibling)?;
        for (pod, at) in [(&pair.server, 1), (&pair.client, 0)] {
            begins_anew(&pair, "the mode", || {
                net.objects().annotate_pod(pod, MODE, Some("strict"))?;
                eventually(SOON, || {
                    let is = pair.agents[at].status()?.pod(pod)?;
                    ensure!(is.mode.as_deref() == Some("strict"), "{is:?}");
                    Ok(())
                })
            })?;
        }
        begins_anew(&pair, "joined anew", || {
            pair.leave()?;
            eventually(SOON, || {
                let kept = sessions_kept(&pair)?;
                ensure!(kept == 0, "a pod that is not in the mesh has {kept} sessions");
                Ok(())
            })?;
            join()
        })?;

        // The same name, address and account, but another pod.
        warm(&pair)?;
        drop(service);
        net.destroy(&pair.server)?;
        net.objects().remove_pod(&pair.server)?;
        net.wait_freed(&pair.nodes[1], &pair.server)?;
        let spec = PodSpec::new(SHOP, "server").annotation(MODE, "strict");
        let again = net.pod_at(&pair.nodes[1], spec, pair.server.number())?;
        pair.agents[1].wait_enrolled(&[&again])?;
        let pair = Pair { server: again, ..pair };
        let _service = pair.serve(Talk::Lines)?;
        let before = handshakes(&pair)?;
        eventually(SOON, || pair.is_answered(&pair.client))?; // its announcement is new
        ensure!(handshakes(&pair)? > before, "a session was used again");
        Ok(())
    });
}

/// A new pod of an account that has met the server's makes a short handshake. A pod of another
/// account makes a full one, and so do all once the server's agent is another one.
#[test]
fn accounts_that_have_met_resume() {
    scenario("sessions-resumed", |net| {
        let (pair, _) = Pair::strict(net, &[])?; // no question about the path comes first
        let sibling = PodSpec::new(SHOP, "client2").service_account("client");
        let sibling = net.pod(&pair.nodes[0], sibling)?;
        let cousin = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "cousin"))?;
        pair.agents[0].wait_enrolled(&[&sibling, &cousin])?;
        pair.agents[1].wait_peers(3)?;
        let _service = pair.serve(Talk::Lines)?;
        let dials = |from: &Place| -> Result<[u64; 4]> {
            let now = || -> Result<[u64; 4]> {
                let (client, server) = (sessions(&pair.agents[0])?, sessions(&pair.agents[1])?);
                let Sessions { handshakes_outbound, resumed_outbound, .. } = client;
                let Sessions { handshakes_inbound, resumed_inbound, .. } = server;
                Ok([handshakes_outbound, resumed_outbound, handshakes_inbound, resumed_inbound])
            };
            let before = now()?;
            pair.is_answered(from)?;
            let mut more = now()?;
            std::iter::zip(&mut more, before).for_each(|(after, before)| *after -= before);
            Ok(more)
        };
        let expect = |what: &str, from: &Place, expected: [u64; 4]| {
            let seen = dials(from)?;
            ensure!(seen == expected, "{what}: {seen:?} instead of {expected:?}");
            anyhow::Ok(())
        };
        let (full, resumed) = ([1, 0, 1, 0], [1, 1, 1, 1]);
        expect("the first", &pair.client, full)?;
        expect("another pod of the account", &sibling, resumed)?;
        expect("another account", &cousin, full)?;
        let other = &pair.agents[1];
        other.take_over()?.wait(PATIENCE)?;
        expect("the server's agent handed over", &sibling, full)?;
        other.kill9()?;
        other.start_again()?;
        other.wait_enrolled(&[&pair.server])?;
        other.wait_peers(3)?;
        expect("the server's agent killed", &sibling, full)
    });
}

/// Whichever way a session ends while it is idle, the next connection notices nothing of it.
#[test]
fn a_peers_agent_that_is_another_one_is_asked_anew() {
    scenario("sessions-agents", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Lines)?;
        let other = &pair.agents[1];
        begins_anew(&pair, "killed", || {
            other.kill9()?;
            other.start_again()?;
            other.wait_enrolled(&[&pair.server])?;
            pair.agents.iter().try_for_each(|agent| agent.wait_peers(1))
        })?;
        begins_anew(&pair, "handed over", || other.take_over()?.wait(PATIENCE).map(drop))?;
        begins_anew(&pair, "our own agent handed over", || {
            pair.agents[0].take_over()?.wait(PATIENCE).map(drop)
        })?;
        // Its kernel forgets the session, and the client's is not told.
        begins_anew(&pair, "forgotten", || {
            let quiet = "table inet quiet { chain out { type filter hook forward priority 0; \
                tcp flags rst drop; }; }";
            pair.nodes[1].run(["nft", quiet])?.success()?;
            let sessions = format!("ss -K dst {} sport = :{}", pair.client.v4, tests::PORT);
            let ended = pair.beside_server().run(["sh", "-c", &sessions])?.success()?;
            ensure!(ended.contains(&pair.client.v4.to_string()), "no session: {ended}");
            pair.nodes[1].run(["nft", "delete", "table", "inet", "quiet"])?.success()?;
            sleep(NO_LONGER_WARM); // only time makes a session cold
            ensure!(sessions_kept(&pair)? > 0, "the client's agent has noticed the end");
            Ok(())
        })
    });
}

#[test]
fn a_session_is_not_used_under_another_certificate_or_other_anchors() {
    scenario("sessions-certificates", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Lines)?;
        let next = other_ca(net)?;
        let dir = Dirs::of(net).ca.to_string_lossy().into_owned();
        let certificate = format!("{next}/ca.crt");
        begins_anew(&pair, "another anchor", || {
            ca(&pair, &["add-anchor", "--ca-dir", &dir, &certificate])?;
            eventually(SOON, || {
                for agent in &pair.agents {
                    ensure!(agent.status()?.anchors.len() == 2, "the new anchor is not known");
                }
                Ok(())
            })
        })?;
        begins_anew(&pair, "another certificate", || {
            let serials = || -> Result<Vec<Option<String>>> {
                let mut all = Vec::new();
                for agent in &pair.agents {
                    all.extend(agent.status()?.identities.into_iter().map(|it| it.serial));
                }
                Ok(all)
            };
            let before = serials()?;
            ca(&pair, &["use", "--ca-dir", &dir, "--from", &next])?;
            eventually(SOON, || {
                let now = serials()?;
                ensure!(now.iter().all(|serial| !before.contains(serial)), "{before:?} {now:?}");
                Ok(())
            })
        })
    });
}

fn other_ca(net: &Net) -> Result<String> {
    let dir = net.tag().dir().join("next-ca").to_string_lossy().into_owned();
    let program = tests::agent::program();
    let made = Command::new(program).args(["ca", "init", "--ca-dir", &dir]).output()?;
    ensure!(made.status.success(), "{made:?}");
    Ok(dir)
}

fn ca(pair: &Pair<'_>, words: &[&str]) -> Result<()> {
    let program = tests::agent::program().to_string_lossy().into_owned();
    pair.nodes[0].run([&*program, "ca"].iter().chain(words))?.success().map(drop)
}

/// With so few descriptors an agent carries 64 connections, and keeps 8 sessions in each direction.
#[test]
fn a_pod_and_a_peer_leave_room_for_the_sessions_of_others() {
    scenario("sessions-limits", |net| {
        /// As long as it has less than four times what is free of eight.
        const MOST: usize = 7;
        let few = ["prlimit", "--nofile=1600:1600"];
        let pair = Pair::by(&few, net, [Dirs::of(net), Dirs::of(net)], &[])?;
        let other = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "other"))?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client, &other])?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        pair.agents[0].wait_peers(1)?;
        pair.agents[1].wait_peers(2)?;
        let lines = ServeSpec::both_families(tests::PORT, Talk::Lines);
        let _services = [probe::serve(&pair.server, &lines)?, probe::serve(&pair.client, &lines)?];
        for (from, to) in [(&pair.client, &pair.server), (&pair.server, &pair.client)] {
            let lines = DialSpec::new(to.at(tests::PORT), Talk::Lines);
            let many = probe::load(from, &DialSpec { workers: 12, timeout_s: 10, ..lines })?;
            many.wait_more(300)?;
            let many = many.finish()?;
            ensure!(many.failed == 0, "{many:?}");
        }
        let kept = eventually(SOON, || {
            let now = pair.agents[0].status()?.counters.sessions;
            ensure!(now.not_kept > 0, "all are kept: {now:?}");
            for kept in [now.kept_outbound, now.kept_inbound] {
                ensure!((1..=MOST).contains(&kept), "{now:?}");
            }
            Ok(now)
        })?;
        pair.is_answered(&other)?;
        eventually(SOON, || {
            let now = pair.agents[0].status()?.counters.sessions;
            ensure!(now.kept_outbound > kept.kept_outbound, "none of the other pod: {now:?}");
            Ok(())
        })?;
        let before = handshakes(&pair)?;
        pair.is_answered(&other)?;
        ensure!(handshakes(&pair)? == before, "it is not used");
        Ok(())
    });
}
