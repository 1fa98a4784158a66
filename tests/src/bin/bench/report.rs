//! The figures, as a table for people and as JSON.

use std::{
    collections::BTreeMap,
    fmt::{self, Display},
};

use serde::Serialize;

use crate::{
    figure::{Figure, Unit},
    machine::Facts,
    slice::{Histogram, Slice},
    spread::Spread,
    stage::Round,
};

/// All that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Facts,
    /// How long it took, without set-up.
    pub(crate) seconds: f64,
    pub(crate) figures: Vec<Measured>,
    /// Absent from a quick run.
    pub(crate) memory: Option<Memory>,
}

/// Resident memory of the two agents, the client's and the server's, in KiB.
#[derive(Debug, Serialize)]
pub(crate) struct Memory {
    /// Before the first connection.
    pub(crate) idle: [u64; 2],
    /// After the figures.
    pub(crate) after: [u64; 2],
    /// With [`Self::HELD`] connections open that carry nothing.
    pub(crate) holding: [u64; 2],
    /// Once they have been closed for a while.
    pub(crate) released: [u64; 2],
}

impl Memory {
    /// Connections that are held open.
    pub(crate) const HELD: u32 = 2000;

    /// What one of them takes, in KiB.
    fn per_connection_kib(&self) -> [f64; 2] {
        let Self { after: [a, b], holding: [c, d], .. } = *self;
        [c.saturating_sub(a), d.saturating_sub(b)].map(|more| real(more) / f64::from(Self::HELD))
    }
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    figure: Figure,
    /// Of `no_mesh`, `mesh` and the rounds.
    unit: Unit,
    /// Over the rounds that count. For `untouched`: without our programs.
    no_mesh: Spread,
    /// Over the rounds that count. For `untouched`: with our programs attached.
    mesh: Spread,
    /// `mesh / no_mesh` of each round that counts. For times less is better, otherwise more.
    ratio: Spread,
    /// 99 of 100 operations took no longer, in µs, without and with the mesh; absent for the
    /// stream.
    p99_us: Option<[f64; 2]>,
    /// What both agents together used, in µs per operation of the mesh; for the stream, per MiB.
    agents_cpu_us: f64,
    /// There were too few quiet rounds, so that all count.
    disturbed: bool,
    rounds: Vec<RoundFacts>,
}

/// One round, whether it counts or not.
#[derive(Debug, Serialize)]
struct RoundFacts {
    no_mesh: f64,
    mesh: f64,
    /// Operations, without and with the mesh.
    operations: [u64; 2],
    used_by_others: f64,
}

/// A report, and its ratios by figure and setting.
#[derive(Debug, Serialize)]
pub(crate) struct WithRatios<'a> {
    ratios: BTreeMap<&'static str, BTreeMap<&'static str, Spread>>,
    #[serde(flatten)]
    report: &'a Report,
}

impl Report {
    pub(crate) fn with_ratios(&self) -> WithRatios<'_> {
        let mut ratios: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
        for Measured { figure, ratio, .. } in &self.figures {
            let (name, setting) = figure.place();
            ratios.entry(name).or_default().insert(setting, *ratio);
        }
        WithRatios { ratios, report: self }
    }
}

/// A round does not count if other programs used more than this share of all CPU time, provided
/// that enough other rounds count. A stream suffers most, and more without the mesh than with it:
/// 2.0 GB/s become 0.7, where the mesh still has 1.2 of its 1.3.
const QUIET: f64 = 0.15;

/// The rounds that no other program has disturbed.
pub(crate) fn quiet(rounds: &[Round]) -> impl Iterator<Item = &Round> {
    rounds.iter().filter(|round| round.used_by_others <= QUIET)
}

