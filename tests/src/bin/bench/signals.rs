//! Ctrl-C and SIGTERM remove everything too.

use std::{process, thread};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use tests::tag::Tag;

/// Programs that are started from now on get an empty signal mask from std.
pub(crate) fn clean_up(tag: &Tag) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let tag = tag.clone();
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            // The main thread may be making something just now: what it makes meanwhile goes at the second try.
            let removed = tag.remove_all().or_else(|_| tag.remove_all());
            if let Err(e) = removed {
                eprintln!("bench: {e:#}");
            }
            process::exit(128 + signal as i32);
        }
    });
    Ok(())
}
