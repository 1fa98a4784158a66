//! `mesh-agent cleanup`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Asked, Output, PIN_DIR, print_line};
use crate::daemon;

/// Take away all that a stopped agent left.
#[derive(Debug, Args)]
pub(super) struct Cleanup {
    #[command(flatten)]
    asked: Asked,
    /// Where programs and maps are pinned; without it, the agent's own note in the runtime
    /// directory says, or else /sys/fs/bpf/nodemesh
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// How to print
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: Output,
}

impl Cleanup {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let done = runtime.block_on(daemon::cleanup(
            &self.asked.runtime_dir,
            self.pin_dir.as_deref(),
            Path::new(PIN_DIR),
        ))?;
        if self.output == Output::Json {
            return print_line(&serde_json::to_string(&done)?);
        }
        let announcement = if done.announcement { ", took the announcement back" } else { "" };
        print_line(&format!(
            "Detached {} programs, freed {} maps, put back the settings of {} network namespaces{announcement}.",
            done.links, done.maps, done.namespaces
        ))
    }
}
