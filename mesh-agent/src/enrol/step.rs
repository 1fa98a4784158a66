//! One step of enrolment: what the world wants, compared with what is.

use std::{net::IpAddr, os::fd::AsFd as _, sync::Arc};

use jiff::Timestamp;
use mesh_common::{
    addr::Addr,
    maps::{EnrolledPod, LOCAL_LEFT, LOCAL_STRICT, LocalPod as LocalEntry},
};
use tokio::time::{Instant, sleep_until};

use super::{
    EnrolError, Enrolled, Enroller, Failure, LEAVE_GRACE, PodState, PodStatus, RETRY, Saved,
    restore_all, tables,
};
use crate::{
    identity::SpiffeId,
    kernel::KernelError,
    netns::{Netns, reserve_ports},
    proxy::{Pod, listen},
    world::{
        Announcements, LocalPod, Membership, Mode, Objects, PodUid, Settings, Snapshot, Wanted,
    },
};

impl Enroller {
    /// Brings the node's pods to what the world wants, as far as it can be done now. To be called when the world has
    /// changed and when [`Enroller::due`] resolves.
    ///
    /// # Cancel safety
    /// Not cancel safe: run it to its end.
    pub async fn step(&mut self, objects: &Objects, announcements: &Announcements) {
        let world = self.build(objects, announcements);
        self.remove_vanished(&world).await;
        let withdrawn = self.withdraw_unwanted(&world);
        self.finish_leaving().await;
        let joined = self.enrol_wanted(&world).await;
        let changed = self.change_settings(&world);
        let world = if withdrawn || changed || !joined.is_empty() {
            self.build(objects, announcements)
        } else {
            world
        };
        self.publish(&world);
        for uid in &joined {
            self.capture_dials(uid);
        }
        self.sweep(&world).await;
        self.identities.retain(&self.identity_ids());
        self.board.write(self.statuses(&world));
    }

