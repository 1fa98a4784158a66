//! The task that keeps the node's pods as the world wants them, until the agent stops or another
//! one takes over.

use std::{
    borrow::Cow, collections::HashSet, future::pending, ops::ControlFlow, sync::Arc, time::Duration,
};

use mesh_api::{ProblemCode, ProblemFacts};
use mesh_wire::identity::{FileCa, NodeCa};
use mesh_world::{
    AnnouncedCa, Announcements, Answers, InForce, Memory, NodeName, Objects, in_force,
    tables::Excess,
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{feeds::Feeds, hooks::Hooks, kubelet::KubeletFollower};
use crate::{
    admin,
    enrol::{Enroller, Filled},
    handover::{TakeoverDone, TakeoverRequest},
    kernel::KernelError,
    source::{AWAY, AnnouncementState, Knowledge, SourceError, SourceState},
};

/// How often the namespaces of enrolled pods are looked at, for those that vanished without their
/// object, and whether the kubelet is where it was.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How full a table of the kernel's may be before `status` tells of it.
const NEARLY_FULL_PERCENT: usize = 80;

/// What the task works with.
pub(super) struct Keeper {
    pub(super) enroller: Enroller,
    pub(super) feeds: Feeds,
    pub(super) state: Arc<admin::AdminContext>,
    pub(super) hooks: Hooks,
    pub(super) ca: Arc<FileCa>,
    /// In a cluster.
    pub(super) kubelet: Option<KubeletFollower>,
    /// Agents that want to take over.
    pub(super) requests: mpsc::Receiver<TakeoverRequest>,
    pub(super) believed: Believed,
    /// What the next agent is to know.
    pub(super) remember: watch::Sender<Option<Memory>>,
    /// Turns true when the installation is taken away.
    pub(super) is_removed: watch::Receiver<bool>,
}

/// Why there is nothing to keep any more.
pub(super) enum Over {
    /// Another agent has taken over.
    Switched(TakeoverDone),
    /// The installation has been taken away, and all pods have left the mesh.
    Removed,
}

/// Resolves when the installation is taken away.
async fn removed(is_removed: &mut watch::Receiver<bool>) {
    if is_removed.wait_for(|is_removed| *is_removed).await.is_err() {
        pending::<()>().await; // no task can say so any more
    }
}

/// What [`Believed`] follows from.
type Known = (Arc<Objects>, Arc<Announcements>, Option<Arc<Answers>>);

/// The announcements that are in force. They are found out again only when objects, announcements
/// or answers change, and stay the same copy while they are equal, so that an unchanged world costs
/// nothing.
#[derive(Default)]
pub(super) struct Believed {
    of: Option<Known>,
    announcements: Arc<Announcements>,
    in_question: Announcements,
    problems: Vec<ProblemFacts>,
}

impl Believed {
    /// Begins with what an earlier agent knew.
    pub(super) fn after(memory: Memory) -> Self {
        Self { announcements: memory.announcements, ..Self::default() }
    }

    fn update(
        &mut self,
        objects: &Arc<Objects>,
        announced: &Arc<Announcements>,
        answers: Option<Arc<Answers>>,
    ) {
        if let Some((of_objects, of_announced, of_answers)) = &self.of
            && Arc::ptr_eq(of_objects, objects)
            && Arc::ptr_eq(of_announced, announced)
            && *of_answers == answers
        {
            return;
        }
        let InForce { announcements, in_question, problems } =
            in_force(announced, &self.announcements, objects, answers.as_deref());
        match announcements {
            Cow::Borrowed(_all) => self.announcements = Arc::clone(announced),
            Cow::Owned(some) if some != *self.announcements => self.announcements = Arc::new(some),
            Cow::Owned(_known) => {}
        }
        self.problems = problems.iter().map(ProblemFacts::from).collect();
        self.in_question = in_question;
        self.of = Some((Arc::clone(objects), Arc::clone(announced), answers));
    }
}

impl Keeper {
    /// Follows the world until `stop`, until another agent has taken over, or until the
    /// installation is taken away and all pods have left.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Option<Over> {
        self.say_what_is_known();
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = self.feeds.changed() => {
                    changed.ok()?;
                    self.hold_known();
                }
                () = self.enroller.due() => {}
                _ = look.tick() => self.look_for_kubelet().await,
                request = self.requests.recv() => {
                    if let ControlFlow::Break(switched) = self.hand_over(request?, &stop).await {
                        return switched.map(Over::Switched);
                    }
                }
                () = removed(&mut self.is_removed) => return self.let_everybody_go(&stop).await,
            }
            self.step().await;
            self.say_what_is_known();
        }
    }

    /// Holds pods by what is known already: building a new world takes time that a starting pod
    /// does not give.
    fn hold_known(&mut self) {
        let cgroups = self.feeds.cgroups.now();
        self.enroller.hold(&self.state.mesh.world.load(), &cgroups);
    }

    /// Holds the pods that must be held by the newest state, and does nothing else of
    /// [`Keeper::step`].
    async fn only_hold(&mut self, shares_tables: bool) {
        self.hold_known();
        let objects = Arc::clone(&self.feeds.objects.borrow());
        let announced = Arc::clone(&self.feeds.announcements.borrow());
        let cgroups = self.feeds.cgroups.now();
        if !self.feeds.have_been_read() {
            return;
        }
        self.update_believed(&objects, &announced);
        let announcements = &self.believed.announcements;
        self.enroller.only_hold(&objects, announcements, &cgroups, shares_tables).await;
    }

    fn update_believed(&mut self, objects: &SourceState, announced: &AnnouncementState) {
        let answers = self.feeds.answers();
        self.believed.update(&objects.objects, &announced.announcements, answers);
        self.feeds.ask(&self.believed.in_question);
    }

    fn say_what_is_known(&self) {
        self.state.knowledge.store(Arc::new(self.feeds.knowledge()));
    }

    /// Finds the kubelet again if it has been restarted or moved.
    pub(super) async fn look_for_kubelet(&mut self) {
        if let Some(kubelet) = &mut self.kubelet {
            kubelet.look().await;
        }
    }

    /// Brings the node's pods to what the world wants. While no source has told what that is, all
    /// stays as an earlier agent left it: in an empty world, pods in the mesh would talk to each
    /// other in plaintext.
    pub(super) async fn step(&mut self) {
        let objects = Arc::clone(&self.feeds.objects.borrow());
        let announced = Arc::clone(&self.feeds.announcements.borrow());
        let cgroups = self.feeds.cgroups.now();
        if self.feeds.have_been_read() {
            self.update_believed(&objects, &announced);
        }
        let problems = objects.errors.iter().chain(&announced.errors).map(of_source);
        let of_kubelet = self.kubelet.as_ref().and_then(KubeletFollower::problem);
        let others = self.believed.problems.iter().chain(of_kubelet).cloned();
        // As the step before left the tables: there is a step every two seconds at least.
        let of_tables = self.enroller.refused().map(of_kernel);
        let lost = self.enroller.lost().iter().map(of_excess);
        let filled = self.enroller.filled().iter().filter_map(of_filled);
        let of_tables = of_tables.chain(lost).chain(filled);
        let of_ca = self.look_at_cas(&self.believed.announcements);
        let problems: Vec<_> = problems.chain(others).chain(of_tables).chain(of_ca).collect();
        report_new(&self.state.problems.load(), &problems);
        self.state.problems.store(Arc::new(problems));
        if !self.feeds.have_been_read() {
            return;
        }
        let announcements = &self.believed.announcements;
        self.enroller.step(&objects, announcements, &cgroups).await;
        let announcements = Arc::clone(&self.believed.announcements);
        let memory = Some(Memory { announcements, incumbents: self.enroller.incumbents() });
        self.remember.send_if_modified(|known| {
            let changed = *known != memory;
            *known = memory;
            changed
        });
    }

    /// Goes on with a change of CA, by what is in force of other nodes' announcements of theirs.
    /// Returns the problems to show.
    fn look_at_cas(&self, announced: &Announcements) -> Vec<ProblemFacts> {
        let own = |node: &NodeName| node.as_str() == self.state.node;
        let others = || {
            let of = announced.iter().filter(|(node, _)| !own(node));
            of.filter_map(|(node, said)| {
                let AnnouncedCa { issuer, anchors } = said.ca.as_ref()?;
                Some(NodeCa { node: node.as_str(), issuer, anchors })
            })
        };
        let identities = &self.state.identities;
        if self.ca.settle(others(), identities.are_renewed()) {
            identities.renew_all();
        }
        let changed = self.ca.change_problem();
        let changed = changed.map(|it| ProblemFacts::new(ProblemCode::CaChanged, it));
        let strangers = self.ca.strangers(others());
        let strangers = strangers.map(|it| ProblemFacts::new(ProblemCode::CaDiffers, it));
        changed.into_iter().chain(strangers).collect()
    }

    /// Steps with an empty world: pods that are in the mesh leave in order, and held pods are
    /// released.
    async fn let_everybody_go(&mut self, stop: &CancellationToken) -> Option<Over> {
        let knowledge = Knowledge::Current;
        let nothing = SourceState { complete: true, knowledge, ..SourceState::default() };
        let none = Arc::default();
        loop {
            let cgroups = self.feeds.cgroups.now();
            self.enroller.step(&nothing, &none, &cgroups).await;
            if !self.enroller.is_anyone_leaving() {
                return Some(Over::Removed);
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = self.enroller.due() => {}
            }
        }
    }

    /// Gives a successor the listeners and stands still until it has switched, except that strict
    /// pods that appear are held.
    ///
    /// Returns `Break(Some(_))` once the successor has switched, `Break(None)` if this agent is to
    /// stop, and `Continue` if the successor vanished and its changes are rolled back.
    async fn hand_over(
        &mut self,
        mut request: TakeoverRequest,
        stop: &CancellationToken,
    ) -> ControlFlow<Option<TakeoverDone>> {
        while self.enroller.is_anyone_leaving() {
            tokio::select! {
                () = stop.cancelled() => return ControlFlow::Break(None),
                changed = self.feeds.changed() => {
                    if changed.is_err() {
                        return ControlFlow::Break(None);
                    }
                    self.hold_known();
                }
                () = self.enroller.due() => {}
            }
            self.step().await;
        }
        let kernel = Arc::clone(&self.state.mesh.kernel);
        let passes = &kernel.tables().agent_cgroups;
        let own = passes.content();
        self.log("let the successor dial", passes.put(request.successor, 1));
        if !request.shares_tables {
            self.enroller.let_no_dial_wait();
        }
        let mut is_there = request.listeners.send(self.enroller.listeners()).is_ok();
        while is_there {
            tokio::select! {
                () = stop.cancelled() => return ControlFlow::Break(None),
                switched = &mut request.switched => match switched {
                    Ok(switched) => return ControlFlow::Break(Some(switched)),
                    Err(_gone) => is_there = false,
                },
                changed = self.feeds.changed() => match changed {
                    Ok(()) => self.only_hold(request.shares_tables).await,
                    Err(_stopping) => return ControlFlow::Break(None),
                },
            }
        }
        tracing::warn!("the agent that was to take over is gone; this one goes on");
        self.log("forget what it began", kernel.forget_unfinished());
        self.enroller.take_back();
        self.log("forget the successor", kernel.tables().agent_cgroups.sync(&own));
        self.log("take back the programs", self.hooks.attach());
        if let Some(kubelet) = &self.kubelet {
            self.log("take back the kubelet's programs", kubelet.attach_again());
        }
        ControlFlow::Continue(())
    }

    fn log<T>(&self, what: &str, result: Result<T, KernelError>) {
        if let Err(error) = result {
            tracing::error!(node = self.state.node, what, %error, "the kernel's side could not be changed");
        }
    }
}

