//! Finds the eBPF object that `cargo xtask build-ebpf` made, and copies it to `OUT_DIR`. `kernel/`
//! embeds the copy.
//!
//! `MESH_EBPF_OBJECT` names another object. Without an object the crate still compiles, so that
//! editors, clippy and the pure tests need no eBPF toolchain. Such an agent says at its start what
//! is missing.
use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let object = env::var_os("MESH_EBPF_OBJECT").map_or_else(
        || {
            PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default())
                .join("../target/bpf/mesh-ebpf")
        },
        PathBuf::from,
    );
    println!("cargo::rerun-if-changed={}", object.display());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("mesh-ebpf");
    let bytes = fs::read(&object).unwrap_or_default();
    if let Err(error) = fs::write(&out, bytes) {
        println!("cargo::error=cannot write {}: {error}", out.display());
    }
}