    /// Resolves when something has to be done although the world has not changed.
    ///
    /// # Cancel safety
    /// Can be dropped and called again.
    pub async fn due(&self) {
        let leaving = self.leaving.values().map(|(_, until)| *until);
        let retries = self.failed.values().map(|(_, at)| *at);
        match leaving.chain(retries).min() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// The new world for the data path, the kernel and the other nodes.
    fn publish(&mut self, world: &Snapshot) {
        self.mesh.world.store(Arc::new(world.clone()));
        if let Err(error) = tables::sync(self.mesh.kernel.tables(), world) {
            tracing::error!(%error, "the kernel's tables are not up to date; trying again with the next change");
        }
        let generation =
            |uid: &PodUid| self.pods.get(uid).map_or(0, |enrolled| enrolled.generation);
        let trust_domain = self.mesh.trust_domain.as_str();
        let announcement = world.announcement(&self.boot_id, trust_domain, generation);
        let Some(announcement) = announcement.filter(|new| self.announced.as_ref() != Some(new))
        else {
            return;
        };
        self.announced = Some(announcement.clone());
        let announcer = Arc::clone(&self.announcer);
        self.serving.spawn("announce", async move {
            if let Err(error) = announcer.publish(announcement).await {
                tracing::error!(%error, "other nodes cannot be told what is captured here");
            }
        });
    }

    /// Pods whose object or namespace is gone leave nothing behind.
    async fn remove_vanished(&mut self, world: &Snapshot) {
        let gone = |uid: &PodUid, enrolled: &Enrolled| {
            let named = world
                .local_pod(uid)
                .map(|pod| pod.netns.as_ref().map(|netns| netns.path().to_owned()));
            let elsewhere = !matches!(named, Some(Some(path)) if path == enrolled.pod.netns.path());
            elsewhere
                || !enrolled.pod.netns.still_there()
                || addresses_changed(world, uid, &enrolled.pod)
        };
        let mut removed: Vec<Enrolled> =
            self.pods.extract_if(.., |uid, enrolled| gone(uid, enrolled)).map(|(_, e)| e).collect();
        removed.extend(
            self.leaving
                .extract_if(.., |uid, (enrolled, _)| gone(uid, enrolled))
                .map(|(_, (e, _))| e),
        );
        removed
            .extend(self.left.extract_if(.., |uid, enrolled| gone(uid, enrolled)).map(|(_, e)| e));
        for enrolled in removed {
            let pod = &enrolled.pod;
            tracing::info!(pod = %pod.name, netns = %pod.netns.path().display(), "pod gone");
            self.release(&enrolled);
            self.log_failure("detach", self.mesh.kernel.detach_pod(pod.netns.cookie()));
            for address in pod.addresses() {
                self.log_failure("forget", self.mesh.kernel.tables().local.remove(&address.into()));
            }
            pod.connections.stop();
            self.restore_ports(pod).await;
        }
        self.failed.retain(|uid, _| world.local_pod(uid).is_some());
    }

    /// Pods that are to leave are withdrawn; they go on taking TLS, and take plaintext from now on.
    fn withdraw_unwanted(&mut self, world: &Snapshot) -> bool {
        let unwanted = |uid: &PodUid| !matches!(world.local_pod(uid), Some(pod) if matches!(pod.wanted, Wanted::In(_)));
        let until = Instant::now() + LEAVE_GRACE;
        let leaving: Vec<_> = self.pods.extract_if(.., |uid, _| unwanted(uid)).collect();
        self.failed.retain(|uid, _| !unwanted(uid));
        for (uid, enrolled) in &leaving {
            tracing::info!(pod = %enrolled.pod.name, %uid, "pod leaves the mesh");
            self.write_local(&enrolled.pod, 0);
        }
        let some = !leaving.is_empty();
        self.leaving.extend(leaving.into_iter().map(|(uid, enrolled)| (uid, (enrolled, until))));
        some
    }

    /// Ends what is left of pods whose grace is over, or that are wanted again.
    async fn finish_leaving(&mut self) {
        // Their own dials are plaintext from the moment of withdrawal; this only has to come after the announcement.
        let now = Instant::now();
        for (enrolled, _) in self.leaving.values() {
            let netns = enrolled.pod.netns.cookie();
            self.log_failure("release", self.mesh.kernel.tables().enrolled.remove(&netns));
        }
        let over: Vec<_> = self.leaving.extract_if(.., |_, (_, until)| *until <= now).collect();
        for (uid, (enrolled, _)) in over {
            self.write_local(&enrolled.pod, LOCAL_LEFT);
            self.release(&enrolled);
            self.restore_ports(&enrolled.pod).await;
            self.left.insert(uid, enrolled);
        }
    }

    async fn enrol_wanted(&mut self, world: &Snapshot) -> Vec<PodUid> {
        let now = Instant::now();
        let mut joined = Vec::new();
        for local in world.local_pods() {
            let uid = &local.workload.uid;
            let Wanted::In(settings) = &local.wanted else { continue };
            if self.pods.contains_key(uid)
                || self.failed.get(uid).is_some_and(|(_, retry)| *retry > now)
            {
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
                    self.left.remove(uid);
                    self.pods.insert(uid.clone(), enrolled);
                    joined.push(uid.clone());
                }
                Err(error) => {
                    let workload = &local.workload;
                    let failure = Failure { code: error.code(), sentence: error.to_string() };
                    if self
                        .failed
                        .get(uid)
                        .is_none_or(|(known, _)| known.sentence != failure.sentence)
                    {
                        tracing::error!(pod = %format_args!("{}/{}", workload.namespace, workload.name), %uid, %error, "pod cannot be enrolled");
                    }
                    self.failed.insert(uid.clone(), (failure, Instant::now() + RETRY));
                }
            }
        }
        joined
    }

    /// Everything up to the announcement: afterwards the pod can be dialled over TLS.
    async fn enrol(
        &mut self,
        local: &LocalPod,
        settings: &Settings,
    ) -> Result<Enrolled, EnrolError> {
        let workload = &local.workload;
        let path = local.netns.as_ref().ok_or(EnrolError::NoNetns)?.path();
        let netns = Netns::open(&self.mesh.factory, path).await?;
        if let Some(holder) = self.holder_of(&netns) {
            return Err(EnrolError::NetnsTaken(holder));
        }
        let identity =
            SpiffeId::new(&self.mesh.trust_domain, &workload.namespace, &workload.service_account)?;
        self.identities.ensure(&identity).await?;
        self.reserve(&netns).await?;
        let name = crate::world::ObjectName::new(&workload.namespace, &workload.name);
        let pod = Pod::new(
            workload.uid.clone(),
            name,
            identity,
            netns,
            &workload.addresses,
            self.accepting.child(),
            self.serving.child(),
        );
        let pod = Arc::new(pod);
        let listeners = listen(&self.mesh, &pod).await?;
        self.generation += 1;
        let enrolled = Enrolled {
            pod,
            listeners,
            settings: (settings.mode, settings.exclude_ports.clone()),
            since: Timestamp::now(),
            generation: self.generation,
        };
        if let Err(error) = self.mark_local(&enrolled) {
            self.release(&enrolled);
            return Err(error.into());
        }
        Ok(enrolled)
    }

