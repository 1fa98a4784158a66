//! `mesh-agent ca`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use mesh_wire::identity::{TrustDomain, file_ca};
use tokio::signal::unix::{SignalKind, signal};

use super::{log, print_line};
use crate::{ca_secret::SecretKeeper, manifest::AGENT, source::api_server};

/// The certificate authority of file mode.
#[derive(Debug, Subcommand)]
pub(super) enum Ca {
    /// Make a trust anchor: ca.crt, ca.key and anchors.pem in a directory
    Init(Init),
    /// Keep a CA in a Secret of the cluster
    Keep(Keep),
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
    #[arg(long, default_value = "cluster.local", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// Replace what is there; every certificate signed before stops being accepted
    #[arg(long)]
    force: bool,
}

/// Keep a CA in a Secret of this pod's namespace; runs once in a cluster, until it is told to stop.
/// It is made if it is not there and no agent uses the one that was
#[derive(Debug, Args)]
pub(super) struct Keep {
    /// The Secret, which holds the files of a CA directory
    #[arg(long, value_name = "NAME", value_parser = super::object_name)]
    secret: String,
    /// The `app.kubernetes.io/name` of the agents, which are pods of the same namespace
    #[arg(long, default_value = AGENT, value_name = "NAME")]
    agents: String,
    /// The trust domain of all identities
    #[arg(long, default_value = "cluster.local", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: TrustDomain,
    #[command(flatten)]
    log: log::Log,
}

impl Ca {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => init.execute(),
            Self::Keep(keep) => keep.execute(),
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

impl Init {
    fn execute(self) -> anyhow::Result<()> {
        let info = file_ca::init(&self.ca_dir, &self.trust_domain, self.force)?;
        let (domain, dir) = (&self.trust_domain, self.ca_dir.display());
        print_line(&format!("Made the trust anchor of {domain} in {dir}."))?;
        print_line(&format!(
            "Keep {} to yourself: whoever has it can be anybody in the mesh.",
            info.key.display()
        ))
    }
}

impl Keep {
    fn execute(self) -> anyhow::Result<()> {
        self.log.init(log::Format::Text)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let client = api_server().await?;
            let keeper = SecretKeeper::new(client, &self.secret, &self.agents, self.trust_domain);
            tokio::select! {
                () = keeper.keep() => {}
                _ = terminate.recv() => {}
            }
            Ok(())
        })
    }
}
