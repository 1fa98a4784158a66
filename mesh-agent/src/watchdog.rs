//! Notices that the runtime makes no progress any more, logs what its threads do, and ends the
//! process so that it is started again. The kernel's side outlives that: what is closed stays
//! closed.

use std::{
    fs, io,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::time::sleep;

use crate::tasks::Tasks;

/// How often the runtime has to show that it lives.
const BEAT: Duration = Duration::from_millis(250);

/// How often the watchdog looks.
const LOOK: Duration = Duration::from_secs(1);

/// After this many looks in a row without a beat the process ends. Looks are counted, not time:
/// what stops the whole process (a debugger, a frozen cgroup, a suspended machine) stops the
/// watchdog with it.
const LOOKS: u32 = 10;

/// How long it may take to log that. The log itself may be what all threads wait for.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Starts the watchdog; it ends when `tasks` are stopped.
///
/// # Errors
/// The thread could not be started.
pub(crate) fn start(tasks: &Tasks) -> io::Result<()> {
    let beats = Arc::new(AtomicU64::new(0));
    let watched = Arc::downgrade(&beats);
    tasks.spawn("heartbeat", async move {
        loop {
            beats.fetch_add(1, Ordering::Relaxed);
            sleep(BEAT).await;
        }
    });
    thread::Builder::new().name("watchdog".to_owned()).spawn(move || {
        if watch(&watched) == Seen::Stall {
            say_and_abort();
        }
    })?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum Seen {
    /// The runtime has ended: nothing is watched any more.
    End,
    /// No beat for too long.
    Stall,
}

fn watch(beats: &Weak<AtomicU64>) -> Seen {
    let (mut last, mut without) = (0, 0);
    while let Some(beats) = beats.upgrade() {
        let now = beats.load(Ordering::Relaxed);
        drop(beats);
        without = if now == last { without + 1 } else { 0 };
        if without == LOOKS {
            return Seen::Stall;
        }
        last = now;
        thread::sleep(LOOK);
    }
    Seen::End
}

fn say_and_abort() -> ! {
    let (said, is_said) = mpsc::channel();
    let say = move || {
        tracing::error!(
            threads = %threads().join("; "),
            "the agent made no progress for {LOOKS} s and ends itself, to be started again; connections through it are cut, strict pods stay closed"
        );
        let _: Result<(), _> = said.send(()); // the wait for it may be over
    };
    // If no thread can be started, nothing is logged: that must not keep the stuck agent alive.
    drop(thread::Builder::new().name("last-words".to_owned()).spawn(say));
    let _: Result<(), _> = is_said.recv_timeout(LAST_WORDS);
    std::process::abort();
}

/// What each thread of this process does: its name, its state (proc(5): R runs, S sleeps, D waits
/// for a device, T and t are stopped) and where in the kernel it waits.
fn threads() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let describe = |thread: fs::DirEntry| {
        let read = |file| fs::read_to_string(thread.path().join(file)).unwrap_or_default();
        let (name, waits, status) = (read("comm"), read("wchan"), read("status"));
        let state = status.lines().find_map(|line| line.strip_prefix("State:"));
        let id = thread.file_name();
        format!("{} {}: {} at {waits}", name.trim(), id.display(), state.unwrap_or("?").trim())
    };
    entries.map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_watch_ends_with_the_runtime() {
        let beats = Arc::new(AtomicU64::new(0));
        let watched = Arc::downgrade(&beats);
        drop(beats);
        assert_eq!(watch(&watched), Seen::End);
    }

    #[test]
    fn threads_are_told_by_name_and_state() {
        let here = thread::Builder::new().name("telling".to_owned()).spawn(threads).unwrap();
        let told = here.join().unwrap();
        assert!(
            told.iter().any(|line| line.starts_with("telling ") && line.contains("R (running)")),
            "{told:?}"
        );
    }
}
