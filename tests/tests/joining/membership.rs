//! Pods join and leave the mesh while their connections go on: no request is lost, and no
//! application ever sees TLS.

use std::fs;

use anyhow::{Result, ensure};
use tests::{
    PORT, Pair, PodSpec, SHOP,
    agent::SOON,
    eventually,
    flow::Flow,
    kernel, netns, objects,
    probe::{self, Client, DialSpec, End, ServeSpec, Server, Talk},
    scenario,
};

/// Requests that are answered between two changes.
const STEADY: u64 = 150;

fn load(pair: &Pair<'_>, v6: bool, keep_alive: bool) -> Result<Client> {
    let to = if v6 { pair.server.at6(PORT) } else { pair.server.at(PORT) };
    probe::load(
        &pair.client,
        &DialSpec { keep_alive, workers: 2, ..DialSpec::new(to, Talk::Lines) },
    )
}

fn nothing_lost(client: Client, service: &Server) -> Result<()> {
    let result = client.finish()?;
    ensure!(result.failed == 0, "{result:#?}");
    ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
    Ok(())
}

#[test]
fn a_label_set_and_removed_under_load_loses_no_request() {
    scenario("membership", |net| {
        let pair = Pair::new(net)?;
        let service = pair.serve(Talk::Lines)?;
        let clients = [load(&pair, false, false)?, load(&pair, true, false)?];
        let kept = load(&pair, false, true)?;
        let steady =
            || clients.iter().chain([&kept]).try_for_each(|client| client.wait_more(STEADY));
        steady()?;
        for _ in 0..2 {
            let carried =
                || -> Result<u64> { Ok(pair.agents[1].status()?.counters.accepted_inbound) };
            let before = carried()?;
            pair.join()?;
            steady()?;
            ensure!(carried()? > before, "nothing went through the mesh");
            pair.leave()?;
            steady()?;
        }
        for client in clients {
            let result = client.finish()?;
            ensure!(result.failed == 0, "{result:#?}");
        }
        // A connection made before the label goes on as it was, through all of it.
        let result = kept.finish()?;
        ensure!((result.failed, result.connections) == (0, 2), "{result:#?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        Ok(())
    });
}

#[test]
fn a_connection_in_the_mesh_outlives_the_label() {
    scenario("membership-kept", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        let kept = load(&pair, false, true)?;
        kept.wait_more(STEADY)?;
        net.objects().label_namespace(SHOP, None)?;
        pair.agents[0].wait_peers(0)?;
        kept.wait_more(STEADY)?;
        let result = kept.finish()?;
        ensure!((result.failed, result.connections) == (0, 2), "{result:#?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        Ok(())
    });
}

#[test]
fn either_side_alone_in_the_mesh_goes_on_in_plaintext() {
    scenario("membership-one", |net| {
        let pair = Pair::new(net)?;
        let service = pair.serve(Talk::Lines)?;
        let client = load(&pair, false, false)?;
        for (agent, pod) in pair.agents.iter().zip([&pair.client, &pair.server]) {
            net.objects().label_pod(pod, Some("enabled"))?;
            agent.wait_enrolled(&[pod])?;
            client.wait_more(STEADY)?;
            net.objects().label_pod(pod, None)?;
            agent.wait_state(pod, "not_enrolled")?;
            client.wait_more(STEADY)?;
        }
        nothing_lost(client, &service)?;
        for agent in &pair.agents {
            let flows = agent.flows()?;
            ensure!(!flows.iter().any(Flow::is_mtls), "{flows:?}");
        }
        Ok(())
    });
}

#[test]
fn a_port_excluded_and_included_under_load_loses_no_request() {
    scenario("membership-exclude", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        let client = load(&pair, false, false)?;
        let key = objects::EXCLUDE_PORTS;
        for pod in [&pair.server, &pair.client] {
            for (ports, code) in [(Some("1-9,8080"), "outbound_excluded"), (None, "redirect_peer")]
            {
                let dialled = || -> Result<u64> { Ok(pair.agents[0].status()?.verdict(code)) };
                client.wait_more(STEADY)?;
                let before = dialled()?;
                net.objects().annotate_pod(pod, key, ports)?;
                eventually(SOON, || {
                    ensure!(dialled()? > before, "no connection is dialled as {code}");
                    Ok(())
                })?;
            }
        }
        client.wait_more(STEADY)?;
        nothing_lost(client, &service)
    });
}

