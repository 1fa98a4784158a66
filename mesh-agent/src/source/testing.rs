//! A real directory, and waiting for the expected state.

use std::fmt::Debug;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// Long enough for a slow rescan on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that deletes itself.
pub(super) struct TestDir(tempfile::TempDir);

impl TestDir {
    pub(super) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(super) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        fs::write(self.path().join(name), text).unwrap();
    }

    pub(super) fn remove(&self, name: &str) {
        fs::remove_file(self.path().join(name)).unwrap();
    }
}

/// Waits until the state is as `wanted` says; if it does not become so, fails with the last state.
pub(super) async fn until<T: Debug>(
    receiver: &mut watch::Receiver<Arc<T>>,
    what: &str,
    wanted: impl FnMut(&Arc<T>) -> bool,
) -> Arc<T> {
    let result = timeout(DEADLINE, receiver.wait_for(wanted)).await;
    let reached = result.map(|state| Arc::clone(&*state.unwrap()));
    reached.unwrap_or_else(|_| {
        panic!("after {DEADLINE:?} not yet: {what}; the state is {:?}", receiver.borrow())
    })
}

/// Runs a future, but not for ever.
pub(super) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    let waited = timeout(DEADLINE, future).await;
    waited.unwrap_or_else(|_| panic!("after {DEADLINE:?} not yet: {what}"))
}
