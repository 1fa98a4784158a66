//! A machine: processes below their own init, with their own mounts, name, cgroups and network.
//!
//! Programs started here see a whole machine. `/proc/1` is its init. `/run`, `/etc`, `/opt`,
//! `/var/lib` and `/var/log` are its own, and `/sys/fs/bpf` is a bpffs that no other machine has.
//! When the init is killed, the kernel kills all its other processes.

mod boot;
mod mounts;

use std::{
    ffi::OsString,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

pub use boot::{boot, init};

use crate::{
    bin_dir,
    capture::Capture,
    cluster::{cgroups, image, plan::Plan, programs},
    eventually,
    exec::{Output, Place},
    netns,
};

/// The cgroup of a machine's own programs, beside those of its pods.
pub(super) const SYSTEM: &str = "system";

/// Where a machine has the cluster's programs, and its search path.
const PROGRAMS: &str = "/opt/kubernetes/bin";
const PATH: &str =
    "/opt/kubernetes/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What follows a program's name where its process id is kept.
const NOTE: &str = ".started";

/// How long a program may take to be started, or to be gone when killed. It takes milliseconds
/// where nothing else runs.
const SOON: Duration = Duration::from_mins(1);

/// How long a command may run, in seconds.
const RUN_TIME_S: &str = "120";

/// How much of a log is shown when something fails.
const LAST_LINES: usize = 25;

/// A machine of a cluster.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name, as in the cluster.
    pub name: String,
    /// Its address on the link between the machines.
    pub address: Ipv4Addr,
    /// Its network namespace, as a file.
    pub netns: PathBuf,
    dir: PathBuf,
    cgroup: PathBuf,
}

/// What [`boot`] has to know of a machine.
#[derive(Debug, Serialize, Deserialize)]
struct Spec {
    name: String,
    netns: PathBuf,
    dir: PathBuf,
    /// Its cgroups, one in each hierarchy.
    cgroups: Vec<PathBuf>,
    programs: PathBuf,
}

impl Machine {
    pub(super) fn of(plan: &Plan, name: &str, address: Ipv4Addr) -> Self {
        Self {
            name: name.to_owned(),
            address,
            netns: netns::path(&plan.netns(name)),
            dir: plan.dir().join(name),
            cgroup: plan.cgroup(name),
        }
    }

    /// The file that is `path` inside the machine, one of its own directories.
    pub(super) fn file(&self, path: &str) -> PathBuf {
        let path = path.trim_start_matches('/');
        self.dir.join("root").join(path)
    }

    /// Makes its cgroups. The machines of a cluster do so one after the other, since they share the
    /// cgroup above.
    pub(super) fn make_cgroups(&self) -> Result<()> {
        cgroups::create(&self.cgroup, SYSTEM)
    }

    /// Makes the directories that it has for itself.
    pub(super) fn prepare(&self) -> Result<()> {
        for own in mounts::OWN {
            fs::create_dir_all(self.file(own))?;
        }
        let etc = self.file("etc");
        let copied = Command::new("cp").args(["-a", "/etc/."]).arg(&etc).output()?;
        ensure!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        fs::write(etc.join("hostname"), format!("{}\n", self.name))?;
        let id = &image::hex(self.dir.to_string_lossy().as_bytes())[..32];
        fs::write(etc.join("machine-id"), format!("{id}\n"))?;
        mounts::prepare_settings(&self.dir)
    }

    /// Starts its init. Its network namespace is there.
    pub(super) fn boot(&self) -> Result<()> {
        let spec = Spec {
            name: self.name.clone(),
            netns: self.netns.clone(),
            dir: self.dir.clone(),
            cgroups: cgroups::dirs(&self.cgroup)?,
            programs: programs::dir(),
        };
        let (file, log) = (self.dir.join("spec.json"), self.dir.join("init.log"));
        fs::write(&file, serde_json::to_string_pretty(&spec)?)?;
        let booted = Command::new(bin_dir().join("cluster"))
            .arg("boot")
            .arg(&file)
            .stdin(Stdio::null())
            .stderr(fs::File::create(&log)?)
            .output()
            .context("starting `cluster` (cargo build -p tests)")?;
        let pid = String::from_utf8_lossy(&booted.stdout).trim().to_owned();
        ensure!(
            booted.status.success() && !pid.is_empty(),
            "{} does not start:\n{}",
            self.name,
            last_lines(&log)
        );
        fs::write(self.pid_file(), pid)?;
        Ok(())
    }

    /// The process id of its init, if it runs.
    pub fn init(&self) -> Option<u32> {
        let pid: u32 = fs::read_to_string(self.pid_file()).ok()?.parse().ok()?;
        // Process ids are reused; its cgroup tells which machine a process belongs to.
        let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let own = format!("/{}", self.cgroup.join(SYSTEM).display());
        cgroups.lines().any(|line| line.ends_with(&own)).then_some(pid)
    }

