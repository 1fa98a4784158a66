//! Which pods of a node still exist, for nodes whose announcement is in question. An agent watches
//! only its own node's pods. It asks for another node's pods only then, and less often the longer
//! the question lasts.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Client, Resource as _};
use mesh_world::{
    Announcements, Answer, Answers, MeshNode, NodeName, NodePods, PodObject, PodUid, add_pod,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::json::read;
use super::api_object::ApiObject;
use super::told::{Repeats, sentence};
use super::watches::spread;

/// When a node's pods are first asked for, or up to half of it sooner; the pause doubles after each
/// answer or failure. The node's agent may be about to announce them again.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// The pause between two questions, for each node in question: all agents ask at the same time.
const PAUSE_FOR_EACH: Duration = Duration::from_millis(10);
/// The least pause between two questions.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the API server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the API server for the pods of nodes in question.
pub struct NodePodsTask {
    client: Client,
    questions: watch::Receiver<Announcements>,
    asked: BTreeMap<NodeName, Asked>,
    not_before: Instant,
    answers: watch::Sender<Arc<Answers>>,
    repeats: Repeats,
}

/// One question.
struct Asked {
    about: Arc<MeshNode>,
    /// The last answer.
    pods: Option<NodePods>,
    pause: Duration,
    due: Instant,
}

impl NodePodsTask {
    /// Answers `questions`. Nothing happens unless [`Self::run`] runs.
    pub fn new(
        client: Client,
        questions: watch::Receiver<Announcements>,
    ) -> (Self, watch::Receiver<Arc<Answers>>) {
        let (answers, receiver) = watch::channel(Arc::default());
        let (asked, repeats) = (BTreeMap::new(), Repeats::default());
        (Self { client, questions, asked, not_before: Instant::now(), answers, repeats }, receiver)
    }

    /// Works until `cancel` is done. A question without an answer stays open: nothing is concluded
    /// from it.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            let next = self.asked.iter().min_by_key(|(_, asked)| asked.due);
            let next = next.map(|(node, asked)| (node.clone(), asked.due));
            let due = next.as_ref().map_or(self.not_before, |(_, due)| self.not_before.max(*due));
            tokio::select! {
                () = &mut cancel => return,
                changed = self.questions.changed() => match changed {
                    Ok(()) => self.take_questions(),
                    Err(_stopping) => return,
                },
                () = sleep_until(due), if next.is_some() => {
                    let Some((node, _)) = next else { continue };
                    tokio::select! {
                        () = &mut cancel => return,
                        pods = pods_of(&self.client, &node) => self.take_answer(&node, pods),
                    }
                }
            }
            self.tell();
        }
    }

    fn take_questions(&mut self) {
        let questions = self.questions.borrow_and_update();
        self.asked.retain(|node, asked| questions.get(node) == Some(&asked.about));
        for (node, about) in questions.iter() {
            self.asked.entry(node.clone()).or_insert_with(|| Asked {
                about: Arc::clone(about),
                pods: None,
                pause: FIRST_PAUSE,
                due: Instant::now() + spread(FIRST_PAUSE),
            });
        }
    }

    fn take_answer(&mut self, node: &NodeName, pods: Result<NodePods, String>) {
        self.not_before = Instant::now() + pause_between(self.asked.len());
        let Some(asked) = self.asked.get_mut(node) else { return };
        match pods {
            Ok(pods) => asked.pods = Some(pods),
            Err(error) => {
                if let Some(attempts) = self.repeats.again(&error) {
                    tracing::warn!(%node, attempts, "which pods are there cannot be asked: {error}");
                }
            }
        }
        asked.pause = asked.pause.saturating_mul(2).min(LONGEST_PAUSE);
        asked.due = Instant::now() + spread(asked.pause);
    }

    fn tell(&self) {
        let answer = |(node, asked): (&NodeName, &Asked)| {
            let (about, pods) = (Arc::clone(&asked.about), asked.pods.clone()?);
            Some((node.clone(), Answer { about, pods }))
        };
        let answers: Answers = self.asked.iter().filter_map(answer).collect();
        if answers != **self.answers.borrow() {
            self.answers.send_replace(Arc::new(answers));
        }
    }
}

/// The pause between two questions while so many nodes are in question.
fn pause_between(in_question: usize) -> Duration {
    let in_question = u32::try_from(in_question).unwrap_or(u32::MAX);
    PAUSE_FOR_EACH.saturating_mul(in_question).max(SHORTEST_PAUSE)
}

