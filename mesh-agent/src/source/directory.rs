//! One directory of small text files, watched; reports which files' contents have changed.
//!
//! inotify gives speed. A rescan every two seconds gives certainty (an overflowed queue, a network
//! file system, a directory that was replaced). A scan reads only files that changed on disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::error::OpenError;

/// How long the directory must be quiet before it is read. The events of an editor or `cp` come
/// within a few milliseconds.
const QUIET: Duration = Duration::from_millis(20);
/// The longest wait for quiet, so that one steady writer does not delay all changes.
const MAX_WAIT_FOR_QUIET: Duration = Duration::from_millis(200);
/// How often the directory is read without any event.
const RESCAN: Duration = Duration::from_secs(2);
/// A file that changed less than this ago may change again within one tick of its time stamp. Its
/// stamp then proves nothing (git calls such entries "racily clean").
const STAMP_IS_FINAL_AFTER: Duration = Duration::from_secs(2);
/// Largest file that is read.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;

/// A file whose content is not what it was at the last scan.
#[derive(Debug)]
pub(super) struct Change {
    /// Its name without the directory.
    pub(super) file: Arc<str>,
    pub(super) content: Content,
}

/// What a changed file holds now.
#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    /// A sentence that says why.
    Unreadable(String),
    Gone,
}

/// The directory and what was last read from it.
pub(super) struct Directory {
    scanner: Option<Scanner>,
    signal: Arc<Notify>,
    heard_signal: bool,
    next_rescan: Instant,
}

impl Directory {
    /// Opens `dir`, which the argument `flag` named, for the files whose names `wants` accepts,
    /// and reads them a first time.
    pub(super) fn open(
        dir: &Path,
        flag: &'static str,
        wants: fn(&str) -> bool,
    ) -> Result<(Self, Vec<Change>), OpenError> {
        let unreadable = |cause| OpenError::Unreadable { dir: dir.to_owned(), cause };
        match fs::metadata(dir) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => {
                return Err(OpenError::NotADirectory { dir: dir.to_owned(), flag });
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::Missing { dir: dir.to_owned(), flag });
            }
            Err(error) => return Err(unreadable(error)),
        }
        let signal = Arc::new(Notify::new());
        let mut scanner = Scanner {
            dir: dir.to_owned(),
            wants,
            files: BTreeMap::new(),
            signal: Arc::clone(&signal),
            watch: None,
            warned: false,
        };
        let changes = scanner.scan().map_err(unreadable)?;
        let next_rescan = Instant::now() + RESCAN;
        Ok((Self { scanner: Some(scanner), signal, heard_signal: false, next_rescan }, changes))
    }

    /// Waits until a scan is due. Cancel safety: nothing is lost when this is dropped.
    pub(super) async fn wait(&mut self) {
        if !self.heard_signal {
            tokio::select! {
                () = self.signal.notified() => self.heard_signal = true,
                () = sleep_until(self.next_rescan) => return,
            }
        }
        let latest = Instant::now() + MAX_WAIT_FOR_QUIET;
        while Instant::now() < latest && timeout(QUIET, self.signal.notified()).await.is_ok() {}
    }

    /// Reads what has changed. An error means that the directory itself cannot be read; the
    /// contents read before stay as they are.
    ///
    /// Cancel safety: none; await it outside `select!`.
    pub(super) async fn scan(&mut self) -> io::Result<Vec<Change>> {
        self.heard_signal = false;
        let Some(mut scanner) = self.scanner.take() else {
            return Err(io::Error::other("an earlier scan was interrupted"));
        };
        let scan = tokio::task::spawn_blocking(move || {
            let result = scanner.scan();
            (scanner, result)
        });
        let (scanner, result) = match scan.await {
            Ok(done) => done,
            // The task that awaits this is supervised: let it report the panic as its own.
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(cancelled) => return Err(io::Error::other(cancelled)),
            },
        };
        self.scanner = Some(scanner);
        self.next_rescan = Instant::now() + RESCAN;
        result
    }
}

struct Scanner {
    dir: PathBuf,
    wants: fn(&str) -> bool,
    files: BTreeMap<Arc<str>, FileScan>,
    signal: Arc<Notify>,
    /// The watcher and the device and inode that it watches.
    watch: Option<(RecommendedWatcher, (u64, u64))>,
    warned: bool,
}

/// What the last scan saw of a file.
struct FileScan {
    stamp: Option<Stamp>,
    content_hash: u64,
}

/// If the stamp is equal and old enough, the content is equal.
#[derive(Clone, Copy, PartialEq)]
struct Stamp {
    inode: (u64, u64),
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Scanner {
    fn scan(&mut self) -> io::Result<Vec<Change>> {
        let metadata = fs::metadata(&self.dir)?;
        // Before reading, or a change in between would be missed.
        self.watch_inode((metadata.dev(), metadata.ino()));

        let mut present = BTreeMap::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().map(OsStr::to_string_lossy);
            if let Some(name) = name.filter(|name| (self.wants)(name)) {
                present.insert(Arc::from(name.as_ref()), path.clone());
            }
        }
        let gone: Vec<_> =
            self.files.keys().filter(|file| !present.contains_key(*file)).cloned().collect();
        let mut changes = Vec::new();
        for file in gone {
            self.files.remove(&file);
            changes.push(Change { file, content: Content::Gone });
        }
        for (file, path) in present {
            changes.extend(self.scan_file(file, &path));
        }
        Ok(changes)
    }

