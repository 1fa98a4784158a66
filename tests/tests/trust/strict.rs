//! Which peers are refused, and that each refusal has a reason of its own (docs/wire.md, the table
//! of alerts and reasons).

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, PORT, Pair, PodSpec, SHOP,
    agent::{Agent, Dirs},
    certs::{self, Credential, Validity},
    exec::Place,
    flow::spiffe_id,
    objects::MODE,
    probe::{self, DialSpec, End, Talk},
    programs, scenario, wait_until,
};

/// A pair of which the server is strict.
fn strict(net: &Net) -> Result<Pair<'_>> {
    let pair = Pair::new(net)?;
    net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
    pair.join()?;
    let mode = pair.agents[1].status()?.pod(&pair.server)?.mode;
    ensure!(mode.as_deref() == Some("strict"), "mode {mode:?}");
    Ok(pair)
}

#[test]
fn a_stranger_gets_a_reset_and_a_reason_is_recorded() {
    scenario("strict", |net| {
        let pair = strict(net)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let service = pair.serve(Talk::Exchange)?;
        let mut refused = 0;
        for from in [&*stranger, &*pair.nodes[1], &net.outsider()?] {
            for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
                let seen = probe::dial(from, &DialSpec::say(to, "hello"))?;
                ensure!(matches!(seen.end, End::Reset | End::Refused), "{}: {seen:?}", from.name);
                refused += 1;
                let counted = pair.agents[1].status()?.pod_verdict(&pair.server, "refused_strict");
                ensure!(counted >= refused, "{counted} refusals after {refused} dials");
            }
        }
        let flow = pair.agents[1].wait_flow("of the stranger", |flow| {
            flow.client.address == stranger.v4 && flow.outcome == "refused_strict"
        })?;
        ensure!(flow.between(&stranger, &pair.server, PORT), "{flow:?}");
        ensure!(flow.client.pod.as_deref() == Some("other/stranger"), "{flow:?}");
        ensure!(flow.reason.contains("strict"), "{flow:?}");
        ensure!(service.conns().is_empty(), "{:?}", service.conns());
        // The mesh still gets in.
        let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
        ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
        Ok(())
    });
}

#[test]
fn strict_comes_and_goes_with_the_annotation() {
    scenario("strict-live", |net| {
        let pair = Pair::meshed(net)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let _service = pair.serve(Talk::Exchange)?;
        let dial = || probe::dial(&stranger, &DialSpec::say(pair.server.at(PORT), "hello"));
        for (mode, end) in
            [(None, End::Fin), (Some("strict"), End::Refused), (Some("permissive"), End::Fin)]
        {
            net.objects().annotate_namespace(SHOP, MODE, mode)?;
            tests::eventually(tests::agent::SOON, || {
                let seen = dial()?;
                ensure!(seen.end == end, "with mode {mode:?}: {seen:?}");
                Ok(())
            })?;
        }
        Ok(())
    });
}

/// How a false client shows itself.
struct FalseClient {
    /// Its certificate, if it has one.
    credential: Option<Credential>,
    /// More arguments for `openssl s_client`.
    options: &'static [&'static str],
    /// The outcome's code in the server's agent's records.
    code: &'static str,
}

