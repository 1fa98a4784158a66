//! `mesh-agent manifest`.

use clap::Args;

use super::print_line;
use crate::{
    identity::TrustDomain,
    manifest::{IMAGE, Manifest},
};

/// Print everything that a cluster needs, for `kubectl apply -f -`; with other values than those of daemonset.yaml
#[derive(Debug, Args)]
pub(super) struct Print {
    /// The agents' image
    #[arg(long, default_value = IMAGE, value_name = "NAME")]
    image: String,
    /// The trust domain of all identities; cannot be changed later
    #[arg(long, default_value = "cluster.local", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: TrustDomain,
}

impl Print {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let chosen =
            Manifest { image: self.image, trust_domain: self.trust_domain.as_str().to_owned() };
        print_line(chosen.yaml()?.trim_end())
    }
}
