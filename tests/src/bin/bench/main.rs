//! What the mesh costs, against no mesh: both measured by turns in one run.
//!
//! `bench [--quick]` prints them. `bench --load FIGURE` puts one kind of load on the mesh and names
//! the processes that carry it, for profilers. All options: `settings.rs`. The load comes from this
//! program, started inside the pods as `bench load-server` and `bench load-client`.
//!
//! "No mesh" is the same program between two pods of the same two nodes, in a cgroup without our
//! eBPF programs. A slice of it and a slice of the mesh make a round. Each round gives one ratio,
//! since the machine's speed drifts more between rounds than within one. The agents' own counters
//! check that each connection went where its figure says.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "its figures are its output")]

mod client;
mod driver;
mod figure;
mod hold;
mod machine;
mod pins;
mod report;
mod server;
mod settings;
mod signals;
mod slice;
mod spread;
mod stage;

use std::{
    env, fs, io,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use tests::Net;

use crate::{
    figure::Figure,
    machine::Usage,
    pins::Pins,
    report::Report,
    settings::{Command, Format, Measure, Settings},
    stage::Stage,
};

fn main() -> ExitCode {
    let outcome = settings::parse(env::args().skip(1)).and_then(|command| match command {
        Command::Server { listen } => server::run(&listen),
        Command::Client => client::run(io::stdin().lock()),
        Command::Help => {
            println!("{}", settings::USAGE);
            Ok(())
        }
        Command::Measure(what) => on_stage(&what.pins, |stage| measure(stage, &what)),
        Command::Hold { figure, time, pins } => {
            on_stage(&pins, |stage| hold::hold(stage, figure, time))
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("bench: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Sets everything up, plays, and removes everything, however it ends.
fn on_stage(pins: &Pins, play: impl FnOnce(&mut Stage<'_>) -> Result<()>) -> Result<()> {
    let net = Net::new("bench")?;
    signals::clean_up(net.tag())?;
    let played = Stage::set_up(&net, pins).and_then(|mut stage| play(&mut stage));
    if played.is_err() {
        signals::wait_if_interrupted();
        net.print_logs();
    }
    played.and(net.remove())
}

fn measure(stage: &mut Stage<'_>, what: &Measure) -> Result<()> {
    let Measure { figures, settings, format, file, pins: _ } = what;
    let begun = Instant::now();
    let before = Usage::now(stage.net())?;
    let idle = stage.memory_kib()?;
    let mut measured = Vec::new();
    for &figure in figures {
        measured.push(measure_one(stage, figure, settings)?);
    }
    let machine = machine::Facts::of_run(before.until(&Usage::now(stage.net())?));
    let memory = settings.memory().then(|| stage.memory(idle)).transpose()?;
    let seconds = begun.elapsed().as_secs_f64();
    let report = Report { machine, seconds, figures: measured, memory };
    let json = serde_json::to_string_pretty(&report.with_ratios())?;
    if let Some(file) = file {
        fs::write(file, format!("{json}\n")).with_context(|| file.display().to_string())?;
    }
    match format {
        Format::Table => print!("{report}"),
        Format::Json => println!("{json}"),
    }
    Ok(())
}

fn measure_one(
    stage: &mut Stage<'_>,
    figure: Figure,
    settings: &Settings,
) -> Result<report::Measured> {
    let order = settings.order(figure);
    let before = stage.counts()?;
    for arm in figure.arms() {
        // Caches, certificates, the agents' buffers.
        stage.slice(arm, order.with_time(Duration::from_millis(100)))?;
    }
    let (wanted, mut rounds) = (settings.rounds(figure), Vec::new());
    // Rounds that others have disturbed are replaced by others, up to a bound.
    while rounds.len() < wanted * 5 / 3 && report::quiet(&rounds).count() < wanted {
        rounds.push(stage.round(figure, order, rounds.len() % 2 == 1)?);
    }
    stage.check_counts(before, figure)?;
    Ok(report::Measured::new(figure, &rounds, wanted))
}
