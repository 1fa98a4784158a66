//! Ctrl-C and SIGTERM remove everything too.

use std::{
    process,
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use anyhow::Result;
use nix::sys::signal::{SigSet, Signal};
use tests::tag::Tag;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Programs that are started from now on get an empty signal mask from std.
pub(crate) fn clean_up(tag: &Tag) -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let tag = tag.clone();
    thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            INTERRUPTED.store(true, Ordering::SeqCst);
            // The main thread may be making something just now; the second try removes that too.
            let removed = tag.remove_all().or_else(|_| tag.remove_all());
            if let Err(e) = removed {
                eprintln!("bench: {e:#}");
            }
            process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

/// Does not return once a signal has come: from then on, failures come from the removal.
pub(crate) fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        thread::park();
    }
}
