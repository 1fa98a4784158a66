//! Every program loads and passes the verifier on this kernel. Prints the number of instructions that the verifier walked.
use std::{fs, io::Write as _, path::PathBuf};

use mesh_agent::kernel::{Before, Kernel, cleanup};
use mesh_common::ABI;

/// The limit of the kernel is a million; ours keeps the programs small enough for older verifiers.
const MOST_INSTRUCTIONS: u32 = 20_000;

struct PinDir(PathBuf);

impl Drop for PinDir {
    fn drop(&mut self) {
        drop(cleanup(&self.0)); // what could not be removed shows as a pin that is still there
    }
}

#[test]
fn every_program_loads_and_verifies() {
    let pins = PinDir(PathBuf::from(format!("/sys/fs/bpf/nodemesh-load-{}", std::process::id())));
    let (kernel, _refusals) =
        Kernel::load(&pins.0, Before::Gone).expect("the programs load (run as root, with a bpffs)");
    let mut names = Vec::new();
    for program in kernel.programs() {
        let count = program.verified_instructions;
        // Past libtest's capture: the counts are wanted also when all is well.
        writeln!(std::io::stdout(), "{}: {count:?} instructions verified", program.name).unwrap();
        if let Some(count) = program.verified_instructions {
            assert!(count > 0 && count < MOST_INSTRUCTIONS, "{}: {count}", program.name);
        }
        names.push(program.name);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "nm_connect4",
            "nm_connect6",
            "nm_held_connect4",
            "nm_held_connect6",
            "nm_held_ingress",
            "nm_kubelet_connect4",
            "nm_kubelet_connect6",
            "nm_kubelet_sockops",
            "nm_lookup",
            "nm_lookup_strict",
            "nm_peername4",
            "nm_peername6",
            "nm_sockops",
            "nm_unclassified_ingress"
        ]
    );
    assert!(fs::exists(pins.0.join(format!("v{ABI}/maps/ENROLLED"))).unwrap());
    drop(pins);
}

#[test]
fn cleanup_of_nothing_is_clean() {
    let removed = cleanup(&PathBuf::from("/sys/fs/bpf/nodemesh-was-never-here")).unwrap();
    assert_eq!((removed.links, removed.maps), (0, 0));
}
