//! The command line: what to measure, and for how long.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};

use crate::{
    figure::{Figure, Unit},
    pins::Pins,
    server::Listen,
    slice::{Load, Order},
};

pub(crate) const USAGE: &str = "\
bench [--quick] [--rounds N] [--figure NAME]... [--no-pins] [-o table|json] [--json FILE]
    measures; NAME is connect, first, round-trip, stream, streams, small-writes, keep-alive, requests, untouched,
    or connect, round-trip or stream on one node: local-connect, tls-connect and so on;
    --quick: connect, round-trip, stream and untouched, in about a minute
    --json FILE: the same as JSON into a file, too
bench --load NAME [--seconds N] [--no-pins]
    puts this load on the mesh alone and prints the process ids of the agents, for perf and strace
Each node has half of the CPUs, as if it were a machine of its own. With --no-pins, the nodes share all CPUs.";

/// Connections per slice. Each leaves its client's port in `TIME_WAIT` for a minute. Connecting
/// gets slow once half of a pod's 28,232 ports are in that state, so `rounds * CONNECTIONS` stays
/// below that.
const CONNECTIONS: u64 = 200;

/// The same of each of many clients. Their server closes; so a client's port is soon free again.
const CONNECTIONS_OF_MANY: u64 = 100;

/// Ports that a slice dials for the first time.
const NEW_PORTS: u64 = 16;

/// The limit for loads that keep their connections. No slice comes close to it.
const NO_LIMIT: u64 = 50_000_000;

/// What the command line asks for.
#[derive(Debug)]
pub(crate) enum Command {
    Measure(Measure),
    Hold { figure: Figure, time: Duration, pins: Pins },
    Help,
    Server { listen: Vec<Listen> },
    Client,
}

/// What to measure, and how to print the results.
#[derive(Debug)]
pub(crate) struct Measure {
    pub(crate) figures: Vec<Figure>,
    pub(crate) settings: Settings,
    pub(crate) format: Format,
    /// Where to write the JSON, too.
    pub(crate) file: Option<PathBuf>,
    pub(crate) pins: Pins,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Format {
    Table,
    Json,
}

/// How much to measure.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Settings {
    quick: bool,
    rounds: Option<usize>,
}

impl Settings {
    /// How many quiet rounds a figure needs. A round is a slice without the mesh and one with it.
    pub(crate) fn rounds(self, figure: Figure) -> usize {
        self.rounds.unwrap_or(match (self.quick, figure) {
            (true, _) => 15,
            (false, figure) if figure.unit() == Unit::BytesPerS => 21,
            (false, _) => 41,
        })
    }

    /// Whether the agents' memory is measured at the end.
    pub(crate) fn memory(self) -> bool {
        !self.quick
    }

    /// What a client does in one slice of a figure.
    pub(crate) fn order(self, figure: Figure) -> Order {
        let time_ms = match (figure.unit(), self.quick) {
            (Unit::BytesPerS, true) => 500,
            (Unit::BytesPerS, false) => 1500,
            (Unit::Us | Unit::PerS, true) => 200,
            (Unit::Us | Unit::PerS, false) => 400,
        };
        let count = match figure.load() {
            Load::Connect | Load::Hold => CONNECTIONS,
            Load::First => NEW_PORTS,
            Load::Request => CONNECTIONS_OF_MANY,
            Load::RoundTrip | Load::Stream | Load::SmallWrites => NO_LIMIT,
        };
        let time = Duration::from_millis(time_ms);
        Order::new(figure.load(), figure.workers(), count, time)
    }
}

/// Reads the command line.
pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Command> {
    let (mut figures, mut settings, mut format) = (Vec::new(), Settings::default(), Format::Table);
    let (mut load, mut time, mut pins) = (None, Duration::from_secs(30), Pins::halves()?);
    let mut file = None;
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} needs a value\n{USAGE}"));
        match arg.as_str() {
            "load-server" => {
                let listen = args.map(|word| word.parse().with_context(|| format!("port {word}")));
                return Ok(Command::Server { listen: listen.collect::<Result<_>>()? });
            }
            "load-client" => return Ok(Command::Client),
            "--help" | "-h" => return Ok(Command::Help),
            "--no-pins" => pins = Pins::none(),
            "--quick" => settings.quick = true,
            "--rounds" => settings.rounds = Some(number(&value()?)? as usize),
            "--figure" => figures.push(Figure::parse(&value()?)?),
            "--load" => load = Some(Figure::parse(&value()?)?),
            "--seconds" => time = Duration::from_secs(number(&value()?)?.into()),
            "--json" => file = Some(value()?.into()),
            "-o" => {
                format = match value()?.as_str() {
                    "table" => Format::Table,
                    "json" => Format::Json,
                    other => bail!("-o {other}? there are table and json"),
                };
            }
            other => bail!("{other}?\n{USAGE}"),
        }
    }
    if let Some(figure) = load {
        ensure!(
            figure.load() != Load::First,
            "there are ports for a second of {} only",
            figure.name()
        );
        return Ok(Command::Hold { figure, time, pins });
    }
    if figures.is_empty() {
        let is_quick = |figure: &Figure| Figure::QUICK.contains(figure);
        figures = Figure::ALL.into_iter().filter(|it| !settings.quick || is_quick(it)).collect();
    }
    Ok(Command::Measure(Measure { figures, settings, format, file, pins }))
}

fn number(text: &str) -> Result<u32> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => bail!("{text} is no number of at least 1"),
    }
}