    /// A pod that is wanted again before its grace is over still has its listeners.
    fn rejoin(&mut self, leaving: Enrolled, settings: &Settings) -> Result<Enrolled, EnrolError> {
        self.generation += 1;
        let settings = (settings.mode, settings.exclude_ports.clone());
        let enrolled =
            Enrolled { settings, since: Timestamp::now(), generation: self.generation, ..leaving };
        self.mark_local(&enrolled)?;
        Ok(enrolled)
    }

    fn mark_local(&self, enrolled: &Enrolled) -> Result<(), KernelError> {
        enrolled.pod.set_strict(enrolled.settings.0 == Mode::Strict);
        let (kernel, netns) = (&self.mesh.kernel, &enrolled.pod.netns);
        kernel.tables().add_pod_verdicts(netns.cookie())?;
        for address in enrolled.pod.addresses() {
            kernel
                .tables()
                .local
                .put(address.into(), tables::local(netns.cookie(), enrolled.settings.0))?;
        }
        kernel.attach_pod(netns.as_fd(), netns.cookie())
    }

    /// The last of joining: the pod's own dials.
    fn capture_dials(&self, uid: &PodUid) {
        let Some(enrolled) = self.pods.get(uid) else { return };
        let pod = &enrolled.pod;
        let entry = EnrolledPod {
            v4: pod.v4.map_or(Addr::NONE, |v4| IpAddr::V4(v4).into()),
            v6: pod.v6.map_or(Addr::NONE, |v6| IpAddr::V6(v6).into()),
        };
        self.log_failure(
            "capture dials",
            self.mesh.kernel.tables().enrolled.put(pod.netns.cookie(), entry),
        );
    }

    /// Mode and excluded ports of pods that are and stay enrolled.
    fn change_settings(&mut self, world: &Snapshot) -> bool {
        let mut changed = Vec::new();
        for (uid, enrolled) in &mut self.pods {
            let Some(Wanted::In(settings)) = world.local_pod(uid).map(|pod| &pod.wanted) else {
                continue;
            };
            let wanted = (settings.mode, settings.exclude_ports.clone());
            if enrolled.settings != wanted {
                enrolled.settings = wanted;
                self.generation += 1;
                enrolled.generation = self.generation;
                changed.push((Arc::clone(&enrolled.pod), settings.mode));
            }
        }
        for (pod, mode) in &changed {
            tracing::info!(pod = %pod.name, %mode, "settings changed");
            self.write_local(pod, tables::local(0, *mode).flags);
        }
        !changed.is_empty()
    }

    fn write_local(&self, pod: &Pod, flags: u32) {
        pod.set_strict(flags & LOCAL_STRICT != 0);
        for address in pod.addresses() {
            let entry = LocalEntry { netns: pod.netns.cookie(), flags, zero: 0 };
            self.log_failure("write", self.mesh.kernel.tables().local.put(address.into(), entry));
        }
    }

    /// Stops steering; what is open goes on.
    fn release(&self, enrolled: &Enrolled) {
        let netns = enrolled.pod.netns.cookie();
        self.log_failure("release", self.mesh.kernel.tables().enrolled.remove(&netns));
        enrolled.listeners.withdraw(&self.mesh);
        enrolled.pod.accepting.stop();
        self.mesh.kernel.tables().remove_pod_verdicts(netns);
    }

    /// Keeps ephemeral sockets out of the mesh's range, and remembers what was there.
    async fn reserve(&self, netns: &Netns) -> Result<(), EnrolError> {
        if Saved::read(&self.saved_dir, netns.cookie()).is_some() {
            return Ok(()); // an earlier agent has done it
        }
        let before =
            netns.run(&self.mesh.factory, reserve_ports).await?.map_err(EnrolError::Sysctl)?;
        let saved = Saved {
            netns: netns.path().to_owned(),
            cookie: netns.cookie(),
            reserved_ports: before,
        };
        saved.write(&self.saved_dir).map_err(EnrolError::Note)
    }

