//! Several lanes at once, each with a stage of its own, until every seed has been played.

use std::{
    env,
    fmt::{self, Display},
    fs,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use super::{
    schedule::Schedule,
    stage::{Outcome, Stage},
};
use crate::Net;

/// What is to be played.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Which schedules.
    pub seeds: Range<u64>,
    /// How many at once.
    pub lanes: usize,
    /// The mean pause of one client between two connections.
    pub pause: Duration,
}

impl Plan {
    /// `NODEMESH_SEED=N` plays one schedule, `NODEMESH_RACES=COUNT` so many; else as `self` says.
    /// `NODEMESH_RACE_LANES` and `NODEMESH_RACE_PAUSE_MS` set the rest.
    pub fn or_from_env(self) -> Result<Self> {
        let number = |name: &str| -> Result<Option<u64>> {
            let value = env::var(name).ok().map(|text| text.parse());
            value.transpose().with_context(|| format!("{name} must be a number"))
        };
        let seeds = match (number("NODEMESH_SEED")?, number("NODEMESH_RACES")?) {
            (Some(seed), _) => seed..seed + 1,
            (None, Some(count)) => self.seeds.start..self.seeds.start + count,
            (None, None) => self.seeds,
        };
        let lanes = match number("NODEMESH_RACE_LANES")? {
            Some(lanes) => usize::try_from(lanes)?,
            None => self.lanes,
        };
        let pause = number("NODEMESH_RACE_PAUSE_MS")?.map_or(self.pause, Duration::from_millis);
        let lanes = lanes.clamp(1, usize::try_from(seeds.end - seeds.start)?.max(1));
        Ok(Self { seeds, lanes, pause })
    }
}

/// All that was played.
#[derive(Debug, Default)]
pub struct Played {
    /// Schedules.
    pub schedules: u64,
    /// Connections of all of them.
    pub connections: u64,
    /// The fewest of one.
    pub fewest: u64,
    /// Those that were answered.
    pub ok: u64,
    /// Those that were answered after more than a second.
    pub late: u64,
    /// The longest time that any connection took.
    pub longest_ms: u64,
    /// TLS records of strict pods that were seen on links.
    pub records: u64,
    /// What agents and loads took of the processors.
    pub cpu: Duration,
    /// How long all of it took.
    pub took: Duration,
}

impl Display for Played {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { schedules, connections, fewest, ok, late, longest_ms, records, cpu, took } =
            self;
        write!(
            f,
            "{schedules} schedules in {} s, {} s of processors: {connections} connections (at least {fewest} each), {ok} answered, {late} of \
             them later than 1 s, the longest after {longest_ms} ms; {records} TLS records of strict pods seen",
            took.as_secs(),
            cpu.as_secs()
        )
    }
}

/// Plays all of it.
///
/// # Errors
/// What happened although it must not, with seed and timeline, of the first schedule of each lane
/// that failed.
pub fn run(plan: &Plan) -> Result<Played> {
    let (begun, next) = (Instant::now(), AtomicU64::new(plan.seeds.start));
    let (outcomes, failures) = (Mutex::new(Vec::new()), Mutex::new(Vec::new()));
    let cpu_us = AtomicU64::new(0);
    let failed = AtomicBool::new(false);
    thread::scope(|scope| {
        for lane in 0..plan.lanes {
            let (next, outcomes, failures) = (&next, &outcomes, &failures);
            let (failed, cpu_us) = (&failed, &cpu_us);
            scope.spawn(move || match play(plan, lane, next, outcomes, failed) {
                Ok(us) => {
                    cpu_us.fetch_add(us, Ordering::Relaxed);
                }
                Err(error) => {
                    failed.store(true, Ordering::Relaxed);
                    failures.lock().unwrap_or_else(PoisonError::into_inner).push(error);
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !failures.is_empty() {
        let all: Vec<String> = failures.iter().map(|error| format!("{error:#}")).collect();
        bail!("{} of {} lanes failed\n{}", all.len(), plan.lanes, all.join("\n\n"));
    }
    let outcomes = outcomes.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut played = Played { took: begun.elapsed(), fewest: u64::MAX, ..Played::default() };
    played.cpu = Duration::from_micros(cpu_us.into_inner());
    for Outcome { connections, ok, late, longest_ms, records } in outcomes {
        played.schedules += 1;
        played.connections += connections;
        played.fewest = played.fewest.min(connections);
        played.ok += ok;
        played.late += late;
        played.longest_ms = played.longest_ms.max(longest_ms);
        played.records += records;
    }
    Ok(played)
}

/// One lane; returns how many microseconds of the processors it took.
fn play(
    plan: &Plan,
    lane: usize,
    seeds: &AtomicU64,
    outcomes: &Mutex<Vec<Outcome>>,
    failed: &AtomicBool,
) -> Result<u64> {
    let net = Net::new(&format!("races-{lane}"))?;
    let outcome = (|| {
        let stage = Stage::set(&net, plan.pause)?;
        loop {
            let seed = seeds.fetch_add(1, Ordering::Relaxed);
            if seed >= plan.seeds.end || failed.load(Ordering::Relaxed) {
                return cpu_us(&net);
            }
            let outcome = stage.play(&Schedule::new(seed))?;
            outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
        }
    })();
    if outcome.is_err() {
        net.print_logs_of("mesh-agent"); // the loads have said what there is to say
    }
    outcome.and_then(|us| net.remove().map(|()| us))
}

/// How much of the processors everything that runs in a network has used.
fn cpu_us(net: &Net) -> Result<u64> {
    let stat = fs::read_to_string(net.tag().cgroup().join("cpu.stat"))?;
    let usage = stat.lines().find_map(|line| line.strip_prefix("usage_usec "));
    usage.context("no usage_usec in cpu.stat")?.parse().context("cpu.stat")
}
