//! Every bad input gets a sentence that names the file, the field and the remedy; and what ran
//! before goes on.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tests::{
    Net, Node, PORT, Pair, PodSpec, SHOP,
    agent::{self, Dirs, SOON},
    certs::{self, Validity},
    exec::Output,
    objects::{self, MODE},
    probe::{self, DialSpec, End, Talk},
    scenario,
};

/// A node with nothing on it, and the CA.
fn node(net: &Net) -> Result<Node> {
    let dirs = Dirs::of(net);
    agent::ca_init(&dirs)?;
    fs::create_dir_all(&dirs.announce)?;
    net.node("node1")
}

/// Runs the agent with arguments that it must refuse, and returns what it said.
fn refused(net: &Net, node: &Node, before: &[&str], change: &[(&str, &str)]) -> Result<String> {
    let mut argv = agent::run_argv(node, &Dirs::of(net));
    for (option, value) in change {
        let at = argv.iter().position(|word| word == option);
        match at {
            Some(at) => argv[at + 1] = value.into(),
            None => argv.extend([option.into(), value.into()]),
        }
    }
    let argv = before.iter().map(Into::into).chain(argv);
    let output = node.run_for(SOON, argv)?;
    ensure!(!output.status.success(), "it started, and ended well: {output}");
    Ok(said(&output))
}

/// One line, since sentences are wrapped for the terminal.
fn said(output: &Output) -> String {
    (output.stderr.clone() + &output.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
}

fn names(text: &str, words: &[&str]) -> Result<()> {
    let missing: Vec<_> = words.iter().filter(|word| !text.contains(**word)).collect();
    ensure!(missing.is_empty(), "{missing:?} not in: {text}");
    ensure!(!text.contains("panicked"), "{text}");
    Ok(())
}

#[test]
fn not_root() {
    scenario("inputs-root", |net| {
        let node = node(net)?;
        let unprivileged = ["setpriv", "--reuid", "65534", "--clear-groups", "--"];
        names(&refused(net, &node, &unprivileged, &[])?, &["root", "65534"])
    });
}

#[test]
fn no_cgroup_v2() {
    scenario("inputs-cgroup", |net| {
        let node = node(net)?;
        let dir = net.tag().dir().to_string_lossy().into_owned();
        names(&refused(net, &node, &[], &[("--cgroup", &dir)])?, &["--cgroup", &dir, "cgroup v2"])?;
        // A host that has no cgroup v2 mounted: our own mount namespace, without it.
        let unmount = "umount -l -a -t cgroup2; exec \"$@\"";
        let without = ["unshare", "-m", "sh", "-c", unmount, "sh"];
        names(&refused(net, &node, &without, &[])?, &["cgroup v2", "mount -t cgroup2"])
    });
}

#[test]
fn no_bpffs() {
    scenario("inputs-bpffs", |net| {
        let node = node(net)?;
        let dir = net.tag().dir().join("pins").to_string_lossy().into_owned();
        names(
            &refused(net, &node, &[], &[("--pin-dir", &dir)])?,
            &["--pin-dir", &dir, "mount -t bpf"],
        )
    });
}

#[test]
fn directories_that_are_not_there() {
    scenario("inputs-dirs", |net| {
        let node = node(net)?;
        for option in ["--source", "--ca-dir"] {
            let text = refused(net, &node, &[], &[(option, "/nonexistent/dir")])?;
            names(&text, &["/nonexistent/dir"])?;
        }
        let text = refused(net, &node, &[], &[("--node", "Not A Name")])?;
        names(&text, &["--node", "Not A Name"])
    });
}

#[test]
fn a_key_that_is_not_the_certificates() {
    scenario("inputs-key", |net| {
        let node = node(net)?;
        let ours = certs::anchor_in(&Dirs::of(net).ca);
        let other = certs::new_anchor(&net.tag().dir().join("other"), "other", Validity::Now)?;
        fs::copy(other.key, &ours.key)?;
        let (cert, key) = (ours.cert.to_string_lossy(), ours.key.to_string_lossy());
        names(&refused(net, &node, &[], &[])?, &[&key, &cert])
    });
}

#[test]
fn a_file_of_the_ca_that_is_not_pem() {
    scenario("inputs-pem", |net| {
        let node = node(net)?;
        let ours = certs::anchor_in(&Dirs::of(net).ca);
        for file in [&ours.cert, &ours.key] {
            let good = fs::read(file)?;
            fs::write(file, "-----BEGIN nonsense")?;
            names(&refused(net, &node, &[], &[])?, &[&file.to_string_lossy()])?;
            fs::write(file, good)?;
        }
        Ok(())
    });
}

#[test]
fn an_anchor_that_has_expired() {
    scenario("inputs-expired", |net| {
        let node = node(net)?;
        let ours = certs::anchor_in(&Dirs::of(net).ca);
        let domain = "spiffe://cluster.local";
        let old = certs::new_anchor_for(
            &net.tag().dir().join("old"),
            "old",
            Some(domain),
            Validity::Past,
        )?;
        fs::copy(old.key, &ours.key)?;
        fs::copy(&old.cert, &ours.cert)?;
        fs::copy(&old.cert, ours.cert.with_file_name("anchors.pem"))?;
        names(&refused(net, &node, &[], &[])?, &[&Dirs::of(net).ca.to_string_lossy(), "expired"])
    });
}

#[test]
fn a_second_agent_for_the_node() {
    scenario("inputs-second", |net| {
        let pair = Pair::meshed(net)?;
        let service = pair.serve(Talk::Exchange)?;
        let lock = pair.nodes[0].runtime_dir().to_string_lossy().into_owned();
        names(&refused(net, &pair.nodes[0], &[], &[])?, &["another agent", "pid", &lock])?;
        still_meshed(&pair)?;
        service.stop()
    });
}

/// What ran before goes on: the pods are in the mesh and talk.
fn still_meshed(pair: &Pair<'_>) -> Result<()> {
    let flows = || -> Result<usize> {
        Ok(pair.agents[0].flows()?.iter().filter(|flow| flow.is_mtls()).count())
    };
    let before = flows()?;
    let seen = probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
    ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
    tests::eventually(SOON, || ensure_more(flows()?, before))
}

fn ensure_more(now: usize, before: usize) -> Result<()> {
    ensure!(now > before, "{now} connections over mTLS, as before");
    Ok(())
}

#[test]
fn files_with_mistakes() {
    // What is wrong, the text, and what the message must name beside the file.
    const MISTAKES: [(&str, &str, &[&str]); 6] = [
        ("syntax", "apiVersion: v1\nkind: Pod\nmetadata: {name: x\n", &[]),
        (
            "type",
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  namespace: shop\nspec: {containers: 7}\n",
            &["containers"],
        ),
        ("no-kind", "apiVersion: v1\nmetadata:\n  name: x\n", &["kind"]),
        ("no-name", "apiVersion: v1\nkind: Namespace\nmetadata: {}\n", &["name"]),
        (
            "bad-address",
            "apiVersion: v1\nkind: Pod\nmetadata: {name: x, namespace: shop, uid: u1}\nspec: {nodeName: node1, containers: []}\nstatus: {podIPs: [{ip: 10.0.0.999}]}\n",
            &["podIP", "10.0.0.999"],
        ),
        (
            "bad-label",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: z, labels: {nodemesh.dev/mesh: maybe}}\n",
            &["nodemesh.dev/mesh", "maybe", "enabled"],
        ),
    ];
    scenario("inputs-files", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        for (what, text, words) in MISTAKES {
            let file = format!("bad-{what}.yaml");
            net.objects().write(&file, text)?;
            let problem = pair.agents[0].wait_problem(what, |problem| {
                problem.message.contains(&file) || problem.message.contains('z')
            })?;
            names(&problem.message, words)?;
            still_meshed(&pair)?;
            net.objects().remove(&file)?;
        }
        // A good file that turns bad keeps what it said before.
        let file = objects::pod_file(&pair.server);
        net.objects().write(&file, "kind: [")?;
        pair.agents[1].wait_problem("the pod's file", |problem| problem.message.contains(&file))?;
        still_meshed(&pair)?;
        // And the problem goes when the file is mended.
        net.objects().annotate_pod(&pair.server, "mended", Some("true"))?;
        tests::eventually(SOON, || {
            let problems = pair.agents[1].status()?.problems;
            ensure!(problems.is_empty(), "{problems:?}");
            Ok(())
        })
    });
}

