//! Agents that are killed again and again while they are in use. The time until they carry
//! connections again is judged, so nothing else runs beside this.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tests::{
    MESH_PORT, PORT, Pair,
    agent::{Agent, SOON},
    eventually,
    kernel::{self, Held, Inventory},
    probe::{self, DialSpec, Talk},
    scenario,
};

/// Within this time of its start, an agent carries new connections, in the median.
const READY: Duration = Duration::from_secs(1);

/// How often each of the two agents is killed.
const KILLS: usize = 10;

/// How much an agent may grow while it gets warm: records of connections (3 MiB), the allocator's
/// reserves.
const WARMTH_KIB: u64 = 16 * 1024;

/// Kills an agent and starts it again; returns how long it took from its start to the first new
/// connection.
fn kill_and_time(pair: &Pair<'_>, agent: &Agent) -> Result<Duration> {
    agent.kill9()?;
    agent.launch()?;
    let start = Instant::now();
    eventually(SOON, || pair.is_answered(&pair.client)).with_context(|| agent.log())?;
    Ok(start.elapsed())
}

/// What kernel and agents hold while no connection is open or being made: `LEGS` and `PENDING` are
/// empty then.
#[derive(Debug)]
struct AtRest {
    kernel: [Inventory; 2],
    agents: [Held; 2],
}

impl AtRest {
    fn of(pair: &Pair<'_>) -> Result<Self> {
        let [first, second] = &pair.nodes;
        let [one, other] = &pair.agents;
        Ok(Self {
            kernel: [Inventory::of(first)?, Inventory::of(second)?],
            agents: [kernel::held(one)?, kernel::held(other)?],
        })
    }

    /// Waits until no more is held than `before`; memory may have been warmed up.
    fn wait_back(before: &Self, pair: &Pair<'_>) -> Result<()> {
        eventually(SOON, || {
            let now = Self::of(pair)?;
            ensure!(now.kernel == before.kernel, "{before:#?} became {now:#?}");
            for (before, now) in before.agents.iter().zip(now.agents) {
                let more = now.descriptors > before.descriptors
                    || now.resident_kib > before.resident_kib + WARMTH_KIB;
                ensure!(!more, "{before:?} became {now:?}");
            }
            Ok(())
        })
    }
}

#[test]
fn killed_twenty_times_under_load() {
    scenario("kills", |net| {
        let (pair, stranger) = Pair::strict(net, &[])?;
        let service = pair.serve(Talk::Lines)?;
        pair.is_answered(&pair.client)?;
        let before = AtRest::of(&pair)?;
        let probers = [pair.prober(&stranger, 0)?, pair.prober(&stranger, MESH_PORT)?];
        let to = pair.server.at(PORT);
        let spec =
            DialSpec { workers: 2, pause_ms: 5, timeout_s: 1, ..DialSpec::new(to, Talk::Lines) };
        let load = probe::load(&pair.client, &spec)?;
        let mut took = Vec::new();
        // One agent after the other, so that each also outlives its peer's deaths.
        for killed in [1, 0] {
            for _ in 0..KILLS {
                load.wait_more(20)?;
                took.push(kill_and_time(&pair, &pair.agents[killed])?);
                for pod in [&pair.server, &pair.client] {
                    ensure!(kernel::lookups_in(pod)? == 1, "not one sk_lookup in {}", pod.name);
                }
            }
        }
        load.finish()?;
        for prober in probers {
            let probed = prober.finish()?;
            ensure!(probed.ok == 0 && probed.failed > 1000, "the strict pod was open: {probed:?}");
            println!("{} probes of the strict pod, none answered", probed.failed);
        }
        println!("first new connection after a start: {took:.3?}");
        took.sort();
        let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
        ensure!(median <= READY && slowest <= 5 * READY, "slower than {READY:?}: {took:?}");
        ensure!(service.garbage().is_empty(), "{:?}", service.garbage());
        AtRest::wait_back(&before, &pair)
    });
}