impl Measured {
    /// From all rounds, of which `wanted` ought to be quiet.
    pub(crate) fn new(figure: Figure, rounds: &[Round], wanted: usize) -> Self {
        let mut counting: Vec<&Round> = quiet(rounds).collect();
        let disturbed = counting.len() * 2 < wanted;
        if disturbed {
            counting = rounds.iter().collect();
        }
        let facts = |round: &Round| RoundFacts {
            no_mesh: value(figure, &round.yardstick),
            mesh: value(figure, &round.measured),
            operations: [round.yardstick.count, round.measured.count],
            used_by_others: round.used_by_others,
        };
        let values: Vec<RoundFacts> = counting.iter().copied().map(facts).collect();
        let spread = |pick: fn(&RoundFacts) -> f64| Spread::of(values.iter().map(pick));
        let p99 = |arm: fn(&Round) -> &Slice| {
            let mut times = Histogram::default();
            for round in &counting {
                times.merge(&arm(round).times);
            }
            times.quantile_ns(0.99).map(|ns| ns / 1e3)
        };
        let p99 = p99(|round| &round.yardstick).zip(p99(|round| &round.measured));
        let sum = |of: fn(&Round) -> u64| real(counting.iter().map(|round| of(round)).sum());
        let operations = match figure.unit() {
            Unit::BytesPerS => sum(|round| round.measured.bytes) / f64::from(1 << 20),
            Unit::Us | Unit::PerS => sum(|round| round.measured.count),
        };
        Self {
            figure,
            unit: figure.unit(),
            no_mesh: spread(|round| round.no_mesh),
            mesh: spread(|round| round.mesh),
            ratio: spread(|round| round.mesh / round.no_mesh),
            p99_us: p99.map(<[f64; 2]>::from),
            agents_cpu_us: sum(|round| round.agents_cpu_us) / operations,
            disturbed,
            rounds: rounds.iter().map(facts).collect(),
        }
    }

    /// A value in the unit that suits it.
    fn show(&self, value: f64) -> String {
        match self.unit {
            Unit::BytesPerS => format!("{:.2} GB/s", value / 1e9),
            Unit::PerS => format!("{:.1} k/s", value / 1e3),
            Unit::Us => format!("{value:.1} µs"),
        }
    }
}

/// What a slice has measured, in its figure's unit.
fn value(figure: Figure, slice: &Slice) -> f64 {
    let per_s = |count| real(count) / (real(slice.elapsed_ns) / 1e9);
    match figure.unit() {
        Unit::BytesPerS => per_s(slice.bytes),
        Unit::PerS => per_s(slice.count),
        Unit::Us => slice.times.quantile_ns(0.5).unwrap_or(f64::NAN) / 1e3,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
fn real(count: u64) -> f64 {
    count as f64
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, seconds, figures, memory } = self;
        writeln!(f, "{}", machine.line())?;
        writeln!(
            f,
            "{:<32}{:>12}{:>12}{:>9}  {:<16}{:>21}{:>16}",
            "", "no mesh", "mesh", "ratio", "half of rounds", "p99", "agents' CPU"
        )?;
        for figure in figures {
            let Measured { ratio, p99_us, agents_cpu_us, disturbed, .. } = figure;
            let half = format!("{:.2} .. {:.2}", ratio.lower_quartile, ratio.upper_quartile);
            let p99 = p99_us.map(|[no_mesh, mesh]| format!("{no_mesh:.0} -> {mesh:.0} µs"));
            let per = if figure.unit == Unit::BytesPerS { "/MiB" } else { "" };
            writeln!(
                f,
                "{:<32}{:>12}{:>12}{:>9.2}{} {half:<16}{:>21}{:>16}",
                figure.figure.title(),
                figure.show(figure.no_mesh.median),
                figure.show(figure.mesh.median),
                ratio.median,
                if *disturbed { '?' } else { ' ' },
                p99.unwrap_or_default(),
                format!("{agents_cpu_us:.1} µs{per}"),
            )?;
        }
        writeln!(
            f,
            "Medians over rounds of no mesh and mesh by turns, {seconds:.0} s in all. Ratio: mesh / no mesh; of times less is better, of the others more."
        )?;
        if let Some(memory) = memory {
            let mib = |[one, two]: [u64; 2]| {
                format!("{:.1} and {:.1} MiB", real(one) / 1024.0, real(two) / 1024.0)
            };
            let [one, two] = memory.per_connection_kib();
            writeln!(
                f,
                "Memory of the client's and the server's agent: idle {}; after all this {}; {} idle connections {one:.1} and {two:.1} KiB each; after they have closed {}",
                mib(memory.idle),
                mib(memory.after),
                Memory::HELD,
                mib(memory.released),
            )?;
        }
        if figures.iter().any(|figure| figure.disturbed) {
            writeln!(
                f,
                "?: other programs disturbed too many rounds; measure again when the machine is quiet."
            )?;
        }
        Ok(())
    }
}
