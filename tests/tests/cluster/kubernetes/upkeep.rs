//! What an administrator does and gets wrong after the first apply, in a real Kubernetes: images
//! that are not there, upgrades, terminals that go away, settings in the wrong place.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    bin_dir,
    cluster::{
        Cluster, Mesh, PATIENCE, kubectl,
        shop::{self, GREETING, Load, curl},
    },
    eventually,
};

use super::WEB_AND_CART;

/// A tag that no node has.
const NOT_LOADED: &str = "nodemesh.dev/mesh-agent:not-loaded";
/// The agents' image under another name, which each node has.
const NEXT: &str = "nodemesh.dev/mesh-agent:next";

#[test]
fn upkeep_and_its_mistakes() -> Result<()> {
    let cluster = Mesh::cluster()?;
    shop::open(&cluster)?;
    let mut mesh = Mesh::install(&cluster)?;
    mesh.diff().context("what was just applied is not what is there")?;
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&WEB_AND_CART, "enrolled")?;
    mesh.wait_mtls(1, "shop/cart", || curl(&cluster, "web", "http://cart/").map(drop))?;

    settings_in_the_wrong_place_are_told(&cluster, &mesh)?;
    who_follows_leaves_nothing_behind(&cluster, &mesh)?;
    a_ca_that_is_gone_or_replaced_fails_nobody(&cluster, &mesh)?;
    images_come_from_nobody_and_can_be_exchanged(&cluster, &mut mesh)?;
    cluster.down()
}

fn settings_in_the_wrong_place_are_told(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let change = |verb: &str, key: &str| cluster.kubectl([verb, "namespace", "shop", key]);
    let of_cart = |verb: &str, key: &str| cluster.kubectl(["-n", "shop", verb, "pod", "cart", key]);
    change("label", "nodemesh.dev/mode=strict")?;
    of_cart("annotate", "nodemesh.dev/mesh=disabled")?;
    for node in [1, 2] {
        mesh.wait_problem(
            node,
            "strict_not_in_force",
            "Namespace shop: metadata.labels[nodemesh.dev/mode]",
        )?;
        mesh.wait_problem(
            node,
            "strict_not_in_force",
            "kubectl annotate namespace shop nodemesh.dev/mode=strict",
        )?;
    }
    mesh.wait_problem(2, "misplaced_setting", "Pod shop/cart")?;
    of_cart("annotate", "nodemesh.dev/mesh-")?;
    of_cart("annotate", "nodemesh.dev/exclude-port=8080")?;
    mesh.wait_problem(
        2,
        "unknown_setting",
        "did you mean `kubectl annotate pod cart -n shop nodemesh.dev/exclude-ports=8080`",
    )?;
    // None of these settings is in force, and nothing is refused because of them.
    let cart = mesh.state_of(2, "shop/cart")?;
    ensure!(cart["state"] == "enrolled" && cart["mode"] == "permissive", "{cart:#}");
    ensure!(curl(cluster, "web", "http://cart/")?.contains(GREETING));
    change("label", "nodemesh.dev/mode-")?;
    of_cart("annotate", "nodemesh.dev/exclude-port-")?;
    mesh.wait_no_problem(1)?;
    mesh.wait_no_problem(2)
}

/// How many processes of `mesh-agent flows -f` there are on a node.
fn followers(cluster: &Cluster, node: u8) -> Result<usize> {
    let each = "for it in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $it 2>/dev/null; echo; done";
    let lines = cluster.node(node).run(["sh", "-c", each])?;
    Ok(lines.lines().filter(|line| line.starts_with("mesh-agent flows -f")).count())
}

