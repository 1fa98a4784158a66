//! Something on the path between two nodes changes source addresses or ports, so the source port no
//! longer says that TLS follows: what ARCHITECTURE.md promises for that.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP,
    agent::SOON,
    capture::Recording,
    eventually,
    flow::Flow,
    masquerade::{AGENTS_PORT, Masquerade, Ports},
    probe::{self, Conn, DialSpec, End, ServeSpec, Server, Talk},
    scenario,
};

const MODE: &str = "nodemesh.dev/mode";

/// A path that is known to change the source is asked about again after ten seconds.
const AGAIN: Duration = Duration::from_secs(20);

/// What clients say, and servers say back.
const MARKER: &str = "marker-of-masquerade-7e21";

/// A pair beside which there is a strict pod on either node.
struct Stage<'a> {
    pair: Pair<'a>,
    strict_client: Pod,
    strict_server: Pod,
    open: Server,
    closed: Server,
}

impl<'a> Stage<'a> {
    fn new(net: &'a Net) -> Result<Self> {
        let pair = Pair::new(net)?;
        let strict = |name| PodSpec::new(SHOP, name).annotation(MODE, "strict");
        let strict_client = net.pod(&pair.nodes[0], strict("strict-client"))?;
        let strict_server = net.pod(&pair.nodes[1], strict("strict-server"))?;
        let open = pair.serve(Talk::Exchange)?;
        let closed = ServeSpec::both_families(PORT, Talk::Exchange);
        let closed = probe::serve(&strict_server, &closed)?;
        Ok(Self { pair, strict_client, strict_server, open, closed })
    }

    fn join(&self) -> Result<()> {
        let pair = &self.pair;
        pair.net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client, &self.strict_client])?;
        pair.agents[1].wait_enrolled(&[&pair.server, &self.strict_server])?;
        pair.agents.iter().try_for_each(|agent| agent.wait_peers(2))
    }

    /// Dials, and returns what the client saw and what its agent has recorded.
    fn dial(&self, client: &Pod, spec: &DialSpec) -> Result<(Conn, Flow)> {
        let seen = probe::dial(client, spec)?;
        let port = seen.local.context("the client has no address")?.port();
        let flow = self.pair.agents[0].wait_flow("of the client", |flow| {
            client.addresses().contains(&flow.client.address)
                && flow.client.port == port
                && flow.original_destination == spec.to
                && flow.outcome != "open"
        })?;
        Ok((seen, flow))
    }

    /// Dials, and checks three things: the answer came over mutual TLS to the port of that name,
    /// both ends' records say so, and the application sees the real client.
    fn is_carried(&self, client: &Pod, to: SocketAddr, wire_port: &str) -> Result<()> {
        let (port, flow) = self.carried(client, to)?;
        ensure!(port == wire_port, "{flow:?}");
        Ok(())
    }

    /// The same to either port; returns which one it was.
    fn carried(&self, client: &Pod, to: SocketAddr) -> Result<(String, Flow)> {
        let (seen, flow) = self.dial(client, &hello(to))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, MARKER), "{seen:?} {flow:?}");
        ensure!(flow.is_mtls(), "{flow:?}");
        let port = flow.security.wire_port.clone().context("no port")?;
        let local = seen.local.context("the client has no address")?;
        let verdict = if port == "agents" { "inbound_agents_port" } else { "inbound_mesh" };
        self.pair.agents[1].wait_flow("of the server", |flow| {
            (flow.client.address, flow.client.port) == (local.ip(), local.port())
                && flow.client.pod.as_deref() == Some(&*format!("{SHOP}/{}", client.name))
                && (flow.server.address, flow.server.port) == (to.ip(), to.port())
                && flow.is_mtls()
                && flow.security.wire_port.as_deref() == Some(&*port)
                && (&*flow.verdict, &*flow.outcome) == (verdict, "closed")
        })?;
        let is_client = |said: Option<SocketAddr>| {
            said.is_some_and(|said| {
                (said.ip().to_canonical(), said.port()) == (local.ip(), local.port())
            })
        };
        eventually(SOON, || {
            let conns: Vec<_> = self.open.conns().into_iter().chain(self.closed.conns()).collect();
            let shown = conns.iter().any(|conn| {
                is_client(conn.accepted) && is_client(conn.peer) && is_client(conn.peer_option)
            });
            ensure!(shown, "{local} was shown to no application: {conns:#?}");
            Ok(())
        })?;
        Ok((port, flow))
    }

    /// Pods of every pair of modes, over both families.
    fn dials(&self) -> Vec<(&Pod, SocketAddr)> {
        let servers = [&self.pair.server, &self.strict_server];
        let to: Vec<_> = servers.iter().flat_map(|pod| [pod.at(PORT), pod.at6(PORT)]).collect();
        let clients = [&self.pair.client, &self.strict_client];
        clients.into_iter().flat_map(|client| to.iter().map(move |to| (client, *to))).collect()
    }

    /// What applications have read that looks like TLS.
    fn tls_at_applications(&self) -> Vec<Conn> {
        let conns = self.open.conns().into_iter().chain(self.closed.conns());
        conns.filter(|conn| conn.first.starts_with("\\x16")).collect()
    }

    fn masqueraded(&self) -> Result<Vec<String>> {
        let problems = self.pair.agents[0].status()?.problems.into_iter();
        let ours = problems.filter(|problem| problem.code == "masqueraded_path");
        Ok(ours.map(|problem| problem.message).collect())
    }
}

