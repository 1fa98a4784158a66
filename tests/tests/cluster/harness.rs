//! The cluster that tests run in, without a mesh: a Kubernetes as real as one machine allows, and
//! nothing of it afterwards.
use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use tests::{
    cluster::{BUSYBOX, Cluster, Machine, test_name},
    eventually,
};

/// Longer than anything here takes on a machine that is busy with something else.
const LONG: Duration = Duration::from_mins(3);

/// A Deployment over both nodes with two services, and a pod that sees its node as an agent would.
const OBJECTS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: { name: web }
spec:
  replicas: 2
  selector: { matchLabels: { app: web } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: DoNotSchedule
          labelSelector: { matchLabels: { app: web } }
      containers:
        - name: web
          image: IMAGE
          imagePullPolicy: Never
          command: [sh, -c, "hostname > /www/index.html; echo serving; exec httpd -f -h /www"]
          readinessProbe: { httpGet: { port: 80 }, periodSeconds: 1 }
---
apiVersion: v1
kind: Service
metadata: { name: web }
spec: { selector: { app: web }, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Service
metadata: { name: each }
spec: { clusterIP: None, selector: { app: web }, ports: [{ port: 80 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: agent }
spec:
  nodeName: node1
  hostPID: true
  hostNetwork: true
  terminationGracePeriodSeconds: 0
  containers:
    - name: agent
      image: IMAGE
      imagePullPolicy: Never
      command: [sleep, "1000000"]
      securityContext: { privileged: true }
      volumeMounts:
        - { name: bpf, mountPath: /sys/fs/bpf, mountPropagation: Bidirectional }
        - { name: run, mountPath: /node/run }
        - { name: root, mountPath: /node/root, mountPropagation: HostToContainer }
  volumes:
    - { name: bpf, hostPath: { path: /sys/fs/bpf } }
    - { name: run, hostPath: { path: /run } }
    - { name: root, hostPath: { path: / } }
"#;

#[test]
fn a_real_cluster_of_two_nodes() {
    let start = Instant::now();
    let cluster = Cluster::up(&test_name()).unwrap_or_else(|e| panic!("{e:#}"));
    let up = start.elapsed();
    if let Err(e) = story(&cluster) {
        // Before the logs too, since a long output may be cut to its beginning.
        eprintln!("{e:#}");
        cluster.print_logs();
        panic!("{e:#}");
    }
    let told = start.elapsed();
    assert!(!cluster.traces().unwrap().is_empty(), "what is looked for at the end is found now");
    kill_a_node(&cluster).unwrap_or_else(|e| panic!("{e:#}"));
    cluster.down().unwrap_or_else(|e| panic!("{e:#}"));
    eprintln!("up in {up:.1?}, all seen after {told:.1?}, gone after {:.1?}", start.elapsed());
}

fn story(cluster: &Cluster) -> Result<()> {
    cluster.kubectl_with(&OBJECTS.replace("IMAGE", BUSYBOX), ["apply", "-f", "-"])?;
    cluster.kubectl(["wait", "--for=condition=Available", "--timeout=3m", "deployment/web"])?;
    cluster.kubectl(["wait", "--for=condition=Ready", "--timeout=3m", "pod/agent"])?;
    let pods = web_pods(cluster)?;
    nodes_are_told_apart(cluster)?;
    pods_reach_each_other_by_their_own_addresses(cluster, &pods)?;
    services_have_addresses_and_names(cluster, &pods)?;
    a_pod_is_answerable(cluster, &pods[0])?;
    a_privileged_pod_sees_its_own_node(cluster)?;
    programs_can_be_stopped_and_started(cluster, &pods)
}

/// A pod of the Deployment.
struct WebPod {
    name: String,
    v4: String,
    v6: String,
}

/// On the first node, and on the second.
fn web_pods(cluster: &Cluster) -> Result<[WebPod; 2]> {
    let list = cluster.kubectl(["get", "pods", "-l", "app=web", "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let text = |pod: &Value, path: &str| -> Result<String> {
        let found = pod.pointer(path).and_then(Value::as_str);
        Ok(found.with_context(|| format!("no {path} in {pod}"))?.to_owned())
    };
    let on = |node: &str| -> Result<WebPod> {
        let pods = list["items"].as_array().context("no list")?;
        let here = |pod: &&Value| pod["spec"]["nodeName"] == node;
        let pod = pods.iter().find(here).with_context(|| format!("no pod on {node}: {list}"))?;
        Ok(WebPod {
            name: text(pod, "/metadata/name")?,
            v4: text(pod, "/status/podIPs/0/ip")?,
            v6: text(pod, "/status/podIPs/1/ip")?,
        })
    };
    Ok([on("node1")?, on("node2")?])
}

fn exec<const N: usize>(cluster: &Cluster, pod: &str, argv: [&str; N]) -> Result<String> {
    cluster.kubectl(["exec", pod, "--"].into_iter().chain(argv))
}

fn get(cluster: &Cluster, from: &WebPod, host: &str) -> Result<String> {
    let url = format!("http://{host}/");
    // Not wget's own `-T`: with it, Debian's static busybox 1.35 dereferences null.
    Ok(exec(cluster, &from.name, ["timeout", "10", "wget", "-qO-", &url])?.trim().to_owned())
}

fn nodes_are_told_apart(cluster: &Cluster) -> Result<()> {
    let nodes: Value = serde_json::from_str(&cluster.kubectl(["get", "nodes", "-o", "json"])?)?;
    let nodes = nodes["items"].as_array().context("no list")?;
    ensure!(nodes.len() == 2, "{nodes:?}");
    for (node, machine) in nodes.iter().zip(cluster.nodes()) {
        ensure!(node["metadata"]["name"] == *machine.name, "{node}");
        ensure!(node["status"]["addresses"][0]["address"] == machine.address.to_string(), "{node}");
        ensure!(node["spec"]["podCIDRs"].as_array().is_some_and(|all| all.len() == 2), "{node}");
        ensure!(machine.run(["hostname"])?.trim() == machine.name);
        let init = machine.run(["cat", "/proc/1/cmdline"])?;
        ensure!(init.contains("init") && init.contains(&machine.name), "{init:?}");
    }
    let id = |node: &Value| node["status"]["nodeInfo"]["machineID"].to_string();
    ensure!(id(&nodes[0]) != id(&nodes[1]), "{nodes:?}");
    cluster.kubectl(["get", "validatingadmissionpolicies"])?;
    Ok(())
}

fn pods_reach_each_other_by_their_own_addresses(
    cluster: &Cluster,
    [first, second]: &[WebPod; 2],
) -> Result<()> {
    let capture = cluster.node(1).capture()?;
    ensure!(get(cluster, first, &second.v4)? == second.name);
    let recording = capture.stop()?;
    let conn = recording.one_to(format!("{}:80", second.v4).parse()?)?;
    ensure!(conn.client.ip().to_string() == first.v4, "{conn}");
    ensure!(get(cluster, second, &format!("[{}]", first.v6))? == first.name);
    Ok(())
}

fn services_have_addresses_and_names(cluster: &Cluster, pods: &[WebPod; 2]) -> Result<()> {
    let address = ["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"];
    let address = cluster.kubectl(address)?;
    let both: BTreeSet<_> = pods.iter().map(|pod| pod.name.clone()).collect();
    for from in pods {
        for host in [address.as_str(), "web", "web.default.svc.cluster.local"] {
            let mut seen = BTreeSet::new();
            // The choice is random, and the pod on the client's own node is the difficult one.
            eventually(LONG, || {
                seen.insert(get(cluster, from, host)?);
                ensure!(seen == both, "{host}: {seen:?}");
                Ok(())
            })?;
        }
        let asked = exec(cluster, &from.name, ["nslookup", "each.default.svc.cluster.local"])?;
        ensure!(pods.iter().all(|pod| asked.contains(&pod.v4)), "{asked}");
        ensure!(both.contains(&get(cluster, from, "each")?));
    }
    Ok(())
}

fn a_pod_is_answerable(cluster: &Cluster, pod: &WebPod) -> Result<()> {
    ensure!(exec(cluster, &pod.name, ["hostname"])?.trim() == pod.name);
    ensure!(cluster.kubectl(["logs", &pod.name])?.contains("serving"));
    // A service account's token says on which node its pod is: an agent's certificate will rest on
    // that.
    let token = "cut -d. -f2 /var/run/secrets/kubernetes.io/serviceaccount/token | tr _- /+ | base64 -d 2>/dev/null; true";
    let token = exec(cluster, &pod.name, ["sh", "-c", token])?;
    ensure!(token.contains(r#""node":{"name":"node1""#), "{token}");
    Ok(())
}

fn a_privileged_pod_sees_its_own_node(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(1);
    let sh = |script: &str| exec(cluster, "agent", ["sh", "-c", script]);
    // /proc/1 is the node's init, by every namespace that it has.
    let init = node.init().context("no init")?;
    for kind in ["pid", "mnt", "net", "uts", "ipc", "cgroup"] {
        let outside = fs::read_link(format!("/proc/{init}/ns/{kind}"))?;
        let outside = outside.to_string_lossy().into_owned();
        let inside = sh(&format!("readlink /proc/1/ns/{kind}"))?;
        ensure!(inside.trim() == outside, "{kind}: {inside} is not {outside}");
        let ours = fs::read_link(format!("/proc/self/ns/{kind}"))?.to_string_lossy().into_owned();
        ensure!(outside != ours, "{kind} is the host's");
    }
    // Processes end while they are listed, and one that a program is just starting still has its
    // parent's name.
    eventually(LONG, || {
        let processes = sh("cat /proc/[0-9]*/comm 2>/dev/null; true")?;
        for program in ["containerd", "kubelet", "kube-proxy"] {
            let count = processes.lines().filter(|name| *name == program).count();
            ensure!(count == 1, "{count} times {program}: {processes}");
        }
        Ok(())
    })?;

    // The pod sees its node's bpffs, which no other node has.
    sh("mkdir /sys/fs/bpf/from-the-pod")?;
    ensure!(node.run(["ls", "/sys/fs/bpf"])?.contains("from-the-pod"));
    ensure!(!cluster.node(2).run(["ls", "/sys/fs/bpf"])?.contains("from-the-pod"));
    ensure!(!Path::new("/sys/fs/bpf/from-the-pod").exists());
    // The same is true of /run, and of what is mounted below / later.
    sh("echo here > /node/run/from-the-pod")?;
    ensure!(node.run(["cat", "/run/from-the-pod"])?.trim() == "here");
    ensure!(!Path::new("/run/from-the-pod").exists());
    node.run(["sh", "-c", "mkdir /run/later && mount -t tmpfs later /run/later"])?;
    let mounts = sh("cat /proc/self/mountinfo")?;
    ensure!(mounts.contains(" /node/root/run/later "), "{mounts}");

    // The mounts of process 1 are those of a machine, and not the host's.
    let mounts = sh("cat /proc/1/mountinfo")?;
    for (at, kind) in [("/proc", "proc"), ("/sys/fs/bpf", "bpf"), ("/run", "tmpfs")] {
        let is =
            |line: &str| line.contains(&format!(" {at} ")) && line.contains(&format!(" - {kind} "));
        ensure!(mounts.lines().any(is), "no {kind} at {at}: {mounts}");
    }
    ensure!(!mounts.contains("/run/netns/nmc"), "{mounts}");
    let v2 = mounts.lines().find(|line| line.contains(" - cgroup2 ")).context("no cgroup2")?;
    let v2 = v2.split(' ').nth(4).context("no mount point")?;
    // The pods' cgroups are below the root that the node sees.
    let below = sh(&format!("ls -d /proc/1/root{v2}/kubepods/besteffort/pod*"))?;
    ensure!(below.lines().count() == 2, "{below}");
    Ok(())
}

fn programs_can_be_stopped_and_started(cluster: &Cluster, pods: &[WebPod; 2]) -> Result<()> {
    let page = |node: &Machine, pod: &WebPod| -> Result<()> {
        let url = format!("http://{}/", pod.v4);
        ensure!(node.run(["timeout", "10", "busybox", "wget", "-qO-", &url])?.trim() == pod.name);
        Ok(())
    };
    cluster.stop_api_server()?;
    let refused = cluster.kubectl(["get", "nodes"]);
    ensure!(refused.is_err(), "{refused:?}");
    page(cluster.node(1), &pods[1])?;
    cluster.start_api_server()?;
    cluster.stop_kubelet(2)?;
    page(cluster.node(1), &pods[1])?;
    ensure!(exec(cluster, &pods[1].name, ["true"]).is_err(), "no process to do it");
    cluster.start_kubelet(2)?;
    eventually(LONG, || exec(cluster, &pods[1].name, ["true"]))?;
    cluster.wait_nodes()?;
    ensure!(cluster.programs().iter().all(|(.., runs)| *runs), "{:?}", cluster.programs());
    Ok(())
}

/// A crashed cluster is taken down like a running one.
fn kill_a_node(cluster: &Cluster) -> Result<()> {
    let node = cluster.node(2);
    let init = i32::try_from(node.init().context("no init")?)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(init), nix::sys::signal::Signal::SIGKILL)?;
    eventually(LONG, || {
        ensure!(node.init().is_none(), "the init lives on");
        Ok(())
    })?;
    let left = cluster.programs();
    ensure!(left.iter().all(|(machine, _, runs)| *runs == (*machine != "node2")), "{left:?}");
    Ok(())
}
