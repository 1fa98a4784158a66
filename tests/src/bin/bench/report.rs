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
    /// Over the rounds.
    no_mesh: Spread,
    /// Over the rounds. For `untouched`: with our programs attached.
    mesh: Spread,
    /// `mesh / no_mesh` of each round. Of times less is better, of bytes per second more.
    ratio: Spread,
    /// 99 of 100 operations took no longer, in µs; absent for the stream.
    p99_us: Option<[f64; 2]>,
    /// What both agents together used, in µs per operation of the mesh; of the stream per MiB.
    agents_cpu_us: f64,
    /// Operations over all rounds, without and with the mesh.
    operations: [u64; 2],
    /// What each round measured, without and with the mesh.
    rounds: Vec<[f64; 2]>,
}

impl Measured {
    pub(crate) fn new(figure: Figure, rounds: &[Round]) -> Self {
        let values: Vec<[f64; 2]> = rounds
            .iter()
            .map(|round| [&round.yardstick, &round.measured].map(|slice| value(figure, slice)))
            .collect();
        let spread = |pick: fn(&[f64; 2]) -> f64| Spread::of(values.iter().map(pick));
        let (mut times, mut operations) = ([Histogram::default(), Histogram::default()], [0, 0]);
        let (mut cpu_us, mut bytes) = (0, 0);
        for round in rounds {
            for (arm, slice) in [&round.yardstick, &round.measured].into_iter().enumerate() {
                times[arm].merge(&slice.times);
                operations[arm] += slice.count;
            }
            cpu_us += round.agents_cpu_us;
            bytes += round.measured.bytes;
        }
        let p99 = times.each_ref().map(|times| times.quantile_ns(0.99).map(|ns| ns / 1e3));
        let of = match figure {
            Figure::Stream => real(bytes) / f64::from(1 << 20),
            _ => real(operations[1]),
        };
        Self {
            figure,
            unit: if figure == Figure::Stream { "bytes_per_s" } else { "us" },
            no_mesh: spread(|[no_mesh, _]| *no_mesh),
            mesh: spread(|[_, mesh]| *mesh),
            ratio: spread(|[no_mesh, mesh]| mesh / no_mesh),
            p99_us: p99[0].zip(p99[1]).map(<[f64; 2]>::from),
            agents_cpu_us: real(cpu_us) / of,
            operations,
            rounds: values,
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
            let Measured { ratio, p99_us, agents_cpu_us, .. } = figure;
            let half = format!("{:.2} .. {:.2}", ratio.lower_quartile, ratio.upper_quartile);
            let p99 = p99_us.map(|[no_mesh, mesh]| format!("{no_mesh:.0} -> {mesh:.0} µs"));
            let per = if figure.figure == Figure::Stream { "/MiB" } else { "" };
            writeln!(
                f,
                "{:<32}{:>12}{:>12}{:>9.2}  {half:<16}{:>21}{:>16}",
                figure.figure.title(),
                figure.show(figure.no_mesh.median),
                figure.show(figure.mesh.median),
                ratio.median,
                p99.unwrap_or_default(),
                format!("{agents_cpu_us:.1} µs{per}"),
            )?;
        }
        let rounds = figures.iter().map(|figure| figure.rounds.len()).max().unwrap_or(0);
        writeln!(
            f,
            "Medians of up to {rounds} rounds in {seconds:.0} s, no mesh and mesh by turns. Ratio: mesh / no mesh; of times less is better, of the stream more."
        )
    }
}
