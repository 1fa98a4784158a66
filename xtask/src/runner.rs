//! Runs tests. Unit tests run program by program, as many at once as there are processors. Each
//! whole-system test is a process of its own. Several run at once, because they wait more than they
//! compute. Those of different programs are mixed: otherwise each program's last test would leave a
//! processor idle.
//!
//! A whole-system test that fails is run again, alone. If it passes then, it counts as passed and
//! is listed as flaky. What it printed the first time is shown.
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use crate::lint;
use crate::process;
use crate::processors;
use crate::say;
use crate::tally::Tally;
use crate::test::is_about_nothing;
use crate::test_programs::TestProgram;
use crate::workspace::Workspace;

/// More flaky tests than this fail the run.
const MAX_FLAKY: usize = 2;

/// The program whose tests measure, or need the whole machine. Its modules run one after the other,
/// and no other program's tests run beside them.
const BY_THEMSELVES: &str = "load";

/// How many tests of such a module run at once, at most.
const MEASURED_AT_ONCE: usize = 2;

/// The program whose tests take longest, and wait most: most start a Kubernetes. They come first,
/// beside others.
const CLUSTER: &str = "cluster";
/// How many of them run at a time at most.
const CLUSTERS_AT_ONCE: usize = 2;

/// How many tests run at once. libtest reads it, too.
pub(crate) const THREADS: &str = "RUST_TEST_THREADS";

/// Which tests run, and how.
pub(crate) struct Chosen<'a> {
    /// Only tests whose paths contain one of these; all tests if there are none.
    pub(crate) names: &'a [String],
    /// How many whole-system tests run at once, at most.
    pub(crate) at_once: usize,
    /// Whether tests run in their long form, if they have one: `NODEMESH_LONG` is set for them.
    pub(crate) long: bool,
    /// Whether clippy ran as the compiler's wrapper. Doc tests then need the same wrapper, since
    /// cargo does not reuse what it has built with another one.
    pub(crate) linted: bool,
}

/// One whole-system test.
#[derive(Clone, Copy)]
struct Job<'a> {
    program: &'a TestProgram,
    test: &'a str,
    environment: &'a Environment,
}

/// What tests find in their environment, beside what cargo gives them.
type Environment = Vec<(&'static str, OsString)>;

/// How a test went.
struct Outcome {
    passed: bool,
    took: Duration,
    /// What it printed, errors too.
    said: String,
}

/// Which whole-system tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that other work may run beside.
    Ordinary,
    /// Those that measure, or take the whole machine.
    Measuring,
}

/// Runs the unit tests of these programs, and those in documentation.
///
/// # Errors
/// They could not be started, or a test failed.
pub(crate) fn unit_tests(
    workspace: &Workspace,
    programs: &[TestProgram],
    chosen: &Chosen<'_>,
    tally: &mut Tally,
) -> Result<()> {
    let names = chosen.names;
    let environment = chosen.environment(workspace);
    let mut failed = Vec::new();
    for program in programs.iter().filter(|program| !program.is_whole_system) {
        let mut command = command(program, &environment);
        command.args(names).env_remove(THREADS);
        if !run_and_print(&mut command, program.name(), !names.is_empty(), tally)? {
            failed.push(program.name().to_owned());
        }
    }
    let mut doc = process::cargo(workspace);
    doc.args(["test", "--doc", "--quiet", "--"]).args(names);
    if chosen.linted {
        lint::wrap_compiler(&mut doc, workspace);
    }
    if !run_and_print(&mut doc, "documentation", !names.is_empty(), tally)? {
        failed.push("documentation".to_owned());
    }
    none(&failed)
}

