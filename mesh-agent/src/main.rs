//! Arguments in, exit code out.

use std::process::ExitCode;

fn main() -> ExitCode {
    mesh_agent::cli::main()
}
