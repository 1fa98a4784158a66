//! What people see: the commands' output for the terminal, and records as they come.

use std::time::Duration;

use anyhow::ensure;
use tests::{
    PORT, Pair, PodSpec, agent,
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
        Ok(())
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

#[test]
fn the_version_is_told() {
    scenario("cli-version", |net| {
        let node = net.node("node1")?;
        let version = node.run([agent::program().as_os_str(), "version".as_ref()])?.success()?;
        ensure!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
        Ok(())
    });
}
