//! How enrolment stands, for people.

use mesh_api::{Mode, PlaintextFacts, PodCode, PodState, PodStatus};
use mesh_world::{LocalPod, Snapshot};

use super::{Enroller, pods::Phase};

impl Enroller {
    pub(super) fn statuses(&self, world: &Snapshot) -> Vec<PodStatus> {
        world.local_pods().iter().map(|local| self.status(local)).collect()
    }

    fn status(&self, local: &LocalPod) -> PodStatus {
        let workload = &local.workload;
        let enrolled = self.pods.one(&workload.uid, Phase::enrolled);
        let known = self.pods.one(&workload.uid, Phase::serving);
        let held = self.why_held(local);
        let state = match (enrolled, known, &held) {
            (Some(_), ..) => PodState::Enrolled,
            (None, Some(_), _) => PodState::Leaving,
            (None, None, Some(_)) => PodState::Held,
            (None, None, None) => PodState::NotEnrolled,
        };
        let failed =
            self.pods.one(&workload.uid, Phase::failure).map(|(failure, _)| failure.clone());
        let (code, reason) = match (enrolled, known, held.or(failed)) {
            (Some(_), ..) => (String::new(), String::new()),
            (None, Some(_), _) => {
                let code = PodCode::Leaving;
                (code.code().to_owned(), code.sentence().to_owned())
            }
            (None, None, Some(failure)) => (failure.code.code().to_owned(), failure.sentence),
            (None, None, None) => {
                (workload.membership.code().code().to_owned(), workload.membership.reason())
            }
        };
        PodStatus {
            namespace: workload.namespace.to_string(),
            name: workload.name.to_string(),
            uid: workload.uid.to_string(),
            addresses: workload.addresses.clone(),
            state,
            since: enrolled.and_then(|enrolled| enrolled.since),
            mode: match state {
                PodState::Held => Some(Mode::Strict),
                _ => enrolled.map(|enrolled| enrolled.settings.mode),
            },
            exclude_ports: enrolled
                .map(|enrolled| enrolled.settings.exclude_ports.clone())
                .unwrap_or_default(),
            permissive_ports: enrolled
                .filter(|enrolled| enrolled.settings.mode == Mode::Strict)
                .map(|enrolled| enrolled.settings.permissive_ports.clone())
                .unwrap_or_default(),
            identity: enrolled.map(|enrolled| enrolled.pod.identity.to_string()),
            code,
            reason,
            netns: known.map(|enrolled| enrolled.pod.netns.cookie()),
            connections: known.map_or(0, |enrolled| enrolled.pod.open_connections()),
            plaintext: PlaintextFacts::default(), // filled in when a client asks
        }
    }
}