/// Runs whole-system tests of these programs. Adds those that passed at the second try to `flaky`.
///
/// # Errors
/// They could not be started, or a test failed.
pub(crate) fn whole_system_tests(
    workspace: &Workspace,
    programs: &[TestProgram],
    chosen: &Chosen<'_>,
    which: Which,
    (tally, flaky): (&mut Tally, &mut Vec<String>),
) -> Result<()> {
    let environment = &chosen.environment(workspace);
    let whole_system = programs.iter().filter(|program| program.is_whole_system);
    let tests: Vec<(&TestProgram, Vec<String>)> =
        whole_system.map(|it| Ok((it, list(it, chosen.names)?))).collect::<Result<_>>()?;
    let jobs = tests.iter().flat_map(|(program, tests)| {
        tests.iter().map(move |test| Job { program, test, environment })
    });
    let mut queues: BTreeMap<Option<&str>, VecDeque<Job<'_>>> = BTreeMap::new();
    for job in jobs.filter(|job| job.exclusive_module().is_some() == (which == Which::Measuring)) {
        queues.entry(job.exclusive_module()).or_default().push_back(job);
    }
    let at_once = match which {
        Which::Ordinary => chosen.at_once,
        Which::Measuring => chosen.at_once.min(MEASURED_AT_ONCE),
    };
    let mut failed = Vec::new();
    for jobs in queues.into_values() {
        flaky.extend(run_jobs(jobs, at_once, tally, &mut failed)?);
    }
    none(&failed)
}

fn none(failed: &[String]) -> Result<()> {
    ensure!(failed.is_empty(), "{} failed: {}", failed.len(), failed.join(", "));
    Ok(())
}

/// Whether any test ran, and few of them passed only at the second try.
///
/// # Errors
/// None ran, or too many were flaky.
pub(crate) fn judge(chosen: &Chosen<'_>, tally: &Tally, flaky: &[String]) -> Result<()> {
    for name in flaky {
        say::out(&format!(
            "flaky: {name}: failed once (see above), and passed when it was run again, alone"
        ));
    }
    if flaky.len() > MAX_FLAKY {
        bail!("{} tests were flaky, at most {MAX_FLAKY} may be", flaky.len());
    }
    if tally.passed + tally.failed == 0 {
        bail!(
            "no test ran{}",
            match chosen.names {
                [] => String::new(),
                names => format!(": no test's path contains {}", names.join(" or ")),
            }
        );
    }
    Ok(())
}

/// Runs all jobs and adds the failed ones to `failed`. Returns those that passed at the second try.
fn run_jobs(
    jobs: VecDeque<Job<'_>>,
    at_once: usize,
    tally: &mut Tally,
    failed: &mut Vec<String>,
) -> Result<Vec<String>> {
    let count = jobs.len();
    let queue = Mutex::new(Queue::of(jobs));
    let done = Mutex::new((&mut *tally, Vec::new()));
    let work = |starts_clusters: bool| -> Result<()> {
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next(starts_clusters);
        while let Some(job) = next() {
            let outcome = job.run()?;
            queue.lock().unwrap_or_else(PoisonError::into_inner).end(&job);
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            let (tally, failures) = &mut *done;
            outcome.tell(&job);
            if outcome.passed {
                outcome.said.lines().for_each(|line| tally.line(line));
            } else {
                failures.push(job);
            }
        }
        Ok(())
    };
    let (started, before) = (Instant::now(), processors::used()?);
    thread::scope(|scope| {
        let workers = (0..at_once).map(|it| scope.spawn(move || work(it < CLUSTERS_AT_ONCE)));
        let workers: Vec<_> = workers.collect();
        workers.into_iter().try_for_each(|worker| {
            worker.join().unwrap_or_else(|_panicked| Err(anyhow!("the runner itself broke")))
        })
    })?;
    let (tally, failures) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut flaky = Vec::new();
    for job in failures {
        say::out(&format!("test {} is run again, alone", job.name()));
        let (again, failed_before) = (job.run()?, tally.failed);
        again.tell(&job);
        again.said.lines().for_each(|line| tally.line(line));
        if again.passed {
            flaky.push(job.name());
            continue;
        }
        failed.push(job.name());
        // A killed program has printed no count of its tests.
        tally.failed = tally.failed.max(failed_before + 1);
    }
    if count > 0 {
        let (took, busy) = (started.elapsed().as_secs_f64(), processors::used()?.since(before));
        say::out(&format!(
            "{count} whole-system tests, {} flaky, {took:.1} s, processors {busy} % busy",
            flaky.len()
        ));
    }
    Ok(flaky)
}