fn who_follows_leaves_nothing_behind(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let agent = mesh.agent(2)?;
    let follow = |how: &[&str], more: &[&str]| -> Result<std::process::Child> {
        let mut command = Command::new(kubectl());
        command.env("KUBECONFIG", cluster.kubeconfig()).args(["-n", "nodemesh", "exec"]).args(how);
        command.args([&*agent, "--", "mesh-agent", "flows", "-f"]).args(more);
        Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    };
    let is = |count: usize| {
        eventually(PATIENCE, || {
            let found = followers(cluster, 2)?;
            ensure!(found == count, "{found} processes follow, not {count}");
            Ok(())
        })
    };
    // Killed while nothing is printed: standard input goes.
    let mut kubectl = follow(&["-i"], &[])?;
    is(1)?;
    kubectl.kill()?;
    kubectl.wait()?;
    is(0).context("kubectl exec -i was killed")?;
    // Without standard input nothing tells the process that kubectl has gone. It ends when its time
    // is over.
    let mut kubectl = follow(&[], &["--for-seconds", "3"])?;
    is(1)?;
    kubectl.kill()?;
    kubectl.wait()?;
    is(0).context("kubectl exec was killed")
}

fn a_ca_that_is_gone_or_replaced_fails_nobody(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let secret =
        |argv: &[&str]| cluster.kubectl(["-n", "nodemesh"].into_iter().chain(argv.iter().copied()));
    let there = || secret(&["get", "secret", "nodemesh-ca", "--ignore-not-found", "-o", "json"]);
    let kept: Value = serde_json::from_str(&there()?)?;
    let kept = json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": kept["data"],
        "metadata": {"name": "nodemesh-ca", "namespace": "nodemesh"}});
    let load = Load::start(cluster, mesh)?;
    let (start, before) = load.more(0)?;
    let anchors = |node: u8| -> Result<Value> { Ok(mesh.status_on_node(node)?["anchors"].clone()) };
    let old = anchors(1)?;

    // Deleted: no other CA is made beside the one in use, and each node reports it.
    secret(&["delete", "secret", "nodemesh-ca"])?;
    mesh.apply()?;
    for node in [1, 2] {
        mesh.wait_problem(node, "ca_missing", "the agents of node1, node2 go on with the CA")?;
    }
    ensure!(there()?.is_empty(), "another CA was made");
    cluster.kubectl_with(&kept.to_string(), ["apply", "-f", "-"])?;
    mesh.wait_no_problem(1)?;
    mesh.wait_no_problem(2)?;

    // Replaced on purpose: kubelets bring it one after another.
    let new = cluster.dir().join("another-ca");
    let dir = new.to_string_lossy();
    let init = Command::new(bin_dir().join("mesh-agent"))
        .args(["ca", "init", "--ca-dir", &dir])
        .status()?;
    ensure!(init.success());
    let files = format!("--from-file={dir}");
    let made = secret(&[
        "create",
        "secret",
        "generic",
        "nodemesh-ca",
        &files,
        "--dry-run=client",
        "-o",
        "yaml",
    ])?;
    cluster.kubectl_with(&made, ["-n", "nodemesh", "replace", "-f", "-"])?;
    // A kubelet looks at a pod's Secrets when the pod changes.
    let bring = |node: u8| secret(&["annotate", &mesh.agent(node)?, "look=again"]);
    bring(1)?;
    mesh.wait_problem(1, "ca_changed", "node2")?;
    let (middle, failed) = load.more(start)?;
    ensure!(failed == before, "{failed:?}");
    bring(2)?;
    eventually(PATIENCE, || {
        for node in [1, 2] {
            let now = anchors(node)?;
            ensure!(now != old && now.as_array().is_some_and(|all| all.len() == 1), "{now}");
        }
        Ok(())
    })?;
    mesh.wait_no_problem(1)?;
    mesh.wait_no_problem(2)?;
    let (_, failed) = load.more(middle)?;
    ensure!(failed == before, "{failed:?}");
    cluster.kubectl(["-n", "shop", "delete", "pod", "load"]).map(drop)
}

