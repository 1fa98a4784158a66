//! A node's programs: containerd, kubelet, kube-proxy, and how they are set.

use std::{fs, fs::File, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    SOON, image,
    machine::{self, Machine},
    plan::{DNS_SERVICE, PODS, Plan, node_name, pod_ranges},
};
use crate::{cgroup, eventually};

/// A node's programs, in the order in which they are started.
pub(super) const CONTAINERD: &str = "containerd";
pub(super) const KUBELET: &str = "kubelet";
pub(super) const PROXY: &str = "kube-proxy";

/// Where the kubelet finds containerd.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// Where a kubelet reads static pods, which do not come from the API server.
const STATIC_PODS: &str = "/etc/kubernetes/manifests";

/// Writes the settings of all programs into the machine's `/etc`.
pub(super) fn configure(machine: &Machine, node: u8) -> Result<()> {
    let write = |file: &str, content: &str| -> Result<()> {
        let path = machine.file(file);
        fs::create_dir_all(path.parent().context("no directory")?)?;
        fs::write(path, content).with_context(|| file.to_owned())
    };
    fs::create_dir_all(machine.file(STATIC_PODS))?;
    write("/etc/containerd/config.toml", &containerd())?;
    write("/etc/kubernetes/kubelet.yaml", &serde_json::to_string_pretty(&kubelet(&machine.name))?)?;
    write("/etc/cni/net.d/10-bridge.conflist", &serde_json::to_string_pretty(&cni(node))?)
}

/// Starts one of the programs. The kubelet wants containerd.
pub(super) fn start(machine: &Machine, plan: &Plan, node: u8, program: &str) -> Result<()> {
    let name = &machine.name;
    let argv = match program {
        CONTAINERD => vec![CONTAINERD.to_owned()],
        KUBELET => {
            let (v4, v6) = plan.node(node);
            let own = cgroup::mount().join(machine::SYSTEM).join("kubelet.service");
            let own = own.display();
            // As systemd does: a cgroup for this run alone. `system` has no controllers that a
            // process in it would withhold from us.
            let enter = format!(
                "rmdir {own} 2> /dev/null; mkdir -p {own} && echo $$ > {own}/cgroup.procs && exec \"$@\""
            );
            vec![
                "sh".to_owned(),
                "-c".to_owned(),
                enter,
                "sh".to_owned(),
                KUBELET.to_owned(),
                "--config=/etc/kubernetes/kubelet.yaml".to_owned(),
                format!("--kubeconfig=/etc/kubernetes/{name}.conf"),
                format!("--hostname-override={name}"),
                format!("--node-ip={v4},{v6}"),
            ]
        }
        _ => vec![
            PROXY.to_owned(),
            "--kubeconfig=/etc/kubernetes/kube-proxy.conf".to_owned(),
            format!("--hostname-override={name}"),
            format!("--cluster-cidr={PODS}"),
            "--proxy-mode=nftables".to_owned(),
            // These settings are the host's alone: writing them is refused in any other namespace.
            "--conntrack-max-per-core=0".to_owned(),
            "--conntrack-tcp-timeout-established=0".to_owned(),
            "--conntrack-tcp-timeout-close-wait=0".to_owned(),
            "--oom-score-adj=0".to_owned(),
        ],
    };
    machine.start(program, &argv)
}

/// Waits until containerd answers.
pub(super) fn wait_containerd(machine: &Machine) -> Result<()> {
    eventually(SOON, || {
        machine.check(CONTAINERD)?;
        ensure!(machine.has(SOCKET), "containerd on {} does not listen", machine.name);
        Ok(())
    })
}

/// Gives an archive's images to the node's containers.
pub(super) fn import(machine: &Machine, archive: &Path) -> Result<()> {
    let file = File::open(archive).with_context(|| archive.display().to_string())?;
    machine.run_with(file.into(), images(&["import", "-"]))?;
    Ok(())
}

/// Gives an image of the node's containers another name, too.
pub(super) fn tag(machine: &Machine, image: &str, as_well: &str) -> Result<()> {
    machine.run(images(&["tag", image, as_well])).map(drop)
}

fn images<'a>(command: &'a [&'a str]) -> impl Iterator<Item = &'a str> {
    let ctr = ["ctr", "--address", SOCKET, "--namespace", "k8s.io", "images"];
    ctr.into_iter().chain(command.iter().copied())
}

/// The object of a node, before its kubelet says more: which node has which addresses is not left
/// to chance.
pub(super) fn object(node: u8) -> Value {
    let (name, ranges) = (node_name(node), pod_ranges(node));
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": { "kubernetes.io/hostname": name } },
        "spec": { "podCIDR": ranges[0], "podCIDRs": ranges },
    })
}

fn containerd() -> String {
    // restrict_oom_score_adj: without CAP_SYS_RESOURCE no process may lower it, and runc fails when
    // it tries.
    format!(
        "version = 2\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{}\"\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"/opt/cni/bin\"\n\
         conf_dir = \"/etc/cni/net.d\"\n",
        image::NAME
    )
}

fn kubelet(name: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": "/etc/kubernetes/ca.crt" },
        },
        "authorization": { "mode": "Webhook" },
        "tlsCertFile": format!("/etc/kubernetes/{name}.crt"),
        "tlsPrivateKeyFile": format!("/etc/kubernetes/{name}.key"),
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "staticPodPath": STATIC_PODS,
        "failCgroupV1": false,
        "failSwapOn": false,
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        // No server and no search domain of the host's.
        "resolvConf": "",
        // What a node reserves for its own programs would limit a cgroup that they are not in.
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        // A full host disk must not evict pods, and images cannot be pulled again.
        "evictionHard": {
            "memory.available": "0%",
            "nodefs.available": "0%",
            "nodefs.inodesFree": "0%",
            "imagefs.available": "0%",
        },
        "imageGCHighThresholdPercent": 100,
        // The default is below the host's /usr.
        "volumePluginDir": "/var/lib/kubelet/plugins",
        // Lowering it needs CAP_SYS_RESOURCE.
        "oomScoreAdj": 0,
    })
}

fn cni(node: u8) -> Value {
    let ranges = pod_ranges(node).map(|range| json!([{ "subnet": range }]));
    json!({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {
                "type": "bridge",
                "bridge": "cni0",
                "isGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "ranges": ranges,
                    "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
}
