//! How pods join the mesh.

use std::sync::Arc;

use jiff::Timestamp;
use mesh_api::Mode;
use mesh_wire::identity::SpiffeId;
use mesh_world::{LocalPod, ObjectName, PodSettings, PodUid, Snapshot, Wanted};
use tokio::time::Instant;

use super::{
    EnrolError, Enroller, Failure, Listeners, Member, RETRY, Saved,
    pods::{Guard, Phase},
    step::{InForce, Published},
    tables,
};
use crate::{
    kernel::KernelError,
    netns::{Netns, ReserveError, reserve_ports, reserved_ports},
    proxy::{Listening, Pod},
};

impl Enroller {
    /// Takes in the pods that are wanted and not in, as far as the world need not know them yet.
    pub(super) async fn enrol_wanted(&mut self, world: &Snapshot) {
        let now = Instant::now();
        for local in world.local_pods() {
            let uid = &local.workload.uid;
            let Wanted::In(settings) = &local.wanted else { continue };
            let waits = self.pods.one(uid, Phase::failure).is_some_and(|(_, retry)| *retry > now);
            if self.pods.one(uid, Phase::enrolled).is_some() || waits {
                continue;
            }
            let member = match self.pods.take_leaving(uid) {
                Some(leaving) if leaving.has_listeners() => self.rejoin(leaving, settings),
                deaf => {
                    if let Some(leaving) = deaf {
                        self.release(&leaving);
                    }
                    self.enrol(local, settings).await
                }
            };
            match member {
                Ok(member) => {
                    let pod = &member.pod;
                    tracing::info!(pod = %pod.name, %uid, mode = %settings.mode, identity = %pod.identity, "pod enrolled");
                    self.join(member).await;
                }
                Err(error) => {
                    let name = format!("{}/{}", local.workload.namespace, local.workload.name);
                    self.failed_to_join(uid, &name, &error);
                }
            }
        }
    }

    /// Notes that a pod is in.
    pub(super) async fn join(&mut self, member: Member) {
        let netns = member.pod.netns.cookie();
        self.left.remove(&netns);
        let uid = member.pod.uid.clone();
        let closed = self.pods.one(&uid, Phase::closed).filter(|closed| *closed != netns);
        self.pods.join(&uid, member);
        if let Some(closed) = closed {
            self.let_go(closed).await;
        }
    }

    /// Notes a failure, for `status` and for the next attempt; logs it once.
    pub(super) fn failed_to_join(&mut self, uid: &PodUid, name: &str, error: &EnrolError) {
        let failure = Failure { code: error.code(), sentence: error.to_string() };
        let known = self.pods.one(uid, Phase::failure);
        if known.is_none_or(|(known, _)| known.sentence != failure.sentence) {
            tracing::error!(pod = name, %uid, %error, "pod cannot be enrolled");
        }
        self.pods.fail(uid, failure, Instant::now() + RETRY);
    }

    pub(super) async fn enrol(
        &mut self,
        local: &LocalPod,
        settings: &PodSettings,
    ) -> Result<Member, EnrolError> {
        let workload = &local.workload;
        let netns = self.finder.find(&self.mesh.factory, local).await?;
        if let Some(holder) = self.holder_of(netns.cookie(), &workload.uid) {
            return Err(EnrolError::NetnsTaken(holder));
        }
        let trust_domain = &self.mesh.trust_domain;
        let identity = SpiffeId::new(trust_domain, &workload.namespace, &workload.service_account)?;
        self.identities.ensure(&identity).await?;
        self.reserve(&netns).await?;
        let name = ObjectName::new(&workload.namespace, &workload.name);
        let groups = (self.accepting.child(), self.serving.child());
        let addresses = &workload.addresses;
        let pod = Pod::new(workload.uid.clone(), name, identity, netns, addresses, groups);
        let pod = Arc::new(pod);
        self.set_same_node(&pod, settings);
        let netns = pod.netns.cookie();
        let inherited = self.inherited.get(&netns).map(Vec::as_slice).unwrap_or_default();
        let listening = Listening::bind(&self.mesh, &pod, inherited).await?;
        self.generation += 1;
        let member = Member {
            pod,
            listeners: Listeners::Made(Some(listening)),
            settings: settings.clone(),
            since: None,
            generation: self.generation,
        };
        if settings.mode != Mode::Strict {
            // What an earlier agent left does not keep the pod closed any more.
            let uid = &member.pod.uid;
            let is_its = |known: &PodUid, guard| known == uid && matches!(guard, Guard::Earlier(_));
            self.pods.end_guards(is_its);
        }
        if let Err(error) = self.take_addresses(&member) {
            self.leave_closed(&member.pod);
            return Err(error.into());
        }
        self.inherited.remove(&netns);
        Ok(member)
    }

