//! Publishes what this node has captured, and hears what the others have.
//!
//! One handle ([`Announcer`]), wherever announcements are kept. A task that knows the place carries
//! out its requests.

use std::error::Error;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use mesh_api::ProblemCode;
use mesh_world::{Announcements, MeshNode, NodeName};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::error::SourceError;
use super::state::Knowledge;

/// Least time between two writes of an announcement: every other agent reads each of them.
pub(super) const WRITE_INTERVAL: Duration = Duration::from_secs(1);

/// What all nodes announce, this one included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnouncementState {
    /// Each node's latest usable announcement.
    pub announcements: Arc<Announcements>,
    /// What is wrong with some of them. The earlier announcement stays in force.
    pub errors: Vec<SourceError>,
    /// How old the announcements are.
    pub knowledge: Knowledge,
    /// Rises by one with every state that differs from the one before; the first is 1.
    pub revision: u64,
}

/// Publishes this node's announcement and subscribes to those of all nodes.
#[derive(Clone)]
pub struct Announcer {
    own_node: NodeName,
    order: Arc<watch::Sender<Order>>,
    outcome: watch::Receiver<Outcome>,
    state: watch::Receiver<Arc<AnnouncementState>>,
}

/// Why an announcement is not where it should be.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AnnounceError {
    /// A node speaks only for itself. Fault: ours.
    #[error("node {own} was asked to announce for node {other}")]
    OtherNode {
        /// This node.
        own: NodeName,
        /// The node named in the announcement.
        other: NodeName,
    },
    /// Fault: the host, or the API server.
    #[error("{place} cannot be written: {cause}")]
    Write {
        /// The file or object.
        place: String,
        /// What the system said.
        #[source]
        cause: Arc<dyn Error + Send + Sync>,
    },
    /// Fault: the host, or the API server.
    #[error("{place} cannot be removed: {cause}")]
    Remove {
        /// The file or object.
        place: String,
        /// What the system said.
        #[source]
        cause: Arc<dyn Error + Send + Sync>,
    },
    /// Nothing can be published any more: the agent is stopping.
    #[error("the announcer has been stopped")]
    Stopped,
}

impl Announcer {
    /// Announces exactly these captured pods. Done when others can read the announcement or a later
    /// one. At most one write a second; the first is immediate.
    ///
    /// # Cancel safety
    /// Dropping the future does not cancel the request. After an error the write is tried again
    /// every second until it succeeds or another request replaces it.
    pub async fn publish(&self, announcement: MeshNode) -> Result<(), AnnounceError> {
        if announcement.node != self.own_node {
            let (own, other) = (self.own_node.clone(), announcement.node);
            return Err(AnnounceError::OtherNode { own, other });
        }
        self.fulfil(What::Announce(Arc::new(announcement))).await
    }

    /// Takes this node's announcement back, at once. Done when others can no longer read it.
    ///
    /// # Cancel safety
    /// As [`Self::publish`].
    pub async fn withdraw(&self) -> Result<(), AnnounceError> {
        self.fulfil(What::Withdraw).await
    }

    /// What all nodes announce, now and from now on.
    pub fn subscribe(&self) -> watch::Receiver<Arc<AnnouncementState>> {
        self.state.clone()
    }

    async fn fulfil(&self, what: What) -> Result<(), AnnounceError> {
        let mut number = 0;
        self.order.send_modify(|order| {
            number = order.number + 1;
            *order = Order { number, what };
        });
        let mut outcomes = self.outcome.clone();
        match outcomes.wait_for(|outcome| outcome.number >= number).await {
            Ok(outcome) => outcome.result.clone(),
            Err(_) => Err(AnnounceError::Stopped),
        }
    }
}

/// The last request. Numbers rise by one.
#[derive(Default)]
struct Order {
    number: u64,
    what: What,
}

#[derive(Clone, Default)]
enum What {
    #[default]
    Nothing,
    Announce(Arc<MeshNode>),
    Withdraw,
}

/// The number of the last request that was attempted, and its result.
struct Outcome {
    number: u64,
    result: Result<(), AnnounceError>,
}

/// Where this node's announcement is stored.
pub(super) trait AnnouncementStore: Send {
    /// Atomic: a reader sees the earlier announcement or this one.
    fn write(
        &mut self,
        announcement: &MeshNode,
    ) -> impl Future<Output = Result<(), AnnounceError>> + Send;

    /// An absent announcement counts as removed.
    fn remove(&mut self) -> impl Future<Output = Result<(), AnnounceError>> + Send;
}

/// The half of an [`Announcer`] that carries out the requests.
pub(super) struct Publisher<P> {
    place: P,
    written: Option<Arc<MeshNode>>,
    /// The earliest time of the next write.
    not_before: Instant,
    /// `None` once every handle is gone.
    orders: Option<watch::Receiver<Order>>,
    outcome: watch::Sender<Outcome>,
    /// When the present request is to be carried out, if it has not been.
    due: Option<Instant>,
}

/// What all nodes announce, for subscribers.
pub(super) struct Heard(watch::Sender<Arc<AnnouncementState>>);

