//! Announcements as files, in a real directory.

use std::sync::Arc;
use std::time::Duration;

use mesh_world::{MeshNode, NodeName};
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::testing::{TestDir, soon, until};
use super::{AnnounceError, AnnouncementState, Announcer, Earlier, file_announcer};

type State = watch::Receiver<Arc<AnnouncementState>>;

fn start(dir: &TestDir, node: &str) -> (JoinSet<()>, Announcer, State) {
    let node = NodeName::parse(node).unwrap();
    let (announcer, task) = file_announcer(dir.path(), node, &Earlier::none()).unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(task.run(std::future::pending()));
    let state = announcer.subscribe();
    (tasks, announcer, state)
}

fn announcement(node: &str, pods: usize) -> MeshNode {
    let pod = |i: usize| {
        json!({"uid": format!("u{i}"), "namespace": "shop", "name": format!("p{i}"),
            "serviceAccount": "default", "addresses": [format!("10.0.0.{}", i + 1)],
            "mode": "strict"})
    };
    serde_json::from_value(json!({
        "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": node},
        "spec": {"bootId": "b", "trustDomain": "cluster.local",
            "pods": (0..pods).map(pod).collect::<Vec<_>>()},
    }))
    .unwrap()
}

fn text(node: &str, pods: usize) -> String {
    serde_json::to_string_pretty(&announcement(node, pods)).unwrap()
}

/// Each node with the number of its pods.
fn heard(state: &AnnouncementState) -> Vec<(String, usize)> {
    let pods = state.announcements.iter();
    pods.map(|(node, announcement)| (node.to_string(), announcement.pods.len())).collect()
}

fn is(node: &str, pods: usize) -> (String, usize) {
    (node.to_owned(), pods)
}

#[test]
fn a_missing_directory_is_a_clear_error() {
    let dir = TestDir::new();
    let missing = dir.path().join("missing");
    let error =
        file_announcer(&missing, NodeName::parse("node1").unwrap(), &Earlier::none()).map(|_| ());
    assert_eq!(
        error.unwrap_err().to_string(),
        format!(
            "the directory {} does not exist; hint: create it, or correct --announce-dir",
            missing.display()
        )
    );
}

#[tokio::test]
async fn two_nodes_hear_each_other_and_hear_of_a_withdrawal() {
    let dir = TestDir::new();
    let (_tasks1, node1, mut state1) = start(&dir, "node1");
    let (_tasks2, node2, mut state2) = start(&dir, "node2");
    soon("node1's file", node1.publish(announcement("node1", 1))).await.unwrap();
    soon("node2's file", node2.publish(announcement("node2", 2))).await.unwrap();
    let both = [is("node1", 1), is("node2", 2)];
    until(&mut state1, "both at node1", |s| heard(s) == both).await;
    until(&mut state2, "both at node2", |s| heard(s) == both).await;

    soon("the withdrawal", node1.withdraw()).await.unwrap();
    assert!(!dir.path().join("node1.json").exists());
    until(&mut state2, "node1's leaving", |s| heard(s) == [is("node2", 2)]).await;
    soon("a second withdrawal", node1.withdraw()).await.unwrap();
}

#[tokio::test]
async fn the_first_change_is_written_at_once_and_the_next_ones_together_a_second_later() {
    const SECOND: Duration = Duration::from_secs(1);
    let dir = TestDir::new();
    let (_tasks, node, _state) = start(&dir, "node1");
    let written = || {
        let text = std::fs::read_to_string(dir.path().join("node1.json")).unwrap();
        serde_json::from_str::<MeshNode>(&text).unwrap().pods.len()
    };
    soon("the first", node.publish(announcement("node1", 0))).await.unwrap();
    let first_done = Instant::now();

    let mut publishes = Vec::new();
    for pods in 1..=5 {
        let mut publish = Box::pin(node.publish(announcement("node1", pods)));
        // Polled once, so that the request is sent; then left until the others are sent, too.
        assert!(poll_once(&mut publish).await.is_none());
        publishes.push(publish);
    }
    let early = written();
    if first_done.elapsed() < SECOND {
        // Not checked on a machine that stood still meanwhile.
        assert_eq!(early, 0, "nothing more within the second");
    }
    for publish in publishes {
        soon("all of them", publish).await.unwrap();
    }
    assert_eq!(written(), 5, "the last one counts");
    assert!(first_done.elapsed() > SECOND / 2, "they waited");
}

