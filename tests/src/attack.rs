//! `mesh-attack`: what a hostile pod does, and what another pod feels of it meanwhile. The tests
//! use this module; the program itself is in `src/bin/mesh-attack/`.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    agent::Agent,
    eventually,
    exec::{Place, Process},
    probe::to_args,
};

/// How long an attack may take to get going or to end.
const SOON: Duration = Duration::from_secs(20);

/// How long [`Kind::Late`] is silent. In that time the agent takes thousands of connections for
/// clients that wait for the server to speak.
pub const LATE: Duration = Duration::from_secs(4);

/// What to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Connect, say nothing, keep `hold` of them open.
    #[default]
    Silent,
    /// Connect, say a `ClientHello` that makes the server compute its whole answer, hear it, reset;
    /// again.
    Hello,
    /// Connect, say something that is not TLS, hear the end; again.
    Garbage,
    /// Keep `hold` connections open and say a `ClientHello` on each, a byte at a time.
    Drip,
    /// Keep `hold` connections open. Say a `ClientHello` on each after [`LATE`] of silence, and
    /// hear the answer.
    Late,
    /// Connect, say a line of a request, keep `hold` of them open and never read.
    Hold,
    /// Connect, keep `hold` of them open, write all that is taken and never read.
    Fill,
    /// Connect and reset, as fast as it goes.
    Dial,
    /// Have the kernel destroy the listening socket that a connection from `bind` to `to` would
    /// find.
    Destroy,
    /// Connect to its ports one after the other, and close. Where the handshake's last packet is
    /// dropped, the kernel keeps trying.
    Orphan,
    /// As [`Self::Orphan`], but keep `hold` handshakes from ending: a filter on each socket drops
    /// every answer.
    Deaf,
    /// Forged SYNs from the addresses below `forge` and the mesh's source ports; half-open for
    /// ever.
    Syn,
}

/// `mesh-attack attack`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AttackSpec {
    /// What to do.
    pub kind: Kind,
    /// The address to attack.
    pub to: SocketAddr,
    /// From this address and a source port of the mesh's, 61000 and up; without it as any client.
    pub bind: Option<IpAddr>,
    /// The /24 or /120 from which forged packets seem to come: its first address.
    pub forge: Option<IpAddr>,
    /// How many connections to keep open, over all workers.
    pub hold: u64,
    /// Threads.
    pub workers: u64,
    /// Attempts a second at most, over all workers.
    pub per_second: u64,
}

impl Default for AttackSpec {
    fn default() -> Self {
        let to = ([0, 0, 0, 0], 0).into();
        let (bind, forge) = (None, None);
        Self { kind: Kind::default(), to, bind, forge, hold: 1, workers: 1, per_second: 1_000_000 }
    }
}

impl AttackSpec {
    /// An attack of this kind.
    pub fn new(kind: Kind, to: SocketAddr) -> Self {
        Self { kind, to, ..Self::default() }
    }

    /// As an agent would dial: from this address and a source port that says that TLS follows.
    #[must_use]
    pub fn from(self, bind: IpAddr) -> Self {
        Self { bind: Some(bind), ..self }
    }
}

/// How far an attack is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Connections tried, or packets sent.
    pub attempts: u64,
    /// `connect` succeeded.
    pub connected: u64,
    /// `connect` did not, or the other side ended it.
    pub ended: u64,
    /// Open now.
    pub open: u64,
    /// Bytes that the other side has sent.
    pub heard: u64,
    /// Bytes that its kernel has taken, of a [`Kind::Fill`].
    #[serde(default)]
    pub said: u64,
    /// Connections on which it has said anything ([`Kind::Late`]).
    pub answered: u64,
}

/// `mesh-attack measure`: requests one after the other, each on its own connection unless
/// `keep_alive`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MeasureSpec {
    /// A server that answers lines.
    pub to: SocketAddr,
    /// How many requests.
    pub count: u64,
    /// All over one connection.
    pub keep_alive: bool,
}

impl Default for MeasureSpec {
    fn default() -> Self {
        Self { to: ([0, 0, 0, 0], 0).into(), count: 1, keep_alive: false }
    }
}

