//! `mesh-agent reset`.

use anyhow::bail;
use clap::Args;
use mesh_api::{Request, ResetConnection, ResetReport, Response};

use super::{Asked, Output, print_line, table};
use crate::admin::Answers;

/// End a pod's connections from before it was in the mesh, or strict. They go on in plaintext as
/// they are, since a label counts for new connections only; client and server read a reset, and
/// what they dial then goes through the mesh. Connections that the mesh carries, those on excluded
/// ports and the kubelet's are left alone. Ask the agent of the pod's own node. 0: none is left; 1:
/// some could not be ended.
#[derive(Debug, Args)]
pub(super) struct Reset {
    #[command(flatten)]
    asked: Asked,
    /// The pod
    #[arg(value_name = "NAMESPACE/POD", value_parser = pod)]
    pod: String,
    /// Only list them
    #[arg(long)]
    dry_run: bool,
    /// How to print
    #[arg(short, long, default_value = "table", value_name = "FORMAT")]
    output: Output,
}

fn pod(text: &str) -> Result<String, String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(text.to_owned())
        }
        _ => Err("write the namespace and the name, such as shop/cart-0".to_owned()),
    }
}

impl Reset {
    pub(super) fn execute(self) -> anyhow::Result<()> {
        let request = Request::Reset { pod: self.pod, dry_run: self.dry_run };
        let answer = Answers::to(&request, &self.asked.runtime_dir)?.receive()?;
        let Some(Response::Reset(report)) = answer else {
            bail!("the agent closed without an answer; it may be stopping")
        };
        match self.output {
            Output::Json => print_line(&serde_json::to_string(&report)?)?,
            Output::Table => print(&report)?,
        }
        let left = report.found - report.reset;
        if left > 0 && !report.dry_run {
            bail!("{left} of {} connections could not be reset", report.found);
        }
        Ok(())
    }
}

fn print(report: &ResetReport) -> anyhow::Result<()> {
    let ResetReport { pod, found, reset, .. } = report;
    if *found == 0 {
        return print_line(&format!("{pod} has no connection from before it was in the mesh."));
    }
    let rows = report.connections.iter().map(|it| row(it, report.dry_run));
    print_line(&table::table(["CLIENT", "SERVER", "SEEN SINCE", "OUTCOME"], rows))?;
    let unlisted = found.saturating_sub(report.connections.len());
    if unlisted > 0 {
        print_line(&format!("and {unlisted} more"))?;
    }
    print_line(&if report.dry_run {
        format!("\n{found} connections of {pod} would be reset; say it without --dry-run.")
    } else {
        format!("\n{reset} connections of {pod} are reset.")
    })
}

fn row(it: &ResetConnection, dry_run: bool) -> [String; 4] {
    let outcome = match &it.error {
        Some(error) => format!("✗ {error}"),
        None if dry_run => "would be reset".to_owned(),
        None => "✓ reset".to_owned(),
    };
    let connection = &it.connection;
    let seen = table::age(connection.seen);
    [connection.client.to_string(), connection.server.to_string(), seen, outcome]
}
