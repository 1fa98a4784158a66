//! The figures, as a table for people and as JSON.

use std::fmt::{self, Display};

use serde::Serialize;

use crate::{
    figure::Figure,
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
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct Measured {
    figure: Figure,
    /// Of `no_mesh`, `mesh` and the rounds: `us` per operation, or `bytes_per_s`.
    unit: &'static str,
    /// Over the rounds that count. For `untouched`: without our programs.
    no_mesh: Spread,
    /// Over the rounds that count. For `untouched`: with our programs attached.
    mesh: Spread,
    /// `mesh / no_mesh` of each round that counts. For times less is better, for bytes per second
    /// more.
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
        let operations = match figure {
            Figure::Stream => sum(|round| round.measured.bytes) / f64::from(1 << 20),
            _ => sum(|round| round.measured.count),
        };
        Self {
            figure,
            unit: if figure == Figure::Stream { "bytes_per_s" } else { "us" },
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
        match self.figure {
            Figure::Stream => format!("{:.2} GB/s", value / 1e9),
            _ => format!("{value:.1} µs"),
        }
    }
}

/// What a slice has measured: the median time of an operation in µs, or bytes per second.
fn value(figure: Figure, slice: &Slice) -> f64 {
    match figure {
        Figure::Stream => real(slice.bytes) / (real(slice.elapsed_ns) / 1e9),
        _ => slice.times.quantile_ns(0.5).unwrap_or(f64::NAN) / 1e3,
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one run are far below 2^52")]
fn real(count: u64) -> f64 {
    count as f64
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { machine, seconds, figures } = self;
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
            let per = if figure.figure == Figure::Stream { "/MiB" } else { "" };
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
            "Medians over rounds of no mesh and mesh by turns, {seconds:.0} s in all. Ratio: mesh / no mesh; of times less is better, of the stream more."
        )?;
        if figures.iter().any(|figure| figure.disturbed) {
            writeln!(
                f,
                "?: other programs disturbed too many rounds; measure again when the machine is quiet."
            )?;
        }
        Ok(())
    }
}
