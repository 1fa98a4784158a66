//! Something on the path between two nodes masquerades, so that the source port does not say any more that TLS follows:
//! what ARCHITECTURE.md promises for that.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, Pod, PodSpec, SHOP, eventually,
    flow::Flow,
    masquerade::{Masquerade, Ports},
    probe::{self, Conn, DialSpec, End, ServeSpec, Server, Talk},
    scenario,
};

const MODE: &str = "nodemesh.dev/mode";

/// A path that is known to masquerade is asked about again after ten seconds.
const AGAIN: Duration = Duration::from_secs(20);

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

fn hello(to: std::net::SocketAddr) -> DialSpec {
    DialSpec::say(to, "hello")
}

/// The whole story: nothing gets through that should not, everybody is told, and all is well when the rule is gone.
fn masqueraded(net: &Net, ports: Ports) -> Result<()> {
    let stage = Stage::new(net)?;
    let pair = &stage.pair;
    let rule = Masquerade::on(&pair.nodes[0], ports)?;
    stage.join()?;

    for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
        let (seen, flow) = stage.dial(&pair.client, &hello(to))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        ensure!(flow.security.kind == "plaintext", "{flow:?}");
        ensure!(flow.security.why.as_deref() == Some("masqueraded_path"), "{flow:?}");
    }
    let to = stage.strict_server.at(PORT);
    for (client, to) in [
        (&pair.client, to),
        (&stage.strict_client, to),
        (&stage.strict_client, pair.server.at(PORT)),
    ] {
        let (seen, flow) = stage.dial(client, &hello(to))?;
        ensure!(seen.received == 0 && seen.end == End::Reset, "{seen:?}");
        ensure!(flow.outcome == "masqueraded_path" && flow.bytes.received == 0, "{flow:?}");
        let (node, pod) = (pair.nodes[0].address().to_string(), client.v4.to_string());
        ensure!(flow.reason.contains(&node) && flow.reason.contains(&pod), "{flow:?}");
    }
    ensure!(stage.closed.conns().is_empty(), "{:?}", stage.closed.conns());
    ensure!(pair.agents[0].status()?.counters.plaintext_masqueraded == 2);
    let problems = stage.masqueraded()?;
    ensure!(problems.len() == 2, "not one for each family: {problems:?}");
    for (problem, seen) in problems.iter().zip(["fd00:100::1", "192.168.100.1"]) {
        ensure!(problem.contains("node2") && problem.contains(seen), "no {seen} in {problem}");
    }

    rule.remove();
    let dials = [(&pair.client, pair.server.at(PORT)), (&pair.client, pair.server.at6(PORT))];
    let strict = [(&pair.client, to), (&stage.strict_client, to)];
    for (client, to) in dials.into_iter().chain(strict) {
        eventually(AGAIN, || {
            let (seen, flow) = stage.dial(client, &hello(to))?;
            ensure!(flow.is_mtls() && (seen.end, &*seen.first) == (End::Fin, "hello"), "{flow:?}");
            Ok(())
        })?;
    }
    let tls = stage.tls_at_applications();
    ensure!(tls.is_empty(), "{tls:?}");
    Ok(())
}

#[test]
fn a_masquerade_that_keeps_ports_costs_mtls_but_sends_no_tls_to_applications() {
    scenario("masq-kept", |net| masqueraded(net, Ports::Kept));
}

#[test]
fn a_random_masquerade_costs_mtls_but_sends_no_tls_to_applications() {
    scenario("masq-random", |net| masqueraded(net, Ports::Random));
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
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        }
        for client in [&pair.client, &stage.strict_client] {
            for to in [to, stage.strict_server.at(PORT)] {
                let (_, flow) = stage.dial(client, &hello(to))?;
                ensure!(flow.is_mtls(), "{flow:?}");
            }
        }
        let asked = pair.agents[1].status()?.verdict("inbound_probe");
        ensure!(asked == 1, "asked {asked} times");
        // Nobody is led to an application there.
        let seen = probe::dial(&pair.client, &hello(pair.server.at(60_998)))?;
        ensure!(seen.received == 0 && seen.end == End::Reset, "{seen:?}");
        let seen = probe::dial(&pair.beside_client(), &hello(pair.server.at(60_998)))?;
        ensure!(seen.received == 0 && seen.end != End::Timeout, "{seen:?}");
        pair.agents[1].wait_flow("not_tls", |flow| {
            flow.verdict == "inbound_probe" && flow.outcome == "not_tls"
        })?;
        Ok(())
    });
}

#[test]
fn a_masquerade_that_begins_later_costs_a_pair_of_pods_one_connection() {
    scenario("masq-later", |net| {
        let stage = Stage::new(net)?;
        stage.join()?;
        let pair = &stage.pair;
        let (_, flow) = stage.dial(&pair.client, &hello(pair.server.at(PORT)))?;
        ensure!(flow.is_mtls(), "{flow:?}");
        let _rule = Masquerade::on(&pair.nodes[0], Ports::Random)?;

        let strict = stage.strict_server.at(PORT);
        let (seen, flow) = stage.dial(&pair.client, &hello(strict))?;
        ensure!((seen.end, seen.received) == (End::Reset, 0), "{seen:?}");
        ensure!(flow.outcome == "masqueraded_path", "{flow:?}");
        // From a pod that nobody has a doubt about yet: the node is not believed any more.
        let (_, flow) = stage.dial(&stage.strict_client, &hello(pair.server.at(PORT)))?;
        ensure!(flow.outcome == "masqueraded_path", "{flow:?}");
        ensure!(stage.tls_at_applications().is_empty() && stage.closed.conns().is_empty());
        Ok(())
    });
}

#[test]
fn tls_that_met_an_application_is_not_sent_there_again() {
    scenario("masq-bound", |net| {
        let stage = Stage::new(net)?;
        stage.join()?;
        let pair = &stage.pair;
        let to = pair.server.at(PORT);
        let (_, flow) = stage.dial(&pair.client, &hello(to))?;
        ensure!(flow.is_mtls(), "{flow:?}");
        let _rule = Masquerade::on(&pair.nodes[0], Ports::Low)?;
        // The one that nobody could know of; it also shows that such bytes would be seen in all these tests.
        let (seen, flow) = stage.dial(&pair.client, &hello(to))?;
        ensure!((seen.end, seen.received) == (End::Reset, 0), "{seen:?}");
        ensure!(flow.outcome == "masqueraded_path", "{flow:?}");
        for _ in 0..20 {
            let (seen, flow) = stage.dial(&pair.client, &hello(to))?;
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
            ensure!(flow.security.kind == "plaintext", "{flow:?}");
        }
        let tls = stage.tls_at_applications();
        ensure!(tls.len() == 1, "{tls:?}");
        Ok(())
    });
}
