//! The file source on real directories: what it follows, and the full text of its errors.

use std::sync::Arc;

use mesh_world::{Announcements, Incumbents, LocalNode, NodeName, Snapshot};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::testing::{TestDir, until};
use super::{Earlier, FileSource, OpenError, SourceState};

const NAMESPACE: &str = "\
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels:
    nodemesh.dev/mesh: enabled
";

fn pod(name: &str, address: &str) -> String {
    format!(
        "\
apiVersion: v1
kind: Pod
metadata:
  namespace: shop
  name: {name}
  annotations:
    nodemesh.dev/netns: {name}
spec:
  nodeName: node1
  serviceAccountName: {name}
status:
  podIPs:
  - ip: {address}
"
    )
}

type State = watch::Receiver<Arc<SourceState>>;

fn open(dir: &TestDir) -> (FileSource, State) {
    FileSource::open(dir.path(), &Earlier::none()).unwrap()
}

/// Opens and follows the directory for as long as the set lives.
fn follow(dir: &TestDir) -> (JoinSet<()>, State) {
    let (source, state) = open(dir);
    let mut tasks = JoinSet::new();
    tasks.spawn(source.run(std::future::pending()));
    (tasks, state)
}

fn errors(state: &SourceState) -> Vec<String> {
    state.errors.iter().map(ToString::to_string).collect()
}

fn pods(state: &SourceState) -> Vec<String> {
    state.objects.pods().map(|pod| format!("{} {:?}", pod.uid, pod.ips)).collect()
}

fn problems(state: &SourceState) -> Vec<String> {
    let local = LocalNode {
        name: NodeName::parse("node1").unwrap(),
        enrolled: [].into(),
        mesh_namespace: None,
    };
    let snapshot =
        Snapshot::build(&state.objects, &Announcements::new(), &local, &Incumbents::default());
    snapshot.problems().iter().map(ToString::to_string).collect()
}

/// The errors of a directory whose only file has this text.
fn complaints(text: &str) -> Vec<String> {
    let dir = TestDir::new();
    dir.write("shop.yaml", text);
    let (_source, state) = open(&dir);
    let state = state.borrow();
    errors(&state)
}

#[test]
fn a_directory_that_cannot_be_one_is_a_clear_error() {
    let dir = TestDir::new();
    dir.write("file", "");
    let open = |name: &str| {
        FileSource::open(&dir.path().join(name), &Earlier::none()).map(|_| ()).unwrap_err()
    };
    let path = dir.path().display();
    assert_eq!(
        open("missing").to_string(),
        format!(
            "the directory {path}/missing does not exist; hint: create it, or correct --source"
        )
    );
    assert!(matches!(open("missing"), OpenError::Missing { .. }));
    assert_eq!(
        open("file").to_string(),
        format!(
            "{path}/file is not a directory; hint: --source takes the directory, not a file in it"
        )
    );
}

