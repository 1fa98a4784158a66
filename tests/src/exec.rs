//! Programs run at a [`Place`]: in a pod's (or node's) network namespace and cgroup, from their
//! first instruction.

use std::{
    ffi::{OsStr, OsString},
    fmt::{self, Display},
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{bin_dir, promptly};

/// Longest time that a program run to its end may take.
pub const RUN_TIME: Duration = Duration::from_secs(20);

/// How long a program may take to end once it has been told to.
const STOP_TIME: Duration = Duration::from_secs(10);

/// Where a program runs.
#[derive(Debug, Clone)]
pub struct Place {
    /// The network namespace, as a file.
    pub netns: PathBuf,
    /// The cgroup directory.
    pub cgroup: PathBuf,
    /// Where the output of programs is kept, to be printed on failure.
    pub logs: PathBuf,
    /// Comes first in the names of those files.
    pub name: String,
}

/// What a program that has ended left.
#[derive(Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
    command: String,
}

/// A running program; ended (and waited for) when dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    stdin: Option<ChildStdin>,
    command: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Place {
    /// The command that will run `argv` here. The process is in the cgroup and the namespace before
    /// `argv` starts.
    pub fn command<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(bin_dir().join("mesh-probe"));
        command.arg("in").arg(&self.netns).arg(&self.cgroup).args(argv);
        command
    }

    /// Runs `argv` to its end, at most [`RUN_TIME`].
    pub fn run<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Output> {
        self.run_for(RUN_TIME, argv)
    }

    /// Runs `argv` to its end, at most `limit`.
    pub fn run_for<S: AsRef<OsStr>>(
        &self,
        limit: Duration,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<Output> {
        let mut process = self.spawn(argv)?;
        process.stdin = None;
        process.wait(limit)
    }

    /// Starts `argv` in the background. Its standard input stays open until
    /// [`Process::close_stdin`].
    pub fn spawn<S: AsRef<OsStr>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Process> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let argv: Vec<OsString> = argv.into_iter().map(|a| a.as_ref().to_owned()).collect();
        let program = Path::new(argv.first().context("no program")?);
        let program = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let log = self.logs.join(format!("{number:04}-{}-{program}", self.name));
        let (stdout, stderr) = (log.with_extension("out"), log.with_extension("err"));
        let mut child = self
            .command(&argv)
            .stdin(Stdio::piped())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()
            .context("starting mesh-probe (cargo build -p tests)")?;
        let stdin = child.stdin.take();
        let command = argv.join(OsStr::new(" ")).to_string_lossy().into_owned();
        Ok(Process { child, stdin, command: format!("{}: {command}", self.name), stdout, stderr })
    }
}

impl Output {
    /// What `argv` has left.
    pub fn of(argv: &[OsString], output: &std::process::Output) -> Self {
        Self {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command: argv.join(OsStr::new(" ")).to_string_lossy().into_owned(),
        }
    }

    /// What it printed, if it succeeded.
    pub fn success(self) -> Result<String> {
        if self.status.success() { Ok(self.stdout) } else { bail!("{self}") }
    }
}

impl Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, stdout, stderr } = self;
        write!(f, "`{command}`: {status}\n{stdout}\n{stderr}")
    }
}

impl Process {
    /// Its process id.
    ///
    /// # Panics
    /// Never on Linux, where process ids are positive `i32`s.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// All that it has printed until now.
    pub fn stdout(&self) -> String {
        read_lossy(&self.stdout)
    }

    /// All that it has complained about until now.
    pub fn stderr(&self) -> String {
        read_lossy(&self.stderr)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until `find` answers for some line of its output (either kind), and returns the
    /// answer.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        find: impl Fn(&str) -> Option<T>,
    ) -> Result<T> {
        promptly(deadline, || {
            let ended = self.child.try_wait()?;
            let all = self.stdout() + &self.stderr();
            let whole_lines = all.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            whole_lines.map(str::trim_end).find_map(&find).ok_or_else(|| {
                let state = ended.map_or_else(|| "runs".to_owned(), |status| status.to_string());
                anyhow!("no {what} from `{}` ({state}), which said:\n{all}", self.command)
            })
        })
    }

    /// Waits for a line with `text` in it, and returns the line.
    pub fn wait_for_line(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let found = |line: &str| line.contains(text).then(|| line.to_owned());
        self.wait_for(&format!("line with {text:?}"), deadline, found)
    }

    /// Ends its standard input, which our own programs take as "finish".
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        kill(self.pid(), signal).with_context(|| format!("{signal} to `{}`", self.command))
    }

    /// Waits for its end; after `limit` it is killed, which is an error.
    pub fn wait(mut self, limit: Duration) -> Result<Output> {
        let ended = promptly(limit, || {
            let ended = self.child.try_wait()?;
            ended.with_context(|| format!("`{}` has not ended: {}", self.command, self.stderr()))
        });
        Ok(Output {
            status: ended?,
            stdout: self.stdout(),
            stderr: self.stderr(),
            command: self.command.clone(),
        })
    }

    /// Closes its standard input and waits for its end.
    pub fn finish(mut self, limit: Duration) -> Result<Output> {
        self.close_stdin();
        self.wait(limit)
    }

    /// SIGTERM, and wait.
    pub fn stop(self) -> Result<Output> {
        self.signal(Signal::SIGTERM)?;
        self.wait(STOP_TIME)
    }

    /// SIGKILL, and wait.
    pub fn kill9(self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        let output = self.wait(STOP_TIME)?;
        ensure!(!output.status.success(), "it ended by itself: {output:?}");
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if it has ended already, and that is what is wanted.
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

fn read_lossy(file: &Path) -> String {
    String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned()
}
