//! `mesh-agent ca`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::print_line;
use crate::identity::{SpiffeIdError, TrustDomain, file_ca};

/// The certificate authority of file mode.
#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Make a trust anchor: ca.crt, ca.key and anchors.pem in a directory
    Init(Init),
}

/// Make a trust anchor.
#[derive(Debug, Args)]
pub(super) struct Init {
    /// The directory, made if it is not there
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// The trust domain of all identities
    #[arg(long, default_value = "cluster.local", value_parser = trust_domain, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// Replace what is there; every certificate signed before stops being accepted
    #[arg(long)]
    force: bool,
}

impl Ca {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => {
                let info = file_ca::init(&init.ca_dir, &init.trust_domain, init.force)?;
                print_line(&format!(
                    "Made the trust anchor of {} in {}.",
                    init.trust_domain,
                    init.ca_dir.display()
                ))?;
                print_line(&format!(
                    "Keep {} to yourself: whoever has it can be anybody in the mesh.",
                    info.key.display()
                ))
            }
        }
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|error: SpiffeIdError| error.to_string())
}
