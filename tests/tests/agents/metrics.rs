//! What an agent tells Prometheus, which clients may ask for it and how often, and what becomes of
//! it when another agent takes over.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Node, Pair,
    agent::{Agent, Dirs, SOON},
    attack::{self, AttackSpec, Kind, MeasureSpec},
    eventually,
    exec::Place,
    probe::{self, DialSpec, ServeSpec, Talk},
    scenario,
};

/// Where the agents of these tests serve metrics, in their node's network.
const PORT: u16 = 15_020;
const OPTIONS: [&str; 4] = ["--metrics", "[::]:15020", "--drain-seconds", "5"];

/// What the endpoint promises: so many connections at once, and so long each (`metrics/`).
const SEATS: u64 = 64;
const PATIENCE: Duration = Duration::from_secs(10);

fn curl(from: &Place, node: &Node, words: &[&str]) -> Result<String> {
    let url = format!("http://{}:{PORT}/metrics", node.address());
    let curl = ["curl", "--silent", "--show-error", "--max-time", "5"];
    from.run(curl.iter().chain(words).chain([&&*url]))?.success()
}

/// The samples, by name with labels. Every metric must have its HELP and TYPE, and no sample may be
/// told twice.
fn scrape(from: &Place, node: &Node) -> Result<BTreeMap<String, f64>> {
    let page = curl(from, node, &["--fail"])?;
    let mut samples = BTreeMap::new();
    let mut about = Vec::new();
    for line in page.lines() {
        if let Some(told) = line.strip_prefix("# ") {
            about.extend(told.split(' ').nth(1).map(|name| (&told[..4], name)));
            continue;
        }
        let (name, value) = line.rsplit_once(' ').with_context(|| format!("{line:?}"))?;
        let family = name.split('{').next().unwrap_or(name);
        let of_histogram =
            ["_bucket", "_sum", "_count"].iter().find_map(|it| family.strip_suffix(it));
        let is_told = [Some(family), of_histogram]
            .into_iter()
            .flatten()
            .any(|family| about.contains(&("HELP", family)) && about.contains(&("TYPE", family)));
        ensure!(is_told && family.starts_with("nodemesh_"), "{line:?}");
        ensure!(samples.insert(name.to_owned(), value.parse()?).is_none(), "twice: {line:?}");
    }
    Ok(samples)
}

