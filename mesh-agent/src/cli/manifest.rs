//! `mesh-agent manifest`.

use clap::Args;
use mesh_wire::identity::TrustDomain;

use super::{Usage, print_line};
use crate::manifest::{IMAGE, Image, Manifest, PullPolicy};

/// Print everything that a cluster needs, for `kubectl apply -f -`; with other values than those of
/// daemonset.yaml
#[derive(Debug, Args)]
pub(super) struct Print {
    /// The agents' image
    #[arg(long, default_value = IMAGE, value_name = "NAME")]
    image: Image,
    /// Whether nodes may fetch the image. By default they may (`IfNotPresent`) if its name begins
    /// with a registry of yours (REGISTRY/…, with a dot or a port), and else it has to be loaded on
    /// each node (`Never`)
    #[arg(long, value_name = "POLICY", ignore_case = true)]
    pull_policy: Option<Pull>,
    /// The trust domain of all identities. The first apply settles it: agents that are given
    /// another one later do not start
    #[arg(long, default_value = "cluster.local", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: TrustDomain,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Pull {
    #[value(name = "Never")]
    Never,
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    #[value(name = "Always")]
    Always,
}

impl Print {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let pull_policy = match self.pull_policy {
            None => PullPolicy::of(&self.image),
            Some(Pull::Never) => PullPolicy::Never,
            Some(_) if self.image.is_ours() => {
                return Err(Usage(format!(
                    "no registry serves {}: nodes may not fetch it; load it on each node, or push it to a registry of yours and name that in --image",
                    self.image
                ))
                .into());
            }
            Some(Pull::IfNotPresent) => PullPolicy::IfNotPresent,
            Some(Pull::Always) => PullPolicy::Always,
        };
        let Self { image, trust_domain, .. } = self;
        print_line(Manifest { image, pull_policy, trust_domain }.yaml()?.trim_end())
    }
}
