//! `mesh-agent reset`.

use anyhow::bail;
use clap::Args;
use mesh_api::{Request, ResetConnection, ResetReport, Response};

use super::{Asked, Output, print_line, table};
use crate::admin::Answers;

/// End a pod's connections that predate its mesh membership or strict mode.
///
/// Labels and annotations apply to new connections only. Older ones stay in plaintext until they
/// end. This command resets them: client and server see a reset, and the mesh carries or refuses
/// what they dial next. Connections that the mesh carries, those on excluded ports and the
/// kubelet's are left alone. Ask the agent on the pod's own node.
///
/// Exit code 0: all were reset, there were none, or --dry-run listed them. 1: some could not be
/// reset, or the agent could not answer. 2: the arguments are wrong.
#[derive(Debug, Args)]
pub(super) struct Reset {
    #[command(flatten)]
    asked: Asked,
    /// The pod
    #[arg(value_name = "NAMESPACE/POD", value_parser = pod)]
    pod: String,
    /// Only list the connections
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
            bail!("{left} of {} could not be reset", connections(report.found));
        }
        Ok(())
    }
}

fn print(report: &ResetReport) -> anyhow::Result<()> {
    let ResetReport { pod, found, reset, .. } = report;
    if *found == 0 {
        return print_line(&format!(
            "{pod} has no connections that predate its mesh membership or strict mode."
        ));
    }
    let rows = report.connections.iter().map(|it| row(it, report.dry_run));
    print_line(&table::table(["CLIENT", "SERVER", "SEEN SINCE", "OUTCOME"], rows))?;
    let unlisted = found.saturating_sub(report.connections.len());
    if unlisted > 0 {
        print_line(&format!("and {unlisted} more"))?;
    }
    print_line(&if report.dry_run {
        let found = connections(*found);
        format!("\n{found} of {pod} would be reset. To do that, run this without --dry-run.")
    } else {
        format!("\nReset {} of {pod}.", connections(*reset))
    })
}

/// A number of connections, in words for people.
fn connections(count: usize) -> String {
    if count == 1 { "1 connection".to_owned() } else { format!("{count} connections") }
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
