//! The kernel's own maps under a large world.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use mesh_agent::enrol::write_world;
use mesh_agent::kernel::{Before, Kernel, cleanup};

use super::{CHANGED, Large, alone, tell};
use crate::cluster::{PODS, SERVICES};

/// How long the change of 10,000 pods may take in the kernel's tables. A wide bound: measured
/// 0.5 s, and 4 s on two cores with ten other processes at work.
const CHANGE_TIME: Duration = Duration::from_secs(30);

struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        drop(cleanup(&self.0)); // what could not be removed shows as a pin that is still there
    }
}

#[test]
fn only_what_has_changed_is_written_to_the_kernel() {
    let _alone = alone();
    let mut large = Large::new();
    let first = large.world.snapshot().clone();
    let pins = PinDir(PathBuf::from(format!("/sys/fs/bpf/nodemesh-scale-{}", std::process::id())));
    let (kernel, _refusals) =
        Kernel::load(&pins.0, Before::Gone).expect("the programs load (run as root, with a bpffs)");
    let tables = kernel.tables();

    let begun = Instant::now();
    let written = write_world(tables, None, &first).unwrap().entries;
    tell(&format!("all written to the kernel: {written} entries, {:?}", begun.elapsed()));
    assert_eq!(written, 2 * PODS + SERVICES);
    assert_eq!(write_world(tables, None, &first).unwrap().entries, 0, "it is all there");

    large.change_a_tenth(1);
    let changed = large.update();
    let begun = Instant::now();
    let written = write_world(tables, Some(&first), &changed).unwrap().entries;
    let time = begun.elapsed();
    tell(&format!("{CHANGED} pods changed in the kernel: {written} entries, {time:?}"));
    // Each pod had two addresses and has two others. The slices of a tenth of the services name
    // only addresses that are gone.
    assert_eq!(written, 4 * CHANGED + SERVICES / 10);
    assert!(time < CHANGE_TIME);
    assert_eq!(
        write_world(tables, None, &changed).unwrap().entries,
        0,
        "what was written is what is wanted"
    );
    assert_eq!(write_world(tables, Some(&changed), &changed).unwrap().entries, 0);
}