    async fn restore_ports(&self, pod: &Pod) {
        let cookie = pod.netns.cookie();
        if let Some(saved) = Saved::read(&self.saved_dir, cookie) {
            let restored = pod
                .netns
                .run(&self.mesh.factory, move || crate::netns::restore_ports(&saved.reserved_ports))
                .await;
            if !matches!(restored, Ok(Ok(()))) {
                tracing::debug!(pod = %pod.name, "the reserved ports could not be put back; the namespace is going");
            }
            Saved::forget(&self.saved_dir, cookie);
        }
    }

    /// Once after the start: what an earlier agent left of pods that are not in the mesh any more. A pod whose settings
    /// cannot be read now stays as it was then: perhaps closed to plaintext, and it was meant so.
    async fn sweep(&mut self, world: &Snapshot) {
        if std::mem::replace(&mut self.swept, true) {
            return;
        }
        let mut kept: Vec<u64> =
            self.pods.values().map(|enrolled| enrolled.pod.netns.cookie()).collect();
        let unreadable = |pod: &&Arc<LocalPod>| {
            matches!(pod.workload.membership, Membership::Invalid { .. })
                || self.failed.contains_key(&pod.workload.uid)
        };
        for pod in world.local_pods().iter().filter(unreadable) {
            let Some(netns) = &pod.netns else { continue };
            if let Ok(netns) = Netns::open(&self.mesh.factory, netns.path()).await {
                kept.push(netns.cookie());
            }
        }
        let tables = self.mesh.kernel.tables();
        for netns in tables.enrolled.content().keys().filter(|netns| !kept.contains(netns)) {
            self.log_failure("sweep", tables.enrolled.remove(netns));
        }
        for (address, entry) in tables.local.content() {
            if !kept.contains(&entry.netns) {
                self.log_failure("sweep", tables.local.remove(&address));
            }
        }
        let attached = self.mesh.kernel.attached_pods().unwrap_or_default();
        for netns in attached.into_iter().filter(|netns| !kept.contains(netns)) {
            self.log_failure("sweep", self.mesh.kernel.detach_pod(netns));
        }
        if let Err(error) = restore_all(&self.mesh.factory, &self.saved_dir, &kept).await {
            tracing::warn!(%error, "cannot read the notes of an earlier agent");
        }
    }

    fn log_failure(&self, what: &str, result: Result<(), KernelError>) {
        if let Err(error) = result {
            tracing::error!(node = %self.node, what, %error, "the kernel's tables could not be changed");
        }
    }

    fn statuses(&self, world: &Snapshot) -> Vec<PodStatus> {
        world.local_pods().iter().map(|local| self.status(local)).collect()
    }

    fn status(&self, local: &LocalPod) -> PodStatus {
        let workload = &local.workload;
        let enrolled = self.pods.get(&workload.uid);
        let leaving = self.leaving.get(&workload.uid).map(|(enrolled, _)| enrolled);
        let (code, reason) = match (enrolled, leaving, self.failed.get(&workload.uid)) {
            (Some(_), ..) => (String::new(), String::new()),
            (None, Some(_), _) => (
                "leaving".to_owned(),
                "the pod leaves the mesh; peers are given time to hear of it".to_owned(),
            ),
            (None, None, Some((failure, _))) => (failure.code.to_owned(), failure.sentence.clone()),
            (None, None, None) => {
                (workload.membership.code().to_owned(), workload.membership.reason())
            }
        };
        let known = enrolled.or(leaving);
        PodStatus {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            uid: workload.uid.to_string(),
            addresses: workload.addresses.clone(),
            state: match (enrolled, leaving) {
                (Some(_), _) => PodState::Enrolled,
                (None, Some(_)) => PodState::Leaving,
                (None, None) => PodState::NotEnrolled,
            },
            since: enrolled.map(|enrolled| enrolled.since),
            mode: enrolled.map(|enrolled| enrolled.settings.0),
            identity: enrolled.map(|enrolled| enrolled.pod.identity.to_string()),
            code,
            reason,
            netns: known.map(|enrolled| enrolled.pod.netns.cookie()),
            connections: known.map_or(0, |enrolled| enrolled.pod.connections.running()),
        }
    }
}

fn addresses_changed(world: &Snapshot, uid: &PodUid, pod: &Pod) -> bool {
    let Some(local) = world.local_pod(uid) else { return true };
    let mut now: Vec<IpAddr> = local.workload.addresses.clone();
    let mut then: Vec<IpAddr> = pod.addresses().collect();
    now.sort();
    then.sort();
    !now.is_empty() && now != then
}
