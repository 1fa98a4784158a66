//! Certificates while they change, and agents that do not trust each other.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, SHOP,
    agent::{Agent, Dirs, SOON},
    eventually,
    objects::pod_file,
    probe::{self, DialSpec, End, Talk},
    scenario,
};

fn serial(agent: &Agent) -> Result<String> {
    let identities = agent.status()?.identities;
    identities.into_iter().find_map(|identity| identity.serial).context("no certificate in use")
}

#[test]
fn certificates_are_renewed_and_no_connection_is_dropped() {
    scenario("identity-renewal", |net| {
        // Certificates live four seconds and are renewed after two.
        let dirs = || Dirs::of(net);
        let pair = Pair::with(net, [dirs(), dirs()], &["--leaf-ttl-seconds", "4"])?;
        pair.join()?;
        let service = pair.serve(Talk::Lines)?;
        let to = pair.server.at(PORT);
        let kept = DialSpec { keep_alive: true, ..DialSpec::new(to, Talk::Lines) };
        let kept = probe::load(&pair.client, &kept)?;
        let fresh = probe::load(&pair.client, &DialSpec::new(to, Talk::Lines))?;
        for _ in 0..3 {
            let before = [serial(&pair.agents[0])?, serial(&pair.agents[1])?];
            eventually(SOON, || {
                for (agent, before) in pair.agents.iter().zip(&before) {
                    ensure!(serial(agent)? != *before, "the same certificate still: {before}");
                }
                Ok(())
            })?;
            kept.wait_more(20)?;
            fresh.wait_more(20)?;
        }
        let (kept, fresh) = (kept.finish()?, fresh.finish()?);
        ensure!((kept.failed, kept.connections, fresh.failed) == (0, 1, 0), "{kept:?} {fresh:?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        Ok(())
    });
}

/// Debian's library, which tells a program another time than the kernel's.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";

/// A file whose content is how far a clock is off, and the wrapper that runs a program by that
/// clock. Timers are not changed.
fn clock_of(net: &Net) -> Result<(PathBuf, Vec<String>)> {
    ensure!(Path::new(FAKETIME).exists(), "no libfaketime: cargo xtask setup test");
    let clock = net.tag().dir().join("clock");
    let settings = [
        format!("LD_PRELOAD={FAKETIME}"),
        format!("FAKETIME_TIMESTAMP_FILE={}", clock.display()),
        "FAKETIME_NO_CACHE=1".to_owned(),
        "FAKETIME_DONT_FAKE_MONOTONIC=1".to_owned(),
        "NO_FAKE_STAT=1".to_owned(),
    ];
    Ok((clock, ["env".to_owned()].into_iter().chain(settings).collect()))
}

#[test]
fn a_certificate_from_a_clock_that_was_wrong_is_replaced_at_once() {
    scenario("identity-clock", |net| {
        let (clock, wrapper) = clock_of(net)?;
        let wrapper: Vec<_> = wrapper.iter().map(String::as_str).collect();
        // Less than certificates are dated back, so peers still accept them.
        fs::write(&clock, "+200s")?;
        let pair = Pair::by(&wrapper, net, [Dirs::of(net), Dirs::of(net)], &[])?;
        pair.join()?;
        let service = pair.serve(Talk::Exchange)?;
        let dial = || probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"));
        let works = || -> Result<()> {
            let seen = dial()?;
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
            Ok(())
        };
        works()?;
        let first = serial(&pair.agents[0])?;

        // Set back by hours: a certificate that is now from the future is signed anew.
        fs::write(&clock, "-2h")?;
        eventually(SOON, || {
            ensure!(serial(&pair.agents[0])? != first, "it is kept");
            let problems = pair.agents[0].status()?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(())
        })?;
        fs::write(&clock, "+0")?;
        works()?;

        // An agent starts with a clock an hour ahead: peers say why they refuse it. As soon as the
        // clock is right it works again, without a restart.
        pair.agents[0].stop()?;
        fs::write(&clock, "+1h")?;
        pair.agents[0].start_again()?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[0].wait_peers(1)?;
        let from_the_future = serial(&pair.agents[0])?;
        let seen = dial()?;
        ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
        pair.agents[1]
            .wait_flow("from the future", |flow| flow.outcome == "certificate_not_yet_valid")?;
        let told = pair.agents[1].wait_problem("the clock", |it| it.code == "clocks_differ")?;
        ensure!(told.message.contains("/ns/shop/sa/client in 3"), "{told:?}"); // 3,300 s
        fs::write(&clock, "+0")?;
        eventually(SOON, || {
            ensure!(serial(&pair.agents[0])? != from_the_future, "it is kept");
            works()
        })?;
        for agent in &pair.agents {
            let problems = agent.status()?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
        }
        drop(service);
        Ok(())
    });
}

/// A second CA, made as the first one was.
fn other_ca(net: &Net) -> Dirs {
    let dirs = Dirs::of(net);
    Dirs { ca: dirs.ca.with_file_name("other-ca"), ..dirs }
}

#[test]
fn two_trust_anchors_at_once() {
    scenario("identity-anchors", |net| {
        let dirs = [Dirs::of(net), other_ca(net)];
        dirs.iter().try_for_each(tests::agent::ca_init)?;
        let certs: Vec<String> = dirs
            .iter()
            .map(|dirs| Ok(fs::read_to_string(dirs.ca.join("ca.crt"))?))
            .collect::<Result<_>>()?;
        for dirs in &dirs {
            fs::write(dirs.ca.join("anchors.pem"), certs.concat())?;
        }
        let pair = Pair::with(net, dirs, &[])?;
        pair.join()?;
        let _service = pair.serve(Talk::Exchange)?;
        let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        pair.agents[0].wait_flow("over mTLS", tests::flow::Flow::is_mtls)?;
        Ok(())
    });
}

/// Dials, and checks that both agents have recorded the same reason.
fn refused_for(pair: &Pair<'_>, code: &str) -> Result<()> {
    let service = pair.serve(Talk::Exchange)?;
    let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
    ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
    for (agent, direction) in pair.agents.iter().zip(["outbound", "inbound"]) {
        let what = format!("{direction}, {code}");
        let flow =
            agent.wait_flow(&what, |flow| flow.direction == direction && flow.outcome == code)?;
        ensure!(!flow.reason.is_empty() && flow.bytes.sent == 0, "{flow:?}");
    }
    ensure!(service.conns().is_empty(), "{:?}", service.conns());
    Ok(())
}

#[test]
fn agents_with_foreign_anchors_both_know_it() {
    scenario("identity-foreign", |net| {
        let pair = Pair::with(net, [Dirs::of(net), other_ca(net)], &[])?;
        pair.join()?;
        refused_for(&pair, "unknown_anchor")
    });
}

/// The CA of a node is replaced by another one, and then that of the other node, as when a Secret
/// is made anew.
#[test]
fn a_ca_that_takes_anothers_place_fails_no_connection() {
    scenario("identity-replaced", |net| {
        let one = Dirs::of(net);
        let two = Dirs { ca: one.ca.with_file_name("ca-of-node2"), ..one.clone() };
        tests::agent::ca_init(&one)?;
        copy_ca(&one.ca, &two.ca)?;
        let pair = Pair::with(net, [one.clone(), two.clone()], &[])?;
        pair.join()?;
        let service = pair.serve(Talk::Lines)?;
        let load = DialSpec::new(pair.server.at(PORT), Talk::Lines);
        let load = probe::load(&pair.client, &load)?;
        load.wait_more(5)?;
        let new = other_ca(net);
        tests::agent::ca_init(&new)?;
        let anchors = |agent: &Agent| -> Result<Vec<String>> { Ok(agent.status()?.anchors) };
        let before = [anchors(&pair.agents[0])?, serials(&pair)?];

        copy_ca(&new.ca, &one.ca)?;
        let told = pair.agents[0].wait_problem("the change", |it| it.code == "ca_changed")?;
        ensure!(
            told.message.contains("node2") && told.message.contains("put the old one back"),
            "{told:?}"
        );
        load.wait_more(20)?;
        ensure!(serials(&pair)? == before[1], "the new CA signs before all trust it");
        copy_ca(&new.ca, &two.ca)?;
        eventually(SOON, || {
            for agent in &pair.agents {
                let now = anchors(agent)?;
                ensure!(now.len() == 1 && now != before[0], "{now:?}");
                ensure!(agent.status()?.problems.is_empty(), "{:?}", agent.status()?.problems);
            }
            let now = serials(&pair)?;
            ensure!(now.iter().zip(&before[1]).all(|(now, before)| now != before), "{now:?}");
            Ok(())
        })?;
        load.wait_more(20)?;
        let load = load.finish()?;
        ensure!(load.failed == 0, "{load:?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());

        // An agent that starts with yet another CA is reported by name, on both sides.
        pair.agents[1].stop()?;
        let third = Dirs { ca: one.ca.with_file_name("third-ca"), ..one.clone() };
        tests::agent::ca_init(&third)?;
        copy_ca(&third.ca, &two.ca)?;
        pair.agents[1].start_again()?;
        for (agent, other) in pair.agents.iter().zip(["node2", "node1"]) {
            let told = agent.wait_problem("the other CA", |it| it.code == "ca_differs")?;
            ensure!(told.message.contains(other), "{told:?}");
        }
        Ok(())
    });
}

fn serials(pair: &Pair<'_>) -> Result<Vec<String>> {
    pair.agents.iter().map(serial).collect()
}

/// As a kubelet writes a Secret that is mounted: each file is replaced.
fn copy_ca(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for file in ["ca.key", "ca.crt", "anchors.pem"] {
        let (new, there) = (to.join(format!("{file}.new")), to.join(file));
        fs::copy(from.join(file), &new)?;
        fs::rename(new, there)?;
    }
    Ok(())
}

#[test]
fn a_pod_that_is_announced_with_another_identity_than_its_object_has_is_not_dialled() {
    scenario("identity-account", |net| {
        // The client's node knows the server's pod differently than the server's node does.
        let dirs = Dirs::of(net);
        let source = dirs.source.with_file_name("source-of-node1");
        fs::create_dir_all(&source)?;
        let pair =
            Pair::with(net, [Dirs { source: source.clone(), ..dirs.clone() }, dirs.clone()], &[])?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        copy_objects(&dirs.source, &source, &pair.server)?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        pair.agents[1].wait_peers(1)?;
        let problem = pair.agents[0]
            .wait_problem("the announcement", |problem| problem.code == "disputed_address")?;
        for word in ["node2", "another", "server"] {
            ensure!(problem.message.contains(word), "no {word} in {problem:?}");
        }
        let service = pair.serve(Talk::Exchange)?;
        let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
        ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
        pair.agents[0].wait_flow("the refusal", |flow| flow.outcome == "disputed_address")?;
        ensure!(service.conns().is_empty(), "{:?}", service.conns());
        fs::copy(dirs.source.join(pod_file(&pair.server)), source.join(pod_file(&pair.server)))?;
        pair.agents[0].wait_peers(1)?;
        let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        pair.agents[0].wait_flow("over mTLS", tests::flow::Flow::is_mtls).map(drop)
    });
}

/// Copies all objects; the server's pod gets another service account.
fn copy_objects(from: &Path, to: &Path, server: &Pod) -> Result<()> {
    for file in fs::read_dir(from)? {
        let file = file?;
        let mut text = fs::read_to_string(file.path())?;
        if file.file_name().to_string_lossy() == pod_file(server) {
            text = text.replace("serviceAccountName: server", "serviceAccountName: another");
        }
        fs::write(to.join(file.file_name()), text)?;
    }
    Ok(())
}

#[test]
fn an_account_that_has_left_the_node_has_no_certificate_there() {
    scenario("identity-gone", |net| {
        let pair = Pair::meshed(net)?;
        ensure!(!pair.agents[1].status()?.identities.is_empty());
        net.objects().remove_pod(&pair.server)?;
        eventually(Duration::from_secs(10), || {
            let identities = pair.agents[1].status()?.identities;
            ensure!(identities.is_empty(), "{identities:?}");
            Ok(())
        })
    });
}