/// What cannot be read stays as it was, for every agent that comes after the one that read it.
#[test]
fn mistakes_over_a_restart_and_an_upgrade() {
    scenario("inputs-restart", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let agent = &pair.agents[1];
        let known = pair.nodes[1].runtime_dir().join("world.jsonl");
        let again = |what: &str| -> Result<()> {
            agent.wait_enrolled(&[&pair.server]).with_context(|| what.to_owned())?;
            pair.agents[0].wait_peers(1)?;
            still_meshed(&pair).with_context(|| what.to_owned())
        };
        let mistake = |code: &str| agent.wait_problem(code, |problem| problem.code == code);

        // A setting, of the pod's namespace.
        net.objects().label_namespace(SHOP, Some("enabeld"))?;
        mistake("invalid_setting")?;
        drop(agent.take_over()?);
        again("taken over")?;
        agent.stop()?;
        agent.start_again()?;
        mistake("invalid_setting")?;
        again("started again")?;
        // The file with what it said is gone: the kernel knows.
        agent.kill9()?;
        fs::remove_file(&known)?;
        agent.start_again()?;
        mistake("invalid_setting")?;
        again("without a word of the earlier agent")?;
        net.objects().label_namespace(SHOP, Some("enabled"))?;

        // A file, and what another node announces.
        let file = objects::pod_file(&pair.server);
        net.objects().write(&file, "kind: [")?;
        mistake("bad_file")?;
        agent.stop()?;
        agent.start_again()?;
        mistake("bad_file")?;
        again("with a file that cannot be read")?;
        net.objects().write(&file, "")?;
        drop(agent.take_over()?);
        mistake("bad_file")?;
        again("with a file that is empty")?;
        let announced = Dirs::of(net).announce.join("node2.json");
        pair.agents[0].stop()?;
        fs::write(&announced, "{")?;
        pair.agents[0].start_again()?;
        pair.agents[0].wait_problem("node2.json", |it| it.message.contains("node2.json"))?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        again("with an announcement that cannot be read")?;

        // Deleting it is a change that can be read.
        net.objects().remove(&file)?;
        tests::eventually(SOON, || {
            let status = agent.status()?;
            ensure!(status.pod(&pair.server).is_err(), "{status:?}");
            Ok(())
        })
    });
}

