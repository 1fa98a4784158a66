//! Whether the path to another node leaves source address and port alone.
//!
//! That TLS follows is said by the source port, so TLS must not be sent where something on the path masquerades: it would
//! reach an application. Before the first TLS to a permissive pod of a node, the agent asks a pod's agent there what it sees
//! ([`probe`]). Proven once, a node counts as proven for [`PROVEN_FOR`], for all pods and per address family. That
//! something masquerades is believed only of the two pods between which it was seen, and only from the authenticated peer:
//! otherwise one pod with rules of its own could bring others' connections to go in plaintext.
//!
//! Where nobody answers (a network policy that knows the application's port only), TLS is dialled as if all were well: to refuse
//! would break whoever has such policies, and plaintext must not be had by dropping packets.
//!
//! To a strict pod TLS is dialled without asking, since nothing but TLS gets in there (but for ports that are left open to
//! plaintext); only a failure is looked into.
//!
//! What nobody can know is that something begins to masquerade while a node counts as proven. Then one connection of each
//! pair of pods, at most, sends a `ClientHello` to an application: its failure makes the agent ask again.

mod probe;

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

pub(super) use self::probe::answer;
use self::probe::ask;
use super::{Mesh, pod::Pod};
use crate::{identity::SpiffeId, world::NodeName};

/// How long a node counts as proven: bounds how long a masquerade that is new stays unnoticed, and costs one question per
/// pair of nodes and minute.
const PROVEN_FOR: Duration = Duration::from_mins(1);

/// How long a path that masquerades is not asked about again.
const MASQUERADED_FOR: Duration = Duration::from_secs(10);

/// How long a pair of pods whose question was not answered does without an answer: as rarely as one is asked for otherwise.
const UNANSWERED_FOR: Duration = PROVEN_FOR;

/// How long `status` shows a path on which something was seen to masquerade, if nobody has used it since.
const SHOWN_FOR: Duration = Duration::from_mins(10);

/// Pairs of pods that are remembered at least; beyond it those older than [`SHOWN_FOR`] are forgotten.
const KEPT_PAIRS: usize = 1024;

/// A pod of the mesh that is to be dialled.
#[derive(Clone, Debug)]
pub(super) struct MeshedPeer {
    /// Its address, and the application's port.
    pub(super) target: SocketAddr,
    /// Whom we must meet.
    pub(super) expected: SpiffeId,
    /// The node that has it.
    pub(super) node: NodeName,
    /// Whether it is strict: nobody of the mesh dials it in plaintext.
    pub(super) strict: bool,
    /// Whether nothing but mutual TLS gets in at this port.
    pub(super) only_tls: bool,
}

/// How a permitted connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    /// Address and port arrive: over TLS.
    Intact,
    /// They do not, and both pods are permissive: in plaintext.
    Masqueraded,
}

/// Why a pod must not be dialled.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum PathError {
    /// Something on the path masquerades, and one of the pods is strict.
    #[error(
        "{0}, and a strict pod neither takes nor sends plaintext in the mesh; let traffic between pods pass unchanged"
    )]
    Masqueraded(Box<Seen>),
}

impl PathError {
    /// Stable `snake_case` code.
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Masqueraded(_) => "masqueraded_path",
        }
    }
}

/// What a peer's agent saw.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "something on the path masquerades: what {pod} sent from {sent} reached {target} on {node} from {arrived}"
)]
pub(super) struct Seen {
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
    Masqueraded(Seen),
    Unanswered { detail: String },
}

/// A pod of ours and one of the mesh.
type Pair = (IpAddr, IpAddr);
/// A node, over IPv4 or not.
type Leg = (NodeName, bool);

/// What is known of the paths.
#[derive(Default)]
pub(super) struct Paths(Mutex<Known>);

#[derive(Default)]
struct Known {
    proven: HashMap<Leg, Instant>,
    pairs: HashMap<Pair, (Doubt, Instant)>,
    asking: HashMap<Pair, Arc<tokio::sync::Mutex<()>>>,
}

/// What speaks against a pair of pods, whatever is known of their nodes.
#[derive(Clone, Debug)]
enum Doubt {
    /// TLS has failed as it would if something masqueraded.
    Suspected,
    Masqueraded(Seen),
    Unanswered {
        detail: String,
    },
}

/// What is to be done.
#[derive(Debug)]
enum Next {
    Intact,
    Masqueraded(Seen),
    Unanswered { detail: String },
    Ask,
}

/// Says how a connection to a pod of the mesh goes. Asks the peer's agent where that is not known; of several callers at once,
/// one does.
///
/// # Errors
/// It must not be dialled.
///
/// # Cancel safety
/// Dropped while it asks, another caller that waits takes over.
pub(super) async fn judge(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer) -> Result<Path, PathError> {
    match find_out(mesh, pod, peer, peer.only_tls).await {
        Answer::Intact => Ok(Path::Intact),
        Answer::Masqueraded(_) if !peer.strict && !pod.is_strict() => Ok(Path::Masqueraded),
        Answer::Masqueraded(seen) => Err(PathError::Masqueraded(seen.into())),
        // A firewall or NetworkPolicy that knows the application's port only, or a peer that is away: the dial will say.
        Answer::Unanswered { detail } => {
            tracing::debug!(pod = %pod.name, node = %peer.node, detail, "not proven that connections arrive as they are sent");
            Ok(Path::Intact)
        }
    }
}

