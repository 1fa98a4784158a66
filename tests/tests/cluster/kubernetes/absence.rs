//! Agents without the API server, in a real Kubernetes: it is stopped, out of reach, or does not
//! let them in. No agent falls back to plaintext meanwhile, and changes take effect soon
//! afterwards.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tests::{
    cluster::{
        Cluster, Machine, Mesh, PATIENCE,
        shop::{self, GREETING, Load, address, asking, curl, pod, server},
    },
    eventually,
    flow::Flow,
    probe::{self, DialSpec, End},
};

use super::WEB_AND_CART;

/// How long the API server is stopped, with agents that go on: longer than a watch (120 s). The
/// test sleeps meanwhile, and other tests run beside it.
const OUTAGE: Duration = Duration::from_secs(130);
/// How far off the age that agents tell may be: the time until they notice.
const NOTICED: Duration = Duration::from_secs(10);
/// How long an agent may take to know what has changed, and to act on it: a pause of 5 s between
/// attempts, and more on a busy machine.
const CAUGHT_UP: Duration = Duration::from_secs(20);
/// A kubelet's pauses between attempts are up to a minute long.
const KUBELET_PATIENCE: Duration = Duration::from_mins(3);

/// What an agent writes down, and where a copy of it outlives the agent.
const WORLD: &str = "/run/nodemesh/world.jsonl";
const OLD_WORLD: &str = "/run/old-world.jsonl";
/// Puts the copy back, as old as the agent says it is (by the file's time), and removes from it
/// that web's address was reported.
const BRING_BACK: &str = r#"
    touch -r $2 $1
    sed '/"name":"web"/s/"podIPs":\[[^]]*\]/"podIPs":[]/' $1 > $2
    touch -r $1 $2
    grep -c '"podIPs":\[\]' $2"#;

/// A static pod of node 1, as its mirror is named.
const STATIC: &str = "fixed-node1";

#[test]
fn api_server_stopped_for_minutes_under_load() -> Result<()> {
    let cluster = Mesh::cluster()?;
    shop::open(&cluster)?;
    let mesh = Mesh::install(&cluster)?;
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&WEB_AND_CART, "enrolled")?;
    let load = Load::start(&cluster, &mesh)?;
    keep_an_open_world(&cluster)?;
    let (cart, near) = (address(&cluster, "cart")?, address(&cluster, "near")?);
    ensure!(from_node(&cluster, 2, near)?.contains(GREETING));
    cluster.kubectl(["annotate", "namespace", "shop", "nodemesh.dev/mode=strict"])?;
    mesh.wait_strict(&WEB_AND_CART)?;
    mesh.wait_strict(&[(1, "shop/near"), (1, "shop/load")])?;
    load.settled(0)?;
    let (start, before) = load.more(0)?; // some may have failed while all became strict

    let agents = [mesh.agent_address(1)?, mesh.agent_address(2)?];
    let away = Instant::now();
    cluster.stop_api_server()?;
    for node in [1, 2] {
        mesh.wait_problem(node, "api_server_away", "Connection refused")?;
    }
    let (seen, failed) = load.more(start)?;
    ensure!(failed == before, "{failed:?}");
    is_closed(&cluster, &mesh, 1, cart)?;
    let fixed = a_static_pod_is_neither_enrolled_nor_held(&cluster, &mesh, cart)?;

    thread::sleep(OUTAGE.saturating_sub(away.elapsed()));
    let (end, failed) = load.more(seen)?;
    ensure!(failed == before, "{failed:?}");
    for (node, agent) in [1, 2].into_iter().zip(agents) {
        let known = mesh.status_on_node(node)?["knowledge"].clone();
        let told = metric(&cluster, agent, "nodemesh_knowledge_age_seconds")?;
        let gone = away.elapsed();
        ensure!(known["from"] == "source" && known["as_of"].is_string(), "{known:#}");
        for age in [known["age_s"].as_u64().context("no age")?, told] {
            let age = Duration::from_secs(age);
            ensure!(age <= gone && age + NOTICED >= gone, "away for {gone:?}, not {age:?}");
        }
    }
    println!(
        "{} requests in {:.0?} without the API server, none failed",
        end - start,
        away.elapsed()
    );
    is_closed(&cluster, &mesh, 1, cart)?;
    agents_begin_without_it(&cluster, &mesh, &load, [cart, near], away)?;

    cluster.start_api_server()?;
    println!("the API server was away for {:.0?}", away.elapsed());
    what_changes_at_once_takes_effect(&cluster, &mesh, cart)?;
    mesh.wait_state(&WEB_AND_CART, "enrolled")?;
    load.settled(0)?;
    eventually(PATIENCE, || {
        let known = mesh.status_on_node(1)?["knowledge"].clone();
        ensure!(known == json!({"from": "source", "as_of": null, "age_s": 0}), "{known:#}");
        Ok(())
    })?;

    // The static pod is known once its kubelet has told the API server of it.
    eventually(KUBELET_PATIENCE, || {
        let found = mesh.state_of(1, &format!("shop/{STATIC}"))?;
        ensure!(found["state"] == "enrolled" && found["mode"] == "strict", "{found:#}");
        let newest = said(&cluster, STATIC)?.pop();
        ensure!(newest.as_deref() == Some("200 0"), "a pod that is known is answered {newest:?}");
        Ok(())
    })?;
    is_closed(&cluster, &mesh, 2, fixed)?;
    let late = eventually(KUBELET_PATIENCE, || {
        let found = mesh.state_of(2, "shop/late")?;
        ensure!(found["state"] == "enrolled" && found["mode"] == "strict", "{found:#}");
        address(&cluster, "late")
    })?;
    web_is_carried(&cluster, &mesh, "late", &format!("http://{late}:8080/"))?;
    is_closed(&cluster, &mesh, 1, late)?;

    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh-"])?;
    mesh.wait_state(&WEB_AND_CART, "not_enrolled")?;
    for node in [1, 2] {
        mesh.wait_no_problem(node)?;
    }
    ensure!(from_node(&cluster, 1, cart)?.contains(GREETING));
    cluster.down()
}

