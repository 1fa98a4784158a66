//! What docs/install.md and `cargo xtask cluster demo` say, done as they say it.
#![expect(clippy::print_stderr, reason = "what is left behind is told")]

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use tests::{
    bin_dir,
    cluster::{self, BUSYBOX, Cluster, shop, test_name},
    exec::Output,
};

/// The project's directory, where its commands are given.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Takes a cluster down that a command has brought up, whatever becomes of the test.
struct Remove(String);

impl Drop for Remove {
    fn drop(&mut self) {
        if let Err(error) = cluster::remove(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

fn sh(script: &str) -> Result<String> {
    let line = ["bash", "-euo", "pipefail", "-c", script];
    let output = Command::new(line[0]).args(&line[1..]).current_dir(ROOT).output()?;
    Output::of(&line.map(Into::into), &output).success()
}

/// The first commands below a heading of a page, without their remarks.
fn commands<'a>(page: &'a str, heading: &str) -> Result<Vec<&'a str>> {
    block(page, heading, 0)
}

/// The commands of a block, counted from the heading on.
fn block<'a>(page: &'a str, heading: &str, number: usize) -> Result<Vec<&'a str>> {
    let (_, below) = page.split_once(&format!("\n## {heading}")).context(heading.to_owned())?;
    let mut blocks = below.split("```").skip(1).step_by(2);
    let block = blocks.nth(number).with_context(|| format!("{heading}: no commands"))?;
    let command =
        |line: &'a str| line.split_once("  #").map_or(line, |(command, _)| command).trim();
    Ok(block.lines().map(command).filter(|line| !line.is_empty()).collect())
}

#[test]
fn the_install_page_is_followed_to_the_letter() -> Result<()> {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/install.md"))?;
    let name = test_name();
    let _removed = Remove(name.clone());
    // Other clusters may be there: this one has a name of its own. xtask is the one that is tested.
    let xtask = bin_dir().join("xtask");
    let here = |command: &str| {
        command
            .replace("cargo xtask cluster", &format!("cargo xtask cluster --name {name}"))
            .replace("cargo xtask", &xtask.to_string_lossy())
            .replace("/dev/pki/", &format!("/{name}/pki/"))
    };
    let by_hand = commands(&page, "On one machine")?;
    let environment: Vec<_> =
        by_hand.iter().filter(|line| line.starts_with("export ")).map(|line| here(line)).collect();
    let run = |command: &str| {
        let script = [environment.clone(), vec![here(command)]].concat().join("\n");
        sh(&script).with_context(|| command.to_owned())
    };
    for command in by_hand.iter().filter(|line| !line.starts_with("export ")) {
        run(command)?;
    }

    let cluster = Cluster::existing(&name)?.context("`cluster up` made none")?;

    // Step 2 besides, as in a cluster to which the released image has been brought. It is an
    // upgrade then.
    let [dev, released, next] = ["dev", env!("CARGO_PKG_VERSION"), "next"]
        .map(|tag| format!("nodemesh.dev/mesh-agent:{tag}"));
    load_by_hand(&cluster, &page, &dev)?;
    cluster.tag_image(&dev, &released)?;
    for command in commands(&page, "2. Apply")? {
        run(command)?;
    }
    agents_are_of(&cluster, &released)?;

    // The image has "a tag of its own", and was "loaded on all nodes".
    cluster.tag_image(&dev, &next)?;
    let upgrade = commands(&page, "Upgrade")?;
    ensure!(upgrade[0].contains("REGISTRY/mesh-agent:TAG --trust-domain NAME"), "{upgrade:?}");
    let agent = bin_dir().join("mesh-agent");
    for command in upgrade {
        let chosen = command
            .replace("target/release/mesh-agent", &agent.to_string_lossy())
            .replace("REGISTRY/mesh-agent:TAG", &next)
            .replace("NAME", "cluster.local");
        run(&chosen)?;
    }
    agents_are_of(&cluster, &next)?;

    // "With pods of yours in a namespace `shop`."
    let mut pods = [shop::pod("web", 1, shop::IDLE), shop::pod("cart", 2, &server())];
    for pod in &mut pods {
        pod["spec"]["containers"][0]["image"] = json!(BUSYBOX);
    }
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [namespace, pods[0], pods[1]]});
    cluster.kubectl_with(&list.to_string(), ["apply", "-f", "-"])?;
    shop::ready(&cluster, "shop")?;
    let cart = format!("http://{}:8080/", shop::address(&cluster, "cart")?);
    let get = ["-n", "shop", "exec", "web", "--", "timeout", "10", "wget", "-qO-", &cart];

    let labelled = commands(&page, "3. Label")?;
    ensure!(labelled.iter().any(|line| line.ends_with("flows -f")), "{labelled:?}");
    for command in labelled {
        match command.strip_suffix(" flows -f") {
            // It follows until it is interrupted, and shows what has been.
            Some(_) => tests::eventually(cluster::PATIENCE, || {
                cluster.kubectl(get)?;
                let told = run(&format!("timeout 5 {command} || test $? = 124"))?;
                ensure!(told.contains("mtls"), "{told}");
                Ok(())
            })?,
            None => drop(run(command)?),
        }
    }
    for command in commands(&page, "Remove")? {
        run(command)?;
    }
    tests::eventually(cluster::PATIENCE, || {
        let left = cluster.objects()?;
        let left: Vec<_> = left.iter().filter(|object| object.contains("mesh")).collect();
        ensure!(left.is_empty(), "{left:#?}");
        Ok(())
    })?;
    // As on a node that has not heard of the removal, where something would be left to take away.
    for command in block(&page, "Remove", 1)? {
        cluster.node(1).run(["sh", "-c", command]).with_context(|| command.to_owned())?;
    }
    ensure!(cluster.kubectl(get)?.contains(shop::GREETING));
    drop(cluster);
    run("cargo xtask cluster down")?;
    ensure!(Cluster::existing(&name)?.is_none(), "it is still there");
    Ok(())
}

