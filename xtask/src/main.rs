//! `cargo xtask COMMAND`: arguments in, exit code out. Each command has a file of its own.
mod apt;
mod args;
#[cfg(test)]
mod arrows;
mod bench;
mod build;
mod build_ebpf;
mod cache;
mod cargo_tools;
mod cluster;
mod columns;
mod demo;
mod fuzz;
mod gates;
mod image;
mod kernels;
mod lint;
mod manifest;
mod needs;
mod process;
mod processors;
mod runner;
mod say;
mod setup;
mod tally;
mod test;
mod test_programs;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use args::{Command, Request};

const COMMANDS: &[Command] = &[
    setup::COMMAND,
    build_ebpf::COMMAND,
    build::COMMAND,
    lint::COMMAND,
    test::COMMAND,
    demo::COMMAND,
    manifest::COMMAND,
    cluster::COMMAND,
    bench::COMMAND,
    fuzz::COMMAND,
    image::COMMAND,
];

/// The arguments were wrong; nothing was done.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match args::parse(COMMANDS, words) {
        Ok(Request::Help(text)) => {
            say::out(&text);
            ExitCode::SUCCESS
        }
        Ok(Request::Run(command, args)) => (command.run)(&args).unwrap_or_else(|error| {
            say::error(&format!("{}: {error:#}", command.name));
            ExitCode::FAILURE
        }),
        Err(wrong) => {
            say::error(&wrong);
            ExitCode::from(EXIT_USAGE)
        }
    }
}
