//! A world that is written and read again.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use mesh_world::{Announcements, Incumbents, Memory, MeshNode, NodeName, NodeRank, Objects};
use serde_json::{Value, json};

use super::kept::{KeptError, KeptFile, forget_kept};
use super::testing::TestDir;

fn file(dir: &TestDir, node: &str, boot_id: &str) -> KeptFile {
    KeptFile::new(dir.path(), &NodeName::parse(node).unwrap(), boot_id)
}

/// As from the API server: without the lines of a file.
fn objects() -> Objects {
    let name = |name: &str| json!({"namespace": "shop", "name": name, "uid": name});
    let all = [
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
            "labels": {"nodemesh.dev/mesh": "enabled"}, "annotations": {"nodemesh.dev/mode": "strict"}}}),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"},
            "spec": {"podCIDRs": ["10.244.1.0/24"]},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]}}),
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": name("cart"),
            "spec": {"nodeName": "node1", "containers": []}, "status": {"podIPs": [{"ip": "10.244.1.9"}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": name("cart"),
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80, "targetPort": 8080}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "shop", "name": "cart-1", "labels": {"kubernetes.io/service-name": "cart"}},
            "ports": [{"port": 8080}], "endpoints": [{"addresses": ["10.244.1.9"], "nodeName": "node1"}]}),
    ];
    let mut objects = Objects::default();
    for value in all {
        super::kept::insert(value, &mut objects, &mut Announcements::new()).unwrap();
    }
    objects
}

fn announcements() -> Announcements {
    let mesh_node: MeshNode = serde_json::from_value(json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "node2"},
        "spec": {"bootId": "b2", "trustDomain": "cluster.local", "pods": [{
            "uid": "u2", "namespace": "shop", "name": "web", "serviceAccount": "web",
            "addresses": ["10.244.2.9"], "mode": "strict", "generation": 7}]},
    }))
    .unwrap();
    Announcements::from([(mesh_node.node.clone(), Arc::new(mesh_node))])
}

fn memory() -> Memory {
    Memory { announcements: announcements().into(), ..Memory::default() }
}

fn change(dir: &Path, change: impl FnOnce(&mut Vec<String>)) {
    let path = dir.join("world.jsonl");
    let mut lines: Vec<_> = fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    change(&mut lines);
    fs::write(&path, lines.join("\n")).unwrap();
}

#[test]
fn what_is_written_is_read_again_with_the_time_at_which_it_was_true() {
    let dir = TestDir::new();
    let kept = file(&dir, "node1", "b1");
    assert!(kept.read().unwrap().is_none());
    kept.write(&objects(), &memory(), Timestamp::now()).unwrap();
    let read = kept.read().unwrap().unwrap();
    assert_eq!((&*read.objects, &*read.memory.announcements), (&objects(), &announcements()));
    let mode = fs::metadata(kept.path()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let at = |second| Timestamp::from_second(second).unwrap();
    kept.write(&objects(), &memory(), at(1_000_000_000)).unwrap();
    assert_eq!(kept.read().unwrap().unwrap().as_of, at(1_000_000_000));
    kept.touch(at(1_000_000_001)).unwrap();
    assert_eq!(kept.read().unwrap().unwrap().as_of, at(1_000_000_001));
    dir.write("world.4294967295.tmp", "half"); // no process has such a pid
    dir.write("agent.json", "another file");
    kept.write(&objects(), &memory(), at(1)).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "something lies beside it");
    dir.write("world.1.tmp", "half");
    forget_kept(dir.path());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "the other file");
}

#[test]
fn who_came_first_is_remembered() {
    let dir = TestDir::new();
    let kept = file(&dir, "node1", "b1");
    let node = |name| NodeName::parse(name).unwrap();
    let mut incumbents = Incumbents::default();
    let claim = |name, rank| NodeRank { node: node(name), rank };
    incumbents.insert("10.244.2.9".parse().unwrap(), vec![claim("node2", 1), claim("node9", 0)]);
    let memory = Memory { announcements: announcements().into(), incumbents };
    kept.write(&objects(), &memory, Timestamp::now()).unwrap();
    assert_eq!(kept.read().unwrap().unwrap().memory, memory);
    let since = memory.incumbents.of("10.244.2.9".parse().unwrap());
    assert_eq!(since, Some(&node("node9")));
}

#[test]
fn what_is_another_boots_or_nodes_or_versions_is_not_used() {
    let dir = TestDir::new();
    file(&dir, "node1", "b1").write(&objects(), &memory(), Timestamp::now()).unwrap();
    let why = |node, boot_id| file(&dir, node, boot_id).read().unwrap_err().to_string();
    assert_eq!(why("node1", "b2"), "it is of an earlier boot");
    assert_eq!(why("node2", "b1"), "it is of another node");
    change(dir.path(), |lines| {
        let mut header: Value = serde_json::from_str(&lines[0]).unwrap();
        header["nodemeshWorld"] = json!(2);
        lines[0] = header.to_string();
    });
    assert_eq!(why("node1", "b1"), "it is of another version");
}

#[test]
fn half_a_file_is_none() {
    let dir = TestDir::new();
    let kept = file(&dir, "node1", "b1");
    let write = || kept.write(&objects(), &memory(), Timestamp::now()).unwrap();
    write();
    change(dir.path(), |lines| drop(lines.pop()));
    assert!(matches!(kept.read(), Err(KeptError::Cut)));
    write();
    change(dir.path(), |lines| drop(lines.remove(3)));
    assert!(matches!(kept.read(), Err(KeptError::Cut)));
    write();
    change(dir.path(), |lines| lines[3].truncate(20));
    assert!(matches!(kept.read(), Err(KeptError::Line { line: 4, .. })));
    fs::write(kept.path(), "").unwrap();
    assert!(matches!(kept.read(), Err(KeptError::Cut)));
    fs::write(kept.path(), [0xff; 99]).unwrap();
    assert!(kept.read().is_err());
    write();
    assert!(kept.read().unwrap().is_some());
}