/// Looks into a failure of TLS: the error if something on the path masquerades. Its node has to be proven again.
pub(super) async fn explain(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer) -> Option<PathError> {
    let pair = pair(pod, peer)?;
    mesh.paths.suspect(pair, &leg(peer), Instant::now());
    match find_out(mesh, pod, peer, false).await {
        Answer::Masqueraded(seen) => Some(PathError::Masqueraded(seen.into())),
        Answer::Intact | Answer::Unanswered { .. } => None,
    }
}

async fn find_out(mesh: &Mesh, pod: &Pod, peer: &MeshedPeer, trusting: bool) -> Answer {
    let Some(pair) = pair(pod, peer) else {
        return Answer::Intact; // there is no way at all, and the dial will say so
    };
    let leg = leg(peer);
    let known = || match mesh.paths.next(&pair, &leg, trusting, Instant::now()) {
        Next::Intact => Some(Answer::Intact),
        Next::Masqueraded(seen) => Some(Answer::Masqueraded(seen)),
        Next::Unanswered { detail } => Some(Answer::Unanswered { detail }),
        Next::Ask => None,
    };
    if let Some(answer) = known() {
        return answer;
    }
    let turn = mesh.paths.turn(pair);
    // Held while the peer is asked, on purpose: that is what makes it one question.
    let _turn = turn.lock().await;
    if let Some(answer) = known() {
        return answer;
    }
    let answer = Box::pin(ask(mesh, pod, peer)).await;
    mesh.paths.note(pair, leg, &answer, Instant::now());
    if let Answer::Masqueraded(seen) = &answer {
        tracing::warn!(pod = %pod.name, node = %peer.node, "{seen}");
    }
    answer
}

fn pair(pod: &Pod, peer: &MeshedPeer) -> Option<Pair> {
    Some((pod.address_like(peer.target.ip())?, peer.target.ip()))
}

fn leg(peer: &MeshedPeer) -> Leg {
    (peer.node.clone(), peer.target.is_ipv4())
}

impl Paths {
    /// What is known now. `trusting`: to be dialled with TLS if nothing speaks against it.
    fn next(&self, pair: &Pair, leg: &Leg, trusting: bool, now: Instant) -> Next {
        let known = self.lock();
        let fresh = |at: Instant, time: Duration| now.duration_since(at) < time;
        let proven = known.proven.get(leg).is_some_and(|at| fresh(*at, PROVEN_FOR));
        match known.pairs.get(pair) {
            Some((Doubt::Masqueraded(seen), at)) if fresh(*at, MASQUERADED_FOR) => {
                Next::Masqueraded(seen.clone())
            }
            Some((Doubt::Masqueraded(_) | Doubt::Suspected, _)) => Next::Ask,
            _ if proven || trusting => Next::Intact,
            Some((Doubt::Unanswered { detail }, at)) if fresh(*at, UNANSWERED_FOR) => {
                Next::Unanswered { detail: detail.clone() }
            }
            _ => Next::Ask,
        }
    }

    fn note(&self, pair: Pair, leg: Leg, answer: &Answer, now: Instant) {
        let mut known = self.lock();
        let doubt = match answer.clone() {
            Answer::Intact => {
                known.proven.insert(leg, now);
                None
            }
            Answer::Masqueraded(seen) => Some(Doubt::Masqueraded(seen)),
            Answer::Unanswered { detail } => Some(Doubt::Unanswered { detail }),
        };
        match doubt {
            None => known.pairs.remove(&pair),
            Some(doubt) => known.pairs.insert(pair, (doubt, now)),
        };
        known.forget_old(now);
    }

    fn suspect(&self, pair: Pair, leg: &Leg, now: Instant) {
        let mut known = self.lock();
        known.proven.remove(leg);
        match known.pairs.get(&pair) {
            Some((Doubt::Masqueraded(_), _)) => {}
            _ => drop(known.pairs.insert(pair, (Doubt::Suspected, now))),
        }
    }

    fn turn(&self, pair: Pair) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(self.lock().asking.entry(pair).or_default())
    }

    /// For `status`: the latest of each node and address family.
    pub(super) fn problems(&self, now: Instant) -> Vec<String> {
        let known = self.lock();
        let mut latest: BTreeMap<(NodeName, bool), (&Seen, Instant)> = BTreeMap::new();
        for (doubt, at) in known.pairs.values() {
            if let Doubt::Masqueraded(seen) = doubt
                && now.duration_since(*at) < SHOWN_FOR
            {
                let of = latest.entry((seen.node.clone(), seen.sent.is_ipv4()));
                let of = of.or_insert((seen, *at));
                if of.1 < *at {
                    *of = (seen, *at);
                }
            }
        }
        let consequence = "connections between permissive pods go in plaintext there, those of strict pods are refused. \
                           Hint: exempt traffic between pods from MASQUERADE and SNAT";
        latest.values().map(|(seen, _)| format!("{seen}; {consequence}.")).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // A panic elsewhere does not make it wrong: each change is one insertion or removal.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Known {
    fn forget_old(&mut self, now: Instant) {
        self.asking.retain(|_, turn| Arc::strong_count(turn) > 1);
        if self.pairs.len() > KEPT_PAIRS {
            self.pairs.retain(|_, (_, at)| now.duration_since(*at) < SHOWN_FOR);
            self.proven.retain(|_, at| now.duration_since(*at) < PROVEN_FOR);
        }
    }
}

#[cfg(test)]
mod tests;