    /// A pod that is wanted again before its grace is over still has its listeners.
    fn rejoin(&mut self, leaving: Member, settings: &PodSettings) -> Result<Member, EnrolError> {
        self.generation += 1;
        let (settings, generation) = (settings.clone(), self.generation);
        let member = Member { settings, since: None, generation, ..leaving };
        self.set_same_node(&member.pod, &member.settings);
        member.pod.give_up_sessions();
        if let Err(error) = self.take_addresses(&member) {
            self.release(&member);
            self.leave_closed(&member.pod);
            return Err(error.into());
        }
        Ok(member)
    }

    /// Notes that the kernel still has something of a pod that is not in.
    pub(super) fn leave_closed(&mut self, pod: &Pod) {
        self.pods.set_closed(&pod.uid, Some(pod.netns.cookie()));
    }

    /// From here on the programs decide about arrivals at the pod's addresses. An address that
    /// another pod had is now this pod's.
    pub(super) fn take_addresses(&self, member: &Member) -> Result<(), KernelError> {
        let (tables, pod) = (self.mesh.kernel.tables(), &member.pod);
        let (netns, flags) = (pod.netns.cookie(), tables::local_flags(member.settings.mode));
        tables.add_pod_verdicts(netns)?;
        tables.shares.add(netns)?;
        tables.add_steered(netns)?;
        for address in pod.addresses() {
            tables.local.put(address.into(), tables::local(netns, flags))?;
        }
        self.set_mode(pod, flags)
    }

    /// Begins to accept for pods that have just been taken in.
    pub(super) fn steer(&mut self, _: &InForce) {
        let mesh = &self.mesh;
        let steered = self.pods.serving_mut().map(|(uid, member)| (uid, member.steer(mesh)));
        let failed = steered.filter_map(|(uid, steered)| Some((uid.clone(), steered.err()?)));
        for (uid, error) in failed.collect::<Vec<_>>() {
            if self.pods.one(&uid, Phase::leaving).is_some() {
                tracing::warn!(%uid, %error, "a pod cannot leave in order");
            } else if let Some(member) = self.pods.take(&uid) {
                self.leave_closed(&member.pod);
                self.failed_to_join(&uid, &member.pod.name.to_string(), &error.into());
            }
        }
    }

    /// The last step of joining: redirects the pods' dials where they are not redirected yet.
    pub(super) fn capture_dials(&mut self, _: &Published) {
        self.capture_dials_of(self.pods_that(Phase::joining));
    }

    pub(super) fn capture_dials_of(&mut self, pods: Vec<(PodUid, Arc<Pod>)>) {
        for (uid, pod) in pods {
            let entry = tables::enrolled(pod.addresses());
            let put = self.mesh.kernel.tables().enrolled.put(pod.netns.cookie(), entry);
            self.pods.capture(&uid, put.is_ok());
            self.log_failure("capture dials", put);
        }
        for (_, member) in self.pods.serving_mut() {
            member.since.get_or_insert_with(Timestamp::now);
        }
    }

    /// Keeps ephemeral sockets out of the mesh's range. The earlier setting is noted first, so that
    /// a crash forgets nothing.
    async fn reserve(&self, netns: &Netns) -> Result<(), EnrolError> {
        let factory = &self.mesh.factory;
        if Saved::read(&self.saved_dir, netns.cookie()).is_none() {
            let before = netns.run(factory, reserved_ports).await?.map_err(ReserveError::Sysctl)?;
            let (path, cookie) = (netns.path().to_owned(), netns.cookie());
            let saved = Saved { netns: path, cookie, reserved_ports: before };
            saved.write(&self.saved_dir).map_err(EnrolError::Note)?;
        }
        Ok(netns.run(factory, reserve_ports).await??)
    }
}
