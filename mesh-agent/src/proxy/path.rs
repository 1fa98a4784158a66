//! Whether the path to another node keeps source address and port, and which port connections use.
//!
//! The source port says that TLS follows. So TLS must not go to an application's port where
//! something on the path changes the source port: it would reach the application. Before the first
//! TLS to a permissive pod of a node, the agent asks a pod's agent there which source it sees
//! ([`probe`]). An unchanged source proves the node for [`PROVEN_FOR`], for all pods and per
//! address family. If the source was changed, connections go to the agents' port, which leads to
//! the agent whatever the source. They use mutual TLS there as well. So a false answer, or one that
//! an attacker on the path caused, only costs another port; it never leads to plaintext.
//!
//! If no answer comes (a network policy that knows only the application's port), the agent dials
//! TLS as if the source were unchanged: a refusal would break clusters with such policies.
//!
//! TLS to a strict pod is dialled without asking, because nothing but TLS gets in there (except at
//! ports that are left open to plaintext). Only a failure is looked into.
//!
//! One case cannot be known: the source begins to be changed while a node counts as proven. Then
//! one connection sends a `ClientHello` to an application before it goes to the agents' port. Its
//! failure makes the agent ask again. A change that is new to a pod removes the node's proof for
//! all pods.

mod probe;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use mesh_api::WirePort;
use mesh_common::ports;
use mesh_wire::{SingleFlight, identity::SpiffeId};
use mesh_world::{NodeName, PodUid};
use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

pub(super) use self::probe::answer;
use self::probe::ask;
use super::{Mesh, pod::Pod};

/// How long a node counts as proven. Bounds how long new SNAT stays unnoticed, at the cost of one
/// question per pair of nodes and minute.
const PROVEN_FOR: Duration = Duration::from_mins(1);

/// How long to wait before asking again about a path that changes the source.
const CHANGED_FOR: Duration = Duration::from_secs(10);

/// How long a pair of pods goes without an answer after a question was not answered: as long as an
/// answer is valid. Then it is asked again, and no connection waits for that.
const UNANSWERED_FOR: Duration = PROVEN_FOR;

/// How long `status` shows a path that changes the source and is no longer used.
const SHOWN_FOR: Duration = Duration::from_mins(10);

/// Pods of the mesh that are remembered for one of our pods. The oldest is evicted first. A
/// forgotten pod is dialled as if it had never been known.
const PAIRS_OF_POD: usize = 256;

/// A pod of the mesh that is to be dialled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MeshedPeer {
    /// Its UID.
    pub(super) uid: PodUid,
    /// Its address, and the application's port.
    pub(super) target: SocketAddr,
    /// The identity that it must prove.
    pub(super) expected: SpiffeId,
    /// The node that it runs on.
    pub(super) node: NodeName,
    /// Whether nothing but mutual TLS gets in at this port.
    pub(super) only_tls: bool,
}

/// What a peer's agent saw.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "something on the path changes source addresses or ports (MASQUERADE, SNAT): what {pod} sent from {sent} reached {target} on {node} from {arrived}"
)]
pub(super) struct SourceChange {
    pod: String,
    node: NodeName,
    target: IpAddr,
    sent: SocketAddr,
    arrived: SocketAddr,
}

/// The answer to a question.
#[derive(Clone, Debug)]
enum Answer {
    Intact,
    Changed(SourceChange),
    Unanswered(Unanswered),
}

/// A question without an answer.
#[derive(Clone, Debug)]
struct Unanswered {
    pod: String,
    node: NodeName,
    target: IpAddr,
    detail: String,
    /// No TCP connection was established.
    is_dropped: bool,
    /// A connection to the application's port has succeeded since.
    is_reached: bool,
    /// It was not answered after that either: the peer's agent was not just away.
    is_confirmed: bool,
}

/// One of our pods, and a pod of the mesh.
type Pair = (IpAddr, IpAddr);
/// A node, over IPv4 or not.
type NodePath = (NodeName, bool);

/// What is known of the paths.
#[derive(Default)]
pub(super) struct Paths {
    known: Mutex<KnownPaths>,
    /// While one task asks about a pair, the others wait for its answer.
    asking: SingleFlight<Pair>,
}

#[derive(Default)]
struct KnownPaths {
    proven: HashMap<NodePath, Instant>,
    pods: HashMap<IpAddr, Doubts>,
    swept: Option<Instant>,
}

