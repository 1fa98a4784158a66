//! `cargo xtask fuzz`: the fuzz targets of all crates under libFuzzer.
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command as Process, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::args::{Args, Command, Opt};
use crate::build_ebpf;
use crate::needs::Purpose;
use crate::process;
use crate::say;
use crate::setup;
use crate::workspace::Workspace;

pub(crate) const COMMAND: Command = Command {
    name: "fuzz",
    about: "Fuzzes all code that reads what others wrote, guided by coverage (libFuzzer).",
    details: "\
TARGET is a directory of fuzz/corpus; without one, all targets run. The committed inputs of a target are
tried first. New inputs are kept in target/fuzz/corpus and used the next time. An input that breaks a
target is saved in target/fuzz/found. `cargo xtask test` runs each target for 24 seconds, beside the tests.

  cargo xtask fuzz records --seconds 3600     look at one target for an hour
  cargo xtask fuzz records --input FILE       try this one input and show what happens
  cargo xtask fuzz records --minimise         make the committed inputs anew out of all that were found",
    options: &[
        Opt { flag: "--seconds", values: &["N"], about: "how long for each target (60)" },
        Opt { flag: "--input", values: &["FILE"], about: "only this input, with a backtrace" },
        Opt { flag: "--minimise", values: &[], about: "fewest inputs of the same coverage into fuzz/corpus" },
    ],
    operands: Some("[TARGET...]"),
    run,
};

/// The default duration for each target.
const SECONDS: u64 = 60;
/// The duration for each target in `cargo xtask test`. The tests beside it come first and leave the
/// targets about a third of the processors. Every planted defect was found in less time than that
/// (CONTRIBUTING.md, "Fuzz").
const SECONDS_IN_TEST: u64 = 24;
/// The seed of the random choices in `cargo xtask test`. Elsewhere libFuzzer takes the clock.
const SEED_IN_TEST: u32 = 1;

/// How long one input may take. The largest takes a hundredth of a second.
const TIMEOUT_S: u64 = 10;
/// How much memory a run may take. Most targets stay below 50 MB; one that takes more than this
/// does not bound its memory.
const MAX_MEMORY_MB: u64 = 512;
/// Longest input: some records, some objects. Longer ones find less per second.
const MAX_INPUT_BYTES: u64 = 4096;
/// How often to check whether a run has ended.
const POLL: Duration = Duration::from_millis(50);

