//! Addresses of pods that the kubelet has not reported yet: it may report them seconds after a
//! pod's first process began.
//!
//! They are taken from the pod's own network namespace, and only under conditions that the pod
//! cannot influence:
//! - the pod has a single process, its sandbox's, and has never had more than one container since
//!   its cgroup was made: no program of the pod itself has run yet;
//! - exactly one address of the namespace lies in each of the node's ranges (`spec.podCIDRs`), of
//!   which there must be one;
//! - no other pod of this node has the address, by report or by sighting.
//!
//! What an earlier agent found so, or was told by a report, stands in the kernel's table of
//! addresses, with the cookie of the pod's namespace. No other namespace ever has that cookie, so
//! this agent goes on with the entry ([`known_before`]).
//!
//! The node's own addresses that its object does not name are found here, too: they are no pod's.
//!
//! Where none of this helps, the agent waits for the report. A report is believed in any case: once
//! it is there, the sighting is void.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use mesh_common::{
    addr::Addr,
    maps::{LOCAL_LEFT, LocalEntry},
};
use mesh_world::{
    Cidr, LocalPod, Membership, NodeName, NodeObject, NotEnabledReason, Objects, PodObject, PodUid,
    Snapshot,
};
use tokio::time::Instant;

use super::{Enroller, hold::is_reachable, pods::Phase};
use crate::{netns::own_addresses, pod_cgroups::PodCgroups};

/// How often a starting pod is looked at: its sandbox's process appears some milliseconds after its
/// cgroup.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// How long a pod is looked at after its cgroup has changed. The report then follows soon.
const STARTS_WITHIN: Duration = Duration::from_secs(1);

/// How often the node's own addresses are looked for. A bridge is made with the first pod.
const HOSTS_EVERY: Duration = Duration::from_secs(5);

/// The addresses that have been found, and the pods whose addresses are looked for.
#[derive(Default)]
pub(super) struct Sightings {
    found: BTreeMap<PodUid, Vec<IpAddr>>,
    /// Pods that have no address yet.
    starting: BTreeMap<PodUid, Starting>,
    /// The addresses of the node's own interfaces.
    hosts: BTreeSet<IpAddr>,
    /// When they are looked for again.
    hosts_due: Option<Instant>,
    /// The objects without and with what has been found.
    last: Option<(Arc<Objects>, Arc<Objects>)>,
}

/// A pod that has no address yet.
#[derive(Clone, Copy, Default)]
struct Starting {
    /// How many containers it had when it was looked at last.
    containers: usize,
    /// Until when it is looked at again and again.
    until: Option<Instant>,
}

impl Starting {
    /// Whether to look at it now: for some time after a container has come.
    fn is_worth_a_look(&mut self, containers: usize, now: Instant) -> bool {
        if std::mem::replace(&mut self.containers, containers) != containers {
            self.until = Some(now + STARTS_WITHIN);
        }
        self.until.is_some_and(|until| now <= until)
    }
}

impl Sightings {
    /// Objects with the addresses that have been found; the same copy while nothing changes.
    pub(super) fn in_objects(&mut self, objects: &Arc<Objects>, node: &NodeName) -> Arc<Objects> {
        let own = objects.node(node.as_str());
        let own = own.filter(|own| self.hosts.iter().any(|host| !own.addresses.contains(host)));
        if self.found.is_empty() && own.is_none() {
            self.last = None;
            return Arc::clone(objects);
        }
        if let Some((without, with)) = &self.last
            && Arc::ptr_eq(without, objects)
        {
            return Arc::clone(with);
        }
        self.forget_void(objects, node);
        let mut with = Objects::clone(objects);
        for (uid, addresses) in &self.found {
            if let Some(pod) = objects.pod(uid) {
                let mut pod = PodObject::clone(pod);
                pod.ips.clone_from(addresses);
                with.insert_pod(pod);
            }
        }
        if let Some(own) = own {
            let mut own = NodeObject::clone(own);
            own.addresses.extend(&self.hosts);
            with.insert_node(own);
        }
        let with = Arc::new(with);
        self.last = Some((Arc::clone(objects), Arc::clone(&with)));
        with
    }

