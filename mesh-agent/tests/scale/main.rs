//! A world of 100,000 pods and 10,000 services: what it costs, and what a change of it costs.
//! Prints the figures, and fails if one exceeds its bound. The bounds are on counts and bytes.
//! Those on times are wide, since a machine may be busy.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

mod cluster;
mod counting;
mod files;
mod kernel;
mod relay;

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_agent::tasks::off_the_workers;
use mesh_world::{Announcements, Incumbents, LocalNode, Objects, Snapshot, Work, World};
use parking_lot::{Mutex, MutexGuard};

use self::cluster::{NODES, PODS};

/// Bytes that the objects may take for each pod: measured 1,720, with its share of services and
/// slices.
const OBJECT_BYTES_PER_POD: u64 = 2_600;
/// Bytes that the snapshot, and what is needed to follow the world, may take for each pod.
const WORLD_BYTES_PER_POD: u64 = 3_000;
/// Bytes for each pod that a full build may take for a moment, beyond what the world takes at rest.
const PEAK_BYTES_PER_POD: u64 = 3_000;
/// Pods of the large change: every tenth.
const CHANGED: usize = PODS / 10;
/// Bytes that may be allocated for each pod of the large change. The change copies most leaves of
/// the maps once.
const CHANGE_BYTES_PER_POD: u64 = 20_000;
/// Bytes that may be allocated for the change of a single pod, in a world of 100,000.
const SINGLE_CHANGE_BYTES: u64 = 300_000;
/// How long the large change may take. A wide bound: measured 3 s on two cores with ten other
/// processes at work.
const CHANGE_TIME: Duration = Duration::from_secs(30);

/// One test at a time, because each counts what the whole process allocates.
static ALONE: Mutex<()> = Mutex::new(());

pub(crate) fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock()
}

/// Prints past libtest's capture: the figures are shown also when the test passes.
pub(crate) fn tell(figure: &str) {
    writeln!(std::io::stdout(), "scale: {figure}").expect("a terminal, or a pipe that is read");
}

/// Whether the large change alters the pod. The changed pods are spread over all nodes, as in
/// a rolling update: each announcement changes, and most of its pods do not.
fn is_changed(index: usize) -> bool {
    index / NODES % 10 == 7
}

/// The large cluster, and the world that follows it.
pub(crate) struct Large {
    pub(crate) objects: Arc<Objects>,
    pub(crate) announcements: Arc<Announcements>,
    pub(crate) local: LocalNode,
    pub(crate) world: World,
}

impl Large {
    pub(crate) fn new() -> Self {
        let objects = Arc::new(cluster::objects());
        let announcements = Arc::new(cluster::announcements(|_| false, 0));
        let local = cluster::local();
        let world = World::new(&objects, &announcements, &local, Incumbents::default());
        Self { objects, announcements, local, world }
    }

    /// Gives a tenth of the pods other addresses, in their objects and in what their nodes
    /// announce.
    pub(crate) fn change_a_tenth(&mut self, version: u8) {
        let mut objects = Objects::clone(&self.objects);
        for index in (0..PODS).filter(|index| is_changed(*index)) {
            objects.insert_pod(cluster::pod(index, version));
        }
        self.objects = Arc::new(objects);
        self.announcements = Arc::new(cluster::announcements(is_changed, version));
    }

    pub(crate) fn update(&mut self) -> Snapshot {
        self.world.update(&self.objects, &self.announcements, &self.local).clone()
    }
}

