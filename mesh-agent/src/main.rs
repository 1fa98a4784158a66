//! Arguments in, exit code out.

use std::process::ExitCode;

/// Thousands of connections come and go, and their memory has to go back to the system (`soak.rs`).
/// The allocator's settings are in `.cargo/config.toml`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    mesh_agent::cli::main()
}
