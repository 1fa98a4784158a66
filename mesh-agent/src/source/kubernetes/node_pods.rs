//! Which pods of a node are still there, for nodes of which the announcement is in question. An agent watches the pods of its
//! own node alone; this is asked only then, and the less often the longer it lasts.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::told::{Repeats, sentence};
use super::watches::spread;
use crate::world::{
    Announcements, Answer, Answers, MeshNode, NodeName, NodePods, PodObject, PodUid, add_pod,
};

/// When a node's pods are asked for first, and then twice as long after each answer. Much longer than an API server's cache,
/// from which the answer comes, lags behind what a node's agent has already announced.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_mins(5);
/// How long the API server may take for one answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Asks the API server for the pods of nodes in question.
pub struct NodePodsTask {
    client: Client,
    questions: watch::Receiver<Announcements>,
    asked: BTreeMap<NodeName, Asked>,
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
    /// Answers `questions`; [`Self::run`] has to be run for anything to happen.
    pub fn new(
        client: Client,
        questions: watch::Receiver<Announcements>,
    ) -> (Self, watch::Receiver<Arc<Answers>>) {
        let (answers, receiver) = watch::channel(Arc::default());
        let (asked, repeats) = (BTreeMap::new(), Repeats::default());
        (Self { client, questions, asked, answers, repeats }, receiver)
    }

    /// Works until `cancel` is done. What cannot be asked stays in question: nothing is concluded from it.
    pub async fn run(mut self, cancel: impl Future<Output = ()>) {
        let mut cancel = pin!(cancel);
        loop {
            let next = self.asked.iter().min_by_key(|(_, asked)| asked.due);
            let next = next.map(|(node, asked)| (node.clone(), asked.due));
            let due = next.as_ref().map_or_else(Instant::now, |(_, due)| *due);
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

async fn pods_of(client: &Client, node: &NodeName) -> Result<NodePods, String> {
    let which = ListParams::default().fields(&format!("spec.nodeName={node}")).match_any();
    let api = Api::<Pod>::all(client.clone());
    let listed = timeout(ANSWER_TIMEOUT, api.list(&which)).await;
    let listed = listed.map_err(|_elapsed| format!("no answer for {ANSWER_TIMEOUT:?}"))?;
    let mut pods = NodePods::new();
    for pod in listed.map_err(|error| sentence(&error))? {
        let uid = pod.metadata.uid.as_deref().map(PodUid::parse);
        match (PodObject::try_from(&pod), uid) {
            (Ok(pod), _) => add_pod(&mut pods, &pod),
            (Err(_unreadable), Some(Ok(uid))) => drop(pods.insert(uid, Vec::new())),
            (Err(_unreadable), _) => {} // nothing can have been announced of it
        }
    }
    Ok(pods)
}