    /// When a starting pod is to be looked at again.
    pub(super) fn due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut starting = self.starting.values();
        let looks = starting.any(|pod| pod.until.is_some_and(|until| now <= until));
        looks.then(|| now + LOOK_AGAIN)
    }

    fn found(&mut self, uid: &PodUid, addresses: Vec<IpAddr>) {
        self.starting.remove(uid);
        self.found.insert(uid.clone(), addresses);
        self.last = None;
    }

    /// Forgets addresses that have been reported meanwhile, those of pods that are gone, and those
    /// that another pod claims too.
    fn forget_void(&mut self, objects: &Objects, node: &NodeName) {
        let waits = |uid: &PodUid| {
            objects.pod(uid).is_some_and(|pod| {
                pod.ips.is_empty()
                    && !pod.completed
                    && !pod.host_network
                    && pod.node.as_ref() == Some(node)
            })
        };
        self.found.retain(|uid, _| waits(uid));
        let mut claims: HashMap<IpAddr, usize> = HashMap::new();
        let reported = objects.pods().filter(|pod| !pod.completed && !pod.host_network);
        let reported = reported.flat_map(|pod| &pod.ips);
        for address in reported.chain(self.found.values().flatten()) {
            *claims.entry(*address).or_default() += 1;
        }
        let alone = |address: &IpAddr| claims.get(address).copied() == Some(1);
        self.found.retain(|_, addresses| addresses.iter().all(alone));
    }
}

impl Enroller {
    /// Looks for the addresses of the node's own interfaces, now and then. The Node object does not
    /// name all: the bridge of the pods has one of their range, from which kube-proxy masquerades.
    pub(super) async fn look_for_hosts(&mut self) {
        let now = Instant::now();
        if self.sightings.hosts_due.is_some_and(|due| now < due) {
            return;
        }
        self.sightings.hosts_due = Some(now + HOSTS_EVERY);
        let found = self.node_netns.run(&self.mesh.factory, own_addresses).await;
        match found.map_err(io::Error::other).flatten() {
            Ok(found) => {
                let hosts = found.into_iter().filter(is_reachable).collect();
                if self.sightings.hosts != hosts {
                    self.sightings.hosts = hosts;
                    self.sightings.last = None;
                }
            }
            Err(error) => tracing::warn!(%error, "cannot look for the node's own addresses"),
        }
    }

    /// Looks for the addresses of pods that are to be in the mesh and have none reported. Returns
    /// whether any was found.
    pub(super) async fn look_for_addresses(
        &mut self,
        world: &Snapshot,
        objects: &Objects,
        cgroups: &PodCgroups,
    ) -> bool {
        let (now, mut any) = (Instant::now(), false);
        let waits = |pod: &LocalPod| {
            matches!(
                pod.workload.membership,
                Membership::Waiting { reason: NotEnabledReason::NoAddress, .. }
            )
        };
        let waiting: Vec<_> = world.local_pods().iter().filter(|pod| waits(pod)).collect();
        let starting = &mut self.sightings.starting;
        starting.retain(|uid, _| waiting.iter().any(|pod| pod.workload.uid == *uid));
        if waiting.is_empty() {
            return false;
        }
        let node = objects.node(self.node.as_str());
        let ranges = node.map(|node| node.pod_cidrs.clone()).unwrap_or_default();
        for pod in waiting {
            let uid = &pod.workload.uid;
            let containers = cgroups.get(uid).map_or(0, |cgroup| cgroup.containers);
            let starting = self.sightings.starting.entry(uid.clone()).or_default();
            if !starting.is_worth_a_look(containers, now) {
                continue;
            }
            let mut found = self.see_known_before(uid).await;
            if found.is_none() && cgroups.get(uid).is_some_and(|cgroup| cgroup.only_sandbox) {
                let sandbox = self.finder.see_sandbox(&self.mesh.factory, uid).await;
                found = sandbox.and_then(|sandbox| of_pod(&sandbox, &ranges));
            }
            if let Some(addresses) = found {
                tracing::debug!(%uid, ?addresses, "addresses found before they were reported");
                self.sightings.found(uid, addresses);
                any = true;
            }
        }
        any
    }

