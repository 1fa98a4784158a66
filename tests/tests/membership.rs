//! Pods join and leave the mesh while their connections go on: no request is lost, and no application ever sees TLS.

use anyhow::{Result, ensure};
use tests::{
    PORT, Pair, SHOP,
    flow::Flow,
    probe::{self, Client, DialSpec, Talk},
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
            pair.join()?;
            steady()?;
            pair.agents[1].wait_flow("over mTLS", Flow::is_mtls)?;
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
        let result = client.finish()?;
        ensure!(result.failed == 0, "{result:#?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        for agent in &pair.agents {
            let flows = agent.flows()?;
            ensure!(!flows.iter().any(Flow::is_mtls), "{flows:?}");
        }
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
        tests::eventually(tests::agent::SOON, || {
            let status = pair.agents[1].status()?;
            ensure!(status.pod(&pair.server).is_err(), "{status:?}");
            Ok(())
        })
    });
}
