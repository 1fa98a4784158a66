//! Carries files from where they are written to where each node reads them, each after a delay of
//! its own. Later news of a file never overtakes earlier news.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use super::schedule::delay;
use crate::eventually;

/// How often directories are looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One way: from a directory to another one. Only files for which `carries` is `None` or the name.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) name: String,
    pub(super) from: PathBuf,
    pub(super) to: PathBuf,
    pub(super) only: Option<String>,
}

/// A courier at work, until dropped.
#[derive(Debug)]
pub(super) struct Courier {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    /// With a seed news are late.
    seed: Option<u64>,
    begun: Instant,
    routes: Vec<(Route, BTreeMap<String, Letter>)>,
    /// What was delivered since the seed was set, for people.
    log: Vec<(Duration, String)>,
}

/// What is known of one file on one route.
#[derive(Debug, Default)]
struct Letter {
    /// By inode and change time: a file is replaced, never written to.
    seen: Option<(u64, i64, i64)>,
    changes: u64,
    /// What is to be delivered and when, in order; `None` is the file's removal.
    under_way: Vec<(Instant, Option<Vec<u8>>)>,
}

impl Courier {
    pub(super) fn start(routes: Vec<Route>) -> Result<Self> {
        for route in &routes {
            fs::create_dir_all(&route.from)?;
            fs::create_dir_all(&route.to)?;
        }
        let routes = routes.into_iter().map(|route| (route, BTreeMap::new())).collect();
        let state = State { seed: None, begun: Instant::now(), routes, log: Vec::new() };
        let (state, stop) = (Arc::new(Mutex::new(state)), Arc::new(AtomicBool::new(false)));
        let thread = thread::spawn({
            let (state, stop) = (Arc::clone(&state), Arc::clone(&stop));
            move || {
                while !stop.load(Ordering::Relaxed) {
                    // A file that has just gone is seen at the next look.
                    let _again = lock(&state).look();
                    thread::sleep(LOOK);
                }
            }
        });
        Ok(Self { state, stop, thread: Some(thread) })
    }

    /// From now on news are late, as the seed says.
    pub(super) fn delay(&self, seed: u64) {
        let mut state = lock(&self.state);
        (state.seed, state.begun) = (Some(seed), Instant::now());
        state.log.clear();
        for (_, letters) in &mut state.routes {
            for letter in letters.values_mut() {
                letter.changes = 0;
            }
        }
    }

    /// Delivers everything now, and what comes next at once.
    pub(super) fn hurry(&self) -> Result<()> {
        {
            let mut state = lock(&self.state);
            state.seed = None;
            let now = Instant::now();
            for (_, letters) in &mut state.routes {
                let under_way = letters.values_mut().flat_map(|letter| &mut letter.under_way);
                under_way.for_each(|(at, _)| *at = now);
            }
        }
        eventually(Duration::from_secs(5), || {
            let state = lock(&self.state);
            let mut letters = state.routes.iter().flat_map(|(_, letters)| letters.values());
            ensure!(letters.all(|letter| letter.under_way.is_empty()), "news are still under way");
            Ok(())
        })
    }

    /// What was delivered when.
    pub(super) fn log(&self) -> Vec<(Duration, String)> {
        lock(&self.state).log.clone()
    }
}

impl Drop for Courier {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It has nothing to say.
            let _ended = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    fn look(&mut self) -> Result<()> {
        let now = Instant::now();
        for (route, letters) in &mut self.routes {
            let mut there = BTreeSet::new();
            for entry in fs::read_dir(&route.from)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                let carried = route.only.as_ref().is_none_or(|only| *only == name);
                if !carried || name.starts_with('.') {
                    continue;
                }
                let meta = entry.metadata()?;
                let seen = Some((meta.ino(), meta.mtime(), meta.mtime_nsec()));
                let letter = letters.entry(name.clone()).or_default();
                if letter.seen != seen {
                    letter.put(fs::read(entry.path()).ok(), now, self.seed, &route.name, &name);
                    letter.seen = seen;
                }
                there.insert(name);
            }
            for (name, letter) in letters.iter_mut() {
                if letter.seen.is_some() && !there.contains(name) {
                    letter.put(None, now, self.seed, &route.name, name);
                    letter.seen = None;
                }
                let due = letter.under_way.iter().take_while(|(at, _)| *at <= now).count();
                // Of several that are due only the last counts: a reader would see no other.
                if let Some((_, news)) = letter.under_way.drain(..due).next_back() {
                    deliver(&route.to, name, news.as_deref())?;
                    let what = format!("{} has {name}", route.name);
                    self.log.push((now.duration_since(self.begun), what));
                }
            }
        }
        Ok(())
    }
}

impl Letter {
    fn put(
        &mut self,
        news: Option<Vec<u8>>,
        now: Instant,
        seed: Option<u64>,
        route: &str,
        name: &str,
    ) {
        let late = seed.map_or(Duration::ZERO, |seed| delay(seed, route, name, self.changes));
        self.changes += 1;
        let before = self.under_way.last().map(|(at, _)| *at);
        self.under_way.push(((now + late).max(before.unwrap_or(now)), news));
    }
}

/// Whole or not at all, as the agents write too.
fn deliver(to: &Path, name: &str, news: Option<&[u8]>) -> Result<()> {
    let target = to.join(name);
    let Some(bytes) = news else {
        // Gone already is gone.
        let _gone = fs::remove_file(target);
        return Ok(());
    };
    let unfinished = to.join(format!(".{name}.courier"));
    fs::write(&unfinished, bytes)?;
    fs::rename(unfinished, target)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_come_in_order_and_at_last_all_of_them() {
        let dir = std::env::temp_dir().join(format!("courier-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        let route =
            Route { name: "there".to_owned(), from: from.clone(), to: to.clone(), only: None };
        let courier = Courier::start(vec![route]).unwrap();
        let read = || fs::read_to_string(to.join("x.yaml")).ok();
        let write = |text: &str| deliver(&from, "x.yaml", Some(text.as_bytes())).unwrap();
        let wait = |wanted: Option<&str>| {
            let arrived = || {
                ensure!(read().as_deref() == wanted, "{:?}", read());
                Ok(())
            };
            eventually(Duration::from_secs(5), arrived).unwrap();
        };
        write("1");
        wait(Some("1"));
        let late =
            (0..1000).find(|seed| delay(*seed, "there", "x.yaml", 0) > Duration::from_secs(9));
        courier.delay(late.unwrap());
        write("2");
        eventually(Duration::from_secs(5), || {
            let state = lock(&courier.state);
            ensure!(!state.routes[0].1["x.yaml"].under_way.is_empty(), "not seen");
            Ok(())
        })
        .unwrap();
        assert_eq!(read().as_deref(), Some("1"));
        courier.hurry().unwrap();
        wait(Some("2"));
        fs::remove_file(from.join("x.yaml")).unwrap();
        wait(None);
        drop(courier);
        fs::remove_dir_all(dir).unwrap();
    }
}