#[test]
fn a_mode_changed_under_load_loses_no_request() {
    scenario("membership-mode", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        let client = load(&pair, false, false)?;
        for mode in [Some("strict"), None, Some("strict"), Some("permissive")] {
            net.objects().annotate_namespace(SHOP, objects::MODE, mode)?;
            let wanted = mode.unwrap_or("permissive");
            eventually(SOON, || {
                let found = pair.agents[1].status()?.pod(&pair.server)?.mode;
                ensure!(found.as_deref() == Some(wanted), "{found:?}, not {wanted}");
                Ok(())
            })?;
            client.wait_more(STEADY)?;
        }
        nothing_lost(client, &service)
    });
}

#[test]
fn a_connection_from_before_strict_is_listed_and_can_be_reset() {
    scenario("membership-before", |net| {
        let pair = Pair::new(net)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let service = pair.serve(Talk::Lines)?;
        let keep = |pod: &tests::Pod| {
            let spec = DialSpec::new(pair.server.at(PORT), Talk::Lines);
            probe::load(pod, &DialSpec { keep_alive: true, workers: 1, ..spec })
        };
        let older = [keep(&pair.client)?, keep(&stranger)?];
        older.iter().try_for_each(|client| client.wait_more(1))?;
        pair.join()?;
        let carried = keep(&pair.client)?;
        carried.wait_more(1)?;
        let counts = |client: usize, server: usize| {
            eventually(SOON, || {
                let plaintext = |agent: &tests::agent::Agent, pod| -> Result<_> {
                    Ok(agent.status()?.pod(pod)?.plaintext)
                };
                let of_client = plaintext(&pair.agents[0], &pair.client)?;
                let of_server = plaintext(&pair.agents[1], &pair.server)?;
                let found = (of_client.count, of_server.count);
                ensure!(found == (client, server), "{of_client:?} {of_server:?}");
                Ok(of_server.oldest)
            })
        };
        // Permissive: only the connection with a pod of the mesh counts, on both sides. A
        // stranger's may always be plaintext.
        counts(1, 1)?;
        net.objects().annotate_pod(&pair.server, objects::MODE, Some("strict"))?;
        let oldest = counts(1, 2)?;
        let clients: Vec<_> = oldest.iter().map(|it| it.client.ip()).collect();
        ensure!(clients.contains(&stranger.v4.into()), "{oldest:?}");
        let of_server = |problem: &tests::agent::Problem| {
            problem.code == "plaintext_before_strict" && problem.message.contains("shop/server")
        };
        let problem = pair.agents[1].wait_problem("plaintext from before", of_server)?;
        ensure!(problem.message.contains(&stranger.v4.to_string()), "{problem:?}");

        let reset = |words: &[&str]| pair.agents[1].cli(&[&["reset"], words].concat());
        let listed = reset(&["shop/server", "--dry-run"])?.success()?;
        for words in [stranger.v4.to_string(), "2 connections of shop/server would".to_owned()] {
            ensure!(listed.contains(&words), "no {words} in:\n{listed}");
        }
        older.iter().chain([&carried]).try_for_each(|client| client.wait_more(STEADY))?;
        let unknown = reset(&["shop/none"])?;
        ensure!(!unknown.status.success() && unknown.stderr.contains("shop/none"), "{unknown}");
        let done = reset(&["shop/server", "-o", "json"])?.success()?;
        ensure!(done.contains("\"found\":2,\"reset\":2"), "{done}");
        for client in older {
            let result = client.finish()?;
            ensure!(result.failed > 0, "it goes on: {result:#?}");
        }
        eventually(SOON, || {
            let status = pair.agents[1].status()?;
            ensure!(!status.problems.iter().any(of_server), "{:?}", status.problems);
            ensure!(status.pod(&pair.server)?.plaintext.count == 0, "{status:?}");
            Ok(())
        })?;
        let again = reset(&["shop/server"])?.success()?;
        ensure!(again.contains("no connection"), "{again}");
        // What the mesh carries is none of these.
        carried.wait_more(STEADY)?;
        let result = carried.finish()?;
        ensure!((result.failed, result.connections) == (0, 1), "{result:#?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        Ok(())
    });
}

#[test]
fn a_pods_label_wins_over_its_namespaces() {
    scenario("membership-pod", |net| {
        let pair = Pair::new(net)?;
        net.objects().label_pod(&pair.client, Some("disabled"))?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        let status = pair.agents[0].wait_state(&pair.client, "not_enrolled")?;
        ensure!(!status.reason.is_empty() && !status.code.is_empty(), "it does not say why");
        net.objects().label_pod(&pair.client, Some("enabled"))?;
        net.objects().label_namespace(SHOP, None)?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_state(&pair.server, "not_enrolled")?;
        Ok(())
    });
}

#[test]
fn a_deleted_pod_leaves_the_mesh() {
    scenario("membership-deleted", |net| {
        let pair = Pair::meshed(net)?;
        net.objects().remove_pod(&pair.server)?;
        pair.agents[0].wait_peers(0)?;
        eventually(SOON, || {
            let status = pair.agents[1].status()?;
            ensure!(status.pod(&pair.server).is_err(), "{status:?}");
            Ok(())
        })
    });
}

#[test]
fn a_vanished_namespace_and_a_reused_address_leave_nothing_behind() {
    scenario("membership-reuse", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        // The pod dies: its processes end, its namespace goes, and only then is its object removed.
        service.stop()?;
        net.destroy(&pair.server)?;
        pair.agents[1].wait_state(&pair.server, "not_enrolled")?;
        pair.agents[0].wait_peers(0)?;
        net.wait_freed(&pair.nodes[1], &pair.server)?;
        net.objects().remove_pod(&pair.server)?;
        // Another pod gets the address, and is not in the mesh.
        let spec = PodSpec::new("other", "successor");
        let successor = net.pod_at(&pair.nodes[1], spec, pair.server.number())?;
        ensure!(successor.v4 == pair.server.v4);
        let _service = probe::serve(&successor, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        for to in [successor.at(PORT), successor.at6(PORT)] {
            let seen = probe::dial(&pair.client, &DialSpec::say(to, "hello"))?;
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        }
        // And then it joins, under its own identity.
        net.objects().label_pod(&successor, Some("enabled"))?;
        pair.agents[1].wait_enrolled(&[&successor])?;
        pair.agents[0].wait_peers(1)?;
        let seen = probe::dial(&pair.client, &DialSpec::say(successor.at(PORT), "hello"))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        let id = tests::flow::spiffe_id("other", "successor");
        pair.agents[0].wait_flow("to the successor", |flow| {
            flow.is_mtls() && flow.server.identity.as_ref() == Some(&id)
        })?;
        Ok(())
    });
}

/// How many pods of a node the kernel's tables have room for.
const LOCAL_PODS: usize = 1024;

#[test]
fn dials_that_could_not_be_captured_are_captured_as_soon_as_they_can() {
    scenario("membership-full", |net| {
        let pair = Pair::new(net)?;
        let _service = pair.serve(Talk::Lines)?;
        // No room for one more pod whose dials are redirected.
        let size = |of: usize| vec![0xff; of];
        let strangers = (0..LOCAL_PODS as u64).map(|number| !number);
        let keys: Vec<_> = strangers.map(|cookie| cookie.to_ne_bytes().to_vec()).collect();
        let fill: Vec<_> = keys.iter().map(|key| (key.clone(), Some(size(32)))).collect();
        kernel::write(&pair.nodes[0], "ENROLLED", &fill)?;
        pair.join()?;
        let captured = || -> Result<u64> { Ok(pair.agents[0].status()?.verdict("redirect_peer")) };
        let dial = || probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "req 1\n"));
        ensure!((dial()?.end, captured()?) == (End::Fin, 0), "there was room");
        let free: Vec<_> = keys.into_iter().map(|key| (key, None)).collect();
        kernel::write(&pair.nodes[0], "ENROLLED", &free)?;
        eventually(SOON, || {
            let seen = dial()?;
            ensure!(seen.end == End::Fin && captured()? > 0, "not captured: {seen:?}");
            Ok(())
        })
    });
}

