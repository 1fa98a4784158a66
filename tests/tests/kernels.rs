//! What the mesh needs from every kernel that it runs on. `cargo xtask test --kernels` runs this
//! inside other kernels than this machine's.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Node, PORT, Pair, Pod, PodSpec, SHOP, agent,
    agent::SOON,
    eventually,
    exec::Place,
    flow::spiffe_id,
    objects::{MESH, MODE},
    probe::{self, Conn, DialSpec, End, Server, Talk},
    scenario,
};

/// What must not be readable on the link.
const SAID: &str = "not to be read on the link";

/// How often a pod other than the client reaches the server.
const HELD_DIALS: usize = 1;

#[test]
fn the_life_of_a_mesh() {
    scenario("kernels-life", |net| {
        let pair = Pair::new(net)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let mut service = pair.serve(Talk::Exchange)?;
        pair.join()?;
        attached(&pair)?;
        carried(&pair, &mut service)?;
        told_the_truth(&pair)?;
        held_until_enrolled(&pair)?;
        stranger_refused(&pair, &stranger)?;
        taken_over(&pair, &stranger)?;
        let seen = service.conns();
        let client = |conn: &Conn| Some(conn.peer?.ip().to_canonical());
        let is_client = |ip: IpAddr| pair.client.addresses().contains(&ip);
        let foreign = seen.iter().filter(|conn| !client(conn).is_some_and(is_client)).count();
        ensure!(foreign == HELD_DIALS, "{foreign} of others than the client: {seen:?}");
        cleaned(&pair, &stranger)
    });
}

/// Both agents have loaded and attached their programs.
fn attached(pair: &Pair<'_>) -> Result<()> {
    for node in &pair.nodes {
        let pins = pins(node)?;
        for (kind, least) in [("links", 7), ("pods", 1), ("maps", 5)] {
            let count = pins.keys().filter(|pin| pin.starts_with(kind)).count();
            ensure!(count >= least, "{count} {kind} are pinned on {}: {pins:?}", node.name);
        }
    }
    Ok(())
}

/// A connection of each family goes over mutual TLS, and each application is told the other's real
/// address.
fn carried(pair: &Pair<'_>, service: &mut Server) -> Result<()> {
    for (at, to) in [pair.server.at(PORT), pair.server.at6(PORT)].into_iter().enumerate() {
        let capture = pair.nodes[0].capture()?;
        let seen = dial(&pair.client, to)?;
        let recording = capture.stop()?;
        answered(&seen).with_context(|| format!("{:#?}", pair.agents[0].flows()))?;
        ensure!(seen.peer == Some(to), "getpeername of the client: {seen:?}");
        let (from, port) = (pair.client.addresses()[at], seen.local.context("no local")?.port());
        let accepted = service.wait_conn("of the client", |conn| {
            conn.accepted.is_some_and(|a| (a.ip().to_canonical(), a.port()) == (from, port))
        })?;
        ensure!(accepted.peer == accepted.accepted, "getpeername of the server: {accepted:?}");
        ensure!(!recording.contains(SAID), "on the link: {:?}", recording.quote(SAID));
        let conn = recording.one_to(to)?;
        ensure!(conn.client.ip() == from, "{conn}");
        let tls = conn.tls().with_context(|| format!("not TLS: {conn}"))?;
        ensure!(tls.is_1_3(), "{tls:?}: {conn}");
    }
    let ids = ["client", "server"].map(|account| Some(spiffe_id(SHOP, account)));
    for agent in &pair.agents {
        for address in pair.client.addresses() {
            let flow = agent.wait_flow("over mTLS", |flow| {
                flow.is_mtls()
                    && flow.between(&pair.client, &pair.server, PORT)
                    && flow.client.address == address
            })?;
            ensure!([flow.client.identity, flow.server.identity] == ids, "{:?}", flow.reason);
        }
    }
    Ok(())
}

/// Where nothing listens, `connect()` itself fails; and a bound source port reaches what it dials.
fn told_the_truth(pair: &Pair<'_>) -> Result<()> {
    for _ in 0..2 {
        let seen = dial(&pair.client, pair.server.at(PORT + 1))?;
        ensure!(seen.end == End::Refused && !seen.connected, "{seen:?}");
    }
    let bound = DialSpec { bind: Some(pair.client.at(5060)), timeout_s: 3, ..say(pair) };
    answered(&probe::dial(&pair.client, &bound)?)
}

/// What a strict pod dials before it is enrolled waits until it is.
fn held_until_enrolled(pair: &Pair<'_>) -> Result<()> {
    let spec = PodSpec::new("vault", "held").label(MESH, "enabled").annotation(MODE, "strict");
    let held = pair.net.pod(&pair.nodes[0], spec.starting())?;
    let agent = &pair.agents[0];
    agent.wait_state(&held, "held")?;
    let spec = DialSpec { timeout_s: 30, ..say(pair) };
    let waited = || Ok::<_, anyhow::Error>(agent.status()?.verdict("redirect_held"));
    let before = waited()?;
    thread::scope(|scope| {
        let dialling = scope.spawn(|| probe::dial(&held, &spec));
        let waits = eventually(SOON, || {
            ensure!(waited()? > before, "it does not wait");
            Ok(())
        });
        pair.net.objects().pod_runs(&held)?;
        let seen = dialling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        waits?;
        answered(&seen)
    })
}