/// A static pod: the only kind of new pod that a kubelet learns of now. Its namespace is strict,
/// but no agent knows the pod. So it is open, as it would be without a mesh, and its own dials to
/// strict pods are refused. Returns its address.
fn a_static_pod_is_neither_enrolled_nor_held(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
    cart: IpAddr,
) -> Result<IpAddr> {
    let serve = server().replace("exec httpd -f", "httpd");
    let ask = asking(&format!("http://{cart}:8080/"), "sleep 0.5;");
    let script = format!("ip -4 -o address show dev eth0; {serve}; {ask}");
    let fixed = pod("fixed", 1, &script).to_string();
    let write = "printf %s \"$1\" > /etc/kubernetes/manifests/fixed.json";
    cluster.node(1).run(["sh", "-c", write, "sh", &fixed])?;
    let (told, fixed) = eventually(PATIENCE, || {
        let told = said(cluster, STATIC)?;
        ensure!(told.len() > 3, "it has said {told:?}");
        // 2: eth0    inet 10.244.1.7/24 brd …
        let range = told[0].split_whitespace().nth(3).context("no range")?;
        let address = range.split('/').next().context("no address")?;
        Ok((told.clone(), address.parse::<IpAddr>()?))
    })?;
    ensure!(!told.contains(&"200 0".to_owned()), "a strict pod takes plaintext: {told:?}");
    ensure!(from_node(cluster, 2, fixed)?.contains(GREETING));
    let status = mesh.status_on_node(1)?;
    let found = Mesh::state_in(&status, &format!("shop/{STATIC}"));
    ensure!(found.is_err(), "known without the API server: {found:#?}");
    Ok(fixed)
}

