//! The main job in a real Kubernetes, told as it is observed: apply, label, mutual TLS. The cluster
//! goes on running.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use tests::{
    capture::Recording,
    cluster::{
        Cluster, Mesh,
        shop::{self, GREETING},
    },
    flow::spiffe_id,
    tell::Teller,
};

/// What must not be readable on the link.
const SECRET: &str = "X-Card: 4929-1234-5678-9012";
/// Where `cart` is for its clients.
const CART: &str = "http://cart/";
/// The pods of the story: node, and name in `kubectl`'s words.
const PODS: [(u8, &str); 3] = [(1, "shop/web"), (1, "shop/near"), (2, "shop/cart")];
/// The last lines of a table that are shown.
const SHOWN: usize = 3;

/// Tells it on a cluster that is up. First undoes what an earlier demo did to the shop.
pub(crate) fn tell(cluster: &Cluster) -> Result<()> {
    let tell = &mut Teller::new();
    tell.chapter("A Kubernetes of two nodes gets Nodemesh");
    Mesh::import_images(cluster)?;
    tell.saw("both nodes have the agent's image");
    shop::open(cluster)?;
    annotate_and_label(cluster, "nodemesh.dev/mode-", "nodemesh.dev/mesh-")?;
    tell.command("kubectl apply -f daemonset.yaml");
    let start = Instant::now();
    let mesh = Mesh::install(cluster)?;
    tell.saw(&format!("the agents of node1 and node2 are ready, {:.1?} later", start.elapsed()));
    mesh.wait_state(&PODS, "not_enrolled")?;
    plaintext(cluster, tell)?;
    label(cluster, &mesh, tell)?;
    encrypted(cluster, &mesh, tell)?;
    strict(cluster, &mesh, tell)
}

fn annotate_and_label(cluster: &Cluster, annotation: &str, label: &str) -> Result<()> {
    cluster.kubectl(["annotate", "--overwrite", "namespace", "shop", annotation])?;
    cluster.kubectl(["label", "--overwrite", "namespace", "shop", label]).map(drop)
}

/// The request of the story, and what went over the link meanwhile.
fn request(cluster: &Cluster, tell: &Teller) -> Result<Recording> {
    let curl = ["-n", "shop", "exec", "web", "--", "curl", "-sS", "--max-time", "10"];
    tell.command(&format!("kubectl -n shop exec web -- curl -H '{SECRET}' {CART}"));
    let capture = cluster.node(1).capture()?;
    let page = cluster.kubectl(curl.into_iter().chain(["-H", SECRET, CART]))?;
    ensure!(page.contains(GREETING), "cart answered {page:?}");
    capture.stop()
}

fn plaintext(cluster: &Cluster, tell: &mut Teller) -> Result<()> {
    tell.chapter("Before: anything on the link between the nodes can read along");
    let recording = request(cluster, tell)?;
    let read = recording.quote(SECRET).context("the secret is not on the link")?;
    tell.saw("tcpdump on node1's link:");
    let interesting = |line: &&str| line.starts_with("GET") || line.contains(SECRET);
    tell.quote(&read.lines().filter(interesting).collect::<Vec<_>>().join("\n"));
    Ok(())
}

fn label(cluster: &Cluster, mesh: &Mesh<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("One label; no pod is restarted");
    let lives = shop::lives(cluster)?;
    tell.command("kubectl label namespace shop nodemesh.dev/mesh=enabled");
    let start = Instant::now();
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&PODS, "enrolled")?;
    mesh.wait_mtls(1, "shop/cart", || shop::curl(cluster, "web", CART).map(drop))?;
    tell.saw(&format!("web's new connections are mutual TLS, {:.1?} later", start.elapsed()));
    ensure!(shop::lives(cluster)? == lives, "a pod was restarted");
    tell.saw("same pods, same start times, no restart");
    Ok(())
}

fn encrypted(cluster: &Cluster, mesh: &Mesh<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("After: the same request, now mutual TLS 1.3 on the link");
    let recording = request(cluster, tell)?;
    let read = recording.quote(SECRET);
    ensure!(!recording.contains(SECRET), "the secret is still on the link: {read:?}");
    let cart = (shop::address(cluster, "cart")?, 8080).into();
    // The connection before this one has left its session for it.
    let to_cart = |conn: &&tests::capture::Conn| conn.server == cart;
    let sessions: Vec<_> = recording.older().iter().filter(to_cart).collect();
    ensure!(recording.to(cart).is_empty() && sessions.len() == 1, "{sessions:?}");
    let conn = sessions[0];
    ensure!(conn.is_sealed(), "{conn}");
    let flow = mesh.flows(1)?.pop().context("no flow")?;
    ensure!(flow.security.version.as_deref() == Some("TLSv1_3"), "{flow:#?}");
    tell.saw(&format!("tcpdump again, {} -> {}: TLS 1.3 and nothing else", conn.client, cart));
    tell.saw("no new TCP connection, no handshake: the session was kept from the one before");
    let id = spiffe_id("shop", "default");
    ensure!(flow.is_mtls() && flow.server.identity.as_ref() == Some(&id), "{flow:#?}");
    tell.saw(&format!("the peer has proven to be {id}"));
    flows(mesh, tell)
}

fn strict(cluster: &Cluster, mesh: &Mesh<'_>, tell: &mut Teller) -> Result<()> {
    tell.chapter("Strict: a pod outside the mesh does not get in");
    tell.command("kubectl annotate namespace shop nodemesh.dev/mode=strict");
    cluster.kubectl(["annotate", "namespace", "shop", "nodemesh.dev/mode=strict"])?;
    mesh.wait_strict(&PODS)?;
    let url = format!("http://{}:8080/", shop::address(cluster, "cart")?);
    tell.command(&format!("curl {url}        # on node1 itself"));
    let outside = cluster.node(1).place()?.run(["curl", "-sS", "--max-time", "5", &url])?;
    ensure!(!outside.status.success(), "strict is open: {outside}");
    tell.saw(outside.stderr.trim());
    ensure!(shop::curl(cluster, "web", CART)?.contains(GREETING));
    tell.saw("web still gets its answer");
    Ok(())
}

/// The end of what the agent of node 1 tells of its connections.
fn flows(mesh: &Mesh<'_>, tell: &Teller) -> Result<()> {
    tell.command("kubectl -n nodemesh exec ds/mesh-agent -- mesh-agent flows");
    let table = mesh.exec(1, &["flows"])?;
    let lines: Vec<&str> = table.lines().collect();
    let last = lines.iter().skip(1).rev().take(SHOWN).rev();
    tell.quote(&lines.iter().take(1).chain(last).copied().collect::<Vec<_>>().join("\n"));
    Ok(())
}