#[test]
fn the_page_says_what_status_says() {
    scenario("metrics-page", |net| {
        let (pair, stranger) = Pair::strict(net, &OPTIONS)?;
        let _service = pair.serve(Talk::Exchange)?;
        for _ in 0..3 {
            probe::dial(&pair.client, &DialSpec::say(pair.server.at(tests::PORT), "hello"))?;
        }
        probe::dial(&stranger, &DialSpec::say(pair.server.at(tests::PORT), "hello"))?;
        let samples = eventually(SOON, || {
            let samples = scrape(&stranger, &pair.nodes[1])?;
            ensure!(samples.get("nodemesh_connections_open") == Some(&0.0), "{samples:#?}");
            let sessions = ["sessions_kept", "handshake_duration_seconds_count"].map(|name| {
                samples.get(&format!("nodemesh_{name}{{direction=\"inbound\"}}")).copied()
            });
            ensure!(sessions[0] == sessions[1], "not all are kept yet: {samples:#?}");
            Ok(samples)
        })?;
        let status = pair.agents[1].status()?;
        let sessions = status.counters.sessions;
        let carried = sessions.handshakes_inbound + sessions.reused_inbound;
        ensure!(carried == 3 && sessions.handshakes_inbound > 0, "{sessions:?}");
        for (name, value) in [
            ("nodemesh_ready", 1),
            ("nodemesh_knowledge{from=\"source\"}", 1),
            ("nodemesh_knowledge{from=\"disk\"}", 0),
            ("nodemesh_knowledge_age_seconds", 0),
            ("nodemesh_pods{state=\"enrolled\"}", 1),
            ("nodemesh_pods{state=\"held\"}", 0),
            ("nodemesh_remote_pods", 1),
            ("nodemesh_connections_accepted_total{direction=\"inbound\"}", 3),
            ("nodemesh_connections_accepted_total{direction=\"outbound\"}", 0),
            (
                "nodemesh_handshake_duration_seconds_count{direction=\"inbound\"}",
                sessions.handshakes_inbound,
            ),
            ("nodemesh_handshakes_resumed_total{direction=\"inbound\"}", sessions.resumed_inbound),
            ("nodemesh_sessions_reused_total{direction=\"inbound\"}", sessions.reused_inbound),
            ("nodemesh_sessions_kept{direction=\"inbound\"}", sessions.kept_inbound as u64),
            ("nodemesh_handshake_duration_seconds_count{direction=\"outbound\"}", 0),
            ("nodemesh_application_bytes_total{direction=\"sent\"}", status.counters.bytes_sent),
            ("nodemesh_certificates_not_signed", 0),
        ] {
            #[expect(clippy::cast_precision_loss, reason = "small numbers")]
            let value = value as f64;
            ensure!(samples.get(name) == Some(&value), "{name} is not {value}: {samples:#?}");
        }
        let of_client = scrape(&pair.client, &pair.nodes[0])?;
        for (samples, direction) in [(&of_client, "outbound"), (&samples, "inbound")] {
            let handshakes = |kind: &str| {
                let name = format!(
                    "nodemesh_handshake_duration_seconds_{kind}{{direction=\"{direction}\"}}"
                );
                samples.get(&name).copied().with_context(|| name)
            };
            let (count, seconds) = (handshakes("count")?, handshakes("sum")?);
            println!("{count} handshakes {direction} took {seconds} s");
            let possible = 0.000_1..count * PATIENCE.as_secs_f64();
            ensure!(
                (0.5..3.5).contains(&count) && possible.contains(&seconds),
                "{direction}: {samples:#?}"
            );
        }
        let verdict =
            |code: &str| samples.get(&format!("nodemesh_verdicts_total{{verdict=\"{code}\"}}"));
        let told: Vec<_> =
            status.verdicts.iter().filter(|(code, _)| verdict(code).is_none()).collect();
        ensure!(told.is_empty(), "without metric: {told:?}");
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let strict = status.verdict("refused_strict") as f64;
        ensure!(strict >= 1.0 && verdict("refused_strict") == Some(&strict), "{samples:#?}");
        let today = now()?;
        let expiry = samples.get("nodemesh_certificate_first_expiry_time_seconds");
        let in_a_day = today..today + 86_400.0;
        ensure!(expiry.is_some_and(|at| in_a_day.contains(at)), "{expiry:?} from {today}");
        let names = samples.keys().any(|name| name.contains("client") || name.contains("shop"));
        ensure!(!names, "pods are named: {samples:#?}");

        let answer = curl(&stranger, &pair.nodes[1], &["--head"])?;
        ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("version=0.0.4"), "{answer}");
        let answer = curl(&stranger, &pair.nodes[1], &["--data", "x", "--include"])?;
        ensure!(answer.starts_with("HTTP/1.1 405") && answer.contains("GET, HEAD"), "{answer}");
        Ok(())
    });
}

/// Seconds since 1970.
fn now() -> Result<f64> {
    Ok(std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64())
}

#[test]
fn who_holds_connections_open_keeps_nobody_else_out() {
    scenario("metrics-flood", |net| {
        let (pair, attacker) = Pair::strict(net, &OPTIONS)?;
        let node = &pair.nodes[1];
        let descriptors = || attack::Usage::of(&pair.agents[1]).map(|usage| usage.descriptors);
        let before = descriptors()?;
        let to = (node.address(), PORT).into();
        // Garbage without an end of line could be an unfinished head, so it waits as long as its
        // sender.
        for (kind, pushed_out) in [(Kind::Silent, 200), (Kind::Drip, 200), (Kind::Garbage, 4)] {
            let spec = AttackSpec { hold: 200, workers: 4, ..AttackSpec::new(kind, to) };
            let running = attack::start(&attacker, &spec)?;
            running.wait("to be pushed out", |tally| tally.ended >= pushed_out)?;
            for _ in 0..5 {
                scrape(&pair.beside_server(), node)?;
                scrape(&pair.client, node)?;
            }
            let held = descriptors()?.saturating_sub(before);
            ensure!(held < 2 * usize::try_from(SEATS)?, "{kind:?}: {held} descriptors");
            running.stop()?;
        }
        // Carried connections do not notice a client that dials as fast as it can.
        let _service = pair.serve(Talk::Lines)?;
        let spec = MeasureSpec { to: pair.server.at(tests::PORT), count: 200, keep_alive: false };
        let quiet = attack::measure(&pair.client, &spec)?;
        let running = attack::start(&attacker, &AttackSpec::new(Kind::Dial, to))?;
        running.wait("to dial", |tally| tally.connected > 500)?;
        let flooded = attack::measure(&pair.client, &spec)?;
        println!("requests of others: {quiet:?}, while the port is dialled: {flooded:?}");
        ensure!((quiet.failed, flooded.failed) == (0, 0));
        running.stop()?;
        // The agent itself closes connections that clients keep open.
        let spec = AttackSpec { hold: SEATS, ..AttackSpec::new(Kind::Silent, to) };
        let running = attack::start(&attacker, &spec)?;
        running.wait("to be let go of", |tally| tally.connected >= 2 * SEATS)?;
        running.stop()?;
        eventually(PATIENCE + SOON, || {
            let after = descriptors()?;
            ensure!(after <= before, "{before} descriptors became {after}");
            Ok(())
        })?;
        ensure!(pair.agents[1].is_running()?);
        Ok(())
    });
}