fn hello(to: SocketAddr) -> DialSpec {
    DialSpec::say(to, MARKER)
}

/// Nothing but TLS has gone over the link.
fn only_tls(recording: &Recording) -> Result<()> {
    let spoken = recording.connections().iter().filter(|conn| !conn.to_server.is_empty());
    let others: Vec<_> =
        spoken.filter(|conn| conn.tls().is_none()).map(ToString::to_string).collect();
    ensure!(others.is_empty() && !recording.contains(MARKER), "not TLS: {others:#?}");
    Ok(())
}

/// The whole story: everything goes over mutual TLS, all agents are told, and all is as before when
/// the rule is gone.
fn masqueraded(net: &Net, ports: Ports) -> Result<()> {
    let stage = Stage::new(net)?;
    let pair = &stage.pair;
    let rule = Masquerade::on(&pair.nodes[0], ports)?;
    stage.join()?;

    let capture = pair.nodes[0].capture()?;
    for (client, to) in stage.dials() {
        // A strict pod is dialled without asking. Where the source port is still the mesh's, its
        // agent takes the connection.
        let (port, flow) = stage.carried(client, to)?;
        ensure!(port == "agents" || stage.strict_server.addresses().contains(&to.ip()), "{flow:?}");
    }
    // All of a node's pods have one address there, but they are not throttled as one client.
    let spec = DialSpec { connections: 100, workers: 50, ..hello(pair.server.at(PORT)) };
    for seen in probe::dial_all(&pair.client, &spec)? {
        ensure!((seen.end, &*seen.first) == (End::Fin, MARKER), "{seen:?}");
    }
    only_tls(&capture.stop()?)?;
    let by_agents_port = pair.agents[0].status()?.counters.by_agents_port;
    ensure!((104..=108).contains(&by_agents_port), "{by_agents_port}");
    let problems = stage.masqueraded()?;
    ensure!(problems.len() == 2, "not one for each family: {problems:?}");
    for (problem, seen) in problems.iter().zip(["fd00:100::1", "192.168.100.1"]) {
        ensure!(problem.contains("node2") && problem.contains(seen), "no {seen} in {problem}");
    }

    rule.remove();
    for (client, to) in stage.dials() {
        eventually(AGAIN, || stage.is_carried(client, to, "application"))?;
    }
    ensure!(stage.masqueraded()?.is_empty(), "{:?}", stage.masqueraded()?);
    let tls = stage.tls_at_applications();
    ensure!(tls.is_empty(), "{tls:?}");
    Ok(())
}

#[test]
fn mutual_tls_through_a_masquerade() {
    scenario("masq-kept", |net| masqueraded(net, Ports::Kept));
}

#[test]
fn mutual_tls_through_a_random_masquerade() {
    scenario("masq-random", |net| masqueraded(net, Ports::Random));
}

#[test]
fn who_falsifies_the_question_gets_nothing_but_tls() {
    scenario("masq-question", |net| {
        let stage = Stage::new(net)?;
        let pair = &stage.pair;
        let rule = Masquerade::of_questions(&pair.nodes[0], &pair.client)?;
        stage.join()?;
        let capture = pair.nodes[0].capture()?;
        stage.is_carried(&pair.client, pair.server.at(PORT), "agents")?;
        stage.is_carried(&pair.client, stage.strict_server.at(PORT), "application")?;
        stage.is_carried(&stage.strict_client, pair.server.at(PORT), "application")?;
        only_tls(&capture.stop()?)?;
        let problems = stage.masqueraded()?;
        let client = pair.client.v4.to_string();
        ensure!(problems.len() == 1, "{problems:?}");
        ensure!(
            problems.iter().all(|problem| problem.contains("node2") && problem.contains(&client))
        );
        rule.remove();
        let to = pair.server.at(PORT);
        eventually(AGAIN, || stage.is_carried(&pair.client, to, "application"))?;
        ensure!(stage.masqueraded()?.is_empty(), "{:?}", stage.masqueraded()?);
        ensure!(stage.tls_at_applications().is_empty(), "{:?}", stage.tls_at_applications());
        Ok(())
    });
}

