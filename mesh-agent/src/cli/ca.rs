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
    /// Trust another CA too: the first step of a change of CA, on every node
    AddAnchor(Anchor),
    /// Sign with another CA, which is trusted already: the second step, on every node
    Use(Use),
    /// Trust a CA no longer: the last step, once every node signs with the other
    RemoveAnchor(Anchor),
}

/// A directory and a CA's certificate.
#[derive(Debug, Args)]
pub(super) struct Anchor {
    /// The agent's CA directory; a running agent follows it within a second
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// The CA's certificate, PEM
    #[arg(value_name = "FILE")]
    certificate: PathBuf,
}

/// Sign with another CA.
#[derive(Debug, Args)]
pub(super) struct Use {
    /// The agent's CA directory; a running agent has all its certificates signed anew
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// The directory of the other CA, made by `ca init`
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
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
            Self::AddAnchor(Anchor { ca_dir, certificate }) => {
                let added = file_ca::add_anchor(&ca_dir, &certificate)?;
                print_line(&format!("Added {added} trust anchors to {}.", ca_dir.display()))
            }
            Self::Use(Use { ca_dir, from }) => {
                file_ca::use_ca(&ca_dir, &from)?;
                print_line(&format!(
                    "{} signs with the CA of {}.",
                    ca_dir.display(),
                    from.display()
                ))
            }
            Self::RemoveAnchor(Anchor { ca_dir, certificate }) => {
                file_ca::remove_anchor(&ca_dir, &certificate)?;
                print_line(&format!(
                    "{} does not trust {} any more.",
                    ca_dir.display(),
                    certificate.display()
                ))
            }
        }
    }
}

fn trust_domain(text: &str) -> Result<TrustDomain, String> {
    text.parse().map_err(|error: SpiffeIdError| error.to_string())
}