/// A client outside the mesh does not get into the strict pod, and a record tells of it.
fn stranger_refused(pair: &Pair<'_>, stranger: &Pod) -> Result<()> {
    for to in [pair.server.at(PORT), pair.server.at6(PORT)] {
        let seen = dial(stranger, to)?;
        ensure!(matches!(seen.end, End::Reset | End::Refused), "{seen:?}");
    }
    pair.agents[1].wait_flow("of the stranger", |flow| {
        flow.between(stranger, &pair.server, PORT) && flow.outcome == "refused_strict"
    })?;
    Ok(())
}

/// An agent goes and comes back: the links stay the same ones, the strict pod stays closed, the
/// next connection works.
fn taken_over(pair: &Pair<'_>, stranger: &Pod) -> Result<()> {
    let before = pins(&pair.nodes[1])?;
    pair.agents[1].stop()?;
    for from in [stranger, &pair.client] {
        closed(&dial(from, pair.server.at(PORT))?)?;
    }
    pair.agents[1].start_again()?;
    pair.agents[1].wait_enrolled(&[&pair.server])?;
    eventually(SOON, || answered(&dial(&pair.client, pair.server.at(PORT))?))?;
    closed(&dial(stranger, pair.server.at(PORT))?)?;
    let after = pins(&pair.nodes[1])?;
    ensure!(before == after, "not the same pins: {before:?}, then {after:?}");
    Ok(())
}

/// `cleanup` leaves no pin, and all pods talk as if there had never been a mesh.
fn cleaned(pair: &Pair<'_>, stranger: &Pod) -> Result<()> {
    for (agent, node) in pair.agents.iter().zip(&pair.nodes) {
        agent.stop()?;
        agent.cleanup()?;
        ensure!(!node.pin_dir().exists(), "pins stay: {:?}", pins(node)?);
    }
    for from in [stranger, &pair.client] {
        answered(&dial(from, pair.server.at(PORT))?)?;
    }
    Ok(())
}

fn say(pair: &Pair<'_>) -> DialSpec {
    DialSpec::say(pair.server.at(PORT), SAID)
}

fn dial(from: &Place, to: SocketAddr) -> Result<Conn> {
    probe::dial(from, &DialSpec { timeout_s: 3, ..DialSpec::say(to, SAID) })
}

fn answered(conn: &Conn) -> Result<()> {
    ensure!((conn.end, &*conn.first) == (End::Fin, SAID), "{conn:?}");
    Ok(())
}

/// Whether what was dialled is closed, and nothing of the application came.
fn closed(conn: &Conn) -> Result<()> {
    let end = matches!(conn.end, End::Refused | End::Reset | End::NotPermitted | End::Timeout);
    ensure!(end && conn.received == 0, "{conn:?}");
    Ok(())
}

/// A node's pins below the one version of the layout that is there, each with its inode: a link
/// that was attached anew would have another.
fn pins(node: &Node) -> Result<BTreeMap<String, u64>> {
    let mut pins = BTreeMap::new();
    for version in entries(&node.pin_dir())? {
        for kind in entries(&version)? {
            for pin in entries(&kind)? {
                let name = pin.strip_prefix(&version)?.display().to_string();
                pins.insert(name, fs::symlink_metadata(&pin)?.ino());
            }
        }
    }
    Ok(pins)
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| dir.display().to_string())?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// The agent says so before anything is loaded, so that no user has to learn it from a verifier's
/// log.
///
/// Debian's 5.10 is refused for what it is. Elsewhere the kernel is made to call itself 2.6
/// (`UNAME26`, personality(2)).
#[test]
fn a_kernel_that_is_too_old_is_named() {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let is_old = release.starts_with("5.10.");
    let mut agent = if is_old {
        Command::new(agent::program())
    } else {
        let mut setarch = Command::new("setarch");
        setarch.arg("--uname-2.6").arg(agent::program());
        setarch
    };
    let dirs = ["--source", "--announce-dir", "--ca-dir", "--runtime-dir"];
    agent.args(["run", "--node", "old"]);
    agent.args(dirs.into_iter().flat_map(|option| [option, "/nonexistent"]));
    let output = agent.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let named = if is_old { release.trim() } else { "2.6." };
    assert!(!output.status.success(), "{said}");
    for words in [&format!("Linux {named}"), "5.15 or newer", "newer kernel"] {
        assert!(said.contains(words), "no {words:?} in: {said}");
    }
}
