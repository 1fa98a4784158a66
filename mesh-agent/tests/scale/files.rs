//! 100,000 pods in files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::source::{Earlier, FileSource, SourceState};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{alone, tell};
use crate::cluster::{self, NODES, PODS};
use crate::counting;

/// Bytes that may be allocated when one of a thousand files is read again. It has 100 pods.
const ONE_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// How long reading all files may take. A wide bound: measured a tenth of it.
const READ_TIME: Duration = Duration::from_mins(5);
/// How long it may take to see a change: the watch, and one file parsed.
const SOON: Duration = Duration::from_secs(20);

fn write(dir: &Path, file: usize, version: u8) {
    let mut text = String::new();
    for index in (file..PODS).step_by(NODES) {
        writeln!(text, "---\n{}", cluster::pod_yaml(index, version)).unwrap();
    }
    fs::write(dir.join(format!("pods-{file}.yaml")), text).unwrap();
}

async fn revision(
    receiver: &mut watch::Receiver<Arc<SourceState>>,
    revision: u64,
) -> Arc<SourceState> {
    let reached = receiver.wait_for(|state| state.revision >= revision);
    let state = tokio::time::timeout(SOON, reached).await.expect("the change is seen").unwrap();
    Arc::clone(&state)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[expect(clippy::await_holding_lock, reason = "the other tests wait for this one")]
async fn a_changed_file_costs_that_file() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    (0..NODES).for_each(|file| write(dir.path(), file, 0));
    let before = counting::live();
    let begun = Instant::now();
    let (source, mut states) = FileSource::open(dir.path(), &Earlier::none()).unwrap();
    let bytes = (counting::live() - before) / PODS as u64;
    tell(&format!(
        "{PODS} pods in {NODES} files: read in {:?}, {bytes} bytes a pod",
        begun.elapsed()
    ));
    assert!(begun.elapsed() < READ_TIME);
    let first = Arc::clone(&states.borrow_and_update());
    assert_eq!((first.objects.pods().count(), &*first.errors), (PODS, &[][..]));

    let stop = CancellationToken::new();
    let running = source.run(stop.clone().cancelled_owned());
    let change = async {
        // Each scan reads files again that are newer than two seconds, and that is not what is
        // measured.
        tokio::time::sleep(Duration::from_secs(5)).await;
        let before = counting::total();
        write(dir.path(), 7, 1);
        let begun = Instant::now();
        let now = revision(&mut states, first.revision + 1).await;
        let bytes = counting::total() - before;
        tell(&format!("one file changed: seen after {:?}, {bytes} bytes", begun.elapsed()));
        assert!(bytes < ONE_FILE_BYTES, "{bytes} bytes");
        assert!(*now.objects != *first.objects);
        stop.cancel();
    };
    tokio::join!(running, change);
}