#[test]
fn documents_lists_and_json_are_read_and_other_kinds_and_files_ignored() {
    let dir = TestDir::new();
    dir.write("a.yaml", &format!("---\n{NAMESPACE}---\n# nothing\n---\n{}", pod("a", "10.0.0.1")));
    dir.write("d.yml", "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n");
    let item = |name: &str, kind: &str, ip: &str| {
        format!(
            r#"{{{kind} "metadata": {{"namespace": "shop", "name": "{name}", "uid": "{name}-1"}},
                "status": {{"podIP": "{ip}"}}}}"#
        )
    };
    let b = item("b", r#""apiVersion": "v1", "kind": "Pod","#, "10.0.0.2");
    dir.write("b.json", &format!(r#"{{"apiVersion": "v1", "kind": "List", "items": [{b}]}}"#));
    let c = item("c", "", "::ffff:10.0.0.3");
    dir.write("c.json", &format!(r#"{{"apiVersion": "v1", "kind": "PodList", "items": [{c}]}}"#));
    for ignored in [".a.yaml", "a.yaml~", "#a.yaml#", "a.yaml.tmp", "README"] {
        dir.write(ignored, "{ not yaml");
    }
    std::fs::create_dir(dir.path().join("directory.yaml")).unwrap();
    let (_source, state) = open(&dir);
    let state = state.borrow();
    assert_eq!(errors(&state), [""; 0]);
    assert_eq!(pods(&state), ["b-1 [10.0.0.2]", "c-1 [10.0.0.3]", "shop.a [10.0.0.1]"]);
    assert_eq!(state.revision, 1);
    let a = state.objects.pods().last().unwrap();
    assert_eq!(a.netns.as_ref().unwrap().path().to_str(), Some("/run/netns/a"));
    assert_eq!(a.origin.to_string(), "Pod shop/a (a.yaml, line 11)");
}

#[test]
fn broken_yaml_is_named_by_its_line() {
    assert_eq!(
        complaints("apiVersion: v1\nkind: Pod\nmetadata:\n  name: a: b\n"),
        [
            "shop.yaml:4:10: not YAML: mapping values are not allowed in this context. Hint: what the \
          file said before stays in force until this is corrected."
        ]
    );
    assert_eq!(
        complaints("kind: Pod\nkind: Pod\n"),
        [
            "shop.yaml:2:1: not YAML: duplicate mapping key `kind` is not allowed here. Hint: what the \
          file said before stays in force until this is corrected."
        ]
    );
    assert_eq!(
        complaints("hello\n"),
        ["shop.yaml:1:1: not a Kubernetes object. Hint: give it the texts apiVersion and kind."]
    );
}

#[test]
fn a_wrong_type_is_named_by_its_line_and_field() {
    let replaced = |from: &str, to: &str| complaints(&pod("a", "10.0.0.1").replace(from, to));
    assert_eq!(
        replaced("nodeName: node1", "nodeName: [node1]"),
        [
            "shop.yaml:9:3: spec.nodeName: invalid type: sequence, expected a string (in Pod shop/a). \
          Hint: `kubectl explain pod.spec.nodeName` shows what belongs there."
        ]
    );
    assert_eq!(
        replaced("nodemesh.dev/netns: a", "nodemesh.dev/exclude-ports: 6379"),
        [
            "shop.yaml:7:33: metadata.annotations[nodemesh.dev/exclude-ports]: invalid type: integer \
          `6379`, expected a string (in Pod shop/a). Hint: put the value in quotes."
        ]
    );
    assert_eq!(
        complaints(&NAMESPACE.replace("enabled", "on")),
        ["shop.yaml:6:24: metadata.labels[nodemesh.dev/mesh]: invalid type: boolean `true`, \
          expected a string (in Namespace shop). Hint: put the value in quotes."],
        "YAML reads on as true, and so does the API server"
    );
    assert_eq!(
        replaced("- ip: 10.0.0.1", "- 10.0.0.1"),
        [
            "shop.yaml:13:5: status.podIPs[0]: invalid type: string \"10.0.0.1\", expected PodIP (in \
          Pod shop/a). Hint: `kubectl explain pod.status.podIPs` shows what belongs there."
        ]
    );
    assert_eq!(
        complaints("apiVersion: v2\nkind: Pod\n"),
        ["shop.yaml:1:13: apiVersion: \"v2\" is not a known version of Pod. Hint: write v1."]
    );
}

#[test]
fn every_bad_value_of_a_file_is_reported_at_once() {
    let text = [
        NAMESPACE.to_owned(),
        pod("a", "10.0.0"),
        pod("b", "127.0.0.1"),
        pod("c", "10.0.0.3").replace("namespace: shop", "generateName: c"),
        pod("d", "10.0.0.4").replace("netns: d", "netns: ../d"),
    ];
    assert_eq!(
        complaints(&text.join("---\n")),
        [
            "shop.yaml:20:9: status.podIPs[0].ip: \"10.0.0\" is not an IP address (in Pod shop/a). \
             Hint: write the address alone, such as 10.244.1.7 or fd00:10:244::7.",
            "shop.yaml:34:9: status.podIPs[0].ip: \"127.0.0.1\" is a loopback address (in Pod \
             shop/b). Hint: write the address alone, such as 10.244.1.7 or fd00:10:244::7.",
            "shop.yaml:38:1: metadata.namespace: is missing (in Pod c). Hint: add \
             metadata.namespace.",
            "shop.yaml:56:25: metadata.annotations[nodemesh.dev/netns]: \"../d\" is neither an \
             absolute path nor a name under /run/netns (in Pod shop/d). Hint: write the name that \
             `ip netns` shows, or a path such as /proc/1234/ns/net.",
        ]
    );
}

#[test]
fn what_the_world_finds_wrong_is_named_by_file_line_and_field() {
    let dir = TestDir::new();
    let annotated = |name: &str, address: &str, annotation: &str| {
        let netns = format!("nodemesh.dev/netns: {name}");
        pod(name, address).replace(&netns, &format!("nodemesh.dev/{annotation}"))
    };
    dir.write("1.yaml", &NAMESPACE.replace("enabled", "enable"));
    dir.write("2.yaml", &annotated("a", "10.0.0.1", "mode: strikt"));
    dir.write("3.yaml", &annotated("b", "10.0.0.2", "exclude-ports: \"80,x\""));
    dir.write("4.yaml", &pod("c", "10.0.0.1"));
    dir.write("5.yaml", &pod("d", "10.0.0.4").replace("namespace: shop", "namespace: back"));
    let (_source, state) = open(&dir);
    assert_eq!(errors(&state.borrow()), [""; 0]);
    assert_eq!(
        problems(&state.borrow()),
        [
            "1.yaml:6: Namespace shop: metadata.labels[nodemesh.dev/mesh]: unknown value \"enable\"; \
             pods that depend on it are not in the mesh; one whose namespace is, and that is strict, \
             is held. Hint: write enabled or disabled.",
            "5.yaml:4: Pod back/d: metadata.namespace: the Namespace \"back\" is not there; the pod \
             is not in the mesh. Hint: add the object: kind Namespace, metadata.name back.",
            "2.yaml:7: Pod shop/a: metadata.annotations[nodemesh.dev/mode]: unknown mode \
             \"strikt\"; pods of the mesh that depend on it are held, since they may be meant to be \
             strict. Hint: write permissive or strict.",
            "3.yaml:7: Pod shop/b: metadata.annotations[nodemesh.dev/exclude-ports]: \"x\" is \
             neither a port (1 to 65535) nor a range such as 8000-8010; pods that depend on it are \
             not in the mesh, and held if they are strict. Hint: write ports and ranges with commas between them, such as \
             6379,8000-8010.",
            "4.yaml:13: Pod shop/c: status.podIPs[0].ip: 10.0.0.1 is already the address of Pod \
             shop/a (2.yaml, line 1); this pod is not enrolled. Hint: give each pod its own \
             address, or delete the pod that is gone.",
        ]
    );
}

#[test]
fn of_two_objects_with_one_name_or_uid_the_first_stays() {
    let dir = TestDir::new();
    dir.write("a.yaml", &format!("{NAMESPACE}---\n{}", pod("a", "10.0.0.1")));
    dir.write("b.yaml", &pod("a", "10.0.0.2"));
    let same_uid = pod("b", "10.0.0.3").replace("  name: b", "  name: b\n  uid: shop.a");
    dir.write("c.yaml", &same_uid);
    let (_source, state) = open(&dir);
    assert_eq!(pods(&state.borrow()), ["shop.a [10.0.0.1]"]);
    assert_eq!(
        errors(&state.borrow()),
        [
            "b.yaml:1:1: this Pod is there twice; in force is Pod shop/a (a.yaml, line 8). Hint: \
             remove one of the two.",
            "c.yaml:1:1: this Pod has a uid that is there twice; in force is Pod shop/a (a.yaml, \
             line 8). Hint: remove one of the two.",
        ]
    );
}

#[tokio::test]
async fn changes_are_followed_and_a_bad_file_changes_nothing() {
    let dir = TestDir::new();
    dir.write("ns.yaml", NAMESPACE);
    let (_tasks, mut state) = follow(&dir);

    dir.write("a.yaml", &pod("a", "10.0.0.1"));
    until(&mut state, "a new file", |s| pods(s) == ["shop.a [10.0.0.1]"]).await;
    dir.write("a.yaml", &pod("a", "10.0.0.2"));
    until(&mut state, "a changed file", |s| pods(s) == ["shop.a [10.0.0.2]"]).await;

    dir.write("a.yaml", &pod("a", "10.0.0"));
    let bad = until(&mut state, "a bad file", |s| !s.errors.is_empty()).await;
    assert_eq!(pods(&bad), ["shop.a [10.0.0.2]"], "what was known stays in force");
    dir.write("b.yaml", &pod("b", "10.0.0.3"));
    let other = until(&mut state, "another file beside a bad one", |s| pods(s).len() == 2).await;
    assert_eq!(other.errors, bad.errors);

    dir.write("a.yaml", "\n");
    let empty = until(&mut state, "an empty file", |s| {
        s.errors.first().is_some_and(|error| error.place.is_none())
    });
    let empty = empty.await;
    assert_eq!(
        errors(&empty),
        [
            "a.yaml: is empty now. Hint: what it said before stays in force; to end that, delete the \
          file."
        ]
    );
    assert_eq!(pods(&empty).len(), 2);

    dir.write("a.yaml", &pod("a", "10.0.0.9"));
    let good = until(&mut state, "a corrected file", |s| s.errors.is_empty()).await;
    assert_eq!(pods(&good), ["shop.a [10.0.0.9]", "shop.b [10.0.0.3]"]);
    dir.remove("a.yaml");
    until(&mut state, "a removed file", |s| pods(s) == ["shop.b [10.0.0.3]"]).await;
    std::fs::rename(dir.path().join("b.yaml"), dir.path().join("b.txt")).unwrap();
    let last = until(&mut state, "a file renamed away", |s| pods(s).is_empty()).await;
    assert!(last.revision > good.revision);
}

#[tokio::test]
async fn an_object_in_force_is_not_replaced_by_a_duplicate_that_sorts_before_it() {
    let dir = TestDir::new();
    dir.write("b.yaml", &format!("{NAMESPACE}---\n{}", pod("a", "10.0.0.1")));
    let (_tasks, mut state) = follow(&dir);
    dir.write("a.yaml", &pod("a", "10.0.0.2"));
    let both = until(&mut state, "a duplicate", |s| !s.errors.is_empty()).await;
    assert_eq!(pods(&both), ["shop.a [10.0.0.1]"]);
    dir.remove("b.yaml");
    let moved = until(&mut state, "only one of the two", |s| s.errors.is_empty()).await;
    assert_eq!(pods(&moved), ["shop.a [10.0.0.2]"]);
}

#[tokio::test]
async fn a_setting_that_becomes_unreadable_keeps_its_earlier_value() {
    let dir = TestDir::new();
    let strict = "    nodemesh.dev/mesh: enabled\n  annotations:\n    nodemesh.dev/mode: strict\n";
    let namespace = NAMESPACE.replace("    nodemesh.dev/mesh: enabled\n", strict);
    dir.write("a.yaml", &format!("{namespace}---\n{}", pod("a", "10.0.0.1")));
    let (_tasks, mut state) = follow(&dir);
    let slip = namespace.replace("strict", "strikt");
    dir.write("a.yaml", &format!("{slip}---\n{}", pod("a", "10.0.0.1")));
    let state = until(&mut state, "a slip", |s| !problems(s).is_empty()).await;
    assert_eq!(
        problems(&state),
        ["a.yaml:8: Namespace shop: metadata.annotations[nodemesh.dev/mode]: unknown mode \
          \"strikt\"; what it said before stays in force. Hint: write permissive or strict."]
    );
    let local = LocalNode {
        name: NodeName::parse("node1").unwrap(),
        enrolled: [].into(),
        mesh_namespace: None,
    };
    let snapshot =
        Snapshot::build(&state.objects, &Announcements::new(), &local, &Incumbents::default());
    let membership = &snapshot.local_pods()[0].workload.membership;
    assert_eq!(membership.settings().unwrap().mode.to_string(), "strict");
}

#[tokio::test]
async fn a_directory_that_vanishes_changes_nothing_and_its_successor_is_followed() {
    let dir = TestDir::new();
    let path = dir.path().join("source");
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("a.yaml"), format!("{NAMESPACE}---\n{}", pod("a", "10.0.0.1")))
        .unwrap();
    let (source, mut state) = FileSource::open(&path, &Earlier::none()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(source.run(std::future::pending()));

    std::fs::rename(&path, dir.path().join("old")).unwrap();
    let gone = until(&mut state, "the loss of the directory", |s| !s.errors.is_empty()).await;
    assert_eq!(
        errors(&gone),
        [
            "the directory cannot be read: No such file or directory (os error 2). Hint: what it said \
          before stays in force until it is back."
        ]
    );
    assert_eq!(pods(&gone), ["shop.a [10.0.0.1]"]);
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("b.yaml"), pod("b", "10.0.0.2")).unwrap();
    let back = until(&mut state, "the new directory", |s| s.errors.is_empty()).await;
    assert!(pods(&back).iter().all(|pod| pod == "shop.b [10.0.0.2]"));
}

#[tokio::test]
async fn cancelling_ends_the_run() {
    let (source, _state) = open(&TestDir::new());
    super::testing::soon("the end of the run", source.run(std::future::ready(()))).await;
}