fn images_come_from_nobody_and_can_be_exchanged(
    cluster: &Cluster,
    mesh: &mut Mesh<'_>,
) -> Result<()> {
    // The image was not loaded on the node. It is not pulled, and the running agents go on.
    let agents = [mesh.agent(1)?, mesh.agent(2)?];
    let load = Load::start(cluster, mesh)?;
    let (start, failed_before) = load.settled(0)?;
    mesh.choose(&["--image", NOT_LOADED])?;
    mesh.apply()?;
    eventually(PATIENCE, || {
        let waiting = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
        let waiting = cluster.kubectl(["-n", "nodemesh", "get", "pods", "-o", waiting])?;
        // The agent, `make-ca` and `untaint`.
        let never = waiting.split(' ').filter(|why| *why == "ErrImageNeverPull").count();
        ensure!(never >= 3, "{waiting}");
        ensure!(
            !waiting.contains("ImagePullBackOff") && !waiting.contains("ErrImagePull"),
            "{waiting}"
        );
        Ok(())
    })?;
    for (node, agent) in [1, 2].into_iter().zip(&agents) {
        ensure!(mesh.status_on_node(node)?["ready"] == true, "{agent} has gone");
    }
    ensure!(curl(cluster, "web", "http://cart/")?.contains(GREETING));

    // Another upgrade at once, as after a mistake.
    cluster.tag_image("nodemesh.dev/mesh-agent:dev", NEXT)?;
    mesh.choose(&["--image", NEXT])?;
    mesh.apply()?;
    mesh.wait_ready()?;
    mesh.wait_gone(&agents)?;
    let (end, _) = load.more(start)?;
    let (end, failed) = load.more(end)?;
    ensure!(failed == failed_before, "{failed:?}");
    // Without the policy one agent could speak for all. An agent that starts reports that, and when
    // it is back.
    let policy = "validatingadmissionpolicybinding/nodemesh-agents-speak-for-their-own-node";
    cluster.kubectl(["delete", policy])?;
    let claim = json!({"apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode",
        "metadata": {"name": "node9"}, "spec": {"bootId": "", "trustDomain": "x.invalid", "pods": []}});
    let as_agent = "--as=system:serviceaccount:nodemesh:mesh-agent";
    let try_it = ["create", "--dry-run=server", as_agent, "-f", "-"];
    eventually(PATIENCE, || cluster.kubectl_with(&claim.to_string(), try_it).map(drop))
        .context("the API server refuses it still")?;
    mesh.kill_agent(1)?;
    mesh.wait_problem(1, "admission_not_in_force", "apply Nodemesh's manifest again")?;
    mesh.apply()?;
    mesh.wait_no_problem(1)?;
    for what in ["deployment/make-ca", "deployment/untaint"] {
        cluster.kubectl(["-n", "nodemesh", "rollout", "status", what, "--timeout=120s"])?;
    }
    mesh.diff().context("after an upgrade")?;
    ensure!(mesh.agent(1)? != agents[0] && mesh.agent(2)? != agents[1], "the same agents");
    mesh.wait_mtls(1, "shop/cart", || curl(cluster, "web", "http://cart/").map(drop))?;
    // Some have failed since an agent was killed.
    let (start, failed_before) = load.settled(end)?;

    // Another trust domain does not fit this CA: `make-ca`, which keeps it, says so, and the
    // running agents go on.
    mesh.choose(&["--image", NEXT, "--trust-domain", "other.example"])?;
    mesh.apply()?;
    let logs = |what: &str, words: &str| {
        eventually(PATIENCE, || {
            let selector = format!("app.kubernetes.io/name={what}");
            let said = cluster.kubectl(["-n", "nodemesh", "logs", "-l", &selector, "--tail=-1"])?;
            ensure!(said.contains(words), "{what}: {said}");
            Ok(())
        })
    };
    logs("make-ca", "is the CA of trust domain cluster.local, and other.example is asked for")?;
    logs(
        "mesh-agent",
        "is that of trust domain cluster.local, but --trust-domain says other.example",
    )?;
    ensure!(curl(cluster, "web", "http://cart/")?.contains(GREETING));
    mesh.choose(&["--image", NEXT])?;
    mesh.apply()?;
    mesh.wait_ready()?;
    let (end, _) = load.more(start)?;
    let (_, failed) = load.more(end)?;
    ensure!(failed == failed_before, "{failed:?}");
    Ok(())
}
