//! libFuzzer's program, with the fuzz targets of all crates in it. `cargo xtask fuzz` builds and
//! runs it.
//!
//! `MESH_FUZZ_TARGET` names the target; the arguments are libFuzzer's.
#![no_main]

use std::sync::LazyLock;

use fuzz_input::Target;
use libfuzzer_sys::fuzz_target;

fn targets() -> impl Iterator<Item = &'static Target> {
    mesh_wire::fuzz::TARGETS.iter().chain(mesh_agent::fuzz::TARGETS)
}

/// The target that `MESH_FUZZ_TARGET` names.
static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("MESH_FUZZ_TARGET").unwrap_or_default();
    targets().find(|(known, _)| *known == name).copied().unwrap_or_else(|| {
        let known: Vec<_> = targets().map(|(name, _)| *name).collect();
        panic!("MESH_FUZZ_TARGET={name} is no target; there are: {}", known.join(", "))
    })
});

fuzz_target!(|data: &[u8]| CHOSEN.1(data));
