//! libFuzzer's program, with every fuzz target of mesh-agent in it. `cargo xtask fuzz` builds and
//! runs it.
//!
//! `MESH_FUZZ_TARGET` names the target; the arguments are libFuzzer's.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use mesh_agent::fuzz::{TARGETS, Target, target};

/// The target that `MESH_FUZZ_TARGET` names.
static CHOSEN: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("MESH_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| {
        let known: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
        panic!("MESH_FUZZ_TARGET={name} is no target; there are: {}", known.join(", "))
    })
});

fuzz_target!(|data: &[u8]| CHOSEN.1(data));