#[test]
fn every_false_client_is_refused_for_its_own_reason() {
    scenario("strict-clients", |net| {
        const TLS13: &[&str] = &["-tls1_3", "-alpn", "nodemesh/1"];
        let pair = strict(net)?;
        let service = pair.serve(Talk::Exchange)?;
        let dir = net.tag().dir().join("false");
        let ours = certs::anchor_in(&Dirs::of(net).ca);
        let foreign =
            certs::new_anchor_for(&dir, "foreign", Some("spiffe://cluster.local"), Validity::Now)?;
        let id = spiffe_id(SHOP, "client");
        let leaf = |name: &str, anchor: &Credential, uri: &str, validity| {
            certs::leaf(&dir, name, anchor, uri, validity).map(Some)
        };
        let now = Validity::Now;
        let another = "spiffe://cluster.local/ns/shop/sa/another";
        let domain = "spiffe://elsewhere.example/ns/shop/sa/client";
        let two = format!("{id},URI:{another}");
        let clients = [
            (leaf("another", &ours, another, now)?, TLS13, "source_mismatch"),
            (leaf("domain", &ours, domain, now)?, TLS13, "foreign_trust_domain"),
            (leaf("two", &ours, &two, now)?, TLS13, "malformed_identity"),
            (leaf("foreign-leaf", &foreign, &id, now)?, TLS13, "unknown_anchor"),
            (leaf("old", &ours, &id, Validity::Past)?, TLS13, "certificate_expired"),
            (None, TLS13, "no_client_certificate"),
            (
                leaf("right", &ours, &id, now)?,
                &["-tls1_2", "-alpn", "nodemesh/1"][..],
                "tls_version",
            ),
            (leaf("right", &ours, &id, now)?, &["-tls1_3"], "no_alpn"),
            (leaf("right", &ours, &id, now)?, &["-tls1_3", "-alpn", "h2"], "no_alpn"),
        ];
        for (port, (credential, options, code)) in (61_001..).zip(clients) {
            let client = FalseClient { credential, options, code };
            client.attack(&pair, port).with_context(|| format!("{code}, from port {port}"))?;
        }
        // The mesh's source port, and then something else than a ClientHello.
        let bind = Some(pair.client.at(61_100));
        let plain =
            DialSpec { bind, ..DialSpec::say(pair.server.at(PORT), "GET / HTTP/1.1\r\n\r\n") };
        let seen = probe::dial(&pair.beside_client(), &plain)?;
        ensure!(seen.received == 0 && seen.end != End::Timeout, "{seen:?}");
        pair.agents[1].wait_flow("not_tls", |flow| flow.outcome == "not_tls")?;
        ensure!(service.conns().is_empty(), "the application saw {:?}", service.conns());
        Ok(())
    });
}

impl FalseClient {
    /// Dials the server as the client's agent would, from this source port of the client's own
    /// address.
    fn attack(&self, pair: &Pair<'_>, port: u16) -> Result<()> {
        let count = |agent: &Agent| -> Result<usize> {
            Ok(agent.flows()?.iter().filter(|flow| flow.outcome == self.code).count())
        };
        let (agent, from) = (&pair.agents[1], pair.client.at(port));
        let before = count(agent)?;
        let to = pair.server.at(PORT);
        let mut argv: Vec<String> =
            ["openssl", "s_client", "-quiet", "-connect"].map(String::from).to_vec();
        argv.extend([to.to_string(), "-bind".to_owned(), from.to_string()]);
        argv.extend(self.options.iter().map(ToString::to_string));
        if let Some(Credential { cert, key }) = &self.credential {
            argv.extend(["-cert".to_owned(), show(cert), "-key".to_owned(), show(key)]);
        }
        // OPEN follows the handshake. It alone reveals a good certificate of another account.
        let file = pair.net.tag().dir().join(format!("open-{port}"));
        fs::write(&file, open(from, to))?;
        let script = format!("exec {} < {}", argv.join(" "), show(&file));
        let output = pair.beside_client().run(["sh", "-c", &script])?;
        wait_until(
            tests::agent::SOON,
            &format!("a record of {}; openssl: {output}", self.code),
            || count(agent).is_ok_and(|now| now == before + 1),
        )
    }
}

/// An OPEN frame (docs/wire.md): type, version, then the source and the original destination as
/// fields.
fn open(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut frame = vec![0x01, 1];
    for (kind, address) in [(0x01, source), (0x02, destination)] {
        let SocketAddr::V4(address) = address else { unreachable!("the test dials IPv4") };
        frame.extend([kind, 0, 6]);
        frame.extend(address.ip().octets());
        frame.extend(address.port().to_be_bytes());
    }
    frame
}

fn show(path: &std::path::Path) -> String {
    path.to_string_lossy().into_owned()
}

