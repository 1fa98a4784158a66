//! `--keep`: what people need to play with the demo, and how it is ended.

use std::{fs, os::unix::fs::PermissionsExt as _};

use anyhow::Result;
use tests::{Pod, agent, bin_dir};

use crate::shop::{CART_SERVICE, REDIS, Shop};

pub(crate) fn leave_running(shop: &Shop<'_>) -> Result<()> {
    let dir = shop.net.tag().dir();
    let enter = dir.join("in");
    fs::write(&enter, script(shop))?;
    fs::set_permissions(&enter, fs::Permissions::from_mode(0o755))?;
    let (enter, source) = (enter.display(), shop.net.objects().dir().display());
    let agent = agent::program();
    let agent = agent.display();
    let runtime = shop.nodes[0].runtime_dir();
    let runtime = runtime.display();
    println!(
        "
It goes on running. To play with it:
   {enter} web curl http://{CART_SERVICE}/
   {enter} cart redis-cli -h {} -p {REDIS} GET pears
   {agent} flows --runtime-dir {runtime}
   {agent} status --runtime-dir {runtime}
   edit the objects in {source}, as kubectl would
To end it:
   {} --stop",
        shop.db.v4,
        bin_dir().join("demo").display(),
    );
    Ok(())
}

/// `in POD PROGRAM…`: `ip netns exec` alone would not put the program into the pod's cgroup.
fn script(shop: &Shop<'_>) -> String {
    let pods = [&shop.web, &shop.cart, &shop.db, &shop.legacy, &shop.stranger];
    let probe = bin_dir().join("mesh-probe");
    let case = |pod: &&Pod| {
        let (netns, cgroup) = (pod.netns.display(), pod.cgroup.display());
        format!("  {}) exec {} in {netns} {cgroup} \"$@\" ;;\n", pod.name, probe.display())
    };
    let cases: String = pods.iter().map(case).collect();
    let names = pods.map(|pod| pod.name.as_str()).join(" | ");
    format!(
        "#!/bin/sh\npod=$1; shift\ncase $pod in\n{cases}  *) echo \"usage: in {names} PROGRAM...\" >&2; exit 2 ;;\nesac\n"
    )
}
