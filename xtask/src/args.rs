//! Command lines: the commands that there are, and words turned into one of them with its checked
//! arguments.
//!
//! Written by hand because a parser crate would be most of xtask's build time, and every command
//! waits for that build.
use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::Result;

/// One command of `cargo xtask`.
pub(crate) struct Command {
    pub(crate) name: &'static str,
    /// One line, for the list of commands.
    pub(crate) about: &'static str,
    /// What `--help` adds, ready to print.
    pub(crate) details: &'static str,
    pub(crate) options: &'static [Opt],
    /// Words that are not options, e.g. `[NAME...]`; `None` if the command takes none.
    pub(crate) operands: Option<&'static str>,
    pub(crate) run: fn(&Args) -> Result<ExitCode>,
}

/// One option of a command.
pub(crate) struct Opt {
    /// With its dashes: `--for`.
    pub(crate) flag: &'static str,
    /// The values it may have; empty for an option without a value. One word in capitals, such as
    /// `N`, stands for any value: the command checks it.
    pub(crate) values: &'static [&'static str],
    pub(crate) about: &'static str,
}

/// A command's arguments. Every option in it is one that the command has, with a value that it may
/// have.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Args {
    options: Vec<(&'static str, String)>,
    pub(crate) operands: Vec<String>,
}

impl Args {
    /// Whether `flag` was given.
    pub(crate) fn has(&self, flag: &str) -> bool {
        self.value(flag).is_some()
    }

    /// The value given to `flag`; empty for an option without values.
    pub(crate) fn value(&self, flag: &str) -> Option<&str> {
        self.options.iter().rev().find(|(given, _)| *given == flag).map(|(_, value)| value.as_str())
    }
}

/// What the command line asks for.
pub(crate) enum Request<'a> {
    Help(String),
    Run(&'a Command, Args),
}

/// Words into a request; `Err` says what is wrong with them and what would be right.
pub(crate) fn parse(commands: &[Command], words: Vec<String>) -> Result<Request<'_>, String> {
    let mut words = words.into_iter();
    let name = match words.next() {
        None => return Err(format!("no command\n\n{}", overview(commands))),
        Some(word) if is_help(&word) || word == "help" => {
            return Ok(Request::Help(overview(commands)));
        }
        Some(word) => word,
    };
    let Some(command) = commands.iter().find(|c| c.name == name) else {
        let known: Vec<_> = commands.iter().map(|c| c.name).collect();
        return Err(format!("no command `{name}`; there are: {}", known.join(", ")));
    };
    let mut args = Args::default();
    while let Some(word) = words.next() {
        if is_help(&word) {
            return Ok(Request::Help(help(command)));
        }
        if word == "--" && command.operands.is_some() {
            args.operands.extend(words.by_ref());
        } else if word.starts_with('-') {
            args.options.push(option(command, &word, &mut words)?);
        } else if command.operands.is_some() {
            args.operands.push(word);
        } else {
            return Err(format!(
                "{name} takes no argument `{word}`; see `cargo xtask {name} --help`"
            ));
        }
    }
    Ok(Request::Run(command, args))
}

fn is_help(word: &str) -> bool {
    word == "--help" || word == "-h"
}

/// `word` as an option of `command`, its value after `=` or as the next word.
fn option(
    command: &Command,
    word: &str,
    rest: &mut impl Iterator<Item = String>,
) -> Result<(&'static str, String), String> {
    let name = command.name;
    let (flag, attached) = match word.split_once('=') {
        Some((flag, value)) => (flag, Some(value.to_owned())),
        None => (word, None),
    };
    let Some(opt) = command.options.iter().find(|opt| opt.flag == flag) else {
        let known: Vec<_> = command.options.iter().map(|opt| opt.flag).chain(["--help"]).collect();
        return Err(format!("{name} has no option `{flag}`; it has: {}", known.join(", ")));
    };
    if opt.values.is_empty() {
        return match attached {
            None => Ok((opt.flag, String::new())),
            Some(value) => Err(format!("{name} {flag} takes no value, but has `{value}`")),
        };
    }
    let allowed = opt.values.join(" or ");
    let Some(value) = attached.or_else(|| rest.next()) else {
        return Err(format!("{name} {flag} needs a value: {allowed}"));
    };
    if opt.values.iter().any(|known| *known == value || is_placeholder(known)) {
        return Ok((opt.flag, value));
    }
    Err(format!("{name} {flag} cannot be `{value}`; it is {allowed}"))
}

