//! The only place that prints: progress and errors on stderr, results on stdout.
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "everything that xtask prints goes through here"
)]

/// A short line about what `command` is doing now.
pub(crate) fn progress(command: &str, text: &str) {
    eprintln!("{command}: {text}");
}

/// A compiler's diagnostic, with its own line breaks.
pub(crate) fn diagnostic(text: &str) {
    eprint!("{text}");
}

/// Why a command failed or was not understood; `text` names the command.
pub(crate) fn error(text: &str) {
    eprintln!("xtask: {text}");
}

/// A result: help texts, what tests printed, the closing line.
pub(crate) fn out(text: &str) {
    println!("{text}");
}