    fn scan_file(&mut self, file: Arc<str>, path: &Path) -> Option<Change> {
        let metadata = fs::metadata(path);
        if metadata.as_ref().is_ok_and(|metadata| !metadata.is_file()) {
            // Opening a pipe would wait for its writer.
            tracing::debug!(%file, "ignored: not a regular file");
            return self.files.remove(&file).map(|_| Change { file, content: Content::Gone });
        }
        let stamp = metadata.as_ref().ok().and_then(final_stamp);
        let seen = self.files.get(&file);
        if stamp.is_some() && seen.is_some_and(|seen| seen.stamp == stamp) {
            return None;
        }
        let content = match metadata.and_then(|metadata| read(path, metadata.len())) {
            Ok(content) => content,
            // Removed since the directory was listed; the next scan reports it.
            Err(_) if fs::symlink_metadata(path).is_err() => return None,
            Err(error) => Content::Unreadable(format!("cannot be read: {error}")),
        };
        let content_hash = hash(&content);
        let same = seen.is_some_and(|seen| seen.content_hash == content_hash);
        self.files.insert(Arc::clone(&file), FileScan { stamp, content_hash });
        (!same).then_some(Change { file, content })
    }

    /// Watches the directory, and again when another one has taken its place.
    fn watch_inode(&mut self, inode: (u64, u64)) {
        if self.watch.as_ref().is_some_and(|(_, watched)| *watched == inode) {
            return;
        }
        let signal = Arc::clone(&self.signal);
        let started = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                signal.notify_one();
            }
        })
        .and_then(|mut watcher| {
            watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
            Ok(watcher)
        });
        match started {
            Ok(watcher) => self.watch = Some((watcher, inode)),
            Err(error) if !self.warned => {
                self.warned = true;
                let dir = self.dir.display();
                tracing::warn!(%dir, %error, "no inotify: changes are seen after up to {RESCAN:?}");
            }
            Err(_) => {}
        }
    }
}

/// Our own reading makes events, too. Reacting to those would never end.
fn is_change(kind: EventKind) -> bool {
    match kind {
        EventKind::Access(access) => access == AccessKind::Close(AccessMode::Write),
        EventKind::Any
        | EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Other => true,
    }
}

fn read(path: &Path, length: u64) -> io::Result<Content> {
    let too_large = || Content::Unreadable(format!("is larger than {MAX_FILE_BYTES} bytes"));
    if length > MAX_FILE_BYTES {
        return Ok(too_large());
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)?;
    if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_FILE_BYTES) {
        return Ok(too_large());
    }
    Ok(String::from_utf8(bytes).map_or_else(
        |error| {
            let at = error.utf8_error().valid_up_to();
            Content::Unreadable(format!("is not UTF-8 text from byte {at} on"))
        },
        Content::Text,
    ))
}

/// `None` if the file may still change without its stamp changing.
fn final_stamp(metadata: &Metadata) -> Option<Stamp> {
    let age = SystemTime::now().duration_since(metadata.modified().ok()?).ok()?;
    (age > STAMP_IS_FINAL_AFTER).then(|| Stamp {
        inode: (metadata.dev(), metadata.ino()),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

fn hash(content: &Content) -> u64 {
    let mut hasher = DefaultHasher::new();
    match content {
        Content::Text(text) => (0, text).hash(&mut hasher),
        Content::Unreadable(why) => (1, why).hash(&mut hasher),
        Content::Gone => 2.hash(&mut hasher),
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{TestDir, soon};
    use super::*;

    fn open(dir: &TestDir) -> (Directory, Vec<Change>) {
        Directory::open(dir.path(), "--source", |name| name.contains(".yaml")).unwrap()
    }

    #[tokio::test]
    async fn reading_the_directory_does_not_wake_the_watch() {
        let dir = TestDir::new();
        dir.write("a.yaml", "x");
        let (mut directory, first) = open(&dir);
        assert_eq!(first.len(), 1);
        assert!(directory.scan().await.unwrap().is_empty());
        let woken = timeout(RESCAN / 4, directory.wait()).await;
        assert!(woken.is_err(), "it would go on for ever");
    }

    #[tokio::test]
    async fn a_wait_that_is_dropped_after_the_signal_does_not_lose_it() {
        let dir = TestDir::new();
        let (mut directory, _) = open(&dir);
        directory.next_rescan += 1000 * RESCAN;
        dir.write("a.yaml", "x");
        // Dropped while it waits for quiet.
        while !directory.heard_signal {
            let _elapsed = timeout(QUIET / 4, directory.wait()).await;
        }
        soon("the change", directory.wait()).await;
        assert_eq!(directory.scan().await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_file_of_the_same_length_in_the_same_tick_is_read_again() {
        let dir = TestDir::new();
        let (mut directory, _) = open(&dir);
        for text in ["1", "2", "3", "4", "5"] {
            dir.write("a.yaml", text);
            let changes = directory.scan().await.unwrap();
            let [Change { content: Content::Text(read), .. }] = &changes[..] else {
                panic!("{text}: {changes:?}")
            };
            assert_eq!(read, text);
        }
    }

    #[test]
    fn what_cannot_be_text_is_unreadable_and_a_pipe_is_not_opened() {
        let dir = TestDir::new();
        fs::write(dir.path().join("a.yaml"), b"ab\xff").unwrap();
        std::os::unix::fs::symlink("nowhere", dir.path().join("b.yaml")).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("c.yaml")).unwrap();
        let (_directory, changes) = open(&dir);
        let why = |change: &Change| match &change.content {
            Content::Unreadable(why) => format!("{} {why}", change.file),
            other => panic!("{other:?}"),
        };
        assert_eq!(
            changes.iter().map(why).collect::<Vec<_>>(),
            [
                "a.yaml is not UTF-8 text from byte 2 on",
                "b.yaml cannot be read: No such file or directory (os error 2)",
            ]
        );
        drop(listener);
    }
}
