//! Private keys: how long they are in the agent's memory.

use anyhow::{Context as _, Result, ensure};
use tests::{
    PORT, Pair, Pod, PodSpec, SHOP,
    agent::{Agent, SOON},
    eventually,
    memory::{self, PublicKey, Secret},
    probe::{self, DialSpec, Talk},
    scenario,
};

/// The private key with which an agent speaks for the pod whose public key this is; it must be there.
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

        // Everybody leaves, and the connection that was made with both keys goes on without them.
        net.objects().label_namespace(SHOP, None)?;
        wait_erased(&pair.agents[0], &client)?;
        wait_erased(&pair.agents[1], &server)?;
        open.wait_more(10)?;
        let open = open.finish()?;
        ensure!((open.failed, open.connections) == (0, 1), "{open:?}");
        Ok(())
    });
}