/// How many ports of services and annotations the kernel's table has room for.
const PORTS: usize = 131_072;

/// How many addresses of pods it has room for.
const ADDRESSES: usize = 262_144;

#[test]
fn a_full_table_of_addresses_refuses_what_it_does_not_know() {
    scenario("membership-addresses", |net| {
        let pair = Pair::meshed(net)?;
        let known = net.pod(&pair.nodes[1], PodSpec::new("other", "known"))?;
        let served = ServeSpec::both_families(PORT, Talk::Exchange);
        let _known = probe::serve(&known, &served)?;
        let dial = |to| probe::dial(&pair.client, &DialSpec::say(to, "hello"));
        let is_answered = |to| -> Result<()> {
            let seen = dial(to)?;
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
            Ok(())
        };
        is_answered(known.at(PORT))?;
        let address = |number: usize| {
            let number = u32::try_from(number).unwrap_or_default();
            [&[0xfd; 12][..], &number.to_be_bytes()].concat()
        };
        // Both addresses of all three pods are in the table, and no room is needed for them later.
        let used = eventually(SOON, || {
            let used = kernel::entries(&pair.nodes[0], "ADDRESSES")?.len();
            ensure!(used >= 6, "{used} addresses are known");
            Ok(used)
        })?;
        let free = ADDRESSES - used;
        let fill = |value: Option<u32>| -> Vec<_> {
            let value = value.map(|bits| bits.to_ne_bytes().to_vec());
            (0..free).map(|number| (address(number), value.clone())).collect()
        };
        // Room for the known pods, but not for a pod that joins now.
        kernel::write(&pair.nodes[0], "ADDRESSES", &fill(Some(1)))?;
        let newcomer = net.pod(&pair.nodes[1], PodSpec::new("other", "newcomer"))?;
        let _service = probe::serve(&newcomer, &served)?;
        net.objects().label_pod(&newcomer, Some("enabled"))?;
        pair.agents[1].wait_enrolled(&[&newcomer])?;
        pair.agents[0].wait_peers(2)?;
        let told = |problem: &tests::agent::Problem| problem.code == "table_full";
        pair.agents[0].wait_problem("the full table", told)?;
        let seen = dial(newcomer.at(PORT))?;
        ensure!(seen.end != End::Fin && seen.received == 0, "{seen:?}");
        pair.agents[0].wait_flow("the refusal", |flow| flow.outcome == "refused_table_full")?;
        is_answered(known.at(PORT))?;
        kernel::write(&pair.nodes[0], "ADDRESSES", &fill(None))?;
        eventually(SOON, || {
            let status = pair.agents[0].status()?;
            ensure!(!status.problems.iter().any(told), "{:?}", status.problems);
            is_answered(newcomer.at(PORT))
        })?;
        let newcomers = |flow: &Flow| flow.is_mtls() && flow.between(&pair.client, &newcomer, PORT);
        pair.agents[0].wait_flow("over mTLS", newcomers).map(drop)
    });
}