/// The tests that have not begun.
struct Queue<'a> {
    clusters: VecDeque<Job<'a>>,
    others: VecDeque<Job<'a>>,
    /// How many tests of clusters are running.
    running: usize,
}

impl<'a> Queue<'a> {
    fn of(jobs: VecDeque<Job<'a>>) -> Self {
        let (clusters, others) = jobs.into_iter().partition(Job::is_of_clusters);
        Self { clusters, others, running: 0 }
    }

    /// The next test for a lane. Lanes that start no clusters are there only beside those that do.
    fn next(&mut self, starts_clusters: bool) -> Option<Job<'a>> {
        if !starts_clusters {
            let beside = self.running > 0 || !self.clusters.is_empty();
            return if beside { self.others.pop_front() } else { None };
        }
        let cluster = self.clusters.pop_front();
        self.running += usize::from(cluster.is_some());
        cluster.or_else(|| self.others.pop_front())
    }

    fn end(&mut self, job: &Job<'_>) {
        self.running -= usize::from(job.is_of_clusters());
    }
}

impl Chosen<'_> {
    fn environment(&self, workspace: &Workspace) -> Environment {
        let mut environment = Vec::new();
        if self.long {
            environment.push(("NODEMESH_LONG", "1".into()));
        }
        if self.linted {
            // A test that follows a page of the documentation runs cargo to build the agent. With
            // the same wrapper, cargo finds that it is already built.
            environment.push(lint::wrapper(workspace));
        }
        environment
    }
}

/// The command that starts a test program as cargo would.
fn command(program: &TestProgram, environment: &Environment) -> Command {
    let mut command = Command::new(&program.executable);
    command.current_dir(&program.package).env("CARGO_MANIFEST_DIR", &program.package);
    command.envs(environment.iter().map(|(name, value)| (name, value)));
    command
}

/// A program's tests whose names contain one of these, or all.
fn list(program: &TestProgram, names: &[String]) -> Result<Vec<String>> {
    let mut command = command(program, &Environment::new());
    let list =
        process::read_showing_errors(command.args(names).args(["--list", "--format", "terse"]))?;
    let test = |line: &str| line.strip_suffix(": test").map(str::to_owned);
    Ok(list.lines().filter_map(test).collect())
}

impl<'a> Job<'a> {
    fn name(&self) -> String {
        format!("{}::{}", self.program.name(), self.test)
    }

    /// The module, if only its own tests may run beside this one; `None` if any test may.
    fn exclusive_module(&self) -> Option<&'a str> {
        let module = self.test.split_once("::").map_or("", |(module, _)| module);
        (self.program.name() == BY_THEMSELVES).then_some(module)
    }

    fn is_of_clusters(&self) -> bool {
        self.program.name() == CLUSTER
    }

    fn run(&self) -> Result<Outcome> {
        let mut command = command(self.program, self.environment);
        command.args([self.test, "--exact", "--test-threads=1"]);
        let started = Instant::now();
        let output = command.stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot start {}", self.program.name()))?;
        let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok(Outcome { passed: output.status.success(), took: started.elapsed(), said })
    }
}

impl Outcome {
    fn tell(&self, job: &Job<'_>) {
        let word = if self.passed { "ok" } else { "FAILED" };
        let took = self.took.as_secs_f64();
        say::out(&format!("test {} ... {word} ({took:.1} s)", job.name()));
        if !self.passed {
            say::out(&self.said);
        }
    }
}

