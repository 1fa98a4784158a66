//! The only place that prints: progress and errors on stderr, results on stdout.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the command line's one mouth"
)]

/// A short line about what `command` is doing now.
pub(crate) fn progress(command: &str, text: &str) {
    eprintln!("{command}: {text}");
}

/// What a compiler has to say of a source, with its own line breaks.
pub(crate) fn diagnostic(text: &str) {
    eprint!("{text}");
}

/// Why a command failed or was not understood; `text` already says which one.
pub(crate) fn error(text: &str) {
    eprintln!("xtask: {text}");
}

/// A result: help texts, what tests printed, the closing line.
pub(crate) fn out(text: &str) {
    println!("{text}");
}
