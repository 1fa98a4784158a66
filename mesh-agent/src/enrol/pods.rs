//! How far each pod of the node is on its way into the mesh, or out of it. Nothing here touches the
//! kernel: the caller does what a change of phase stands for.

use std::{collections::BTreeMap, mem};

use mesh_world::PodUid;
use tokio::time::Instant;

use super::{Failure, Member};

/// The pods that are guarded, have failed, or have been taken in.
pub(super) struct Pods<M = Member>(pub(super) BTreeMap<PodUid, Tracked<M>>);

pub(super) struct Tracked<M> {
    phase: Phase<M>,
    guard: Guard,
}

/// A pod's phases, in the order of its life.
#[derive(Debug, PartialEq)]
pub(super) enum Phase<M> {
    /// Not in the mesh.
    Out(Out),
    /// Taken in. Its own dials are not redirected yet.
    Joining(M),
    /// In the mesh, both ways.
    Captured(M),
    /// Not announced any more. It takes TLS until this instant, for peers that do not know yet.
    Leaving(M, Instant),
}

/// What is known of a pod that is not in the mesh.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Out {
    /// Why it could not be enrolled, and when that is tried again.
    pub(super) failure: Option<(Failure, Instant)>,
    /// The cookie of its namespace, if the kernel still has entries or programs for it: an earlier
    /// agent left them, or an enrolment failed half-way. They stay while the pod is to be closed.
    pub(super) closed: Option<u64>,
}

/// What keeps a strict pod from plaintext while it is not enrolled. It is no part of the phase: a
/// pod is held before it is taken in, and again before it is let go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Guard {
    None,
    /// What an earlier agent left in the kernel, until this one has redirected the pod's dials. A
    /// hold would drop the connections that arrive meanwhile. The cookie of the pod's namespace.
    Earlier(u64),
    /// The programs on its cgroup, which has this id.
    Held(u64),
}

impl<M> Phase<M> {
    /// Taken in, and its dials are not redirected.
    pub(super) fn joining(&self) -> Option<&M> {
        if let Self::Joining(it) = self { Some(it) } else { None }
    }

    /// Taken in, and its dials are redirected.
    pub(super) fn captured(&self) -> Option<&M> {
        if let Self::Captured(it) = self { Some(it) } else { None }
    }

    /// Taken in, whether or not its dials are redirected. The world and the other nodes call such
    /// pods captured.
    pub(super) fn enrolled(&self) -> Option<&M> {
        self.joining().or(self.captured())
    }

    pub(super) fn leaving(&self) -> Option<(&M, Instant)> {
        if let Self::Leaving(it, until) = self { Some((it, *until)) } else { None }
    }

    /// Takes TLS.
    pub(super) fn serving(&self) -> Option<&M> {
        self.enrolled().or(self.leaving().map(|(it, _)| it))
    }

    pub(super) fn failure(&self) -> Option<&(Failure, Instant)> {
        self.out()?.failure.as_ref()
    }

    pub(super) fn closed(&self) -> Option<u64> {
        self.out()?.closed
    }

    fn out(&self) -> Option<&Out> {
        if let Self::Out(out) = self { Some(out) } else { None }
    }

    fn out_mut(&mut self) -> Option<&mut Out> {
        if let Self::Out(out) = self { Some(out) } else { None }
    }
}

impl<M> Default for Phase<M> {
    fn default() -> Self {
        Self::Out(Out::default())
    }
}

impl<M> Pods<M> {
    /// What `of` says of a pod's phase.
    pub(super) fn one<'a, T>(
        &'a self,
        uid: &PodUid,
        of: impl Fn(&'a Phase<M>) -> Option<T>,
    ) -> Option<T> {
        of(&self.0.get(uid)?.phase)
    }

    /// The pods for whose phases `of` returns something.
    pub(super) fn all<'a, T>(
        &'a self,
        of: impl Fn(&'a Phase<M>) -> Option<T>,
    ) -> impl Iterator<Item = (&'a PodUid, T)> {
        self.0.iter().filter_map(move |(uid, pod)| Some((uid, of(&pod.phase)?)))
    }

    /// The pods that take TLS, to change their members.
    pub(super) fn serving_mut(&mut self) -> impl Iterator<Item = (&PodUid, &mut M)> {
        self.0.iter_mut().filter_map(|(uid, pod)| match &mut pod.phase {
            Phase::Joining(it) | Phase::Captured(it) | Phase::Leaving(it, _) => Some((uid, it)),
            Phase::Out(_) => None,
        })
    }