/// What is known for one of our pods, by pod of the mesh.
type Doubts = HashMap<IpAddr, (Doubt, Instant)>;

/// A doubt about a pair of pods, whatever is known of their nodes.
#[derive(Clone, Debug)]
enum Doubt {
    /// TLS has failed as it would if the source were changed.
    Suspected,
    Changed(SourceChange),
    Unanswered(Unanswered),
}

/// What to do about a connection.
#[derive(Debug)]
enum Next {
    Intact,
    Changed(SourceChange),
    Unanswered(Unanswered),
    /// Not answered a minute ago: go on as then, and ask again meanwhile.
    AskAgain(Unanswered),
    Ask,
}

/// Returns the port to which a connection to a pod of the mesh goes. Asks the peer's agent if that
/// is not known; of several callers at once, one asks.
///
/// # Cancel safety
/// If dropped while it asks, another waiting caller takes over.
pub(super) async fn judge(mesh: &Arc<Mesh>, pod: &Arc<Pod>, peer: &MeshedPeer) -> WirePort {
    match find_out(mesh, pod, peer, peer.only_tls).await {
        Answer::Intact => WirePort::Application,
        Answer::Changed(_) => WirePort::Agents,
        // A firewall or NetworkPolicy that knows only the application's port, or a peer that is
        // away: the dial will tell.
        Answer::Unanswered(Unanswered { detail, .. }) => {
            tracing::debug!(pod = %pod.name, node = %peer.node, detail, "not proven that connections arrive as they are sent");
            WirePort::Application
        }
    }
}

/// As [`judge`], after TLS to the application's port has failed. The pair has to be proven again,
/// whatever is known of the node. So a pod whose dials fail costs no other pod a question.
///
/// # Cancel safety
/// That of [`judge`].
pub(super) async fn judge_again(mesh: &Arc<Mesh>, pod: &Arc<Pod>, peer: &MeshedPeer) -> WirePort {
    let Some(pair) = pair(pod, peer) else { return WirePort::Application };
    mesh.paths.suspect(pair, Instant::now());
    match find_out(mesh, pod, peer, false).await {
        Answer::Changed(_) => WirePort::Agents,
        Answer::Intact | Answer::Unanswered(_) => WirePort::Application,
    }
}

/// Notes that a connection to the application's port of a peer has succeeded. If a question to it
/// was not answered before, asks once more.
pub(super) fn note_reached(mesh: &Arc<Mesh>, pod: &Arc<Pod>, peer: &MeshedPeer) {
    if let Some(pair) = pair(pod, peer)
        && mesh.paths.note_reached(&pair)
    {
        ask_meanwhile(mesh, pod, peer, pair);
    }
}

async fn find_out(mesh: &Arc<Mesh>, pod: &Arc<Pod>, peer: &MeshedPeer, trusting: bool) -> Answer {
    let paths = &mesh.paths;
    let Some(pair) = pair(pod, peer) else {
        return Answer::Intact; // there is no way at all, and the dial will say so
    };
    let node_path = node_path(peer);
    let known = || match paths.next(&pair, &node_path, trusting, Instant::now()) {
        Next::Intact => Some(Answer::Intact),
        Next::Changed(seen) => Some(Answer::Changed(seen)),
        Next::Unanswered(unanswered) => Some(Answer::Unanswered(unanswered)),
        Next::AskAgain(unanswered) => {
            ask_meanwhile(mesh, pod, peer, pair);
            Some(Answer::Unanswered(unanswered))
        }
        Next::Ask => None,
    };
    if let Some(answer) = known() {
        return answer;
    }
    let _turn = paths.asking.turn(pair).await;
    if let Some(answer) = known() {
        return answer;
    }
    ask_about(mesh, pod, peer, pair).await
}

/// Asks, and no connection waits for the answer.
fn ask_meanwhile(mesh: &Arc<Mesh>, pod: &Arc<Pod>, peer: &MeshedPeer, pair: Pair) {
    let (mesh, asking, peer) = (Arc::clone(mesh), Arc::clone(pod), peer.clone());
    let asked = async move { drop(ask_about(&mesh, &asking, &peer, pair).await) };
    pod.connections.spawn("path", asked);
}

/// Asks, and notes the answer.
async fn ask_about(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer, pair: Pair) -> Answer {
    let answer = Box::pin(ask(mesh.connector(), pod, peer)).await;
    let is_news = mesh.paths.note(pair, node_path(peer), &answer, Instant::now());
    if let Answer::Changed(seen) = &answer
        && is_news
    {
        tracing::warn!(pod = %pod.name, node = %peer.node, "{seen}");
    }
    answer
}