/// `mesh-attack keep`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeepSpec {
    /// Where to listen.
    pub listen: SocketAddr,
}

/// How long requests took, from before `connect` to the answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Times {
    /// Answered.
    pub ok: u64,
    /// Not answered rightly.
    pub failed: u64,
    /// Half of those answered took less, in µs.
    pub p50_us: u64,
    /// 99 % of those answered took less, in µs.
    pub p99_us: u64,
}

/// What an agent uses of the machine.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Its memory.
    pub rss_kib: u64,
    /// Its open descriptors, the connection that asks for the rest included, those of sessions that
    /// are kept for the next connection not.
    pub descriptors: usize,
    /// Open connections that it has records of.
    pub open: u64,
    /// Connections that it has refused because there were too many.
    pub refused: u64,
    /// Its process.
    pub pid: u64,
}

impl Usage {
    /// What it uses now.
    pub fn of(agent: &Agent) -> Result<Self> {
        let status = agent.cli(&["status", "-o", "json"])?.success()?;
        let status: Value = serde_json::from_str(&status)?;
        let counter = |name: &str| {
            status["counters"][name].as_u64().with_context(|| format!("no {name} in {status}"))
        };
        let sessions = &status["counters"]["sessions"];
        let kept = ["kept_outbound", "kept_inbound"].iter().filter_map(|it| sessions[it].as_u64());
        let kept: u64 = kept.sum();
        let pid = status["pid"].as_u64().context("no pid")?;
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let memory = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = memory.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let rss = rss.and_then(|rss| rss.split_whitespace().next()).context("no VmRSS")?;
        Ok(Self {
            rss_kib: rss.parse()?,
            descriptors: descriptors.saturating_sub(usize::try_from(kept)?),
            open: counter("open")?,
            refused: counter("refused_by_limits")?,
            pid,
        })
    }
}

/// An attack that is going on.
#[derive(Debug)]
pub struct Attack(Process);

/// Starts an attack. Its program runs with the least priority, so that its own computing delays no
/// other program.
pub fn start(place: &Place, spec: &AttackSpec) -> Result<Attack> {
    let argv = argv("attack", &to_args(spec)?);
    Ok(Attack(place.spawn(["nice", "-n", "19"].map(str::to_owned).into_iter().chain(argv))?))
}

/// Starts a server that keeps every connection and neither reads nor says anything.
pub fn keep(place: &Place, listen: SocketAddr) -> Result<Process> {
    let mut process = place.spawn(argv("keep", &to_args(&KeepSpec { listen })?))?;
    process.wait_for_line("listening on", SOON)?;
    Ok(process)
}

/// Makes requests to a server of lines and tells how long they took.
pub fn measure(place: &Place, spec: &MeasureSpec) -> Result<Times> {
    let stdout = place.run_for(Duration::from_mins(6), argv("measure", &to_args(spec)?))?;
    let stdout = stdout.success()?;
    serde_json::from_str(stdout.trim()).with_context(|| format!("no times in {stdout}"))
}

impl Attack {
    /// How far it is.
    pub fn tally(&self) -> Tally {
        let stdout = self.0.stdout();
        stdout.lines().rev().find_map(|line| serde_json::from_str(line).ok()).unwrap_or_default()
    }

    /// Waits until it is so far.
    pub fn wait(&self, what: &str, is: impl Fn(&Tally) -> bool) -> Result<Tally> {
        eventually(SOON, || {
            let tally = self.tally();
            ensure!(is(&tally), "not {what}: {tally:?} {}", self.0.stderr());
            Ok(tally)
        })
    }

    /// Ends it: everything it holds is closed.
    pub fn stop(self) -> Result<Tally> {
        let stdout = self.0.finish(SOON)?.success()?;
        let last = stdout.lines().last().with_context(|| format!("nothing in {stdout}"))?;
        Ok(serde_json::from_str(last)?)
    }
}

fn argv(command: &str, args: &[String]) -> Vec<String> {
    let program = crate::bin_dir().join("mesh-attack");
    let head = [program.to_string_lossy().into_owned(), command.to_owned()];
    head.into_iter().chain(args.iter().cloned()).collect()
}
