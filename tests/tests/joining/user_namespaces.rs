//! A pod in a user namespace of its own (`hostUsers: false`), to which its network namespace
//! belongs, not to the node. containerd 1.6, which the cluster has, cannot make one; here it is
//! made as newer runtimes do.

use std::fs;

use anyhow::ensure;
use tests::{
    PORT, PodSpec, SHOP,
    agent::SOON,
    exec::Process,
    netns,
    objects::MODE,
    probe::{self, DialSpec, End, ServeSpec, Talk},
    scenario,
};

/// What keeps both namespaces, as a sandbox does.
const SANDBOX: [&str; 6] = ["unshare", "--user", "--net", "sh", "-c", "echo made; cat"];
/// Root inside is an ordinary user of the node.
const USERS: &str = "0 100000 65536";

const RESERVED: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";

/// `argv` in the user namespace of the sandbox, as its root.
fn inside<'a>(sandbox: &'a str, argv: &[&'a str]) -> Vec<&'a str> {
    [&["nsenter", sandbox, "--setuid=0", "--setgid=0", "--"], argv].concat()
}

#[test]
fn a_pod_in_a_user_namespace_is_in_the_mesh_as_any_other() {
    scenario("userns", |net| {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let agents = [net.agent(&nodes[0])?, net.agent(&nodes[1])?];
        let mut sandboxes = Vec::new();
        for node in &nodes {
            let mut sandbox: Process = node.spawn(SANDBOX)?;
            sandbox.wait_for_line("made", SOON)?;
            for map in ["uid_map", "gid_map"] {
                fs::write(format!("/proc/{}/{map}", sandbox.pid()), USERS)?;
            }
            sandboxes.push(sandbox);
        }
        let spec = |name, of: usize| PodSpec::new(SHOP, name).netns_of(sandboxes[of].pid());
        let client = net.pod(&nodes[0], spec("client", 0))?;
        let server = net.pod(&nodes[1], spec("server", 1).annotation(MODE, "strict"))?;
        let stranger = net.pod(&nodes[0], PodSpec::new("other", "stranger"))?;
        let users = sandboxes.iter().map(|of| format!("--user=/proc/{}/ns/user", of.pid()));
        let users: Vec<_> = users.collect();
        // Otherwise this test shows nothing: the pod's root may change its own network, and nothing
        // on the node.
        let map = client.run(inside(&users[0], &["cat", "/proc/self/uid_map"]))?.success()?;
        ensure!(map.split_whitespace().eq(USERS.split(' ')), "{map}");
        let set = |device| ["ip", "link", "set", device, "mtu", "1400"];
        client.run(inside(&users[0], &set("eth0")))?.success()?;
        let of_node = nodes[0].run(inside(&users[0], &set("lo")))?;
        ensure!(!of_node.status.success(), "it is root on the node: {of_node}");

        let before = netns::inside(&client.netns, || fs::read_to_string(RESERVED))??;
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        agents[0].wait_enrolled(&[&client])?;
        agents[1].wait_enrolled(&[&server])?;
        agents[0].wait_peers(1)?;
        agents[1].wait_peers(1)?;
        let _service = probe::serve(&server, &ServeSpec::both_families(PORT, Talk::Exchange))?;
        for to in [server.at(PORT), server.at6(PORT)] {
            let seen = probe::dial(&client, &DialSpec::say(to, "hello"))?;
            ensure!((seen.end, &*seen.first) == (End::Fin, "hello"), "{seen:?}");
            let refused = probe::dial(&stranger, &DialSpec::say(to, "hello"))?;
            ensure!(matches!(refused.end, End::Refused | End::Reset), "{refused:?}");
        }
        // By its own root, through the programs that decide: their cgroup's, which user namespaces
        // do not concern.
        let say = format!(
            "exec 3<>/dev/tcp/{}/{PORT}; echo said >&3; read -r line <&3; echo $line",
            server.v4
        );
        let said = client.run(inside(&users[0], &["bash", "-c", &say]))?.success()?;
        ensure!(said == "said\n", "{said}");
        let mtls = agents[1].flows()?.iter().filter(|flow| flow.is_mtls()).count();
        ensure!(mtls == 3, "{:#?}", agents[1].flows()?);

        net.objects().label_namespace(SHOP, None)?;
        agents[0].wait_state(&client, "not_enrolled")?;
        let after = netns::inside(&client.netns, || fs::read_to_string(RESERVED))??;
        ensure!(before == after, "{before:?} became {after:?}");
        Ok(())
    });
}
