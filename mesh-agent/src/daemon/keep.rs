//! The task that keeps the node's pods as the world wants them, until the agent stops or another one takes over.

use std::{borrow::Cow, path::PathBuf, sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{self, ProblemFacts},
    enrol::Enroller,
    handover::{Switched, Wish},
    kernel::Kernel,
    pod_cgroups::PodCgroups,
    source::{AnnouncementState, SourceError, SourceState},
    world::{Announcements, Objects, of_this_boot},
};

/// How often the namespaces of enrolled pods are looked at, for those that vanished without their object.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What enrolment goes by.
pub(super) struct Feeds {
    pub(super) objects: watch::Receiver<Arc<SourceState>>,
    pub(super) announcements: watch::Receiver<Arc<AnnouncementState>>,
    pub(super) cgroups: watch::Receiver<Arc<PodCgroups>>,
}

/// What the task works with.
pub(super) struct Keeper {
    pub(super) enroller: Enroller,
    pub(super) feeds: Feeds,
    pub(super) state: Arc<admin::State>,
    pub(super) kernel: Arc<Kernel>,
    /// The cgroup above the pods.
    pub(super) pods_cgroup: PathBuf,
    /// Agents that want to take over.
    pub(super) wishes: mpsc::Receiver<Wish>,
    pub(super) believed: Believed,
}

/// What nodes have announced in the boot that they are in; found out again only when objects or announcements change, and
/// the same copy while it is equal, so that an unchanged world costs nothing.
#[derive(Default)]
pub(super) struct Believed {
    of: Option<(Arc<Objects>, Arc<Announcements>)>,
    announcements: Arc<Announcements>,
    void: Vec<ProblemFacts>,
}

impl Believed {
    fn update(&mut self, objects: &Arc<Objects>, announced: &Arc<Announcements>) {
        let is_same = |(of_objects, of_announced): &(Arc<Objects>, Arc<Announcements>)| {
            Arc::ptr_eq(of_objects, objects) && Arc::ptr_eq(of_announced, announced)
        };
        if self.of.as_ref().is_some_and(is_same) {
            return;
        }
        let (announcements, void) = of_this_boot(announced, objects);
        match announcements {
            Cow::Borrowed(_all) => self.announcements = Arc::clone(announced),
            Cow::Owned(some) if some != *self.announcements => self.announcements = Arc::new(some),
            Cow::Owned(_known) => {}
        }
        self.void = void.iter().map(ProblemFacts::of).collect();
        self.of = Some((Arc::clone(objects), Arc::clone(announced)));
    }
}

impl Keeper {
    /// Follows the world until `stop`, or until another agent has taken over.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Option<Switched> {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return None,
                changed = self.feeds.objects.changed() => changed.ok()?,
                changed = self.feeds.announcements.changed() => changed.ok()?,
                changed = self.feeds.cgroups.changed() => {
                    changed.ok()?;
                    // By what is known already: building the world anew takes time that a starting pod does not give.
                    let world = self.state.mesh.world.load();
                    self.enroller.hold(&world, &self.feeds.cgroups.borrow().clone());
                }
                () = self.enroller.due() => {}
                _ = look.tick() => {}
                wish = self.wishes.recv() => {
                    let switched = self.hand_over(wish?, &stop).await;
                    if switched.is_some() {
                        return switched;
                    }
                }
            }
            self.step().await;
        }
    }

    /// Brings the node's pods to what the world wants.
    pub(super) async fn step(&mut self) {
        let objects = Arc::clone(&self.feeds.objects.borrow());
        let announced = Arc::clone(&self.feeds.announcements.borrow());
        let cgroups = Arc::clone(&self.feeds.cgroups.borrow());
        self.believed.update(&objects.objects, &announced.announcements);
        let problems = objects.errors.iter().chain(&announced.errors).map(bad_file);
        let problems: Vec<_> = problems.chain(self.believed.void.iter().cloned()).collect();
        report_new(&self.state.problems.load(), &problems);
        self.state.problems.store(Arc::new(problems));
        let complete = objects.errors.is_empty();
        let announcements = &self.believed.announcements;
        self.enroller.step(&objects.objects, announcements, &cgroups, complete).await;
    }

    /// Gives an heir the listeners and stands still until it has switched. `None`: it has not, and all is as it was.
    async fn hand_over(&mut self, wish: Wish, stop: &CancellationToken) -> Option<Switched> {
        while self.enroller.is_anyone_leaving() {
            self.enroller.due().await;
            self.step().await;
        }
        let passes = &self.kernel.tables().agent_cgroups;
        let own = passes.content();
        self.log("let the heir dial", passes.put(wish.heir, 1));
        if wish.listeners.send(self.enroller.listeners()).is_ok() {
            tokio::select! {
                () = stop.cancelled() => return None,
                switched = wish.switched => if let Ok(switched) = switched {
                    return Some(switched);
                },
            }
        }
        tracing::warn!("the agent that was to take over is gone; this one goes on");
        self.enroller.take_back();
        self.log("forget the heir", self.kernel.tables().agent_cgroups.sync(&own));
        self.log("take back the programs", self.kernel.attach_cgroup(&self.pods_cgroup));
        None
    }

    fn log<T>(&self, what: &str, result: Result<T, crate::kernel::KernelError>) {
        if let Err(error) = result {
            tracing::error!(node = self.state.node, what, %error, "the kernel's side could not be changed");
        }
    }
}

fn bad_file(error: &SourceError) -> ProblemFacts {
    ProblemFacts { code: "bad_file".to_owned(), message: error.to_string() }
}

fn report_new(known: &[ProblemFacts], now: &[ProblemFacts]) {
    for problem in now.iter().filter(|problem| !known.contains(problem)) {
        tracing::error!(code = problem.code, "{}", problem.message);
    }
}