    /// When something has to be done next: a grace ends, or an enrolment is tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        let ends = self.all(Phase::leaving).map(|(_, (_, until))| until);
        ends.chain(self.all(Phase::failure).map(|(_, (_, retry_at))| *retry_at)).min()
    }

    /// A pod is taken in. Its failure and [`Out::closed`] are forgotten.
    pub(super) fn join(&mut self, uid: &PodUid, member: M) {
        self.pod(uid).phase = Phase::Joining(member);
    }

    /// Sets whether the dials of a pod in the mesh are redirected. An earlier agent's guard ends,
    /// even if the kernel has refused.
    pub(super) fn capture(&mut self, uid: &PodUid, is_captured: bool) {
        self.end_guards(|known, guard| known == uid && matches!(guard, Guard::Earlier(_)));
        self.change(uid, |phase| match phase {
            Phase::Joining(it) | Phase::Captured(it) if is_captured => Phase::Captured(it),
            Phase::Captured(it) => Phase::Joining(it),
            other => other,
        });
    }

    /// A pod begins to leave.
    pub(super) fn withdraw(&mut self, uid: &PodUid, until: Instant) {
        self.change(uid, |phase| match phase {
            Phase::Joining(it) | Phase::Captured(it) => Phase::Leaving(it, until),
            other => other,
        });
    }

    /// Removes and returns a pod's member. The pod is outside the mesh from now on.
    pub(super) fn take(&mut self, uid: &PodUid) -> Option<M> {
        let phase = &mut self.0.get_mut(uid)?.phase;
        match mem::take(phase) {
            Phase::Joining(it) | Phase::Captured(it) | Phase::Leaving(it, _) => Some(it),
            out @ Phase::Out(_) => {
                *phase = out;
                None
            }
        }
    }

    /// As [`Pods::take`], but only if the pod is leaving.
    pub(super) fn take_leaving(&mut self, uid: &PodUid) -> Option<M> {
        self.one(uid, Phase::leaving)?;
        self.take(uid)
    }

    /// As [`Pods::take`], for each member that is over.
    pub(super) fn take_all(&mut self, is_over: impl Fn(&PodUid, &M) -> bool) -> Vec<M> {
        let over = self.all(Phase::serving).filter(|(uid, member)| is_over(uid, member));
        let over: Vec<_> = over.map(|(uid, _)| uid.clone()).collect();
        over.iter().filter_map(|uid| self.take(uid)).collect()
    }

    /// A pod outside the mesh could not be enrolled.
    pub(super) fn fail(&mut self, uid: &PodUid, failure: Failure, retry_at: Instant) {
        if let Some(out) = self.pod(uid).phase.out_mut() {
            out.failure = Some((failure, retry_at));
        }
    }

    /// Sets [`Out::closed`] of a pod outside the mesh.
    pub(super) fn set_closed(&mut self, uid: &PodUid, netns: Option<u64>) {
        if let Some(out) = self.pod(uid).phase.out_mut() {
            out.closed = netns;
        }
    }

    /// Forgets the failures of pods that are not wanted any more.
    pub(super) fn forget_failures(&mut self, is_wanted: impl Fn(&PodUid) -> bool) {
        let unwanted = self.0.iter_mut().filter(|(uid, _)| !is_wanted(uid));
        unwanted.filter_map(|(_, pod)| pod.phase.out_mut()).for_each(|out| out.failure = None);
    }

    pub(super) fn guard(&self, uid: &PodUid) -> Guard {
        self.0.get(uid).map_or(Guard::None, |pod| pod.guard)
    }

    /// The pods that are held, and their cgroups' ids.
    pub(super) fn held(&self) -> impl Iterator<Item = (&PodUid, u64)> {
        self.0.iter().filter_map(|(uid, pod)| match pod.guard {
            Guard::Held(id) => Some((uid, id)),
            Guard::None | Guard::Earlier(_) => None,
        })
    }

    pub(super) fn set_guard(&mut self, uid: &PodUid, guard: Guard) {
        self.pod(uid).guard = guard;
    }

    /// Forgets guards that are over.
    pub(super) fn end_guards(&mut self, is_over: impl Fn(&PodUid, Guard) -> bool) {
        for (_, pod) in self.0.iter_mut().filter(|(uid, pod)| is_over(uid, pod.guard)) {
            pod.guard = Guard::None;
        }
    }

    /// Forgets pods outside the mesh without a guard, a failure or [`Out::closed`].
    pub(super) fn forget_idle(&mut self) {
        let idle = Out::default();
        let is_idle = |phase: &Phase<M>| matches!(phase, Phase::Out(out) if *out == idle);
        self.0.retain(|_, pod| pod.guard != Guard::None || !is_idle(&pod.phase));
    }

    fn pod(&mut self, uid: &PodUid) -> &mut Tracked<M> {
        let unknown = || Tracked { phase: Phase::default(), guard: Guard::None };
        self.0.entry(uid.clone()).or_insert_with(unknown)
    }

    fn change(&mut self, uid: &PodUid, next: impl FnOnce(Phase<M>) -> Phase<M>) {
        if let Some(pod) = self.0.get_mut(uid) {
            pod.phase = next(mem::take(&mut pod.phase));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mesh_api::PodCode;

    use super::{
        Phase::{Captured, Joining, Leaving},
        *,
    };

    fn uid() -> PodUid {
        PodUid::parse("a").unwrap()
    }

    fn pods(phase: Phase<u8>) -> Pods<u8> {
        Pods([(uid(), Tracked { phase, guard: Guard::None })].into())
    }

    #[test]
    fn every_phase_goes_where_this_table_says() {
        let now = Instant::now();
        let later = now + Duration::from_secs(3);
        let failure =
            |sentence: &str| Failure { code: PodCode::NoListener, sentence: sentence.to_owned() };
        let known = || Out { failure: Some((failure("known"), now)), closed: Some(7) };
        let (out, nothing) = (|| Phase::Out(known()), Phase::default);
        let after = |event: &dyn Fn(&mut Pods<u8>)| {
            [out(), Joining(1), Captured(1), Leaving(1, now)].map(|phase| {
                let mut pods = pods(phase);
                event(&mut pods);
                pods.0.remove(&uid()).unwrap().phase
            })
        };

        let joined = after(&|pods| pods.join(&uid(), 2));
        assert_eq!(joined, [Joining(2), Joining(2), Joining(2), Joining(2)]);
        let captured = after(&|pods| pods.capture(&uid(), true));
        assert_eq!(captured, [out(), Captured(1), Captured(1), Leaving(1, now)]);
        let refused = after(&|pods| pods.capture(&uid(), false));
        assert_eq!(refused, [out(), Joining(1), Joining(1), Leaving(1, now)]);
        let withdrawn = after(&|pods| pods.withdraw(&uid(), later));
        let leaving = || Leaving(1, later);
        assert_eq!(withdrawn, [out(), leaving(), leaving(), Leaving(1, now)]);
        let taken = after(&|pods| {
            pods.take(&uid());
        });
        assert_eq!(taken, [out(), nothing(), nothing(), nothing()]);

        let new = || Out { failure: Some((failure("new"), later)), ..known() };
        let failed = after(&|pods| pods.fail(&uid(), failure("new"), later));
        let inside = [Joining(1), Captured(1), Leaving(1, now)];
        let [joining, enrolled, leaving] = inside;
        assert_eq!(failed, [Phase::Out(new()), joining, enrolled, leaving]);
        let opened = || Out { closed: None, ..known() };
        let [out, ..] = after(&|pods| pods.set_closed(&uid(), None));
        assert_eq!(out, Phase::Out(opened()));
        let unwanted = || Out { failure: None, ..known() };
        let [out, ..] = after(&|pods| pods.forget_failures(|_| false));
        assert_eq!(out, Phase::Out(unwanted()));
    }

    #[test]
    fn what_an_earlier_agent_left_guards_until_dials_are_redirected_and_holds_are_apart() {
        let mut pods = pods(Phase::default());
        pods.set_guard(&uid(), Guard::Earlier(5));
        pods.join(&uid(), 1);
        assert_eq!(pods.take(&uid()), Some(1)); // its listeners have failed
        pods.forget_idle();
        assert_eq!(pods.guard(&uid()), Guard::Earlier(5));
        pods.join(&uid(), 2);
        pods.capture(&uid(), false);
        assert_eq!(pods.guard(&uid()), Guard::None);

        pods.set_guard(&uid(), Guard::Held(7));
        pods.capture(&uid(), true);
        assert_eq!(pods.held().collect::<Vec<_>>(), [(&uid(), 7)]);
        pods.take(&uid());
        pods.forget_idle();
        assert_eq!(pods.guard(&uid()), Guard::Held(7));
        pods.end_guards(|_, guard| matches!(guard, Guard::Held(_)));
        pods.forget_idle();
        assert!(pods.0.is_empty());
    }
}
