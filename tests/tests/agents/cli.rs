//! What people see: the commands' output for the terminal, and records as they come.

use std::{
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use tests::{
    PORT, Pair, PodSpec, SHOP,
    agent::{self, SOON},
    eventually, objects,
    probe::{self, DialSpec, Talk},
    scenario,
};

#[test]
fn tables_name_pods_identities_and_reasons() {
    scenario("cli-tables", |net| {
        let pair = Pair::new(net)?;
        net.pod(&pair.nodes[0], PodSpec::new("legacy", "old"))?;
        pair.join()?;
        let _service = pair.serve(Talk::Exchange)?;
        probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), "hello"))?;
        let flows = pair.agents[0].cli(&["flows"])?.success()?;
        for word in ["shop/client", "shop/server:8080", "shop/client → shop/server", "mtls"] {
            ensure!(flows.contains(word), "no {word} in:\n{flows}");
        }
        let status = pair.agents[0].cli(&["status"])?.success()?;
        for word in ["node1", "shop/client", "enrolled", "legacy/old", "nodemesh.dev/mesh=enabled"]
        {
            ensure!(status.contains(word), "no {word} in:\n{status}");
        }
        // What a strict pod leaves open stands beside `strict`, on its own node and on others.
        let said = [
            (objects::MODE, "strict"),
            (objects::EXCLUDE_PORTS, "6379,8000-8010"),
            (objects::PERMISSIVE_PORTS, "9102"),
        ];
        for (key, value) in said {
            net.objects().annotate_namespace(SHOP, key, Some(value))?;
        }
        eventually(SOON, || {
            let status = pair.agents[0].cli(&["status"])?.success()?;
            let ports = "6379,8000-8010,9102";
            for words in
                [format!("strict, open: {ports}"), format!("shop/server on node2 ({ports})")]
            {
                ensure!(status.contains(&words), "no {words} in:\n{status}");
            }
            Ok(())
        })
    });
}

#[test]
fn flows_are_followed_as_they_end() {
    scenario("cli-follow", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let runtime = pair.nodes[0].runtime_dir().to_string_lossy().into_owned();
        let program = agent::program().to_string_lossy().into_owned();
        let follow = [&*program, "flows", "-f", "-o", "json", "--runtime-dir", &runtime];
        let mut follow = pair.nodes[0].spawn(follow)?;
        for text in ["first", "second!"] {
            probe::dial(&pair.client, &DialSpec::say(pair.server.at(PORT), text))?;
            let bytes = format!("\"sent\":{}", text.len());
            follow.wait_for_line(&bytes, Duration::from_secs(5))?;
        }
        Ok(())
    });
}

/// The reader goes away while nothing is printed.
#[test]
fn who_follows_ends_with_its_reader() {
    scenario("cli-reader", |net| {
        let pair = Pair::new(net)?;
        let runtime = pair.nodes[0].runtime_dir();
        let follow = |more: &[&str]| -> anyhow::Result<std::process::Child> {
            let mut command = Command::new(agent::program());
            command.args(["flows", "-f", "--runtime-dir"]).arg(&runtime).args(more);
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
            let child = command.spawn()?;
            let open = format!("/proc/{}/fd", child.id());
            eventually(SOON, || {
                let mut open =
                    fs::read_dir(&open)?.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
                let is_asking = open.any(|to| to.to_string_lossy().starts_with("socket:"));
                ensure!(is_asking, "it has not asked yet");
                Ok(())
            })?;
            Ok(child)
        };
        let ends = |child: &mut std::process::Child| {
            eventually(SOON, || {
                let status = child.try_wait()?.context("it still follows")?;
                ensure!(status.success(), "{status}");
                Ok(())
            })
        };
        let mut no_output = follow(&[])?;
        drop(no_output.stdout.take());
        ends(&mut no_output).context("standard output's reader has gone")?;
        let mut no_input = follow(&[])?;
        drop(no_input.stdin.take());
        ends(&mut no_input).context("standard input's writer has gone")?;
        let mut limited = follow(&["--for-seconds", "1"])?;
        ends(&mut limited).context("its time is over")?;
        // Only so many may follow at once: followers that nothing else ends make room for new ones.
        let mut many: Vec<_> = (0..18).map(|_| follow(&[])).collect::<anyhow::Result<_>>()?;
        let end = |child: &mut std::process::Child| -> anyhow::Result<bool> {
            Ok(child.try_wait()?.is_some_and(|status| status.code() == Some(1)))
        };
        eventually(SOON, || {
            let ended: Vec<bool> = many.iter_mut().map(end).collect::<anyhow::Result<_>>()?;
            ensure!(ended.iter().filter(|ended| **ended).count() == 2, "{ended:?}");
            Ok(())
        })?;
        for child in &mut many {
            drop(child.kill()); // two have ended
            child.wait()?;
        }
        Ok(())
    });
}

/// The program refuses what cannot be meant, names it, and exits with 2.
#[test]
fn arguments_that_cannot_be_meant_are_refused() -> anyhow::Result<()> {
    let manifest = |more: &[&'static str]| [&["manifest"], more].concat();
    let run = |more: &[&'static str]| {
        [&["run", "--node", "n", "--source", "/", "--announce-dir", "/", "--ca-dir", "/"], more]
            .concat()
    };
    for (argv, words) in [
        (manifest(&["--image", ""]), &["--image", "name"][..]),
        (manifest(&["--image", "bad image"]), &["--image", "bad image"]),
        (manifest(&["--image", "registry.example/mesh-agent"]), &["--image", "tag"]),
        (
            manifest(&["--image", "nodemesh.dev/mesh-agent:1", "--pull-policy", "Always"]),
            &["no registry", "--image"],
        ),
        (manifest(&["--pull-policy", "Sometimes"]), &["--pull-policy", "IfNotPresent"]),
        (
            manifest(&["--trust-domain", "a.example", "--trust-domain", "b.example"]),
            &["--trust-domain"],
        ),
        (manifest(&["--trust-domain", "Not A Name"]), &["--trust-domain"]),
        (run(&["--log", "inf"]), &["--log", "inf", "info"]),
        (run(&["--drain-seconds", "18446744073709551615"]), &["--drain-seconds"]),
        (run(&["--leaf-ttl-seconds", "0"]), &["--leaf-ttl-seconds"]),
        (run(&["--max-connections", "0"]), &["--max-connections"]),
        (run(&["--metrics", "nowhere"]), &["--metrics"]),
        (vec!["flows", "--for-seconds", "3"], &["--follow"]),
        (vec!["ca", "keep", "--secret", "a/b"], &["--secret", "a/b"]),
        (vec!["ca", "init"], &["--ca-dir"]),
        (vec!["status", "--wach"], &["--wach"]),
    ] {
        let output = Command::new(agent::program()).args(&argv).output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
        ensure!(output.status.code() == Some(2), "{argv:?}: {} {said}", output.status);
        for word in words {
            ensure!(said.contains(word), "{argv:?}: no {word} in: {said}");
        }
        ensure!(output.stdout.is_empty(), "{argv:?} printed something");
    }
    Ok(())
}

#[test]
fn the_version_is_told() {
    scenario("cli-version", |net| {
        let node = net.node("node1")?;
        let version = node.run([agent::program().as_os_str(), "version".as_ref()])?.success()?;
        ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        Ok(())
    });
}