#[test]
fn a_large_world_fits_and_a_change_of_it_costs_what_has_changed() {
    let _alone = alone();
    let empty = counting::live();
    let per_pod = |bytes: u64| bytes / PODS as u64;
    let objects = Arc::new(cluster::objects());
    let object_bytes = per_pod(counting::live() - empty);
    let announcements = Arc::new(cluster::announcements(|_| false, 0));
    let local = cluster::local();

    let before = counting::live();
    let begun = Instant::now();
    let (world, full) =
        counting::allocated(|| World::new(&objects, &announcements, &local, Incumbents::default()));
    let (full_time, world_bytes) = (begun.elapsed(), per_pod(counting::live() - before));
    let peak = per_pod(full.peak) - world_bytes;
    tell(&format!(
        "{PODS} pods: objects {object_bytes} bytes a pod, world {world_bytes} more, {peak} more while built; {full_time:?}"
    ));
    assert!(object_bytes < OBJECT_BYTES_PER_POD);
    assert!(world_bytes < WORLD_BYTES_PER_POD);
    assert!(peak < PEAK_BYTES_PER_POD);
    let mut large = Large { objects, announcements, local, world };
    let first = large.world.snapshot().clone();
    assert_eq!(first.workloads(), PODS);
    assert_eq!(first.remote_pods(), PODS - PODS / NODES);
    assert_eq!(first.problems(), []);

    let (same, nothing) = counting::allocated(|| large.update());
    assert!(same.is(&first), "an unchanged world is the very same");
    assert_eq!((nothing.bytes, large.world.work()), (0, Work::default()));

    large.change_a_tenth(1);
    let begun = Instant::now();
    let (changed, change) = counting::allocated(|| large.update());
    let (time, work, bytes) = (begun.elapsed(), large.world.work(), change.bytes / CHANGED as u64);
    let rows = changed.changed_addresses(&first).len();
    tell(&format!(
        "{CHANGED} pods changed: {time:?}, {work:?}, {rows} addresses, {bytes} bytes a pod"
    ));
    assert_eq!((work.pods, rows), (CHANGED, 4 * CHANGED), "two addresses go, two come");
    assert!(work.announced <= CHANGED, "{work:?}");
    assert!(work.services <= CHANGED, "{work:?}");
    assert!(bytes < CHANGE_BYTES_PER_POD);
    assert!(time < CHANGE_TIME);
    let built =
        Snapshot::build(&large.objects, &large.announcements, &large.local, &Incumbents::default());
    assert!(changed == built, "followed and built anew differ");

    let mut objects = Objects::clone(&large.objects);
    objects.insert_pod(cluster::pod(4_711, 2));
    large.objects = Arc::new(objects);
    let begun = Instant::now();
    let (single, change) = counting::allocated(|| large.update());
    let (time, work) = (begun.elapsed(), large.world.work());
    tell(&format!("one pod changed: {time:?}, {work:?}, {} bytes", change.bytes));
    assert_eq!(single.changed_addresses(&changed).len(), 4);
    assert!(work.total() < 10, "{work:?}");
    assert!(change.bytes < SINGLE_CHANGE_BYTES);
}

/// The runtime has one thread, so a call that blocks it would show. A reader asks the world every
/// millisecond.
#[tokio::test]
#[expect(clippy::await_holding_lock, reason = "the other tests wait for this one")]
async fn readers_do_not_wait_for_a_change_of_the_world() {
    let _alone = alone();
    let large = Large::new();
    let world = large.world.snapshot().clone();
    let mut slot = Some(large);
    let change = off_the_workers(&mut slot, |large| {
        let begun = Instant::now();
        large.change_a_tenth(1);
        large.update();
        begun.elapsed()
    });
    let mut change = std::pin::pin!(change);
    let mut tick = tokio::time::interval(Duration::from_millis(1));
    let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
    let took = loop {
        tokio::select! {
            took = &mut change => break took.expect("it was there"),
            _ = tick.tick() => {}
        }
        assert!(world.workload(cluster::addresses(4_711, 0)[0]).is_some());
        longest = longest.max(last.elapsed());
        last = Instant::now();
    };
    tell(&format!("a reader waited {longest:?} at most while the world changed for {took:?}"));
    assert!(longest < took / 2, "{longest:?} of {took:?}");
}
