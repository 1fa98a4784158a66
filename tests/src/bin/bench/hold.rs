//! One kind of load on the mesh alone, for as long as a profiler wants.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::{figure::Figure, settings::Settings, stage::Stage};

pub(crate) fn hold(stage: &mut Stage<'_>, figure: Figure, time: Duration) -> Result<()> {
    let pids: Vec<String> = stage.agent_pids()?.iter().map(u32::to_string).collect();
    println!("{figure:?} for {} s; agents: {}", time.as_secs(), pids.join(","));
    let [_, arm] = figure.arms();
    let order = Settings::default().order(figure);
    let (begun, mut count) = (Instant::now(), 0);
    while begun.elapsed() < time {
        count += stage.slice(arm, order)?.count;
    }
    println!("{count} operations in {:.1} s", begun.elapsed().as_secs_f64());
    Ok(())
}