fn of_source(error: &SourceError) -> ProblemFacts {
    ProblemFacts::new(error.code, error.to_string())
}

fn of_kernel(error: &KernelError) -> ProblemFacts {
    let (code, message) = match error.full_table() {
        Some(table) => (
            ProblemCode::TableFull,
            format!(
                "the kernel's table {table} is full, and is not what it should be; it is tried again every two seconds"
            ),
        ),
        None => {
            (ProblemCode::KernelRefused, format!("the kernel's tables are not up to date: {error}"))
        }
    };
    ProblemFacts::new(code, message)
}

fn of_excess(excess: &Excess) -> ProblemFacts {
    ProblemFacts::new(excess.by.code(), excess.to_string())
}

/// The problem of a table that is nearly full, while there is time.
fn of_filled(filled: &Filled) -> Option<ProblemFacts> {
    let Filled { table, used, room, when_full } = filled;
    let message = format!(
        "the kernel's table {table} has {used} of {room} entries. When it is full, {when_full}. Hint: the cluster, or what is announced in it, is too large for this table."
    );
    let is_nearly_full = used.saturating_mul(100) >= room.saturating_mul(NEARLY_FULL_PERCENT);
    is_nearly_full.then(|| ProblemFacts::new(ProblemCode::TableNearlyFull, message))
}

fn report_new(known: &[ProblemFacts], now: &[ProblemFacts]) {
    let known: HashSet<_> = known.iter().collect();
    let new = now.iter().filter(|problem| !known.contains(problem));
    for problem in new.filter(|problem| problem.code != AWAY.code()) {
        tracing::error!(code = problem.code, "{}", problem.message);
    }
}