/// An agent that starts now goes on with what the earlier one wrote down. One that finds nothing
/// leaves all as it is.
fn agents_begin_without_it(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
    load: &Load<'_>,
    [cart, near]: [IpAddr; 2],
    away: Instant,
) -> Result<()> {
    let (end, before) = load.more(0)?;
    let capture = cluster.node(1).capture()?;
    // What it finds is older than two facts: that pods are strict, and that web's address was
    // reported. The kernel's tables know better.
    let killed = kill_agent_with_an_old_world(cluster, mesh)?;
    eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        let known = &status["knowledge"];
        ensure!(status["pid"] != killed && status["ready"] == true, "{status:#}");
        let age = Duration::from_secs(known["age_s"].as_u64().unwrap_or(0));
        ensure!(known["from"] == "disk" && age <= away.elapsed(), "{known:#}");
        ensure!(age + NOTICED >= away.elapsed(), "{known:#}");
        Ok(())
    })?;
    mesh.wait_problem(1, "world_from_disk", "")?;
    eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        for name in ["near", "load", "web"] {
            let pod = Mesh::state_in(&status, &format!("shop/{name}"))?;
            ensure!(pod["state"] == "enrolled" && pod["mode"] == "strict", "{pod:#}");
            ensure!(pod["permissive_ports"] == "" && pod["addresses"] != json!([]), "{pod:#}");
        }
        Ok(())
    })?;
    is_closed(cluster, mesh, 2, near)?;
    let (start, failed) = load.settled(end)?;
    let (_, later) = load.more(start)?;
    ensure!(later == failed, "the load still fails: {later:?}");
    println!(
        "{} dials failed while an agent began without the API server",
        later.len() - before.len()
    );
    let flows = mesh.flows_on_node(1)?;
    let ended: Vec<_> = flows.iter().filter(|flow| flow.outcome == "closed").collect();
    ensure!(ended.len() > 50 && ended.iter().all(|flow| flow.is_mtls()), "{} flows", ended.len());
    is_closed(cluster, mesh, 1, cart)?;

    // An agent that finds nothing, or nothing usable, leaves all as it is: no pod talks in
    // plaintext instead.
    cluster.node(1).run(["sh", "-c", &format!("echo nonsense > {WORLD}")])?;
    let killed = mesh.kill_agent(1)?;
    eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        ensure!(status["pid"] != killed, "not yet another one");
        ensure!(status["ready"] == false && status["pods"] == json!([]), "{status:#}");
        Ok(())
    })?;
    for code in ["api_server_away", "world_file_unusable"] {
        mesh.wait_problem(1, code, "")?;
    }
    let (now, before) = load.more(0)?;
    let (end, after) = load.more(now)?;
    ensure!(after.len() - before.len() == end - now, "an agent that knows nothing carries");
    ensure!(!capture.stop()?.contains(GREETING), "plaintext");
    is_closed(cluster, mesh, 1, cart)
}