    /// The addresses with which an earlier agent had a pod in the mesh, if the pod's namespace
    /// still has them.
    async fn see_known_before(&self, uid: &PodUid) -> Option<Vec<IpAddr>> {
        let ours = self.pods.all(Phase::serving);
        let ours = ours.map(|(_, member)| member.pod.netns.cookie()).collect();
        let mut known = known_before(&self.mesh.kernel.tables().local.content(), &ours);
        if known.is_empty() {
            return None;
        }
        let is_known = |netns| known.contains_key(&netns);
        let (netns, found) = self.finder.see_one_of(&self.mesh.factory, uid, is_known).await?;
        let addresses = known.remove(&netns)?;
        addresses.iter().all(|address| found.contains(address)).then_some(addresses)
    }
}

/// The addresses in the kernel's table by namespace, without our own namespaces' and those of pods
/// that have left the mesh.
fn known_before(
    local: &HashMap<Addr, LocalEntry>,
    ours: &BTreeSet<u64>,
) -> BTreeMap<u64, Vec<IpAddr>> {
    let mut known: BTreeMap<u64, Vec<IpAddr>> = BTreeMap::new();
    for (address, pod) in local {
        if pod.flags & LOCAL_LEFT == 0 && !ours.contains(&pod.netns) {
            known.entry(pod.netns).or_default().push((*address).into());
        }
    }
    for addresses in known.values_mut() {
        addresses.sort();
    }
    known
}