#[tokio::test]
async fn neither_a_first_announcement_nor_a_withdrawal_waits_for_a_second_to_pass() {
    // The fastest of three: the machine may be busy.
    let (mut first, mut withdrawal) = (Duration::MAX, Duration::MAX);
    for _ in 0..3 {
        let dir = TestDir::new();
        let (_tasks, node, _state) = start(&dir, "node1");
        let began = Instant::now();
        soon("an announcement", node.publish(announcement("node1", 1))).await.unwrap();
        first = first.min(began.elapsed());
        let began = Instant::now();
        soon("a withdrawal", node.withdraw()).await.unwrap();
        withdrawal = withdrawal.min(began.elapsed());
    }
    assert!(first < Duration::from_millis(500), "the fastest took {first:?}");
    assert!(withdrawal < Duration::from_millis(500), "the fastest took {withdrawal:?}");
}

/// Polls a future one time.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    std::future::poll_fn(|context| {
        std::task::Poll::Ready(match std::pin::Pin::new(&mut *future).poll(context) {
            std::task::Poll::Ready(output) => Some(output),
            std::task::Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn bad_announcements_are_reported_and_the_earlier_ones_kept() {
    let dir = TestDir::new();
    dir.write("node2.json", &text("node2", 2));
    dir.write("node3.json", &text("node2", 1));
    let (_tasks, _node, mut state) = start(&dir, "node1");
    let errors = |s: &AnnouncementState| -> Vec<String> {
        s.errors.iter().map(ToString::to_string).collect()
    };
    let impostor = "node3.json:5:13: metadata.name: a node speaks only for itself, and \"node2\" \
                    may only stand in node2.json. Hint: only that node's agent writes this file; \
                    delete it if the node is gone.";
    assert_eq!(errors(&state.borrow()), [impostor]);
    assert_eq!(heard(&state.borrow()), [is("node2", 2)]);

    dir.write("node2.json", &text("node2", 1).replace("strict", "strikt"));
    let bad = until(&mut state, "a bad mode", |s| s.errors.len() == 2).await;
    assert_eq!(
        errors(&bad),
        [
            "node2.json:19:17: spec.pods[0].mode: unknown variant `strikt`, expected `permissive` \
             or `strict`. Hint: only that node's agent writes this file; delete it if the node is \
             gone.",
            impostor,
        ]
    );
    assert_eq!(heard(&bad), [is("node2", 2)], "the earlier one is kept");

    dir.write("node2.json", "{");
    let worse = until(&mut state, "broken JSON", |s| errors(s)[0].contains("not JSON")).await;
    assert_eq!(heard(&worse), [is("node2", 2)]);
    dir.remove("node3.json");
    dir.remove("node2.json");
    let none = until(&mut state, "no files", |s| s.errors.is_empty()).await;
    assert_eq!(heard(&none), []);
}

#[tokio::test]
async fn a_node_cannot_be_made_to_speak_for_another() {
    let dir = TestDir::new();
    let (_tasks, node, _state) = start(&dir, "node1");
    let error = soon("a refusal", node.publish(announcement("node2", 1))).await.unwrap_err();
    assert_eq!(error.to_string(), "node node1 was asked to announce for node node2");
}

#[tokio::test]
async fn what_cannot_be_written_is_an_error_and_is_tried_again() {
    let dir = TestDir::new();
    let (_tasks, node, mut state) = start(&dir, "node1");
    let in_the_way = dir.path().join("node1.json");
    std::fs::create_dir(&in_the_way).unwrap();
    let error = soon("an error", node.publish(announcement("node1", 1))).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{} cannot be written: Is a directory (os error 21)", in_the_way.display())
    );
    std::fs::remove_dir(&in_the_way).unwrap();
    until(&mut state, "the second try", |s| heard(s) == [is("node1", 1)]).await;
}

#[tokio::test]
async fn a_stopped_announcer_says_so_and_leaves_the_announcement() {
    let dir = TestDir::new();
    let (mut tasks, node, _state) = start(&dir, "node1");
    soon("the file", node.publish(announcement("node1", 1))).await.unwrap();
    tasks.shutdown().await;
    let error = soon("an error", node.publish(announcement("node1", 2))).await.unwrap_err();
    assert!(matches!(error, AnnounceError::Stopped));
    assert!(dir.path().join("node1.json").exists(), "a stopped agent has not left the mesh");
}