/// What the API server says now: an answer from its cache may be older than the announcement.
async fn pods_of(client: &Client, node: &NodeName) -> Result<NodePods, String> {
    let which = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let api = ApiObject::all::<Pod>(client);
    let listed = timeout(ANSWER_TIMEOUT, api.list(&which)).await;
    let listed = listed.map_err(|_elapsed| format!("no answer for {ANSWER_TIMEOUT:?}"))?;
    let mut pods = NodePods::new();
    for pod in listed.map_err(|error| sentence(&error))? {
        let uid = pod.meta().uid.as_deref().map(PodUid::parse);
        let read = read::<Pod>(pod.into_value()).and_then(|pod| PodObject::try_from(&pod));
        match (read, uid) {
            (Ok(pod), _) => add_pod(&mut pods, &pod),
            (Err(_unreadable), Some(Ok(uid))) => drop(pods.insert(uid, Vec::new())),
            (Err(_unreadable), _) => {} // nothing can have been announced of it
        }
    }
    Ok(pods)
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use mesh_world::{Objects, in_force};
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// A client of an API server that gives one answer, and the request that it gets.
    async fn answering(answer: Value) -> (Client, tokio::sync::oneshot::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
        let (asked, question) = tokio::sync::oneshot::channel();
        let tasks = crate::tasks::Tasks::new();
        tasks.spawn("api-server", async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let body = answer.to_string();
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length";
            let text = format!("{head}: {}\r\n\r\n{body}", body.len());
            stream.write_all(text.as_bytes()).await.unwrap();
            drop(asked.send(String::from_utf8_lossy(&request[..read]).into_owned()));
        });
        (client, question)
    }

    fn announcement(pods: &[(&str, &str)]) -> Announcements {
        let pods = pods.iter().map(|(name, address)| {
            json!({"uid": name, "namespace": "shop", "name": name, "serviceAccount": "a",
                "addresses": [address], "mode": "permissive"})
        });
        let said: MeshNode = serde_json::from_value(json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "node2"},
            "spec": {"bootId": "b", "trustDomain": "t", "pods": pods.collect::<Vec<_>>()},
        }))
        .unwrap();
        Announcements::from([(said.node.clone(), Arc::new(said))])
    }

    #[tokio::test]
    async fn a_nodes_pods_are_asked_for_and_what_is_in_force_follows_from_the_answer() {
        let pod = |name: &str, status: Value| {
            json!({"metadata": {"namespace": "shop", "name": name, "uid": name},
                "spec": {"nodeName": "node2", "containers": []}, "status": status})
        };
        let list = json!({"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": [
            pod("there", json!({"phase": "Running", "podIP": "10.0.1.1"})),
            pod("ended", json!({"phase": "Succeeded", "podIP": "10.0.1.2"})),
            pod("moved", json!({"phase": "Running", "podIP": "10.0.1.9"})),
            pod("starting", json!({"phase": "Pending"})),
            pod("unreadable", json!({"phase": "Running", "podIP": "no address"})),
            pod("odd", json!({"phase": 7})),
        ]});
        let (client, question) = answering(list).await;
        let before = announcement(&[
            ("there", "10.0.1.1"),
            ("ended", "10.0.1.2"),
            ("moved", "10.0.1.3"),
            ("starting", "10.0.1.4"),
            ("unreadable", "10.0.1.5"),
            ("odd", "10.0.1.7"),
            ("gone", "10.0.1.6"),
        ]);
        let (questions, receiver) = watch::channel(Announcements::new());
        let (mut task, answers) = NodePodsTask::new(client, receiver);
        let node = NodeName::parse("node2").unwrap();
        let in_force_of = |answers: &Answers| {
            let (told, objects) = (Announcements::new(), Objects::default());
            let found = in_force(&told, &before, &objects, Some(answers));
            questions.send_replace(found.in_question);
            let pods = found.announcements.values().flat_map(|said| said.pods.clone());
            pods.map(|pod| pod.name).collect::<Vec<_>>()
        };
        assert_eq!(in_force_of(&answers.borrow()).len(), 7, "nothing is known yet");
        task.take_questions();
        assert!(task.asked[&node].due > Instant::now(), "its agent may announce them again");

        // An answer that does not come changes nothing.
        task.take_answer(&node, Err("no answer".to_owned()));
        task.tell();
        assert_eq!(in_force_of(&answers.borrow()).len(), 7);
        assert!(task.not_before > Instant::now(), "other nodes' pods are not asked for at once");
        assert_eq!(pause_between(1000), SHORTEST_PAUSE * 10);
        task.take_questions();

        let pods = pods_of(&task.client, &node).await;
        let asked = question.await.unwrap();
        assert!(asked.contains("fieldSelector=spec.nodeName%3Dnode2"), "{asked}");
        assert!(!asked.contains("resourceVersion"), "a cache may lag behind: {asked}");
        task.take_answer(&node, pods);
        task.tell();
        assert_eq!(in_force_of(&answers.borrow()), ["there", "starting", "unreadable", "odd"]);
        // The rest is another question, and the answer to this one is not kept.
        task.take_questions();
        task.tell();
        assert!(answers.borrow().is_empty());
        assert_eq!(task.asked.len(), 1);
    }
}
