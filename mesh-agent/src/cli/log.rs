//! The log of long-running commands, on standard error.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// The API server's client library returns its failures as errors, too, and those are logged as
/// sentences. Its own lines are for programmers.
const QUIET: &str = "kube_client=off,kube_runtime=off";

/// The words that are levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// What to log.
#[derive(Debug, Args)]
pub(super) struct Log {
    /// What to log: error, warn, info, debug, or directives such as `info,mesh_agent::proxy=debug`
    #[arg(long, env = "NODEMESH_LOG", default_value = "info", value_parser = directives, value_name = "FILTER")]
    log: String,
}

/// How to log.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(super) enum Format {
    /// Lines for people
    #[default]
    Text,
    /// One JSON object per line
    Json,
}

impl Log {
    /// Begins to log.
    pub(super) fn init(&self, format: Format) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(format!("{QUIET},{}", self.log))?;
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match format {
            Format::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
            Format::Json => log.json().init(),
        }
        Ok(())
    }
}

/// Accepts only directives that say what they mean: a misspelt level would be taken for the name of
/// a module, and silence all others.
fn directives(text: &str) -> Result<String, String> {
    let slip = text.split(',').find(|directive| {
        let level = directive.rsplit_once('=').map_or(*directive, |(_, level)| level);
        !LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
    });
    if let Some(slip) = slip {
        return Err(format!(
            "{slip:?} is no level, nor a module with one: write {}, or such as mesh_agent::proxy=debug",
            LEVELS.join(", ")
        ));
    }
    EnvFilter::try_new(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_level_is_not_taken_for_a_module() {
        for good in ["info", "DEBUG", "off", "info,mesh_agent::proxy=debug"] {
            assert!(directives(good).is_ok(), "{good}");
        }
        for bad in ["", "inf", "info,", "mesh_agent::proxy", "mesh_agent=", "info,proxy=loud"] {
            assert!(directives(bad).is_err(), "{bad:?}");
        }
    }
}
