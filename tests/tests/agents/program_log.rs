//! What the programs find wrong is in the agent's log.

use std::time::Instant;

use anyhow::{Context as _, ensure};
use tests::{
    PORT, Pair,
    agent::SOON,
    eventually, kernel,
    probe::{self, DialSpec, End, Talk},
    scenario,
};

/// Entries that `PENDING` has room for, and the bytes of its keys and values.
const PENDING: u64 = 65_536;
const KEY_BYTES: usize = 48;
const VALUE_BYTES: usize = 64;

#[test]
fn a_map_that_takes_no_entry_is_told_once_a_second() {
    scenario("program-log", |net| {
        let pair = Pair::meshed(net)?;
        let _service = pair.serve(Talk::Exchange)?;
        let [node, _] = &pair.nodes;
        let [agent, _] = &pair.agents;
        let spec = DialSpec { timeout_s: 5, ..DialSpec::say(pair.server.at(PORT), "hello") };
        let dial = || probe::dial(&pair.client, &spec);

        // They are in no pod's share, so that only the map says no.
        let key = |number: u64| {
            let mut key = number.to_ne_bytes().to_vec();
            key.resize(KEY_BYTES, 0);
            key
        };
        let full: Vec<_> = (1..=PENDING).map(|it| (key(it), Some(vec![0; VALUE_BYTES]))).collect();
        kernel::write(node, "PENDING", &full)?;
        let begun = Instant::now();
        for _ in 0..20 {
            let conn = dial()?;
            ensure!(matches!(conn.end, End::Refused | End::Reset), "{conn:?}");
        }
        let lines = || agent.log().matches("PENDING takes no entry").count();
        eventually(SOON, || {
            ensure!(lines() > 0, "not a line: {}", agent.log());
            Ok(())
        })?;
        let seconds = begun.elapsed().as_secs();
        ensure!(lines() as u64 <= seconds + 2, "{} lines in {seconds} s", lines());

        let empty: Vec<_> = full.into_iter().map(|(key, _)| (key, None)).collect();
        kernel::write(node, "PENDING", &empty)?;
        let conn = dial()?;
        ensure!((conn.end, &*conn.first) == (End::Fin, "hello"), "{conn:?}");
        agent.status().context("the agent has ended").map(drop)
    });
}