#[test]
fn a_full_table_of_ports_is_told_until_there_is_room() {
    scenario("membership-ports", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Lines)?;
        let stranger = |number: usize| {
            let (address, number) = ([0xfd; 12], u32::try_from(number).unwrap_or_default());
            [&address[..], &number.to_be_bytes(), &[0; 4]].concat()
        };
        let keys: Vec<_> = (0..PORTS).map(stranger).collect();
        let bits = 2_u32.to_ne_bytes().to_vec();
        let fill: Vec<_> = keys.iter().map(|key| (key.clone(), Some(bits.clone()))).collect();
        kernel::write(&pair.nodes[0], "PORTS", &fill)?;
        let ports = PORT.to_string();
        net.objects().annotate_pod(&pair.server, objects::EXCLUDE_PORTS, Some(&ports))?;
        let told = |problem: &tests::agent::Problem| problem.code == "table_full";
        pair.agents[0].wait_problem("the full table", told)?;
        let free: Vec<_> = keys.into_iter().take(4).map(|key| (key, None)).collect();
        kernel::write(&pair.nodes[0], "PORTS", &free)?;
        eventually(SOON, || {
            let status = pair.agents[0].status()?;
            ensure!(!status.problems.iter().any(told), "{:?}", status.problems);
            let before = status.verdict("outbound_excluded");
            let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "req 1\n"))?;
            let excluded = pair.agents[0].status()?.verdict("outbound_excluded");
            ensure!(seen.end == End::Fin && excluded > before, "not excluded: {seen:?}");
            Ok(())
        })
    });
}

#[test]
fn a_pod_that_would_have_no_port_left_to_dial_from_is_not_enrolled_and_says_why() {
    scenario("membership-range", |net| {
        let pair = Pair::new(net)?;
        let range = |range: &'static str| {
            let write = move || fs::write("/proc/sys/net/ipv4/ip_local_port_range", range);
            netns::inside(&pair.client.netns, write)
        };
        range("61000 65535")??;
        let _service = pair.serve(Talk::Exchange)?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        let found = eventually(SOON, || {
            let found = pair.agents[0].status()?.pod(&pair.client)?;
            ensure!(found.code == "no_ports_left", "{found:?}");
            Ok(found)
        })?;
        ensure!(found.reason.contains("61000 65535"), "{found:?}");
        let dial = DialSpec::say(pair.server.at(PORT), "hello");
        let seen = probe::dial(&pair.client, &dial)?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "it cannot dial: {seen:?}");
        range("50000 65535")??;
        pair.agents[0].wait_enrolled(&[&pair.client])
    });
}