/// The parts of an announcer.
pub(super) fn announcer<P: AnnouncementStore>(
    own_node: NodeName,
    place: P,
) -> (Announcer, Publisher<P>, Heard) {
    let (said, state) = watch::channel(Arc::default());
    let (order, orders) = watch::channel(Order::default());
    let (outcome, outcomes) = watch::channel(Outcome { number: 0, result: Ok(()) });
    let not_before = Instant::now();
    let orders = Some(orders);
    let publisher = Publisher { place, written: None, not_before, orders, outcome, due: None };
    let announcer = Announcer { own_node, order: Arc::new(order), outcome: outcomes, state };
    (announcer, publisher, Heard(said))
}

impl<P: AnnouncementStore> Publisher<P> {
    /// Resolves when there is something to [`Self::fulfil`].
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub(super) async fn due(&mut self) {
        loop {
            let due = self.due;
            tokio::select! {
                there_are_handles = next_order(&mut self.orders) => {
                    if there_are_handles { self.schedule() } else { self.orders = None }
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => return,
            }
        }
    }

    /// Attempts the present request.
    ///
    /// # Cancel safety
    /// Not cancel safe: await it outside `select!`.
    pub(super) async fn fulfil(&mut self) {
        let Some(orders) = &mut self.orders else {
            return;
        };
        let (number, what) = {
            let order = orders.borrow_and_update();
            (order.number, order.what.clone())
        };
        let result = match what {
            What::Nothing => Ok(()),
            What::Announce(announcement) => self.write(&announcement).await,
            What::Withdraw => self.withdraw().await,
        };
        self.due = result.is_err().then(|| Instant::now() + WRITE_INTERVAL);
        if let Err(error) = &result {
            let before = self.outcome.borrow().result.as_ref().err().map(ToString::to_string);
            if before.as_deref() != Some(&*error.to_string()) {
                tracing::warn!(%error, "the announcement is not what it should be; trying again every second");
            }
        }
        self.outcome.send_replace(Outcome { number, result });
    }

    /// Why the announcement is not what it should be, for `status`.
    pub(super) fn error(&self) -> Option<SourceError> {
        let error = self.outcome.borrow().result.as_ref().err()?.to_string();
        let hint =
            "other nodes go by what this one announced before; it is tried again every second";
        let told = SourceError::whole_file(&Arc::from(""), error).hint(hint);
        Some(SourceError { code: ProblemCode::AnnouncementNotWritten, ..told })
    }

    /// The place that it writes to.
    pub(super) fn place(&mut self) -> &mut P {
        &mut self.place
    }

    /// Takes note of what is stored now. If that is not what was written last, another process has
    /// written, such as an agent that has just handed over.
    pub(super) fn found(&mut self, found: Option<&MeshNode>) {
        if self.written.as_deref().is_some_and(|written| found != Some(written)) {
            self.has_been_changed();
        }
    }

    /// Another writer has changed what is stored: it is to be written again.
    pub(super) fn has_been_changed(&mut self) {
        self.written = None;
        self.schedule();
    }

    async fn write(&mut self, announcement: &Arc<MeshNode>) -> Result<(), AnnounceError> {
        if self.written.as_ref() == Some(announcement) {
            return Ok(());
        }
        let result = self.place.write(announcement).await;
        self.not_before = Instant::now() + WRITE_INTERVAL;
        self.written = result.is_ok().then(|| Arc::clone(announcement));
        result
    }

    /// Announces no pods first: that an announcement vanishes does not say that it is withdrawn.
    async fn withdraw(&mut self) -> Result<(), AnnounceError> {
        if let Some(said) = &self.written
            && !said.pods.is_empty()
        {
            self.place.write(&MeshNode { pods: Vec::new(), ..MeshNode::clone(said) }).await?;
        }
        self.written = None;
        self.place.remove().await
    }

    fn schedule(&mut self) {
        let Some(orders) = &self.orders else { return };
        self.due = match orders.borrow().what {
            What::Nothing => None,
            What::Announce(_) => Some(self.not_before),
            What::Withdraw => Some(Instant::now()),
        };
    }
}

/// Waits for the next request; false if none can come.
async fn next_order(orders: &mut Option<watch::Receiver<Order>>) -> bool {
    match orders {
        Some(orders) => orders.changed().await.is_ok(),
        None => pending().await,
    }
}

impl Heard {
    /// Reports errors, and the age of the announcements, which stay as they are.
    pub(super) fn complain(&self, errors: Vec<SourceError>, knowledge: Knowledge) {
        let before = Arc::clone(&self.0.borrow());
        if errors != before.errors || knowledge != before.knowledge {
            super::last_good::log_new(&errors, &before.errors);
            // Revision 0 while nothing has been heard.
            let revision = if before.revision == 0 { 0 } else { before.revision + 1 };
            let announcements = Arc::clone(&before.announcements);
            let state = AnnouncementState { announcements, errors, knowledge, revision };
            self.0.send_replace(Arc::new(state));
        }
    }

    /// Publishes this state if it differs from the last one.
    pub(super) fn tell(
        &self,
        announcements: Announcements,
        errors: Vec<SourceError>,
        knowledge: Knowledge,
    ) {
        let before = Arc::clone(&self.0.borrow());
        super::last_good::log_new(&errors, &before.errors);
        let is_same = announcements == *before.announcements
            && errors == before.errors
            && knowledge == before.knowledge;
        if before.revision == 0 || !is_same {
            let revision = before.revision + 1;
            let announcements = Arc::new(announcements);
            let state = AnnouncementState { announcements, errors, knowledge, revision };
            self.0.send_replace(Arc::new(state));
        }
    }
}
