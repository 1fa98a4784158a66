//! `mesh-agent ca`.

use std::path::PathBuf;

use anyhow::bail;
use clap::{Args, Subcommand};

use super::print_line;
use crate::{
    identity::{TrustDomain, file_ca},
    source::api_server,
};

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
    #[arg(long, value_name = "DIR", required_unless_present = "secret")]
    ca_dir: Option<PathBuf>,
    /// Instead of a directory, a Secret of the cluster that is to hold the files; one that is there is left as it is
    #[arg(long, value_name = "NAMESPACE/NAME", value_parser = secret, conflicts_with_all = ["ca_dir", "force"])]
    secret: Option<(String, String)>,
    /// The trust domain of all identities
    #[arg(long, default_value = "cluster.local", value_parser = super::trust_domain, value_name = "NAME")]
    trust_domain: TrustDomain,
    /// Replace what is there; every certificate signed before stops being accepted
    #[arg(long)]
    force: bool,
}

impl Ca {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Init(init) => init.execute(),
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
        if let Some((namespace, name)) = &self.secret {
            return self.in_secret(namespace, name);
        }
        let Some(ca_dir) = &self.ca_dir else { bail!("either --ca-dir or --secret is needed") };
        let info = file_ca::init(ca_dir, &self.trust_domain, self.force)?;
        let (domain, dir) = (&self.trust_domain, ca_dir.display());
        print_line(&format!("Made the trust anchor of {domain} in {dir}."))?;
        print_line(&format!(
            "Keep {} to yourself: whoever has it can be anybody in the mesh.",
            info.key.display()
        ))
    }

    fn in_secret(&self, namespace: &str, name: &str) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let made = runtime.block_on(async {
            let client = api_server().await?;
            anyhow::Ok(file_ca::init_secret(client, namespace, name, &self.trust_domain).await?)
        })?;
        if !made {
            return print_line(&format!(
                "Secret {namespace}/{name} is there already; left as it is."
            ));
        }
        print_line(&format!(
            "Made the trust anchor of {} in Secret {namespace}/{name}.",
            self.trust_domain
        ))?;
        print_line("Whoever reads it can be anybody in the mesh.")
    }
}

fn secret(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok((namespace.to_owned(), name.to_owned()))
        }
        _ => Err(format!("{text:?} is not NAMESPACE/NAME")),
    }
}