#[test]
fn a_network_namespace_that_is_not_there() {
    scenario("inputs-netns", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let odd = net.pod(&pair.nodes[0], PodSpec::new(SHOP, "odd"))?;
        net.objects().annotate_pod(&odd, objects::NETNS, Some("no-such-namespace"))?;
        let status = tests::eventually(SOON, || {
            let status = pair.agents[0].status()?.pod(&odd)?;
            ensure!(status.reason.contains("no-such-namespace"), "{status:?}");
            Ok(status)
        })?;
        ensure!(status.state == "not_enrolled" && !status.code.is_empty(), "{status:?}");
        names(&status.reason, &["nodemesh.dev/netns"])?;
        still_meshed(&pair)?;
        // A strict pod that cannot be enrolled is not silently open to the mesh: no peer is told
        // that it is captured.
        pair.agents[1].wait_peers(1)
    });
}

#[test]
fn two_pods_with_one_address() {
    scenario("inputs-address", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let text = fs::read_to_string(net.objects().dir().join(objects::pod_file(&pair.server)))?;
        let uid = net.objects().uid(&pair.server)?;
        let twin = text
            .replace("name: server\n", "name: twin\n")
            .replace(&uid, "7e1a0000-0000-4000-8000-000000000001");
        net.objects().write("twin.yaml", &twin)?;
        for agent in &pair.agents {
            let address = pair.server.v4.to_string();
            let problem =
                agent.wait_problem("the address", |problem| problem.message.contains(&address))?;
            names(&problem.message, &["shop/server", "shop/twin"])?;
        }
        still_meshed(&pair)
    });
}

#[test]
fn two_pods_with_one_network_namespace() {
    scenario("inputs-netns-twice", |net| {
        let pair = Pair::new(net)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        pair.join()?;
        let _service = pair.serve(Talk::Exchange)?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        let agent = &pair.agents[1];

        // It is there when an agent settles what an earlier one left.
        agent.stop()?;
        let text = fs::read_to_string(net.objects().dir().join(objects::pod_file(&pair.server)))?;
        let twin = text
            .replace("name: server\n", "name: twin\n")
            .replace(&net.objects().uid(&pair.server)?, "7e1a0000-0000-4000-8000-000000000001")
            .replace(&pair.server.v4.to_string(), "10.244.2.77")
            .replace(&pair.server.v6.to_string(), "fd00:244:2::77");
        net.objects().write("twin.yaml", &twin)?;
        agent.start_again()?;
        agent.wait_enrolled(&[&pair.server])?;
        tests::eventually(SOON, || {
            let pods = agent.status()?.pods;
            let twin = pods.iter().find(|pod| pod.name == "twin").context("no twin")?;
            ensure!(twin.code == "netns_taken", "{twin:?}");
            Ok(())
        })?;

        // "Correct one of the two": that opens nothing of the other.
        net.objects().remove("twin.yaml")?;
        tests::eventually(SOON, || {
            let pods = agent.status()?.pods;
            ensure!(pods.iter().all(|pod| pod.name != "twin"), "{pods:?}");
            Ok(())
        })?;
        // A step later, too.
        net.objects().annotate_pod(&pair.client, "example.com/step", Some("1"))?;
        for _ in 0..10 {
            let to = pair.server.at(PORT);
            let seen = probe::dial(&stranger, &DialSpec::say(to, "hello"))?;
            ensure!(matches!(seen.end, End::Reset | End::Refused), "strict is open: {seen:?}");
            still_meshed(&pair)?;
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
}

#[test]
fn commands_without_an_agent() {
    scenario("inputs-cli", |net| {
        let node = node(net)?;
        let runtime = node.runtime_dir().to_string_lossy().into_owned();
        for command in ["status", "flows"] {
            let program = agent::program().to_string_lossy().into_owned();
            let output = node
                .run_for(Duration::from_secs(5), [&*program, command, "--runtime-dir", &runtime])?;
            ensure!(!output.status.success());
            names(&said(&output), &[&runtime])?;
        }
        Ok(())
    });
}
