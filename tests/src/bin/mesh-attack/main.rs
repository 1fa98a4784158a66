//! - `mesh-attack attack --kind KIND --to ADDRESS …` does to an address what a hostile pod would,
//!   until standard input ends.
//! - `mesh-attack measure --to ADDRESS --count N` tells how long requests take meanwhile.
//! - `mesh-attack keep --listen ADDRESS` is a server that keeps every connection and says nothing.
//!
//! Options: `tests/src/attack.rs`.
#![expect(clippy::print_stdout, reason = "its reports are its output")]

mod connect;
mod destroy;
mod forge;
mod hello;
mod keep;
mod measure;

use std::{
    env, io,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use tests::{
    attack::{AttackSpec, Kind, Tally},
    probe::from_args,
};

/// How often it says how far it is.
const PROGRESS: Duration = Duration::from_millis(50);

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    match args.next().as_deref() {
        Some("attack") => attack(&from_args(args)?),
        Some("measure") => measure::run(&from_args(args)?),
        Some("keep") => keep::run(&from_args(args)?),
        _ => bail!("usage: mesh-attack attack OPTIONS | measure OPTIONS | keep OPTIONS"),
    }
}

/// What all workers share.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    attempts: AtomicU64,
    connected: AtomicU64,
    ended: AtomicU64,
    open: AtomicU64,
    heard: AtomicU64,
    said: AtomicU64,
    answered: AtomicU64,
}

impl Shared {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn add(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed)
    }

    fn tally(&self) -> Tally {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Tally {
            attempts: of(&self.attempts),
            connected: of(&self.connected),
            ended: of(&self.ended),
            open: of(&self.open),
            heard: of(&self.heard),
            said: of(&self.said),
            answered: of(&self.answered),
        }
    }

    /// Waits until one more attempt may be made; `false` if the attack is over.
    fn pace(&self, begun: Instant, per_second: u64) -> bool {
        let number = Self::add(&self.attempts);
        let due = begun + Duration::from_micros(number.saturating_mul(1_000_000) / per_second);
        while self.goes_on() {
            let now = Instant::now();
            if now >= due {
                return true;
            }
            thread::sleep((due - now).min(PROGRESS));
        }
        false
    }
}

fn attack(spec: &AttackSpec) -> Result<()> {
    let shared = Shared::default();
    thread::scope(|scope| {
        for number in 0..spec.workers {
            let shared = &shared;
            scope.spawn(move || match spec.kind {
                Kind::Syn => forge::syns(spec, shared),
                Kind::Orphan => connect::orphans(spec, number, shared),
                Kind::Deaf => connect::deaf(spec, number, shared),
                Kind::Destroy => destroy::listeners(spec, shared),
                Kind::Silent | Kind::Hold | Kind::Drip | Kind::Late | Kind::Fill => {
                    connect::hold(spec, number, shared);
                }
                Kind::Hello | Kind::Garbage | Kind::Dial => connect::again(spec, number, shared),
            });
        }
        scope.spawn(|| {
            // Whatever ends standard input ends the attack.
            let _bytes = io::copy(&mut io::stdin(), &mut io::sink());
            shared.stop.store(true, Ordering::Relaxed);
        });
        while shared.goes_on() {
            println!("{}", serde_json::to_string(&shared.tally())?);
            thread::sleep(PROGRESS);
        }
        Ok::<_, anyhow::Error>(())
    })?;
    println!("{}", serde_json::to_string(&shared.tally())?);
    Ok(())
}