fn run(args: &Args) -> Result<ExitCode> {
    let workspace = Workspace::here();
    let known = targets(&workspace)?;
    let chosen = if args.operands.is_empty() { known.clone() } else { args.operands.clone() };
    if let Some(wrong) = chosen.iter().find(|name| !known.contains(name)) {
        bail!("no target `{wrong}`; there are: {}", known.join(", "));
    }
    let seconds = match args.value("--seconds") {
        None => SECONDS,
        Some(text) => match text.parse() {
            Ok(seconds @ 1..) => seconds,
            _ => bail!("--seconds cannot be `{text}`; it is a number from 1"),
        },
    };
    setup::ensure(&workspace, Purpose::Test)?;
    let fuzzer = Fuzzer::build(workspace)?;
    match (args.value("--input"), args.has("--minimise"), chosen.as_slice()) {
        (Some(file), false, [target]) => fuzzer.try_input(target, Path::new(file)),
        (None, true, [target]) => fuzzer.minimise(target),
        (None, false, _) => {
            fuzzer.all(&chosen, seconds, false)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => bail!(
            "--input and --minimise are for one target: `cargo xtask fuzz TARGET --input FILE`"
        ),
    }
}

/// Builds what [`gate`] runs.
pub(crate) fn build(workspace: Workspace) -> Result<()> {
    Fuzzer::build(workspace).map(drop)
}

/// Runs every target for [`SECONDS_IN_TEST`], as a gate of `cargo xtask test`. The seed is fixed,
/// so that a commit is judged by its changes rather than by luck. Runs still differ: the machine's
/// speed decides how many inputs are tried, and inputs that earlier runs left in
/// `target/fuzz/corpus` are read too.
pub(crate) fn gate(workspace: Workspace) -> Result<()> {
    let targets = targets(&workspace)?;
    Fuzzer::build(workspace)?.all(&targets, SECONDS_IN_TEST, true)
}

/// A target has its inputs in a directory of its name. The program refuses a name that no crate
/// has; each crate's tests refuse a target without inputs.
fn targets(workspace: &Workspace) -> Result<Vec<String>> {
    let corpus = workspace.root.join("fuzz/corpus");
    let names = files(&corpus)?
        .into_iter()
        .filter_map(|path| path.file_name().map(|name| name.to_string_lossy().into_owned()));
    let mut names: Vec<_> = names.collect();
    names.sort();
    Ok(names)
}

/// The program with all targets in it.
struct Fuzzer {
    workspace: Workspace,
    program: PathBuf,
}

/// A target that is being fuzzed.
struct Running {
    target: String,
    child: Child,
}

impl Fuzzer {
    /// Only our own crates are instrumented: all others are those of `cargo build`.
    fn build(workspace: Workspace) -> Result<Self> {
        build_ebpf::build(&workspace)?; // mesh-agent's build script wants it
        let mut cargo = process::cargo(&workspace);
        cargo.args(["build", "--quiet", "--package", "fuzz"]);
        cargo.env("RUSTC_WORKSPACE_WRAPPER", workspace.root.join("fuzz/rustc"));
        process::run(&mut cargo)?;
        let program = workspace.programs("debug").join("fuzz");
        Ok(Self { workspace, program })
    }

    /// As many targets at once as there are processors. In `cargo xtask test`, tests run beside
    /// them.
    fn all(&self, targets: &[String], seconds: u64, in_test: bool) -> Result<()> {
        let at_once = std::thread::available_parallelism().map_or(1, usize::from);
        let mut waiting = targets.iter();
        let mut running: Vec<Running> = Vec::new();
        let mut broken = Vec::new();
        loop {
            while running.len() < at_once
                && let Some(target) = waiting.next()
            {
                running.push(self.start(target, seconds, in_test)?);
            }
            if running.is_empty() {
                break;
            }
            std::thread::sleep(POLL);
            let mut still = Vec::new();
            for mut one in running {
                match one.child.try_wait().context("cannot wait for a fuzzer")? {
                    None => still.push(one),
                    Some(status) if status.success() => {
                        say::progress(
                            "fuzz",
                            &format!("{:<14} {}", one.target, self.told(&one.target)),
                        );
                    }
                    Some(_) => {
                        say::progress("fuzz", &self.defect(&one.target));
                        broken.push(one.target);
                    }
                }
            }
            running = still;
        }
        if !broken.is_empty() {
            bail!(
                "{} of {} targets are broken: {}",
                broken.len(),
                targets.len(),
                broken.join(", ")
            );
        }
        say::progress(
            "fuzz",
            &format!("{} targets, {seconds} s each, nothing found", targets.len()),
        );
        Ok(())
    }

    fn start(&self, target: &str, seconds: u64, in_test: bool) -> Result<Running> {
        let found = self.directory("found", target)?;
        let log = self.log(target);
        let output =
            File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut fuzzer = self.command(target);
        fuzzer.arg(format!("-max_total_time={seconds}"));
        if in_test {
            fuzzer.arg(format!("-seed={SEED_IN_TEST}"));
        }
        fuzzer.arg(format!("-artifact_prefix={}/", found.display()));
        // New inputs go to the first directory; both are read.
        fuzzer.arg(self.directory("corpus", target)?).arg(self.committed(target));
        if in_test {
            fuzzer = process::at_low_priority(&fuzzer);
        }
        fuzzer.stdin(Stdio::null()).stdout(Stdio::null()).stderr(output);
        let child = fuzzer.spawn().context("cannot start the fuzzer")?;
        Ok(Running { target: target.to_owned(), child })
    }

    fn try_input(&self, target: &str, file: &Path) -> Result<ExitCode> {
        let status = self.command(target).arg(file).status().context("cannot start the fuzzer")?;
        if status.success() {
            say::progress("fuzz", &format!("{} does not break {target}", file.display()));
            return Ok(ExitCode::SUCCESS);
        }
        Ok(ExitCode::FAILURE)
    }

    /// Selects the committed inputs anew. Inputs that people gave a name stay; of all others, the
    /// fewest that reach the same places of the code.
    fn minimise(&self, target: &str) -> Result<ExitCode> {
        let (committed, found) = (self.committed(target), self.directory("corpus", target)?);
        let merged = self.directory("merged", target)?;
        fs::remove_dir_all(&merged)?;
        fs::create_dir_all(&merged)?;
        let mut merge = self.command(target);
        merge.args(["-set_cover_merge=1", "-use_counters=0"]);
        merge.arg(&merged).arg(&committed).arg(&found);
        process::run_quietly(&mut merge)?;
        let mut named = Vec::new();
        let before = files(&committed)?;
        for path in &before {
            if is_named_by_libfuzzer(path) {
                fs::remove_file(path)?;
            } else {
                named.push(fs::read(path)?);
            }
        }
        for path in files(&merged)? {
            if !named.contains(&fs::read(&path)?) {
                fs::copy(&path, committed.join(path.file_name().unwrap_or_default()))?;
            }
        }
        let (before, after) = (before.len(), files(&committed)?.len());
        say::progress("fuzz", &format!("{target}: {after} committed inputs, {before} before"));
        Ok(ExitCode::SUCCESS)
    }

    fn command(&self, target: &str) -> Process {
        let mut fuzzer = Process::new(&self.program);
        fuzzer.current_dir(&self.workspace.root).env("MESH_FUZZ_TARGET", target);
        fuzzer.env("RUST_BACKTRACE", "1");
        fuzzer.arg(format!("-timeout={TIMEOUT_S}")).arg(format!("-rss_limit_mb={MAX_MEMORY_MB}"));
        fuzzer.arg(format!("-max_len={MAX_INPUT_BYTES}"));
        fuzzer
    }

    /// What a run that found nothing did: its last words, and how much of the code it has seen.
    fn told(&self, target: &str) -> String {
        let log = read_lossy(&self.log(target));
        let done = log.lines().rfind(|line| line.starts_with("Done ")).unwrap_or("ended early");
        let seen = log
            .lines()
            .rev()
            .find_map(|line| line.split_once(" cov: "))
            .map_or("", |(_, rest)| rest);
        let blocks = seen.split(' ').next().unwrap_or_default();
        format!("{done}, {blocks} places of the code seen")
    }

    /// What broke it, and what to do about it.
    fn defect(&self, target: &str) -> String {
        let log = read_lossy(&self.log(target));
        let mut lines = log.lines();
        let mut what: Vec<_> = lines
            .by_ref()
            .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
            .take_while(|line| !line.starts_with("stack backtrace"))
            .take(8)
            .collect();
        if what.is_empty() {
            what = log.lines().rev().take(8).collect::<Vec<_>>().into_iter().rev().collect();
        }
        let input = log.lines().find_map(|line| line.split_once("Test unit written to "));
        let again = input.map_or_else(
            || format!("the whole log is {}", self.log(target).display()),
            |(_, file)| {
                let file = Path::new(file);
                let file = file.strip_prefix(&self.workspace.root).unwrap_or(file).display();
                format!(
                    "again with a backtrace: cargo xtask fuzz {target} --input {file}\n\
                     to keep as a test: cp {file} fuzz/corpus/{target}/NAME"
                )
            },
        );
        format!("{target:<14} BROKEN\n{}\n{again}", what.join("\n"))
    }

    fn committed(&self, target: &str) -> PathBuf {
        self.workspace.root.join("fuzz/corpus").join(target)
    }

    fn log(&self, target: &str) -> PathBuf {
        self.workspace.root.join("target/fuzz").join(format!("{target}.log"))
    }

    /// `target/fuzz/<kind>/<target>`, which is made.
    fn directory(&self, kind: &str, target: &str) -> Result<PathBuf> {
        let directory = self.workspace.root.join("target/fuzz").join(kind).join(target);
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        Ok(directory)
    }
}

/// A log may quote an input.
fn read_lossy(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    Ok(entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?)
}

/// The SHA-1 of its content, in hexadecimal.
fn is_named_by_libfuzzer(file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|b| b.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committed_input_with_a_name_is_told_from_one_that_libfuzzer_made() {
        assert!(is_named_by_libfuzzer(Path::new("x/b8e65fb39cb1c499106c8354028c29e30eba4137")));
        assert!(!is_named_by_libfuzzer(Path::new("x/open-with-pod")));
    }

    #[test]
    fn the_targets_are_the_directories_of_inputs() {
        let targets = targets(&Workspace::here()).unwrap();
        assert!(targets.iter().any(|name| name == "frames"), "{targets:?}");
        assert!(targets.is_sorted());
    }
}
