//! Connections that the mesh leaves alone never reach the agent; the kernel counts that it saw
//! them.

use anyhow::{Result, ensure};
use tests::{
    Net, Node, PORT, Pod, PodSpec, SHOP,
    agent::{Agent, Counters},
    probe::{self, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// How many connections each test makes: enough that a wrong factor or a lost one shows.
const COUNT: u64 = 25;

/// Two nodes with agents; on each a pod in the mesh and one outside, all with servers.
struct Mixed {
    agents: [Agent; 2],
    meshed: [Pod; 2],
    plain: [Pod; 2],
    _services: Vec<probe::Server>,
}

impl Mixed {
    fn new(net: &Net) -> Result<Self> {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let pods = |namespace: &str| -> Result<[Pod; 2]> {
            let pod = |node: &Node, name| net.pod(node, PodSpec::new(namespace, name));
            Ok([pod(&nodes[0], "one")?, pod(&nodes[1], "two")?])
        };
        let (meshed, plain) = (pods(SHOP)?, pods("legacy")?);
        let spec = ServeSpec::both_families(PORT, Talk::Exchange);
        let services = meshed.iter().chain(&plain).map(|pod| probe::serve(pod, &spec));
        let services = services.collect::<Result<_>>()?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        let agents = [net.agent(&nodes[0])?, net.agent(&nodes[1])?];
        for (agent, pod) in agents.iter().zip(&meshed) {
            agent.wait_enrolled(&[pod])?;
        }
        agents.iter().try_for_each(|agent| agent.wait_peers(1))?;
        Ok(Self { agents, meshed, plain, _services: services })
    }

    /// Neither agent has ever carried anything.
    fn idle(&self) -> Result<()> {
        for agent in &self.agents {
            // What the agent did to follow the world is no connection's.
            let counters = Counters { judged: 0, table_writes: 0, ..agent.status()?.counters };
            ensure!(counters == Counters::default(), "{counters:?}");
        }
        Ok(())
    }

    /// Makes the connections. Checks that exactly they were counted, under these codes, and that
    /// neither agent saw any.
    fn check(&self, from: &Pod, to: &Pod, dialled: &str, arrived: Option<&str>) -> Result<()> {
        for to in [to.at(PORT), to.at6(PORT)] {
            let before = [self.agents[0].status()?, self.agents[1].status()?];
            let spec = DialSpec { connections: COUNT, workers: 2, ..DialSpec::say(to, "hello") };
            let conns = probe::dial_all(from, &spec)?;
            ensure!(
                conns.len() as u64 == COUNT && conns.iter().all(|c| c.end == End::Fin),
                "{conns:?}"
            );
            let after = [self.agents[0].status()?, self.agents[1].status()?];
            // A late segment of a connection that has just closed finds no socket, and is looked up
            // like a new connection. This was seen once in some hundred runs, on a busy machine.
            for (node, code, late) in [(0, Some(dialled), 0), (1, arrived, 1)] {
                if let Some(code) = code {
                    let counted = after[node].verdict(code) - before[node].verdict(code);
                    let expected = COUNT..=COUNT + late;
                    ensure!(
                        expected.contains(&counted),
                        "{code}: {counted}; {:?}",
                        after[node].verdicts
                    );
                }
                let (before, after) = (&before[node].counters, &after[node].counters);
                ensure!(before == after, "{} -> {to}: {before:?} {after:?}", from.name);
            }
        }
        Ok(())
    }
}

#[test]
fn from_the_mesh_to_an_unmeshed_pod() {
    scenario("untouched-out", |net| {
        let all = Mixed::new(net)?;
        all.check(&all.meshed[0], &all.plain[1], "destination_not_meshed", None)?;
        all.idle()
    });
}

#[test]
fn from_an_unmeshed_pod_to_a_permissive_one() {
    scenario("untouched-in", |net| {
        let all = Mixed::new(net)?;
        all.check(&all.plain[0], &all.meshed[1], "not_enrolled", Some("inbound_plaintext"))?;
        all.idle()
    });
}

#[test]
fn between_unmeshed_pods() {
    scenario("untouched-both", |net| {
        let all = Mixed::new(net)?;
        all.check(&all.plain[0], &all.plain[1], "not_enrolled", None)?;
        all.idle()
    });
}

#[test]
fn a_meshed_connection_is_counted_as_such() {
    // The counters that the other tests want to be zero do move when they should.
    scenario("untouched-not", |net| {
        let all = Mixed::new(net)?;
        let before = [all.agents[0].status()?, all.agents[1].status()?];
        let to = all.meshed[1].at(PORT);
        let spec = DialSpec { connections: COUNT, ..DialSpec::say(to, "hello") };
        let conns = probe::dial_all(&all.meshed[0], &spec)?;
        ensure!(conns.iter().all(|c| c.end == End::Fin), "{conns:?}");
        let after = [all.agents[0].status()?, all.agents[1].status()?];
        let out = after[0].verdict("redirect_peer") - before[0].verdict("redirect_peer");
        let inn = after[1].verdict("inbound_mesh") - before[1].verdict("inbound_mesh");
        // Sessions may be used again, so that fewer TLS connections arrive than were dialled.
        ensure!(out == COUNT && (1..=COUNT).contains(&inn), "{out} out, {inn} in");
        let pod = after[0].pod_verdict(&all.meshed[0], "redirect_peer");
        ensure!(pod == COUNT, "by pod: {pod}; {:?}", after[0].pod_verdicts);
        let [out, inn] = after.map(|status| status.counters);
        ensure!((out.accepted_outbound, out.accepted_inbound) == (COUNT, 0), "{out:?}");
        ensure!((inn.accepted_outbound, inn.accepted_inbound > 0) == (0, true), "{inn:?}");
        ensure!((out.bytes_sent, out.bytes_received) == (COUNT * 5, COUNT * 5), "{out:?}");
        Ok(())
    });
}

#[test]
fn an_excluded_port_is_left_alone() {
    scenario("untouched-excluded", |net| {
        let all = Mixed::new(net)?;
        let (from, to) = (&all.meshed[0], &all.meshed[1]);
        let key = tests::objects::EXCLUDE_PORTS;
        net.objects().annotate_pod(to, key, Some(&PORT.to_string()))?;
        // Both nodes have to hear of it.
        for (agent, code) in all.agents.iter().zip(["outbound_excluded", "inbound_excluded"]) {
            tests::eventually(tests::agent::SOON, || {
                let seen = probe::dial(from, &DialSpec::say(to.at(PORT), "hello"))?;
                ensure!(seen.end == End::Fin, "{seen:?}");
                let verdicts = agent.status()?.verdicts;
                ensure!(verdicts.get(code).is_some_and(|count| *count > 0), "{code}: {verdicts:?}");
                Ok(())
            })?;
        }
        all.check(from, to, "outbound_excluded", Some("inbound_excluded"))
    });
}
