//! Network namespaces by name, as `ip netns` keeps them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fs::{self, File},
    io::Write as _,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    sched::{CloneFlags, setns},
    unistd::Pid,
};

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";

/// The file that stands for the namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(NAMES).join(name)
}

/// All named namespaces of the machine.
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(NAMES).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().into_string().ok()).collect()
}

/// Makes a namespace whose IPv6 addresses are usable at once and which forwards if `router`.
pub fn add(name: &str, router: bool) -> Result<()> {
    named(name, &format!("netns add {name}"))?;
    inside(&path(name), || -> Result<()> {
        if router {
            sysctl("net.ipv4.ip_forward", "1")?;
            sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
        Ok(())
    })?
}

/// Gives a process' namespace a name, and makes its IPv6 addresses usable at once.
pub fn attach(name: &str, process: Pid) -> Result<()> {
    named(name, &format!("netns attach {name} {process}"))
}

fn named(name: &str, command: &str) -> Result<()> {
    // `ip netns` prepares /run/netns on first use. Two at once, also of two processes, get in each
    // other's way.
    let lock = Flock::lock(
        File::create(env::temp_dir().join("nodemesh-tests.lock"))?,
        FlockArg::LockExclusive,
    );
    let one_at_a_time = lock.map_err(|(_, error)| error)?;
    let added = ip(None, command);
    drop(one_at_a_time);
    added?;
    inside(&path(name), || -> Result<()> {
        sysctl("net.ipv6.conf.all.accept_dad", "0")?;
        sysctl("net.ipv6.conf.default.accept_dad", "0")
    })?
}

/// Removes the names; the namespaces go with their last process and socket.
pub fn remove(names: &[String]) -> Result<()> {
    let errors: Vec<String> = names
        .iter()
        .filter_map(|name| ip(None, &format!("netns del {name}")).err())
        .map(|e| format!("{e:#}"))
        .collect();
    if errors.is_empty() { Ok(()) } else { bail!(errors.join("; ")) }
}

/// Runs `ip -batch` with these lines, in a namespace or in our own.
pub fn ip(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("starting `ip` (package iproute2)")?;
    child.stdin.take().expect("piped").write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("ip in {}: {}\n{lines}", netns.unwrap_or("our own namespace"), said.trim());
}

/// Runs `f` on a thread inside the namespace, which has its own `/proc/thread-self/net`,
/// `/proc/sys/net` and sockets.
pub fn inside<T: Send>(netns: &Path, f: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(netns).with_context(|| format!("no namespace {}", netns.display()))?;
    thread::scope(|scope| {
        let thread = scope.spawn(|| -> Result<T> {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Sets a kernel setting of the calling thread's namespace.
fn sysctl(name: &str, value: &str) -> Result<()> {
    let file = format!("/proc/sys/{}", name.replace('.', "/"));
    fs::write(&file, value).with_context(|| format!("writing {value} to {file}"))
}

/// The addresses on which some TCP socket of the namespace listens (`/proc/net/tcp` and `tcp6`).
pub fn listeners(netns: &Path) -> Result<BTreeSet<SocketAddr>> {
    let tables = inside(netns, || {
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")))
    })?;
    let mut all = BTreeSet::new();
    for table in tables {
        // proc_net_tcp: the local address in hexadecimal, and the state; 0A is LISTEN.
        for line in table?.lines().skip(1) {
            let mut fields = line.split_whitespace().skip(1);
            let (local, state) = (fields.next().context("no address")?, fields.nth(1));
            if state == Some("0A") {
                all.insert(parse_hex(local).with_context(|| format!("address {local}"))?);
            }
        }
    }
    Ok(all)
}

/// An address as the kernel prints it: words of 32 bits in the machine's byte order, then the port.
fn parse_hex(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| u32::from_str_radix(address.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip = if address.len() == 8 {
        IpAddr::from(word(0)?.to_ne_bytes())
    } else {
        let words = [word(0)?, word(1)?, word(2)?, word(3)?].map(u32::to_ne_bytes);
        IpAddr::from(<[u8; 16]>::try_from(words.as_flattened()).ok()?)
    };
    Some((ip, u16::from_str_radix(port, 16).ok()?).into())
}

/// All that a program in the namespace could find changed: every kernel setting, address, rule,
/// route and listener.
pub fn fingerprint(name: &str) -> Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for listener in listeners(&path(name))? {
        all.insert(format!("listener {listener}"), String::new());
    }
    for (what, arguments) in [
        ("links", "-o link"),
        ("addresses", "-o addr"),
        ("rules", "rule"),
        ("rules of IPv6", "-6 rule"),
        ("routes", "route show table all"),
        ("routes of IPv6", "-6 route show table all"),
    ] {
        let output = Command::new("ip").args(["-n", name]).args(arguments.split(' ')).output()?;
        all.insert(what.to_owned(), String::from_utf8_lossy(&output.stdout).into_owned());
    }
    inside(&path(name), || read_sysctls(Path::new("/proc/sys/net"), &mut all))?;
    Ok(all)
}

/// What differs between two fingerprints, for people.
pub fn differences(
    before: &BTreeMap<String, String>,
    after: &BTreeMap<String, String>,
) -> Vec<String> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differ = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    differ.map(|key| format!("{key}: {:?} -> {:?}", before.get(key), after.get(key))).collect()
}

fn read_sysctls(dir: &Path, all: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            read_sysctls(&path, all);
        } else if let Ok(value) = fs::read_to_string(&path)
            // Some of them are counters.
            && !path.ends_with("nf_conntrack_count")
        {
            all.insert(path.display().to_string(), value);
        }
    }
}
