//! Keys over their life: how long private ones are in the agent's memory, and one CA after another.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::{Agent, Dirs, SOON, program},
    certs::{self, Credential, Validity},
    eventually,
    flow::spiffe_id,
    memory::{self, PublicKey, Secret},
    probe::{self, DialSpec, Talk},
    scenario,
};

/// The private key with which an agent speaks for the pod that has this public key; it must be
/// there.
fn private(agent: &Agent, public: &PublicKey) -> Result<Secret> {
    let found = memory::find_private(agent.status()?.pid, public)?;
    found.with_context(|| format!("the search does not find the private key of {public:?}"))
}

/// Waits until a key is nowhere in an agent's memory.
fn wait_erased(agent: &Agent, secret: &Secret) -> Result<()> {
    eventually(SOON, || {
        let found = memory::occurrences(agent.status()?.pid, secret)?;
        ensure!(found.is_empty(), "still in memory: {found:#?}");
        Ok(())
    })
}

fn present(agent: &Agent, secret: &Secret) -> Result<()> {
    let found = memory::occurrences(agent.status()?.pid, secret)?;
    ensure!(!found.is_empty(), "the key of an account that has a pod is gone");
    Ok(())
}

/// The keys with which both agents speak for their pods.
fn keys(pair: &Pair<'_>) -> Result<[Secret; 2]> {
    let at = |pod: &Pod, port| pod.at(port).to_string();
    let (client, server) = (&pair.client, &pair.server);
    let shown = [
        memory::shown_at(&pair.beside_server(), &at(server, 61_900), &at(client, PORT))?,
        memory::shown_at(&pair.beside_client(), &at(client, 61_900), &at(server, PORT))?,
    ];
    Ok([private(&pair.agents[0], &shown[0])?, private(&pair.agents[1], &shown[1])?])
}

#[test]
fn a_private_key_is_erased_when_the_last_pod_of_its_account_leaves() {
    scenario("keys-erased", |net| {
        let pair = Pair::new(net)?;
        let second = PodSpec::new(SHOP, "second").service_account("server");
        let second = net.pod(&pair.nodes[1], second)?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_enrolled(&[&pair.server, &second])?;
        pair.agents[0].wait_peers(2)?;
        pair.agents[1].wait_peers(1)?;
        let _service = pair.serve(Talk::Lines)?;
        let open =
            DialSpec { keep_alive: true, ..DialSpec::new(pair.server.at(PORT), Talk::Lines) };
        let open = probe::load(&pair.client, &open)?;
        open.wait_more(10)?;
        // Handshakes on every thread of both agents: none may leave a copy on its stack.
        let fresh = DialSpec { workers: 4, ..DialSpec::new(pair.server.at(PORT), Talk::Lines) };
        let fresh = probe::load(&pair.client, &fresh)?;
        fresh.wait_more(100)?;
        let fresh = fresh.finish()?;
        ensure!(fresh.failed == 0, "{fresh:?}");
        let [client, server] = keys(&pair)?;

        net.objects().label_pod(&second, Some("disabled"))?;
        pair.agents[1].wait_state(&second, "not_enrolled")?;
        present(&pair.agents[1], &server)?;

        // Both pods leave, and the connection that was made with both keys goes on without them.
        net.objects().label_namespace(SHOP, None)?;
        wait_erased(&pair.agents[0], &client)?;
        wait_erased(&pair.agents[1], &server)?;
        open.wait_more(10)?;
        let open = open.finish()?;
        ensure!((open.failed, open.connections) == (0, 1), "{open:?}");
        Ok(())
    });
}

/// `mesh-agent ca …`.
fn ca(pair: &Pair<'_>, words: &[&str]) -> Result<tests::exec::Output> {
    let program = program().to_string_lossy().into_owned();
    pair.nodes[0].run([&*program, "ca"].iter().chain(words))
}

