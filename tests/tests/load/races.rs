//! The three races: no TLS byte reaches an application, no application hangs, and no strict pod is
//! heard or spoken to in plaintext. This holds however late the nodes hear of each other, and
//! whichever agent dies meanwhile.
//!
//! `NODEMESH_SEED=N cargo test --test load races` plays one schedule again;
//! `NODEMESH_RACES=5000` is for a night.

use std::{
    io::{self, Write as _},
    ops::Range,
    process::Command,
    time::Duration,
};

use anyhow::{Result, ensure};
use tests::{
    is_long,
    races::{Plan, run},
};

/// All schedules: what `cargo xtask test --long` plays.
const SEEDS: Range<u64> = 0..200;

/// Without `--long`, so many of them are played in a row; the commit says from which on.
const OF_ONE_COMMIT: u64 = 60;

fn seeds() -> Range<u64> {
    if is_long() {
        return SEEDS;
    }
    let mut git = Command::new("git");
    let head = git.args(["-C", env!("CARGO_MANIFEST_DIR"), "rev-parse", "HEAD"]).output();
    let commit = head.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let number = |commit: String| u64::from_str_radix(commit.get(..8)?, 16).ok();
    // Without git, or outside a clone, the first ones are as good as others.
    let first = commit.ok().and_then(number).unwrap_or(0) % (SEEDS.end - OF_ONE_COMMIT + 1);
    first..first + OF_ONE_COMMIT
}

#[test]
fn the_three_races_are_lost_by_nobody() -> Result<()> {
    let plan = Plan { seeds: seeds(), lanes: 5, pause: Duration::from_millis(120) };
    let plan = plan.or_from_env()?;
    let played = run(&plan)?;
    writeln!(io::stdout(), "races: {played}")?;
    ensure!(played.schedules == plan.seeds.end - plan.seeds.start, "{played}");
    ensure!(played.records > 0, "no link was listened to: {played}");
    ensure!(played.ok > played.connections / 3, "hardly any dial was answered: {played}");
    Ok(())
}