    /// The command that will run `argv` in the machine, as one of its own programs.
    pub fn command<S: Into<OsString>>(&self, argv: impl IntoIterator<Item = S>) -> Result<Command> {
        let pid = self.init().with_context(|| format!("{} does not run", self.name))?;
        let dirs = cgroups::dirs(&self.cgroup.join(SYSTEM))?;
        let join = |dir: &PathBuf| format!("echo 0 > {}/cgroup.procs; ", dir.display());
        let joined = dirs.iter().map(join).collect::<Vec<_>>().concat();
        let enter = "exec nsenter --mount --uts --ipc --net --pid --cgroup";
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!("set -e; {joined}{enter} --target {pid} -- \"$@\""))
            .arg("sh");
        command.args(argv.into_iter().map(Into::into));
        command.env_clear().envs([("PATH", PATH), ("HOME", "/root"), ("LANG", "C.UTF-8")]);
        Ok(command)
    }

    /// Runs `argv` in the machine to its end; what it prints, if it succeeds.
    pub fn run<S: Into<OsString>>(&self, argv: impl IntoIterator<Item = S>) -> Result<String> {
        self.run_with(Stdio::null(), argv)
    }

    /// The same, with something to read.
    pub(super) fn run_with<S: Into<OsString>>(
        &self,
        stdin: Stdio,
        argv: impl IntoIterator<Item = S>,
    ) -> Result<String> {
        let argv: Vec<OsString> = argv.into_iter().map(Into::into).collect();
        let limited = ["timeout", "--kill-after=5", RUN_TIME_S].map(OsString::from);
        let mut command = self.command(limited.into_iter().chain(argv.iter().cloned()))?;
        let output = command.stdin(stdin).output()?;
        Output::of(&argv, &output).success().with_context(|| format!("on {}", self.name))
    }

    /// A place that has the machine's network, but the host's files: for a capture, or a client on
    /// the node itself.
    pub fn place(&self) -> Result<Place> {
        let logs = self.dir.join("logs");
        fs::create_dir_all(&logs)?;
        let cgroup = crate::cgroup::mount().join(&self.cgroup).join(SYSTEM);
        Ok(Place { netns: self.netns.clone(), cgroup, logs, name: self.name.clone() })
    }

    /// Starts listening on the link between the machines, at a node's end of it.
    pub fn capture(&self) -> Result<Capture> {
        let [a, b, c, _] = self.address.octets();
        Capture::start(&self.place()?, "uplink", Ipv4Addr::new(a, b, c, 255))
    }

    /// The same on the bridge between its pods. `pod` is the address of one of them; there is no
    /// bridge before the first pod.
    pub fn capture_pods(&self, pod: Ipv4Addr) -> Result<Capture> {
        let [a, b, c, _] = pod.octets();
        Capture::start(&self.place()?, "cni0", Ipv4Addr::new(a, b, c, 255))
    }

    /// Starts a program that runs on. Its output goes to `/var/log/NAME.log`.
    pub(super) fn start(&self, name: &str, argv: &[String]) -> Result<()> {
        let note = format!("/run/{name}{NOTE}");
        drop(self.run(["rm", "-f", &note])?);
        // The note is never there without the number in it: other threads check all programs.
        let script = format!(
            "echo $$ > {note}.new; mv {note}.new {note}; exec \"$@\" > /var/log/{name}.log 2>&1 < /dev/null"
        );
        // Its parent ends at once, so that the init becomes its parent.
        let detached = ["setsid", "--fork", "sh", "-c", &script, "sh"].map(str::to_owned);
        self.run(detached.iter().chain(argv))?;
        eventually(SOON, || self.process(name).map(drop).with_context(|| self.ended(name)))
    }

    /// Kills a program that [`Self::start`] has started.
    pub(super) fn kill(&self, name: &str) -> Result<()> {
        let process = self.process(name).with_context(|| self.ended(name))?;
        let pid = process.file_name().unwrap_or_default();
        self.run([OsString::from("kill"), "-KILL".into(), pid.into()])?;
        self.run(["rm".to_owned(), format!("/run/{name}{NOTE}")])?;
        eventually(SOON, || {
            ensure!(!process.exists(), "{name} on {} lives on", self.name);
            Ok(())
        })
    }

    /// The same of all programs that were started and not killed by us.
    pub(super) fn check_all(&self) -> Result<()> {
        if !self.pid_file().exists() {
            return Ok(());
        }
        let init = self.init().with_context(|| format!("the init of {} has ended", self.name))?;
        for note in fs::read_dir(format!("/proc/{init}/root/run")).into_iter().flatten().flatten() {
            let file = note.file_name().to_string_lossy().into_owned();
            if let Some(name) = file.strip_suffix(NOTE) {
                self.check(name)?;
            }
        }
        Ok(())
    }

    /// That a program still runs, or an error with the end of its log.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        self.process(name).map(drop).ok_or_else(|| anyhow!(self.ended(name)))
    }

    /// Whether a program runs that was started.
    pub(super) fn runs(&self, name: &str) -> bool {
        self.process(name).is_some()
    }

    /// Whether there is a file of that name inside, also where only the machine itself sees it.
    pub(super) fn has(&self, file: &str) -> bool {
        self.init().is_some_and(|pid| Path::new(&format!("/proc/{pid}/root{file}")).exists())
    }

    /// The process's directory in the machine's `/proc`.
    fn process(&self, name: &str) -> Option<PathBuf> {
        let root = PathBuf::from(format!("/proc/{}/root", self.init()?));
        let pid = fs::read_to_string(root.join(format!("run/{name}{NOTE}"))).ok()?;
        let process = root.join("proc").join(pid.trim());
        // Without a command line it is a zombie.
        let lives = fs::read(process.join("cmdline")).is_ok_and(|line| !line.is_empty());
        (lives && !pid.trim().is_empty()).then_some(process)
    }

    fn ended(&self, name: &str) -> String {
        format!("{name} on {} does not run:\n{}", self.name, self.last_lines(name))
    }

    /// The end of a program's log.
    pub(super) fn last_lines(&self, name: &str) -> String {
        last_lines(&self.file(&format!("var/log/{name}.log")))
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("init.pid")
    }
}

fn last_lines(file: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(file).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    last.iter().map(|line| format!("    {name}: {line}\n")).collect::<Vec<_>>().concat()
}