/// Step 1 as it is done on nodes without `xtask`: by the command that the page gives
/// for each node. The archive is that of the programs that are tested.
fn load_by_hand(cluster: &Cluster, page: &str, image: &str) -> Result<()> {
    const IMPORT: &str = "ctr -n k8s.io images import ";
    let (_, after) = page.split_once(&format!("`{IMPORT}")).context("no import on the page")?;
    let (archive, _) = after.split_once('`').context("the command does not end")?;
    ensure!(archive == concat!("mesh-agent-", env!("CARGO_PKG_VERSION"), ".tar"), "{archive}");
    let file = Path::new(ROOT).join("target/image/mesh-agent-dev.tar").canonicalize()?;
    for node in cluster.nodes() {
        node.run(["ctr", "-n", "k8s.io", "images", "rm", image])?;
        let import = format!("{IMPORT}{}", file.display());
        let said = node.run(["sh", "-c", &import]).context(import)?;
        ensure!(said.contains(image), "{said}");
    }
    Ok(())
}

/// Waits until both nodes' agents, and no others, are of an image.
fn agents_are_of(cluster: &Cluster, image: &str) -> Result<()> {
    let images = "jsonpath={.items[*].spec.containers[*].image}";
    let agents = ["-n", "nodemesh", "get", "pods", "-l", "app.kubernetes.io/name=mesh-agent"];
    tests::eventually(cluster::PATIENCE, || {
        let images = cluster.kubectl(agents.into_iter().chain(["-o", images]))?;
        ensure!(images.split(' ').eq([image, image]), "{images}");
        Ok(())
    })
}

/// The shop's server, of what is in the busybox image.
fn server() -> String {
    format!("echo {} > /www/index.html && exec httpd -f -p 8080 -h /www", shop::GREETING)
}

#[test]
fn the_demo_tells_what_it_observes_and_leaves_it_running() -> Result<()> {
    let name = test_name();
    let _removed = Remove(name.clone());
    let demo = format!("{} demo {name}", bin_dir().join("cluster").display());
    for _ in 0..2 {
        let told = sh(&demo)?;
        for part in
            ["X-Card: 4929-1234-5678-9012\n\n3.", "TLS 1.3 and nothing else", "web still gets"]
        {
            ensure!(told.contains(part), "{part:?} is not in {told}");
        }
    }
    let cluster = Cluster::existing(&name)?.context("the demo's cluster has gone")?;
    ensure!(cluster.programs().iter().all(|(.., runs)| *runs), "{:?}", cluster.programs());
    Ok(())
}
