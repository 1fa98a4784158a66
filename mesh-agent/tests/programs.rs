//! Every program loads and passes the verifier on this kernel. Prints the number of instructions
//! that the verifier walked.
use std::{
    fs,
    io::{self, Write as _},
    os::fd::AsFd as _,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use aya::programs::{ProgramInfo, loaded_programs};
use mesh_agent::kernel::{Before, Kernel, cleanup};
use mesh_common::ABI;
use nix::sched::{CloneFlags, unshare};

/// The kernel's limit is a million. Ours keeps the programs small enough for older verifiers.
const MOST_INSTRUCTIONS: u32 = 32_000;

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
        // Past libtest's capture: the counts are printed also when the test passes.
        writeln!(io::stdout(), "{}: {count:?} instructions verified", program.name).unwrap();
        if let Some(count) = program.verified_instructions {
            assert!(count > 0 && count < MOST_INSTRUCTIONS, "{}: {count}", program.name);
        }
        names.push(program.name);
    }
    names.sort();
    assert_eq!(
        names,
        [
            "nm_bind4",
            "nm_bind6",
            "nm_connect4",
            "nm_connect6",
            "nm_give_back",
            "nm_held_connect4",
            "nm_held_connect6",
            "nm_held_egress",
            "nm_held_ingress",
            "nm_kubelet_connect4",
            "nm_kubelet_connect6",
            "nm_kubelet_sockops",
            "nm_lookup",
            "nm_lookup_strict",
            "nm_peername4",
            "nm_peername6",
            "nm_question",
            "nm_sockops",
            "nm_unclassified_ingress"
        ]
    );
    assert!(fs::exists(pins.0.join(format!("v{ABI}/maps/ENROLLED"))).unwrap());
    drop(pins);
}

/// How much of the kernel's memory a copy of the `sk_lookup` program may take, in bytes.
const COPY_BYTES: u32 = 32 * 1024;

/// A new network namespace, which only this test has.
fn namespace() -> io::Result<fs::File> {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        fs::File::open("/proc/thread-self/ns/net")
    });
    made.join().unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
}

fn copies() -> impl Iterator<Item = ProgramInfo> {
    loaded_programs()
        .flatten()
        .filter(|one| one.name_as_str().is_some_and(|name| name.starts_with("nm_lookup")))
}

#[test]
fn each_namespace_has_a_copy_of_its_own_that_costs_little() {
    const NAMESPACES: u32 = 20;
    let pins = PinDir(PathBuf::from(format!("/sys/fs/bpf/nodemesh-copy-{}", std::process::id())));
    let (kernel, _refusals) = Kernel::load(&pins.0, Before::Gone).expect("the programs load");
    let before: Vec<u32> = copies().map(|one| one.id()).collect();
    let namespaces: Vec<_> =
        (1..=u64::from(NAMESPACES)).map(|cookie| (cookie, namespace().unwrap())).collect();
    let begun = Instant::now();
    for (cookie, netns) in &namespaces {
        kernel.attach_pod(netns.as_fd(), *cookie, cookie % 2 == 0).unwrap();
    }
    let each = begun.elapsed() / NAMESPACES;
    // Other tests load programs of that name too, and unload them.
    let new = copies().filter(|one| !before.contains(&one.id()));
    let sizes = new.filter_map(|one| Some(one.memory_locked().ok()? + one.size_jitted()));
    let mut sizes: Vec<u32> = sizes.collect();
    sizes.sort_unstable();
    assert!(sizes.len() >= NAMESPACES as usize, "{} copies", sizes.len());
    let bytes = sizes[sizes.len() / 2];
    assert!(bytes < COPY_BYTES, "{bytes}");
    writeln!(io::stdout(), "a copy for a namespace: {each:?}, {bytes} bytes").unwrap();
    // A second program for a namespace replaces the first. The link is found again. It is gone once
    // it is detached, or once its namespace is gone.
    let (cookie, netns) = &namespaces[0];
    kernel.attach_pod(netns.as_fd(), *cookie, true).unwrap();
    assert!(kernel.keep_attached(*cookie).unwrap() && kernel.is_attached(*cookie));
    assert_eq!(kernel.attached_pods().unwrap().len(), NAMESPACES as usize);
    kernel.detach_pod(*cookie).unwrap();
    assert!(!kernel.is_attached(*cookie) && !kernel.keep_attached(*cookie).unwrap());
    drop(namespaces);
    let deadline = Instant::now() + Duration::from_secs(30);
    while kernel.is_attached(2) {
        assert!(Instant::now() < deadline, "the namespace is gone, and its link is not");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn cleanup_of_nothing_is_clean() {
    let removed = cleanup(&PathBuf::from("/sys/fs/bpf/nodemesh-was-never-here")).unwrap();
    assert_eq!((removed.links, removed.maps), (0, 0));
}