#[test]
fn whoever_has_many_addresses_has_no_more_than_one_share() {
    scenario("metrics-network", |net| {
        const ADDRESSES: u16 = 10;
        let (pair, attacker) = Pair::strict(net, &OPTIONS)?;
        let node = &pair.nodes[1];
        let own: Vec<_> =
            (0..ADDRESSES).map(|host| attacker.v6.to_bits() + 0x1000 + u128::from(host)).collect();
        let own: Vec<_> = own.into_iter().map(std::net::Ipv6Addr::from_bits).collect();
        for address in &own {
            let words = format!("ip address add {address}/64 dev eth0 nodad");
            attacker.run(words.split(' '))?.success()?;
        }
        let to = (node.address6(), PORT).into();
        let attack = |address: &std::net::Ipv6Addr| {
            let spec = AttackSpec { hold: SEATS / 4, ..AttackSpec::new(Kind::Silent, to) };
            attack::start(&attacker, &spec.from((*address).into()))
        };
        let running: Vec<_> = own.iter().map(attack).collect::<Result<_>>()?;
        for attack in &running {
            attack.wait("to take all it can", |tally| tally.connected >= SEATS / 4)?;
        }
        let problem = pair.agents[1].wait_problem("a crowd", |of| of.code == "metrics_crowded")?;
        let network = format!(
            "{:x}:{:x}:{:x}::/64",
            own[0].segments()[0],
            own[0].segments()[1],
            own[0].segments()[2]
        );
        ensure!(problem.message.contains(&network), "{problem:?}");
        for _ in 0..10 {
            scrape(&pair.beside_server(), node)?;
            scrape(&pair.client, node)?;
        }
        running.into_iter().try_for_each(|attack| attack.stop().map(drop))?;
        eventually(PATIENCE + SOON, || {
            let problems = pair.agents[1].status()?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(())
        })
    });
}

#[test]
fn a_port_that_is_taken_is_a_problem_until_it_is_free() {
    scenario("metrics-port", |net| {
        let node = net.node("node1")?;
        let other = probe::serve(&node, &ServeSpec::new(PORT, Talk::Sink))?;
        let agent = Agent::start(&node, Dirs::of(net), &OPTIONS)?;
        let problem = agent.wait_problem("metrics", |of| of.code == "metrics_not_served")?;
        for word in ["[::]:15020", "in use", "--metrics"] {
            ensure!(problem.message.contains(word), "{problem:?}");
        }
        drop(other);
        eventually(SOON, || scrape(&node, &node))?;
        ensure!(agent.status()?.problems.is_empty(), "{:?}", agent.status()?.problems);
        Ok(())
    });
}

#[test]
fn a_successor_answers_while_its_predecessor_drains() {
    scenario("metrics-next", |net| {
        let (pair, _) = Pair::strict(net, &OPTIONS)?;
        let _service = pair.serve(Talk::Lines)?;
        let started = |samples: &BTreeMap<String, f64>| samples["nodemesh_start_time_seconds"];
        let before = scrape(&pair.client, &pair.nodes[1])?;
        let lines = DialSpec::new(pair.server.at(tests::PORT), Talk::Lines);
        let kept = probe::load(
            &pair.client,
            &DialSpec { workers: 1, keep_alive: true, pause_ms: 5, timeout_s: 5, ..lines },
        )?;
        kept.wait_more(10)?;
        let mut old = pair.agents[1].take_over()?;
        eventually(SOON, || {
            let after = scrape(&pair.client, &pair.nodes[1])?;
            ensure!(started(&after) > started(&before), "still the predecessor's");
            Ok(())
        })?;
        ensure!(old.is_running()?, "it has ended: nothing is shown");
        kept.wait_more(10)?;
        ensure!(pair.agents[1].status()?.problems.is_empty());
        kept.finish()?;
        Ok(())
    });
}