/// Keeps what the agent of node 1 writes down while no pod is strict, and near has a port that
/// would be open if it were.
fn keep_an_open_world(cluster: &Cluster) -> Result<()> {
    let of_near = |it: &str| cluster.kubectl(["-n", "shop", "annotate", "pod", "near", it]);
    of_near("nodemesh.dev/permissive-ports=8080")?;
    eventually(PATIENCE, || {
        let world = cluster.node(1).run(["cat", WORLD])?;
        let pod = |name: &str| {
            let is = |line: &&str| {
                line.contains(r#""kind":"Pod""#) && line.contains(&format!(r#""name":"{name}""#))
            };
            world.lines().find(is).with_context(|| format!("{name} is not in {world}"))
        };
        let annotated = pod("near")?.contains(r#""nodemesh.dev/permissive-ports":"8080""#);
        ensure!(annotated && pod("load")?.contains(r#""podIPs":[{"#), "not yet: {world}");
        ensure!(!world.contains("nodemesh.dev/mode"), "{world}");
        cluster.node(1).run(["cp", WORLD, OLD_WORLD]).map(drop)
    })?;
    of_near("nodemesh.dev/permissive-ports-").map(drop)
}

/// Kills the agent of node 1, as if it had not yet written down that pods are strict, nor web's
/// address. Returns its pid.
fn kill_agent_with_an_old_world(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<Value> {
    let killed = mesh.status_on_node(1)?["pid"].clone();
    let (node, pid) = (cluster.node(1), killed.to_string());
    node.run(["kill", "-STOP", &pid])?;
    ensure!(
        node.run(["sh", "-c", BRING_BACK, "sh", OLD_WORLD, WORLD])?.trim() == "1",
        "web is not in it"
    );
    node.run(["kill", "-KILL", &pid])?;
    Ok(killed)
}

/// A label is removed, and a mode changes there and back, within seconds after the API server is
/// back. A new pod takes as long as its kubelet.
fn what_changes_at_once_takes_effect(
    cluster: &Cluster,
    mesh: &Mesh<'_>,
    cart: IpAddr,
) -> Result<()> {
    let since = Instant::now();
    let of_pod = |what: &str, pod: &str, is: &str| {
        cluster.kubectl(["-n", "shop", what, "pod", pod, "--overwrite", is])
    };
    of_pod("label", "near", "nodemesh.dev/mesh=disabled")?;
    of_pod("annotate", "cart", "nodemesh.dev/mode=permissive")?;
    cluster.kubectl_with(&pod("late", 2, &server()).to_string(), ["apply", "-f", "-"])?;
    let is = |node: u8, pod: &str, key: &str, value: &str| {
        eventually(CAUGHT_UP.saturating_sub(since.elapsed()), || {
            let found = Mesh::state_in(&mesh.status_on_node(node)?, pod)?;
            ensure!(found[key] == value, "{found:#}");
            Ok(())
        })
    };
    is(1, "shop/near", "state", "not_enrolled")?;
    is(2, "shop/cart", "mode", "permissive")?;
    println!("what had changed was in force {:.1?} after the API server was back", since.elapsed());
    ensure!(from_node(cluster, 1, cart)?.contains(GREETING));
    of_pod("annotate", "cart", "nodemesh.dev/mode-")?;
    let since = Instant::now();
    eventually(CAUGHT_UP, || {
        let found = Mesh::state_in(&mesh.status_on_node(2)?, "shop/cart")?;
        ensure!(found["mode"] == "strict", "{found:#}");
        Ok(())
    })?;
    println!("strict again after {:.1?}", since.elapsed());
    is_closed(cluster, mesh, 1, cart)
}

#[test]
fn an_agent_that_was_cut_off_or_not_let_in_catches_up() -> Result<()> {
    let cluster = Mesh::cluster()?;
    shop::open(&cluster)?;
    let mesh = Mesh::install(&cluster)?;
    cluster.kubectl(["label", "namespace", "shop", "nodemesh.dev/mesh=enabled"])?;
    mesh.wait_state(&[(1, "shop/web"), (2, "shop/cart"), (1, "shop/near")], "enrolled")?;
    what_was_missed_is_listed_anew(&cluster, &mesh)?;
    without_rights(&cluster, &mesh)?;
    without_an_account(&cluster, &mesh)?;
    cluster.down()
}

/// One agent does not reach the API server, which forgets what happens meanwhile. It answers 410 to
/// a client that would go on from before.
fn what_was_missed_is_listed_anew(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let on_disk = |what: &str| -> Result<bool> {
        let name = format!("\"{what}\"");
        let count = "grep -c \"$1\" /run/nodemesh/world.jsonl || true";
        let count = cluster.node(1).run(["sh", "-c", count, "sh", &name])?;
        Ok(count.trim() != "0")
    };
    eventually(PATIENCE, || {
        ensure!(on_disk("near")?, "what is known of the service is not looked for rightly");
        Ok(())
    })?;
    let agent = mesh.agent(1)?;
    let logged = |words: &str| -> Result<Vec<String>> {
        let log = cluster.kubectl(["-n", "nodemesh", "logs", &agent])?;
        let is = |line: &&str| line.contains(words);
        Ok(log.lines().filter(is).map(ToOwned::to_owned).collect())
    };
    let expired = || logged("listing everything anew");
    ensure!(expired()?.is_empty(), "a 410 before there was a reason");

    let cut = Cut::between_agent_and_api_server(cluster, mesh)?;
    ensure!(mesh.sever(1)? > 0, "the agent has no connections");
    mesh.wait_problem(1, "api_server_away", "")?;
    cluster.kubectl(["-n", "shop", "delete", "pod/near", "service/near"])?;
    cluster.kubectl(["-n", "shop", "annotate", "pod", "web", "nodemesh.dev/mode=strict"])?;
    let service = |name: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"selector": {"app": name}, "ports": [{"port": 80, "targetPort": 8080}]}})
    };
    let new = json!({"apiVersion": "v1", "kind": "List", "items": [
        pod("late", 1, &server()), pod("far", 2, &server()), service("late"), service("far")]});
    cluster.kubectl_with(&new.to_string(), ["apply", "-f", "-"])?;
    shop::ready(cluster, "shop")?;
    mesh.wait_state(&[(2, "shop/far")], "enrolled")?;
    forget(cluster)?;
    // It still knows what it knew before, and nothing else.
    let status = mesh.status_on_node(1)?;
    let web = Mesh::state_in(&status, "shop/web")?;
    ensure!(web["state"] == "enrolled" && web["mode"] == "permissive", "{web:#}");
    ensure!(Mesh::state_in(&status, "shop/late").is_err(), "{status:#}");
    ensure!(status["knowledge"]["age_s"].as_u64() > Some(0), "{:#}", status["knowledge"]);
    ensure!(on_disk("near")?, "it hears of what goes");
    ensure!(!on_disk("late")?, "it hears of what comes");
    ensure!(expired()?.is_empty(), "a 410 in spite of the cut");

    drop(cut);
    let since = Instant::now();
    eventually(CAUGHT_UP, || {
        let status = mesh.status_on_node(1)?;
        let (web, late) =
            (Mesh::state_in(&status, "shop/web")?, Mesh::state_in(&status, "shop/late")?);
        ensure!(web["state"] == "enrolled" && web["mode"] == "strict", "{web:#}");
        ensure!(late["state"] == "enrolled", "{late:#}");
        ensure!(Mesh::state_in(&status, "shop/near").is_err(), "the deleted pod is still there");
        let known = &status["knowledge"];
        ensure!(known["from"] == "source" && known["age_s"] == 0, "{known:#}");
        Ok(())
    })?;
    println!("an agent that was cut off has caught up {:.1?} later", since.elapsed());
    let problems = logged("cannot be watched")?;
    ensure!(!problems.is_empty(), "what is a problem is not looked for rightly");
    ensure!(!problems.concat().contains("too old"), "a 410 is a problem: {problems:#?}");
    let expired = expired()?;
    for kind in ["namespaces", "pods", "services", "endpointslices", "meshnodes"] {
        let is = |line: &&String| line.contains(&format!("/{kind}")) && line.contains("too old");
        ensure!(expired.iter().any(|line| is(&line)), "no 410 for {kind}: {expired:#?}");
    }
    for server in ["late", "far"] {
        web_is_carried(cluster, mesh, server, &format!("http://{server}/"))?;
    }
    eventually(PATIENCE, || {
        ensure!(!on_disk("near")? && on_disk("late")?, "what is on disk is not what is known");
        Ok(())
    })?;
    mesh.wait_no_problem(1)
}

/// All that etcd and the API server know of the past is lost, without either losing what is.
fn forget(cluster: &Cluster) -> Result<()> {
    let etcd = |what: &str, body: &str| -> Result<Value> {
        let url = format!("http://127.0.0.1:2379/v3/{what}");
        let post = ["curl", "--silent", "--show-error", "--fail", "--data", body, &url];
        Ok(serde_json::from_str(&cluster.control().run(post)?)?)
    };
    let status = etcd("maintenance/status", "{}")?;
    let revision = status["header"]["revision"].as_str().context("no revision")?;
    let compact = json!({"revision": revision, "physical": true}).to_string();
    etcd("kv/compaction", &compact)?;
    cluster.stop_api_server()?;
    cluster.start_api_server()
}

/// 403: rights are checked whenever a watch begins.
fn without_rights(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    cluster.kubectl(["annotate", "namespace", "shop", "nodemesh.dev/mode=strict"])?;
    mesh.wait_strict(&WEB_AND_CART)?;
    let (late, cart) = (address(cluster, "late")?, address(cluster, "cart")?);
    let load = Load::start(cluster, mesh)?;
    let (start, before) = load.settled(0)?;

    cluster.kubectl(["delete", "clusterrolebinding", "nodemesh-mesh-agent"])?;
    eventually(PATIENCE, || {
        ensure!(!mesh.account_may("mesh-agent", "list", "nodes")?, "they still may");
        Ok(())
    })?;
    for node in [1, 2] {
        ensure!(mesh.sever(node)? > 0, "the agent has no connections");
        mesh.wait_problem(node, "api_server_away", "forbidden")?;
    }
    let (end, failed) = load.more(start)?;
    ensure!(failed == before, "{failed:?}");
    is_closed(cluster, mesh, 1, cart)?;
    is_closed(cluster, mesh, 2, late)?;

    let killed = mesh.kill_agent(1)?;
    eventually(PATIENCE, || {
        let status = mesh.status_on_node(1)?;
        ensure!(status["pid"] != killed && status["ready"] == true, "{status:#}");
        ensure!(status["knowledge"]["from"] == "disk", "{:#}", status["knowledge"]);
        let late = Mesh::state_in(&status, "shop/late")?;
        ensure!(late["state"] == "enrolled" && late["mode"] == "strict", "{late:#}");
        Ok(())
    })?;
    mesh.wait_problem(1, "api_server_away", "forbidden")?;
    mesh.wait_problem(1, "world_from_disk", "")?;
    what_is_missing_is_told_seldom_and_in_words(cluster, mesh)?;
    is_closed(cluster, mesh, 2, late)?;
    load.settled(end)?;
    cluster.kubectl(["-n", "shop", "label", "pod", "late", "nodemesh.dev/mesh=disabled"])?;

    mesh.apply()?;
    let since = Instant::now();
    eventually(CAUGHT_UP, || {
        let late = Mesh::state_in(&mesh.status_on_node(1)?, "shop/late")?;
        ensure!(late["state"] == "not_enrolled", "{late:#}");
        Ok(())
    })?;
    println!("agents that have their rights again have caught up {:.1?} later", since.elapsed());
    ensure!(from_node(cluster, 2, late)?.contains(GREETING));
    for node in [1, 2] {
        mesh.wait_no_problem(node)?;
    }
    Ok(())
}

/// Node 2's agent has been without rights for a while, and asks every few seconds.
fn what_is_missing_is_told_seldom_and_in_words(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    // Six kinds of objects are asked for. Each is reported at once and then once a minute.
    const MOST: usize = 12;
    let said = cluster.kubectl(["-n", "nodemesh", "logs", &mesh.agent(2)?, "--since=60s"])?;
    let about: Vec<_> = said.lines().filter(|line| line.contains("forbidden")).collect();
    ensure!(!about.is_empty() && about.len() <= MOST, "{} lines: {about:#?}", about.len());
    for line in about {
        for word in ["mesh-agent", "cannot ", "apply Nodemesh's manifest again"] {
            ensure!(line.contains(word), "no {word} in {line}");
        }
        ensure!(!line.contains("Status {") && !line.contains("Some("), "{line}");
    }
    Ok(())
}

/// 401: the API server does not accept the agents' tokens any more. They need others, so new pods.
fn without_an_account(cluster: &Cluster, mesh: &Mesh<'_>) -> Result<()> {
    let cart = address(cluster, "cart")?;
    let agents = [mesh.agent(1)?, mesh.agent(2)?];
    let load = Load::start(cluster, mesh)?; // it runs already
    let (start, before) = load.settled(0)?;
    cluster.kubectl(["-n", "nodemesh", "delete", "serviceaccount", "mesh-agent"])?;
    // The API server caches a token's account for some seconds.
    eventually(PATIENCE, || {
        mesh.sever(2)?;
        let found = mesh.problems_on_node(2)?;
        let is_it = |(code, message): &(String, String)| {
            code == "api_server_away" && message.contains("Unauthorized")
        };
        ensure!(found.iter().any(is_it), "{found:#?}");
        Ok(())
    })?;
    let found = Mesh::state_in(&mesh.status_on_node(2)?, "shop/cart")?;
    ensure!(found["state"] == "enrolled" && found["mode"] == "strict", "{found:#}");
    ensure!(curl(cluster, "web", "http://cart/")?.contains(GREETING));
    is_closed(cluster, mesh, 1, cart)?;

    mesh.apply()?;
    cluster.kubectl(["-n", "nodemesh", "rollout", "restart", "ds/mesh-agent"])?;
    mesh.wait_ready()?;
    mesh.wait_strict(&WEB_AND_CART)?;
    mesh.wait_gone(&agents)?;
    for node in [1, 2] {
        mesh.wait_no_problem(node)?;
    }
    let (end, _) = load.more(start)?;
    let (_, failed) = load.more(end)?;
    ensure!(failed == before, "{failed:?}");
    is_closed(cluster, mesh, 1, cart)
}

/// Waits until what a pod of node 1 asks of another goes over mutual TLS.
fn web_is_carried(cluster: &Cluster, mesh: &Mesh<'_>, server: &str, url: &str) -> Result<()> {
    let server = format!("shop/{server}");
    let is_it = |flow: &Flow| {
        flow.is_mtls()
            && flow.client.pod.as_deref() == Some("shop/web")
            && flow.server.pod.as_ref() == Some(&server)
    };
    eventually(PATIENCE, || {
        ensure!(curl(cluster, "web", url)?.contains(GREETING));
        ensure!(mesh.flows(1)?.iter().any(is_it), "{server} is not dialled over mutual TLS");
        Ok(())
    })
}

/// What an agent tells Prometheus, asked on node 1.
fn metric(cluster: &Cluster, agent: IpAddr, name: &str) -> Result<u64> {
    let url = format!("http://{}/metrics", SocketAddr::new(agent, 15_020));
    let curl = ["curl", "--silent", "--show-error", "--fail", "--max-time", "5", &url];
    let page = cluster.node(1).place()?.run(curl)?.success()?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.with_context(|| format!("no {name} in {page}"))
}

/// What a client on a node, outside the mesh, gets from a pod.
fn from_node(cluster: &Cluster, node: u8, pod: IpAddr) -> Result<String> {
    let url = format!("http://{pod}:8080/");
    let curl = ["curl", "--silent", "--show-error", "--max-time", "5", &url];
    cluster.node(node).place()?.run(curl)?.success()
}

/// A strict pod of the other node refuses a client on a node, outside the mesh: the kernel answers
/// the SYN with a reset, and counts that it did so since the pod is strict.
fn is_closed(cluster: &Cluster, mesh: &Mesh<'_>, node: u8, pod: IpAddr) -> Result<()> {
    let refused = || -> Result<u64> {
        let status = mesh.status_on_node(3 - node)?;
        Ok(status["verdicts"]["refused_strict"].as_u64().unwrap_or(0))
    };
    let before = refused()?;
    let dial = DialSpec::say((pod, 8080).into(), "plaintext");
    let seen = probe::dial(&cluster.node(node).place()?, &dial)?;
    ensure!(!seen.connected && seen.end == End::Refused, "strict is not closed: {seen:?}");
    ensure!(refused()? > before, "it is not refused as strict: {seen:?}");
    Ok(())
}

/// What a pod of node 1 has said, asked on the node.
fn said(cluster: &Cluster, pod: &str) -> Result<Vec<String>> {
    shop::log(cluster, 1, "shop", pod, "main")
}

/// Node 1's agent and the API server live, and nothing goes between them. Ends when dropped.
struct Cut<'a> {
    node: &'a Machine,
}

impl<'a> Cut<'a> {
    fn between_agent_and_api_server(cluster: &'a Cluster, mesh: &Mesh<'_>) -> Result<Self> {
        let agent = mesh.agent_address(1)?;
        // New connections are reset, so that no client waits for one that fails. Answers are
        // dropped: a reset would tell the API server. The chain comes after kube-proxy has
        // translated the service's address.
        let rules = format!(
            "add table inet cut; \
             add chain inet cut forward {{ type filter hook forward priority -10; }}; \
             add rule inet cut forward ip saddr {agent} tcp dport 6443 reject with tcp reset; \
             add rule inet cut forward ip daddr {agent} tcp sport 6443 drop"
        );
        let node = cluster.node(1);
        node.run(["nft", &rules])?;
        Ok(Self { node })
    }
}

impl Drop for Cut<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.node.run(["nft", "delete table inet cut"]) {
            println!("the cut stays: {error:#}");
        }
    }
}