fn pair(pod: &Pod, peer: &MeshedPeer) -> Option<Pair> {
    Some((pod.address_like(peer.target.ip())?, peer.target.ip()))
}

fn node_path(peer: &MeshedPeer) -> NodePath {
    (peer.node.clone(), peer.target.is_ipv4())
}

impl Paths {
    /// What is known now. `trusting`: dial with TLS if nothing speaks against it.
    fn next(&self, pair: &Pair, node_path: &NodePath, trusting: bool, now: Instant) -> Next {
        let mut known = self.lock();
        let fresh = |at: Instant, time: Duration| now.duration_since(at) < time;
        let proven = known.proven.get(node_path).is_some_and(|at| fresh(*at, PROVEN_FOR));
        match known.pods.get_mut(&pair.0).and_then(|doubts| doubts.get_mut(&pair.1)) {
            Some((Doubt::Changed(seen), at)) if fresh(*at, CHANGED_FOR) => {
                Next::Changed(seen.clone())
            }
            Some((Doubt::Changed(_) | Doubt::Suspected, _)) => Next::Ask,
            _ if proven || trusting => Next::Intact,
            Some((Doubt::Unanswered(unanswered), at)) if fresh(*at, UNANSWERED_FOR) => {
                Next::Unanswered(unanswered.clone())
            }
            Some((Doubt::Unanswered(unanswered), at)) => {
                *at = now; // one asks
                Next::AskAgain(unanswered.clone())
            }
            None => {
                let Some((supposed, at)) = known.supposed(pair, &node_path.0) else {
                    return Next::Ask;
                };
                let is_fresh = fresh(at, UNANSWERED_FOR);
                let at = if is_fresh { at } else { now }; // one asks
                known.doubt(*pair, Doubt::Unanswered(supposed.clone()), at);
                if is_fresh { Next::Unanswered(supposed) } else { Next::AskAgain(supposed) }
            }
        }
    }

    /// Notes an answer. Returns whether it is a change that was not known of the pair.
    fn note(&self, pair: Pair, node_path: NodePath, answer: &Answer, now: Instant) -> bool {
        let mut known = self.lock();
        let before = match answer.clone() {
            Answer::Intact => {
                known.proven.insert(node_path, now);
                known.pods.get_mut(&pair.0).and_then(|doubts| doubts.remove(&pair.1))
            }
            Answer::Changed(seen) => {
                // Other pods ask again, too. A pod that changes its own packets costs them that
                // only each time it begins to.
                if !known.has_seen_changes(pair.0, &seen.node) {
                    known.proven.remove(&node_path);
                }
                known.doubt(pair, Doubt::Changed(seen), now)
            }
            Answer::Unanswered(mut unanswered) => {
                let was_reached = known.unanswered(&pair).is_some_and(|it| it.is_reached);
                (unanswered.is_reached, unanswered.is_confirmed) = (was_reached, was_reached);
                known.doubt(pair, Doubt::Unanswered(unanswered), now)
            }
        };
        known.forget_old(now);
        !matches!(before, Some((Doubt::Changed(_), _)))
    }

    /// Returns whether a question that was not answered is to be asked again.
    fn note_reached(&self, pair: &Pair) -> bool {
        let mut known = self.lock();
        known.unanswered(pair).is_some_and(|it| !std::mem::replace(&mut it.is_reached, true))
    }

    fn suspect(&self, pair: Pair, now: Instant) {
        let mut known = self.lock();
        let before = known.pods.get(&pair.0).and_then(|doubts| doubts.get(&pair.1));
        if !matches!(before, Some((Doubt::Changed(_), _))) {
            known.doubt(pair, Doubt::Suspected, now);
        }
    }