#[test]
fn a_path_is_asked_about_once_for_two_nodes() {
    scenario("masq-once", |net| {
        let stage = Stage::new(net)?;
        stage.join()?;
        let pair = &stage.pair;
        let to = pair.server.at(PORT);
        let spec = DialSpec { connections: 60, workers: 30, ..hello(to) };
        for seen in probe::dial_all(&pair.client, &spec)? {
            ensure!((seen.end, &*seen.first) == (End::Fin, MARKER), "{seen:?}");
        }
        for client in [&pair.client, &stage.strict_client] {
            for to in [to, stage.strict_server.at(PORT)] {
                let (_, flow) = stage.dial(client, &hello(to))?;
                ensure!(flow.is_mtls(), "{flow:?}");
            }
        }
        let asked = pair.agents[1].status()?.verdict("inbound_agents_port");
        ensure!(asked == 1, "asked {asked} times");
        // No dial there is led to an application.
        let seen = probe::dial(&pair.client, &hello(pair.server.at(AGENTS_PORT)))?;
        ensure!(seen.received == 0 && seen.end == End::Refused, "{seen:?}");
        let seen = probe::dial(&pair.beside_client(), &hello(pair.server.at(AGENTS_PORT)))?;
        ensure!(seen.received == 0 && seen.end != End::Timeout, "{seen:?}");
        pair.agents[1].wait_flow("not_tls", |flow| {
            flow.verdict == "inbound_agents_port" && flow.outcome == "not_tls"
        })?;
        Ok(())
    });
}

#[test]
fn a_masquerade_that_begins_later_costs_no_connection() {
    scenario("masq-later", |net| {
        let stage = Stage::new(net)?;
        stage.join()?;
        let pair = &stage.pair;
        let to = pair.server.at(PORT);
        stage.is_carried(&pair.client, to, "application")?;
        let _rule = Masquerade::on(&pair.nodes[0], Ports::Low)?;

        stage.is_carried(&pair.client, stage.strict_server.at(PORT), "agents")?;
        // From a pod that is not in doubt yet: its node is no longer believed.
        stage.is_carried(&stage.strict_client, to, "agents")?;
        ensure!(stage.tls_at_applications().is_empty(), "{:?}", stage.tls_at_applications());
        stage.is_carried(&stage.strict_client, stage.strict_server.at(PORT), "agents")
    });
}

#[test]
fn tls_that_met_an_application_is_not_sent_there_again() {
    scenario("masq-bound", |net| {
        let stage = Stage::new(net)?;
        stage.join()?;
        let pair = &stage.pair;
        let to = pair.server.at(PORT);
        stage.is_carried(&pair.client, to, "application")?;
        let _rule = Masquerade::on(&pair.nodes[0], Ports::Low)?;
        // The first dial of a pod without a session cannot know. It also shows that all these tests
        // would see such bytes.
        for _ in 0..20 {
            stage.is_carried(&stage.strict_client, to, "agents")?;
        }
        let tls = stage.tls_at_applications();
        ensure!(tls.len() == 1, "{tls:?}");
        Ok(())
    });
}

/// A policy allows the application's port only: connections work, and `status` tells what is
/// missing.
#[test]
fn where_the_agents_port_is_dropped_status_says_so() {
    scenario("masquerade-dropped", |net| {
        let pair = Pair::new(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let drop = format!(
            "table inet drops {{ chain in {{ type filter hook forward priority 0; \
             tcp dport {AGENTS_PORT} counter drop; }}; }}"
        );
        pair.nodes[1].run(["nft", &drop])?.success()?;
        pair.join()?;
        let dial = || {
            let seen = probe::dial(&pair.client, &hello(pair.server.at(PORT)))?;
            ensure!((seen.end, &*seen.first) == (End::Fin, MARKER), "{seen:?}");
            Ok(())
        };
        dial()?;
        let of_it = |problem: &tests::agent::Problem| problem.code == "agents_port_blocked";
        let told = pair.agents[0].wait_problem("of the policy", of_it)?;
        ensure!(told.message.contains("60998") && told.message.contains("client"), "{told:?}");
        // The next dial does not wait for a question.
        let asked = || pair.nodes[1].run(["nft", "list", "table", "inet", "drops"])?.success();
        let before = asked()?;
        dial()?;
        let after = asked()?;
        ensure!(before == after && before.contains("counter packets"), "{before} {after}");
        Ok(())
    });
}
