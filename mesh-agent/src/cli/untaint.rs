//! `mesh-agent untaint`.

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::log;
use crate::{manifest::AGENT, source::api_server, start_taint};

/// Take the taint nodemesh.dev/not-ready off nodes whose agent is ready; runs once in a cluster,
/// until it is told to stop
#[derive(Debug, Args)]
pub(super) struct Untaint {
    /// The `app.kubernetes.io/name` of the agents, which are pods of this one's namespace
    #[arg(long, default_value = AGENT, value_name = "NAME")]
    agents: String,
    #[command(flatten)]
    log: log::Log,
}

impl Untaint {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        self.log.init(log::Format::Text)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut terminate = signal(SignalKind::terminate())?;
            let client = api_server().await?;
            tokio::select! {
                () = start_taint::keep_untainting(client, &self.agents) => {}
                _ = terminate.recv() => {}
            }
            Ok(())
        })
    }
}