    /// For `status`: the latest change of each node and address family.
    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        let known = self.lock();
        let mut latest: BTreeMap<(NodeName, bool), (&SourceChange, Instant)> = BTreeMap::new();
        for (doubt, at) in known.pods.values().flat_map(HashMap::values) {
            if let Doubt::Changed(seen) = doubt
                && now.duration_since(*at) < SHOWN_FOR
            {
                let of = latest.entry((seen.node.clone(), seen.sent.is_ipv4()));
                let of = of.or_insert((seen, *at));
                if of.1 < *at {
                    *of = (seen, *at);
                }
            }
        }
        let consequence = format!(
            "connections go there over mutual TLS by the agents' port {}, not the applications'. Hint: exempt traffic \
             between pods from MASQUERADE and SNAT",
            ports::AGENTS
        );
        latest.values().map(|(seen, _)| format!("{seen}; {consequence}.")).collect()
    }

    /// For `status`: of each of our pods, one that it reaches although its agent does not answer.
    pub(super) fn blocked(&self, now: Instant) -> Vec<String> {
        let known = self.lock();
        let of_pod = |doubts: &Doubts| {
            let blocked = doubts.values().filter_map(|(doubt, at)| match doubt {
                Doubt::Unanswered(it)
                    if it.is_dropped && it.is_confirmed && now.duration_since(*at) < SHOWN_FOR =>
                {
                    Some(it)
                }
                _ => None,
            });
            let blocked: Vec<_> = blocked.collect();
            let Unanswered { pod, node, target, detail, .. } =
                blocked.iter().min_by_key(|it| it.target)?;
            let more = match blocked.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            let port = ports::AGENTS;
            Some(format!(
                "{pod} reaches {target} on {node}{more}, but not at the agents' port {port}: {detail}. \
                 Hint: let NetworkPolicies between pods of the mesh allow port {port}, too."
            ))
        };
        let mut sentences: Vec<_> = known.pods.values().filter_map(of_pod).collect();
        sentences.sort();
        sentences
    }

    fn lock(&self) -> MutexGuard<'_, KnownPaths> {
        // A panic elsewhere does not make it wrong: each change is one insertion or removal.
        self.known.lock()
    }
}

impl KnownPaths {
    fn unanswered(&mut self, pair: &Pair) -> Option<&mut Unanswered> {
        match self.pods.get_mut(&pair.0)?.get_mut(&pair.1)? {
            (Doubt::Unanswered(unanswered), _) => Some(unanswered),
            _ => None,
        }
    }

    /// What is supposed of a new pair, if questions from the same pod to the same node were dropped
    /// and connections were not; and when one was asked last.
    fn supposed(&self, &(own, target): &Pair, node: &NodeName) -> Option<(Unanswered, Instant)> {
        let of_node = self.pods.get(&own)?.values().filter_map(|(doubt, at)| match doubt {
            Doubt::Unanswered(it) if it.is_dropped && it.is_confirmed && it.node == *node => {
                Some((it, *at))
            }
            _ => None,
        });
        let (newest, at) = of_node.max_by_key(|(_, at)| *at)?;
        Some((Unanswered { target, ..newest.clone() }, at))
    }

    /// Whether the path from one of our pods to a node is known to change the source.
    fn has_seen_changes(&self, pod: IpAddr, node: &NodeName) -> bool {
        let doubts = self.pods.get(&pod).into_iter().flat_map(HashMap::values);
        let mut changes = doubts.filter_map(|(doubt, _)| match doubt {
            Doubt::Changed(seen) => Some(&seen.node),
            Doubt::Suspected | Doubt::Unanswered(_) => None,
        });
        changes.any(|changed| changed == node)
    }

    /// Remembers a doubt about a pair; returns the previous one.
    fn doubt(&mut self, pair: Pair, doubt: Doubt, now: Instant) -> Option<(Doubt, Instant)> {
        let doubts = self.pods.entry(pair.0).or_default();
        if doubts.len() >= PAIRS_OF_POD
            && !doubts.contains_key(&pair.1)
            && let Some(oldest) = doubts.iter().min_by_key(|(_, (_, at))| *at).map(|(ip, _)| *ip)
        {
            doubts.remove(&oldest);
        }
        doubts.insert(pair.1, (doubt, now))
    }

    /// Forgets what has no meaning any more. Runs once per [`SHOWN_FOR`], because it looks at
    /// everything.
    fn forget_old(&mut self, now: Instant) {
        let swept = *self.swept.get_or_insert(now);
        if now.duration_since(swept) < SHOWN_FOR {
            return;
        }
        self.swept = Some(now);
        self.proven.retain(|_, at| now.duration_since(*at) < PROVEN_FOR);
        self.pods.retain(|_, doubts| {
            doubts.retain(|_, (_, at)| now.duration_since(*at) < SHOWN_FOR);
            !doubts.is_empty()
        });
    }
}

#[cfg(test)]
mod tests;