fn is_placeholder(value: &str) -> bool {
    value.bytes().all(|b| b.is_ascii_uppercase())
}

fn overview(commands: &[Command]) -> String {
    let mut text = "cargo xtask COMMAND\n\n".to_owned();
    for command in commands {
        let _ = writeln!(text, "  {:<12} {}", command.name, command.about);
    }
    text.push_str("\n`cargo xtask COMMAND --help` says more.");
    text
}

fn help(command: &Command) -> String {
    let mut text = format!("cargo xtask {}", command.name);
    for opt in command.options {
        let _ = write!(text, " [{}]", synopsis(opt));
    }
    if let Some(operands) = command.operands {
        let _ = write!(text, " {operands}");
    }
    let _ = write!(text, "\n\n{}\n\n{}\n", command.about, command.details);
    if !command.options.is_empty() {
        text.push('\n');
    }
    for opt in command.options {
        let _ = writeln!(text, "  {:<24} {}", synopsis(opt), opt.about);
    }
    text.trim_end().to_owned()
}

fn synopsis(opt: &Opt) -> String {
    if opt.values.is_empty() {
        opt.flag.to_owned()
    } else {
        format!("{} {}", opt.flag, opt.values.join("|"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: &[Opt] = &[
        Opt { flag: "--for", values: &["build", "test"], about: "what for" },
        Opt { flag: "--keep", values: &[], about: "keep it" },
        Opt { flag: "--seconds", values: &["N"], about: "how long" },
    ];
    const COMMANDS: &[Command] = &[
        Command {
            name: "plain",
            about: "Plain.",
            details: "More.",
            options: OPTIONS,
            operands: None,
            run: |_| Ok(ExitCode::SUCCESS),
        },
        Command {
            name: "named",
            about: "Named.",
            details: "More.",
            options: OPTIONS,
            operands: Some("[NAME...]"),
            run: |_| Ok(ExitCode::SUCCESS),
        },
    ];

    fn args(line: &str) -> Result<Args, String> {
        match parse(COMMANDS, line.split(' ').map(str::to_owned).collect())? {
            Request::Run(_, args) => Ok(args),
            Request::Help(text) => Err(text),
        }
    }

    #[test]
    fn options_have_their_value_attached_or_next() {
        for line in ["plain --for test --keep", "plain --keep --for=test"] {
            let args = args(line).unwrap();
            assert_eq!(args.value("--for"), Some("test"), "{line}");
            assert!(args.has("--keep"), "{line}");
        }
        assert_eq!(
            args("plain --for build --for test").unwrap().value("--for"),
            Some("test"),
            "the last one counts"
        );
    }

    #[test]
    fn a_value_in_capitals_stands_for_any() {
        assert_eq!(args("plain --seconds 7").unwrap().value("--seconds"), Some("7"));
        assert_eq!(args("plain --seconds").unwrap_err(), "plain --seconds needs a value: N");
    }

    #[test]
    fn words_are_operands_only_where_the_command_has_some() {
        assert_eq!(args("named a --keep b").unwrap().operands, ["a", "b"]);
        assert_eq!(args("named -- --keep").unwrap().operands, ["--keep"]);
        assert_eq!(
            args("plain a").unwrap_err(),
            "plain takes no argument `a`; see `cargo xtask plain --help`"
        );
    }

    #[test]
    fn what_is_wrong_is_answered_with_what_is_right() {
        assert_eq!(args("nothing").unwrap_err(), "no command `nothing`; there are: plain, named");
        assert_eq!(
            args("plain --kep").unwrap_err(),
            "plain has no option `--kep`; it has: --for, --keep, --seconds, --help"
        );
        assert_eq!(args("plain --for").unwrap_err(), "plain --for needs a value: build or test");
        assert_eq!(
            args("plain --for lunch").unwrap_err(),
            "plain --for cannot be `lunch`; it is build or test"
        );
        assert_eq!(
            args("plain --keep=yes").unwrap_err(),
            "plain --keep takes no value, but has `yes`"
        );
    }

    #[test]
    fn help_names_every_option() {
        let text = args("plain --help").unwrap_err();
        assert!(
            text.starts_with("cargo xtask plain [--for build|test] [--keep] [--seconds N]\n"),
            "{text}"
        );
        assert!(text.contains("--keep                   keep it"), "{text}");
    }
}