/// The pod's addresses among those of its namespace: one for each range, in the ranges' order.
fn of_pod(found: &BTreeSet<IpAddr>, ranges: &[Cidr]) -> Option<Vec<IpAddr>> {
    let only = |range: &Cidr| {
        let mut inside = found.iter().filter(|address| range.contains(**address));
        inside.next().copied().filter(|_| inside.next().is_none())
    };
    let addresses: Vec<IpAddr> = ranges.iter().map(only).collect::<Option<_>>()?;
    (!addresses.is_empty()).then_some(addresses)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;
    use mesh_common::maps::LOCAL_STRICT;
    use serde_json::json;

    use super::{super::tables, *};

    fn node() -> NodeName {
        NodeName::parse("node1").unwrap()
    }

    fn uid(name: &str) -> PodUid {
        PodUid::parse(name).unwrap()
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pod(name: &str, phase: &str, reported: &[&str]) -> PodObject {
        let ips: Vec<_> = reported.iter().map(|ip| json!({"ip": ip})).collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": name, "uid": name},
            "spec": {"nodeName": "node1", "containers": []},
            "status": {"phase": phase, "podIPs": ips},
        }))
        .unwrap();
        PodObject::try_from(&pod).unwrap()
    }

    fn objects(pods: impl IntoIterator<Item = PodObject>) -> Arc<Objects> {
        let mut objects = Objects::default();
        pods.into_iter().for_each(|pod| objects.insert_pod(pod));
        Arc::new(objects)
    }

    fn seen(sightings: &mut Sightings, objects: &Arc<Objects>, pod: &str) -> Vec<IpAddr> {
        let with = sightings.in_objects(objects, &node());
        with.pod(&uid(pod)).unwrap().ips.clone()
    }

    #[test]
    fn one_address_of_each_of_the_nodes_ranges_is_the_pods_and_anything_else_is_not_known() {
        let of = |found: &[&str], ranges: &[&str]| {
            let found = found.iter().copied().map(address).collect();
            let ranges: Vec<_> = ranges.iter().map(|text| Cidr::parse(text).unwrap()).collect();
            of_pod(&found, &ranges)
        };
        let (v4, v6) = ("10.244.1.0/24", "fd00:1::/64");
        let ordinary = ["127.0.0.1", "10.244.1.9", "::1", "fe80::1", "fd00:1::9"];
        assert_eq!(
            of(&ordinary, &[v4, v6]),
            Some(vec![address("10.244.1.9"), address("fd00:1::9")])
        );
        assert_eq!(of(&ordinary, &[v4]), Some(vec![address("10.244.1.9")]));
        assert_eq!(of(&ordinary, &[]), None, "nothing says where pods' addresses are from");
        assert_eq!(of(&ordinary, &["10.244.2.0/24"]), None);
        assert_eq!(of(&["127.0.0.1", "10.244.1.9"], &[v4, v6]), None, "not all are there yet");
        assert_eq!(of(&["10.244.1.9", "10.244.1.10"], &[v4]), None, "two, and no telling which");
    }

    #[test]
    fn what_an_earlier_agent_knew_of_namespaces_is_known_but_of_pods_that_have_left_or_are_ours() {
        let entry = |text: &str, netns, flags| (address(text).into(), tables::local(netns, flags));
        let local = HashMap::from([
            entry("fd00:1::9", 7, LOCAL_STRICT),
            entry("10.244.1.9", 7, LOCAL_STRICT),
            entry("10.244.1.8", 8, LOCAL_LEFT),
            entry("10.244.1.7", 9, 0),
            entry("10.244.1.6", 10, 0),
        ]);
        let known = known_before(&local, &[9].into());
        let both = vec![address("10.244.1.9"), address("fd00:1::9")];
        assert_eq!(known, [(7, both), (10, vec![address("10.244.1.6")])].into());
    }

    #[test]
    fn a_pod_is_looked_at_for_a_while_after_a_container_has_come_and_no_longer() {
        let (mut pod, now) = (Starting::default(), Instant::now());
        assert!(!pod.is_worth_a_look(0, now), "it has no process");
        assert!(pod.is_worth_a_look(1, now) && pod.is_worth_a_look(1, now + STARTS_WITHIN));
        let later = now + STARTS_WITHIN * 2;
        assert!(!pod.is_worth_a_look(1, later) && pod.is_worth_a_look(2, later));
    }

    #[test]
    fn a_sighting_is_void_once_addresses_are_reported_and_when_anybody_else_has_them() {
        let mut sightings = Sightings::default();
        let starting = objects([pod("a", "Pending", &[])]);
        assert!(Arc::ptr_eq(&sightings.in_objects(&starting, &node()), &starting));
        sightings.found(&uid("a"), vec![address("10.244.1.9")]);
        assert_eq!(seen(&mut sightings, &starting, "a"), [address("10.244.1.9")]);
        let once = sightings.in_objects(&starting, &node());
        assert!(Arc::ptr_eq(&sightings.in_objects(&starting, &node()), &once), "a new copy");

        let reported = objects([pod("a", "Running", &["10.244.1.7"])]);
        assert_eq!(seen(&mut sightings, &reported, "a"), [address("10.244.1.7")]);
        assert!(sightings.found.is_empty());

        sightings.found(&uid("a"), vec![address("10.244.1.9")]);
        let over = pod("over", "Succeeded", &["10.244.1.9"]);
        let with_over = objects([pod("a", "Pending", &[]), over]);
        assert_eq!(seen(&mut sightings, &with_over, "a"), [address("10.244.1.9")]);
        let with_another =
            objects([pod("a", "Pending", &[]), pod("b", "Running", &["10.244.1.9"])]);
        assert!(seen(&mut sightings, &with_another, "a").is_empty());
        assert!(seen(&mut sightings, &starting, "a").is_empty(), "what was void is true again");

        let both = objects([pod("a", "Pending", &[]), pod("b", "Pending", &[])]);
        for name in ["a", "b"] {
            sightings.found(&uid(name), vec![address("10.244.1.9")]);
        }
        assert!(seen(&mut sightings, &both, "a").is_empty());
        assert!(seen(&mut sightings, &both, "b").is_empty(), "of two, neither has it");
    }
}
