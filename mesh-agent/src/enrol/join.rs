//! Taking pods in.

use std::{net::IpAddr, sync::Arc};

use jiff::Timestamp;
use mesh_common::{addr::Addr, maps::EnrolledPod};
use mesh_wire::identity::SpiffeId;
use mesh_world::{LocalPod, ObjectName, PodUid, Settings, Snapshot, Wanted};

use super::{EnrolError, Enrolled, Enroller, Failure, Listeners, Saved, tables};
use crate::{
    kernel::KernelError,
    netns::{Netns, reserve_ports, reserved_ports},
    proxy::{Listening, Pod},
};

impl Enroller {
    /// Enrols pods that are wanted and not in, up to the point where the world has to know. Returns
    /// the UIDs of those that joined.
    pub(super) async fn enrol_wanted(&mut self, world: &Snapshot) -> Vec<PodUid> {
        let now = tokio::time::Instant::now();
        let mut joined = Vec::new();
        for local in world.local_pods() {
            let uid = &local.workload.uid;
            let Wanted::In(settings) = &local.wanted else { continue };
            let waits = self.failed.get(uid).is_some_and(|(_, retry)| *retry > now);
            if self.pods.contains_key(uid) || waits {
                continue;
            }
            let enrolled = match self.leaving.remove(uid) {
                Some((leaving, _)) => self.rejoin(leaving, settings),
                None => self.enrol(local, settings).await,
            };
            match enrolled {
                Ok(enrolled) => {
                    let pod = &enrolled.pod;
                    tracing::info!(pod = %pod.name, %uid, mode = %settings.mode, identity = %pod.identity, "pod enrolled");
                    self.failed.remove(uid);
                    self.left_closed.remove(uid);
                    let netns = pod.netns.cookie();
                    self.left.retain(|_, left| left.pod.netns.cookie() != netns);
                    self.no_orphan(netns);
                    self.pods.insert(uid.clone(), enrolled);
                    joined.push(uid.clone());
                }
                Err(error) => {
                    let name = format!("{}/{}", local.workload.namespace, local.workload.name);
                    self.failed_to_join(uid, &name, &error);
                }
            }
        }
        joined
    }

    /// Notes a failure, for `status` and for the next attempt; logs it once.
    pub(super) fn failed_to_join(&mut self, uid: &PodUid, name: &str, error: &EnrolError) {
        let failure = Failure { code: error.code(), sentence: error.to_string() };
        let known = self.failed.get(uid);
        if known.is_none_or(|(known, _)| known.sentence != failure.sentence) {
            tracing::error!(pod = name, %uid, %error, "pod cannot be enrolled");
        }
        self.failed.insert(uid.clone(), (failure, Self::retry_at()));
    }

    pub(super) async fn enrol(
        &mut self,
        local: &LocalPod,
        settings: &Settings,
    ) -> Result<Enrolled, EnrolError> {
        let workload = &local.workload;
        let netns = self.finder.find(&self.mesh.factory, local).await?;
        if let Some(holder) = self.holder_of(&netns, &workload.uid) {
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
        let inherited = self.inherited.remove(&pod.netns.cookie());
        let listening = match inherited.and_then(|given| Listening::inherited(&pod, given)) {
            Some(listening) => listening,
            None => Listening::bind(&self.mesh, &pod).await?,
        };
        self.generation += 1;
        let enrolled = Enrolled {
            pod,
            listeners: Listeners::Made(Some(listening)),
            settings: settings.clone(),
            since: Timestamp::now(),
            generation: self.generation,
            captured: false,
        };
        if let Err(error) = self.take_addresses(&enrolled) {
            self.leave_closed(&enrolled.pod);
            return Err(error.into());
        }
        Ok(enrolled)
    }

    /// A pod that is wanted again before its grace is over still has its listeners.
    fn rejoin(&mut self, leaving: Enrolled, settings: &Settings) -> Result<Enrolled, EnrolError> {
        self.generation += 1;
        let settings = settings.clone();
        let (since, generation) = (Timestamp::now(), self.generation);
        let enrolled = Enrolled { settings, since, generation, captured: false, ..leaving };
        if let Err(error) = self.take_addresses(&enrolled) {
            self.release(&enrolled);
            self.leave_closed(&enrolled.pod);
            return Err(error.into());
        }
        Ok(enrolled)
    }

    /// From here on the programs decide about arrivals at the pod's addresses. An address that
    /// another pod had is now this pod's.
    pub(super) fn take_addresses(&self, enrolled: &Enrolled) -> Result<(), KernelError> {
        let (tables, pod) = (self.mesh.kernel.tables(), &enrolled.pod);
        let (netns, flags) = (pod.netns.cookie(), tables::local_flags(enrolled.settings.mode));
        tables.add_pod_verdicts(netns)?;
        tables.shares.add(netns)?;
        for address in pod.addresses() {
            tables.local.put(address.into(), tables::local(netns, flags))?;
        }
        self.set_mode(pod, flags)
    }

    /// The last step of joining: redirects the dials of all pods whose dials are not redirected
    /// yet.
    pub(super) fn capture_dials(&mut self) {
        let free = self.pods.iter().filter(|(_, enrolled)| !enrolled.captured);
        let free: Vec<_> =
            free.map(|(uid, enrolled)| (uid.clone(), Arc::clone(&enrolled.pod))).collect();
        for (uid, pod) in free {
            let captured = self.capture_dials_of(&pod);
            if let Some(enrolled) = self.pods.get_mut(&uid) {
                enrolled.captured = captured;
            }
            self.closed_before.remove(&uid); // once let go, it is not closed any more
        }
    }

    /// Returns whether the kernel took it.
    fn capture_dials_of(&self, pod: &Pod) -> bool {
        let entry = EnrolledPod {
            v4: pod.v4.map_or(Addr::NONE, |v4| IpAddr::V4(v4).into()),
            v6: pod.v6.map_or(Addr::NONE, |v6| IpAddr::V6(v6).into()),
        };
        let put = self.mesh.kernel.tables().enrolled.put(pod.netns.cookie(), entry);
        let captured = put.is_ok();
        self.log_failure("capture dials", put);
        captured
    }

    /// Keeps ephemeral sockets out of the mesh's range. The earlier setting is noted first, so that
    /// a crash forgets nothing.
    async fn reserve(&self, netns: &Netns) -> Result<(), EnrolError> {
        let factory = &self.mesh.factory;
        if Saved::read(&self.saved_dir, netns.cookie()).is_none() {
            let before = netns.run(factory, reserved_ports).await?.map_err(EnrolError::Sysctl)?;
            let (path, cookie) = (netns.path().to_owned(), netns.cookie());
            let saved = Saved { netns: path, cookie, reserved_ports: before };
            saved.write(&self.saved_dir).map_err(EnrolError::Note)?;
        }
        netns.run(factory, reserve_ports).await?.map_err(EnrolError::Sysctl)
    }
}
