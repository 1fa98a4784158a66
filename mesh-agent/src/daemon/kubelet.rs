//! Keeps the programs that know the kubelet's connections on the cgroup that it is in.

use std::{path::PathBuf, sync::Arc, time::Duration};

use mesh_api::{ProblemCode, ProblemFacts};
use tokio::time::Instant;

use crate::{
    kernel::{Kernel, KernelError},
    kubelet::Search,
    preflight::Host,
    sys::clock::boot_ns,
    tasks::off_the_workers,
};

/// How long the kubelet may be missing before that is a problem: it may be restarting.
const MISSING: Duration = Duration::from_secs(30);

/// How often the notes of what it dialled are searched for old ones.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// The node's kubelet, as far as the kernel's side knows it.
pub(super) struct KubeletFollower {
    kernel: Arc<Kernel>,
    search: Option<Search>,
    /// Where the programs are, and the id of that cgroup.
    attached: Option<(PathBuf, u64)>,
    last_seen: Instant,
    last_sweep: Instant,
    problem: Option<ProblemFacts>,
}

impl KubeletFollower {
    pub(super) fn new(kernel: &Arc<Kernel>, host: &Host) -> Self {
        Self {
            kernel: Arc::clone(kernel),
            search: Some(Search::new(&host.cgroup_mount, &host.pods_cgroup)),
            attached: None,
            last_seen: Instant::now(),
            last_sweep: Instant::now(),
            problem: None,
        }
    }

    /// Looks where the kubelet is, and puts the programs there if that is another place than
    /// before.
    ///
    /// # Cancel safety
    /// Not cancel safe: run it to its end.
    pub(super) async fn look(&mut self) {
        let now = Instant::now();
        if now - self.last_sweep > SWEEP_EVERY {
            self.last_sweep = now;
            let swept = self.kernel.tables().kubelet_dials.sweep(boot_ns().unwrap_or(0));
            if let Err(error) = swept {
                tracing::warn!(%error, "what the kubelet has dialled cannot be looked through");
            }
        }
        let Some(found) = off_the_workers(&mut self.search, Search::look).await.flatten() else {
            // While the kubelet restarts, its last cgroup stays its own.
            if now - self.last_seen > MISSING {
                self.problem = Some(ProblemFacts::new(
                    ProblemCode::KubeletNotFound,
                    "no process of this node is known as its kubelet: strict pods refuse its probes of types httpGet, tcpSocket and grpc unless it was known before; use exec probes, or name their ports in nodemesh.dev/permissive-ports",
                ));
            }
            return;
        };
        self.last_seen = now;
        let at = (found.cgroup, found.id);
        if self.attached.as_ref() == Some(&at) {
            self.problem = None;
            return;
        }
        match self.kernel.attach_kubelet(&at.0) {
            Ok(()) => {
                tracing::info!(pid = found.pid, cgroup = %at.0.display(), "strict pods take the connections of the kubelet");
                self.problem = None;
                self.attached = Some(at);
            }
            Err(error) => {
                let message = format!(
                    "strict pods refuse the probes of the kubelet (pid {}): {error}",
                    found.pid
                );
                self.problem = Some(ProblemFacts::new(ProblemCode::KubeletNotHooked, message));
                self.attached = None; // some of the programs may be there
            }
        }
    }

    /// Attaches the programs again: another agent has put its own in their place.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub(super) fn attach_again(&self) -> Result<(), KernelError> {
        self.attached.as_ref().map_or(Ok(()), |(cgroup, _)| self.kernel.attach_kubelet(cgroup))
    }

    /// Why probes may be refused.
    pub(super) fn problem(&self) -> Option<&ProblemFacts> {
        self.problem.as_ref()
    }
}