/// Runs a program and prints libtest's lines as they come. Returns whether it succeeded.
fn run_and_print(
    command: &mut Command,
    name: &str,
    only_some: bool,
    tally: &mut Tally,
) -> Result<bool> {
    let mut child = command.stdout(Stdio::piped()).spawn();
    let child = child.as_mut().map_err(|error| anyhow!("cannot start {name}: {error}"))?;
    let output = child.stdout.take().with_context(|| format!("{name} has no output"))?;
    say::out(&format!("     Running {name}"));
    for line in BufReader::new(output).split(b'\n') {
        let line = line.with_context(|| format!("cannot read what {name} prints"))?;
        let line = String::from_utf8_lossy(&line);
        tally.line(&line);
        if !only_some || !is_about_nothing(&line) {
            say::out(&line);
        }
    }
    Ok(child.wait().with_context(|| format!("cannot wait for {name}"))?.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scripted(script: &str) -> TestProgram {
        let dir = std::env::temp_dir().join(format!("nodemesh-runner-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let executable = dir.join(format!("{:x}", script.len()));
        std::fs::write(&executable, format!("#!/bin/sh\n{script}\n")).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&executable, mode).unwrap();
        let source = "tests/tests/scripted.rs".to_owned();
        TestProgram { source, executable, package: dir, is_whole_system: true }
    }

    fn program(source: &str) -> TestProgram {
        TestProgram {
            source: source.to_owned(),
            executable: "".into(),
            package: "".into(),
            is_whole_system: true,
        }
    }

    #[test]
    fn clusters_come_first_and_are_not_started_by_all() {
        let programs = ["agents", "cluster", "trust"]
            .map(|name| program(&format!("tests/tests/{name}/main.rs")));
        let environment = &Environment::new();
        let jobs = programs.iter().map(|program| Job { program, test: "one", environment });
        let mut queue = Queue::of(jobs.collect());
        let name = |job: Option<Job<'_>>| job.map(|job| job.name());
        let cluster = queue.next(true);
        assert_eq!(name(cluster).as_deref(), Some("cluster::one"));
        assert_eq!(name(queue.next(false)).as_deref(), Some("agents::one"), "beside it");
        queue.end(&cluster.unwrap());
        assert_eq!(name(queue.next(false)), None, "no cluster is left that waits");
        assert_eq!(name(queue.next(true)).as_deref(), Some("trust::one"));
        assert_eq!(name(queue.next(true)), None);
    }

    #[test]
    fn only_tests_that_measure_are_apart() {
        let (load, trust) =
            (program("tests/tests/load/main.rs"), program("tests/tests/trust/main.rs"));
        let environment = &Environment::new();
        let module = |program, test| {
            Job { program, test, environment }.exclusive_module().map(str::to_owned)
        };
        assert_eq!(module(&load, "attacks::clients::cut").as_deref(), Some("attacks"));
        assert_eq!(module(&trust, "strict::one"), None);
    }

    const PASSED: &str = "test result: ok. 1 passed; 0 failed; 0 ignored;";
    const FAILED: &str = "test result: FAILED. 0 passed; 1 failed; 0 ignored;";

    #[test]
    fn what_fails_is_run_once_more_and_what_passes_then_is_flaky() {
        let program = scripted(&format!(
            "case $1 in good) ;; flaky) mkdir seen 2>/dev/null && echo oops && exit 1 ;; \
             bad) echo '{FAILED}'; exit 1 ;; killed) kill -9 $$ ;; esac; echo '{PASSED}'"
        ));
        let environment = &Environment::new();
        let jobs = ["bad", "flaky", "good", "killed"].map(|test| Job {
            program: &program,
            test,
            environment,
        });
        let (mut tally, mut failed) = (Tally::default(), Vec::new());
        let flaky = run_jobs(jobs.into(), 2, &mut tally, &mut failed).unwrap();
        std::fs::remove_dir_all(&program.package).unwrap();
        assert_eq!(
            (flaky, failed),
            (
                vec!["scripted::flaky".to_owned()],
                vec!["scripted::bad".to_owned(), "scripted::killed".to_owned(),]
            )
        );
        assert_eq!((tally.passed, tally.failed), (2, 2));
    }
}
