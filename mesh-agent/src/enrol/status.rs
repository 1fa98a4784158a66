//! How enrolment stands, for people.

use super::{Enroller, PodState, PodStatus};
use crate::world::{LocalPod, Snapshot};

impl Enroller {
    pub(super) fn statuses(&self, world: &Snapshot) -> Vec<PodStatus> {
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
