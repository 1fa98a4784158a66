//! The main job on real traffic: two nodes, five pods, two agents, real programs; told as it is
//! observed.
//!
//! `demo` shows and cleans up, `demo --keep` leaves all running, `demo --stop` ends what `--keep`
//! has left. Exits with 1 if anything that it tells turns out to be false.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "telling is what it is for")]

mod keep;
mod shop;
mod story;

use std::{
    env,
    fs::File,
    mem,
    process::{self, ExitCode},
    thread,
};

use anyhow::{Result, bail};
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    sys::signal::{SigSet, Signal},
};
use tests::{Net, tag::Tag, tell::Teller};

/// One demo at a time: it has fixed names, so that people can use them.
const LOCK: &str = "/run/nodemesh-demo.lock";

fn main() -> ExitCode {
    let outcome = match env::args().nth(1).as_deref() {
        None => show(false),
        Some("--keep") => show(true),
        Some("--stop") => stop(),
        Some(other) => Err(anyhow::anyhow!("{other}? usage: demo [--keep | --stop]")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("\ndemo: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// What everything of the demo is named after.
fn tag() -> Tag {
    Tag::fixed("demo")
}

fn show(keep: bool) -> Result<()> {
    let _lock = lock()?;
    clean_up_on_signals()?;
    let net = Net::with_tag("demo", tag())?;
    let told = shop::Shop::open(&net).and_then(|shop| {
        story::tell(&shop, &mut Teller::new())?;
        if keep {
            keep::leave_running(&shop)?;
            // Its handles would end the programs.
            mem::forget(shop);
        }
        Ok(())
    });
    if told.is_err() {
        net.print_logs();
    } else if keep {
        net.keep();
        return Ok(());
    }
    let removed = net.remove();
    told.and(removed)?;
    println!(
        "\nAll of this was observed in this run, and all of it is removed. To play with it: --keep"
    );
    Ok(())
}

fn stop() -> Result<()> {
    let _lock = lock()?;
    if tag().leftovers().is_empty() {
        println!("No demo is running.");
        return Ok(());
    }
    tag().remove_all()?;
    println!("The demo's programs, namespaces, pins and files are gone.");
    Ok(())
}

fn lock() -> Result<Flock<File>> {
    match Flock::lock(File::create(LOCK)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => {
            bail!("another demo is running right now; wait for its end")
        }
        Err((_, e)) => Err(e.into()),
    }
}

/// Ctrl-C and SIGTERM remove everything too. (`mesh-probe in` unblocks them for the programs that
/// it starts.)
fn clean_up_on_signals() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            eprintln!("\n{signal}: removing the demo");
            // The main thread may be making something just now; the second try removes that too.
            let removed = tag().remove_all().or_else(|_| tag().remove_all());
            if let Err(e) = removed {
                eprintln!("demo: {e:#}");
            }
            process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