/// Takes the agent away from the server's pod, but not its announcement: the client's agent still
/// dials with TLS, and meets whatever listens there.
fn without_server_agent(pair: &Pair<'_>) -> Result<()> {
    let announced: Vec<(PathBuf, Vec<u8>)> = fs::read_dir(Dirs::of(pair.net).announce)?
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().contains("node2"))
        .map(|file| Ok((file.path(), fs::read(file.path())?)))
        .collect::<Result<_>>()?;
    ensure!(announced.len() == 1, "{announced:?}");
    pair.agents[1].stop()?;
    // Links and pins go, and with them the rule that a strict pod takes TLS only.
    pair.agents[1].cleanup()?;
    for (file, content) in announced {
        fs::write(file, content)?;
    }
    pair.agents[0].wait_peers(1)
}

/// Starts `openssl s_server` where the application would be.
fn false_server(
    place: &Place,
    credential: &Credential,
    options: &[&str],
) -> Result<tests::exec::Process> {
    let (cert, key) = (show(&credential.cert), show(&credential.key));
    let port = PORT.to_string();
    let server =
        ["openssl", "s_server", "-accept", &port, "-cert", &cert, "-key", &key, "-Verify", "1"];
    let mut process = place.spawn(server.iter().chain(options))?;
    process.wait_for_line("ACCEPT", Duration::from_secs(5))?;
    Ok(process)
}

#[test]
fn every_false_server_is_refused_for_its_own_reason() {
    scenario("strict-servers", |net| {
        const TLS13: &[&str] = &["-tls1_3", "-alpn", "nodemesh/1"];
        let pair = strict(net)?; // to a permissive one no TLS is sent before its agent has answered
        without_server_agent(&pair)?;
        let dir = net.tag().dir().join("false");
        let ours = certs::anchor_in(&Dirs::of(net).ca);
        let foreign =
            certs::new_anchor_for(&dir, "foreign", Some("spiffe://cluster.local"), Validity::Now)?;
        let id = spiffe_id(SHOP, "server");
        let now = Validity::Now;
        let right = certs::leaf(&dir, "right", &ours, &id, now)?;
        let servers = [
            (
                certs::leaf(&dir, "another", &ours, &spiffe_id(SHOP, "another"), now)?,
                TLS13,
                "wrong_identity",
            ),
            (certs::leaf(&dir, "foreign-leaf", &foreign, &id, now)?, TLS13, "unknown_anchor"),
            (certs::leaf(&dir, "old", &ours, &id, Validity::Past)?, TLS13, "certificate_expired"),
            (right.clone(), &["-tls1_2"][..], "tls_version"),
            (right, &["-tls1_3"], "no_alpn"),
        ];
        for (credential, options, code) in servers {
            let server = false_server(&pair.server, &credential, options)?;
            refused_by_client(&pair, code)
                .with_context(|| format!("{code}; openssl: {}", server.stderr()))?;
        }
        // A server that speaks no TLS at all: an application, which must not get to read anything.
        let nginx = programs::nginx(&pair.server, PORT, "plain")?;
        refused_by_client(&pair, "not_tls")?;
        let log = nginx.log()?;
        ensure!(!log.iter().any(|line| line.contains("marker")), "{log:?}");
        Ok(())
    });
}

/// Dials, and checks that nothing was sent and that the client's agent has recorded why.
fn refused_by_client(pair: &Pair<'_>, code: &str) -> Result<()> {
    let capture = pair.nodes[0].capture()?;
    let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "secret-marker"))?;
    ensure!(!seen.connected && seen.end == End::Refused, "{seen:?}");
    ensure!(!capture.stop()?.contains("secret-marker"), "it was sent in plaintext");
    let flow = pair.agents[0].wait_flow(code, |flow| flow.outcome == code)?;
    ensure!(!flow.reason.is_empty() && flow.bytes.received == 0, "{flow:?}");
    Ok(())
}

#[test]
fn both_sides_know_why_an_application_was_not_reached() {
    scenario("strict-both", |net| {
        let pair = Pair::meshed(net)?;
        let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(9), "x"))?;
        ensure!(matches!(seen.end, End::Reset | End::Refused), "{seen:?}");
        for agent in &pair.agents {
            agent.wait_flow("refused", |flow| {
                flow.server.port == 9 && flow.outcome == "application_refused"
            })?;
        }
        Ok(())
    });
}