fn show(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn wait_anchors(pair: &Pair<'_>, count: usize) -> Result<()> {
    eventually(SOON, || {
        for agent in &pair.agents {
            let anchors = agent.status()?.anchors;
            ensure!(anchors.len() == count, "not {count} anchors: {anchors:?}");
        }
        Ok(())
    })
}

fn serials(pair: &Pair<'_>) -> Result<Vec<Option<String>>> {
    let mut all = Vec::new();
    for agent in &pair.agents {
        all.extend(agent.status()?.identities.into_iter().map(|identity| identity.serial));
    }
    Ok(all)
}

/// Copies the CA that is in use, for use after it has been replaced.
fn keep_ca(net: &Net) -> Result<Credential> {
    let dir = net.tag().dir().join("old-ca");
    fs::create_dir_all(&dir)?;
    let (ours, kept) = (certs::anchor_in(&Dirs::of(net).ca), certs::anchor_in(&dir));
    fs::copy(&ours.cert, &kept.cert)?;
    fs::copy(&ours.key, &kept.key)?;
    Ok(kept)
}

/// What the server's agent records of a client with this certificate, which says nothing after the
/// handshake.
fn outcome_of(pair: &Pair<'_>, credential: &Credential, port: u16) -> Result<String> {
    let (from, to) = (pair.client.at(port).to_string(), pair.server.at(PORT).to_string());
    let (cert, key) = (show(&credential.cert), show(&credential.key));
    let options = format!("-cert {cert} -key {key} -connect {to} -bind {from}");
    let script = format!("openssl s_client -quiet -tls1_3 -alpn nodemesh/1 {options} < /dev/null");
    pair.beside_client().run(["sh", "-c", &script])?;
    let flow = pair.agents[1].wait_flow("of the false client", |flow| {
        flow.client.port == port && flow.outcome != "open"
    })?;
    Ok(flow.outcome)
}

#[test]
fn one_ca_follows_another_under_load_and_then_the_old_one_is_refused() {
    scenario("keys-rotation", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Lines)?;
        let to = pair.server.at(PORT);
        let kept = DialSpec { keep_alive: true, ..DialSpec::new(to, Talk::Lines) };
        let kept = probe::load(&pair.client, &kept)?;
        let fresh = DialSpec { workers: 2, ..DialSpec::new(to, Talk::Lines) };
        let fresh = probe::load(&pair.client, &fresh)?;
        fresh.wait_more(20)?;

        let dir = show(&Dirs::of(net).ca);
        let old = keep_ca(net)?;
        let old_ca = memory::in_file(&pair.nodes[0], &old.cert)?;
        let old_ca = private(&pair.agents[0], &old_ca)?;
        let old_keys = keys(&pair)?;
        let old_serials = serials(&pair)?;
        let leaf = net.tag().dir().join("false");
        let leaf = certs::leaf(&leaf, "late", &old, &spiffe_id(SHOP, "client"), Validity::Now)?;
        ensure!(outcome_of(&pair, &leaf, 61_901)? != "unknown_anchor");

        let next = net.tag().dir().join("next-ca");
        let (next, next_cert) = (show(&next), show(&next.join("ca.crt")));
        ca(&pair, &["init", "--ca-dir", &next])?.success()?;
        let early = ca(&pair, &["use", "--ca-dir", &dir, "--from", &next])?;
        ensure!(!early.status.success() && early.stderr.contains("anchors.pem"), "{early}");

        ca(&pair, &["add-anchor", "--ca-dir", &dir, &next_cert])?.success()?;
        wait_anchors(&pair, 2)?;
        fresh.wait_more(50)?;
        let early = ca(&pair, &["remove-anchor", "--ca-dir", &dir, &show(&old.cert)])?;
        ensure!(!early.status.success() && early.stderr.contains("ca use"), "{early}");

        ca(&pair, &["use", "--ca-dir", &dir, "--from", &next])?.success()?;
        eventually(SOON, || {
            let now = serials(&pair)?;
            let renewed = now.len() == 2 && now.iter().all(|serial| !old_serials.contains(serial));
            ensure!(renewed, "the same certificates still: {old_serials:?}, {now:?}");
            Ok(())
        })?;
        fresh.wait_more(50)?;
        for (agent, key) in pair.agents.iter().zip(&old_keys) {
            wait_erased(agent, key)?;
            wait_erased(agent, &old_ca)?;
        }

        ca(&pair, &["remove-anchor", "--ca-dir", &dir, &show(&old.cert)])?.success()?;
        wait_anchors(&pair, 1)?;
        fresh.wait_more(50)?;
        kept.wait_more(10)?;
        let outcome = outcome_of(&pair, &leaf, 61_902)?;
        ensure!(outcome == "unknown_anchor", "{outcome}");
        let (kept, fresh) = (kept.finish()?, fresh.finish()?);
        ensure!((kept.failed, kept.connections, fresh.failed) == (0, 1, 0), "{kept:?} {fresh:?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        Ok(())
    });
}
