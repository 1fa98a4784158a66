//! What the kernel holds of one node's agent, as bpftool and /proc tell it: to be compared before
//! and after.

use std::{
    collections::BTreeMap, fs, os::unix::fs::MetadataExt as _, path::Path, process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{Node, Pod, agent::Agent};

/// Everything that could grow, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inventory {
    /// Programs that run on the cgroup above the node's pods, in the kernel's order.
    pub on_cgroup: Vec<String>,
    /// Programs in the kernel that use this node's maps: those that run, and those that the agent
    /// has loaded.
    pub programs: Vec<String>,
    /// Pinned links.
    pub links: Vec<String>,
    /// Pinned maps, and how many entries each has. Maps that count are left out.
    pub entries: BTreeMap<String, usize>,
    /// Bytes that the pinned maps take in the kernel.
    pub map_bytes: u64,
}

/// What a process holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// Open descriptors.
    pub descriptors: usize,
    /// Resident memory in KiB.
    pub resident_kib: u64,
}

impl Inventory {
    /// The inventory of a node, whether or not its agent runs.
    pub fn of(node: &Node) -> Result<Self> {
        let layout = layout(node)?;
        let (mut entries, mut maps, mut map_bytes) = (BTreeMap::new(), Vec::new(), 0);
        for name in names(&layout.join("maps"))? {
            let pin = layout.join("maps").join(&name);
            let facts = bpftool(&["map", "show", "pinned", &pin.to_string_lossy()])?;
            maps.push(number(&facts, "id"));
            map_bytes += number(&facts, "bytes_memlock");
            // Sockets' own storage cannot be listed.
            let listed =
                !name.contains("VERDICTS") && name != "EVENTS_LOST" && name != "SHOWN_PEER";
            if listed {
                let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()])?;
                entries.insert(name, dump.as_array().map_or(0, Vec::len));
            }
        }
        let uses_ours = |program: &&Value| {
            let used = program.get("map_ids").and_then(Value::as_array);
            used.is_some_and(|used| {
                used.iter().filter_map(Value::as_u64).any(|id| maps.contains(&id))
            })
        };
        let all = bpftool(&["prog", "show"])?;
        let mut programs: Vec<_> =
            all.as_array().into_iter().flatten().filter(uses_ours).map(name_of).collect();
        programs.sort();
        let cgroup = node.pods_cgroup().to_string_lossy().into_owned();
        let on_cgroup = bpftool(&["cgroup", "show", &cgroup])?;
        let mut links = names(&layout.join("links"))?;
        links.extend(names(&layout.join("pods"))?);
        let on_cgroup = on_cgroup.as_array().into_iter().flatten().map(name_of).collect();
        Ok(Self { on_cgroup, programs, links, entries, map_bytes })
    }
}

/// How many `sk_lookup` programs run in a pod's namespace.
pub fn lookups_in(pod: &Pod) -> Result<usize> {
    let inode = fs::metadata(&pod.netns)?.ino();
    let links = bpftool(&["link", "show"])?;
    let here = |link: &&Value| number(link, "netns_ino") == inode;
    Ok(links.as_array().into_iter().flatten().filter(here).count())
}

/// What a running agent holds, without the sessions that it keeps for the next connections.
pub fn held(agent: &Agent) -> Result<Held> {
    let sessions = agent.status()?.counters.sessions;
    let kept = sessions.kept_outbound + sessions.kept_inbound;
    let process = Path::new("/proc").join(agent.pid()?.to_string());
    let status = fs::read_to_string(process.join("status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|rest| rest.split_whitespace().next()).context("no VmRSS")?;
    let descriptors = fs::read_dir(process.join("fd"))?.count().saturating_sub(kept);
    Ok(Held { descriptors, resident_kib: kib.parse()? })
}

/// The directory of the layout version in use.
pub fn layout(node: &Node) -> Result<std::path::PathBuf> {
    let name = names(&node.pin_dir())?.pop().context("nothing is pinned")?;
    Ok(node.pin_dir().join(name))
}

/// The names in a directory, in order; none if there is no directory.
pub fn names(dir: &Path) -> Result<Vec<String>> {
    if !dir.exists() {
        return Ok(Vec::new());
    }
    let mut names = fs::read_dir(dir)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// Ids of the programs that run on the cgroup above a node's pods.
pub fn programs_on(node: &Node) -> Result<Vec<u64>> {
    let on_cgroup = bpftool(&["cgroup", "show", &node.pods_cgroup().to_string_lossy()])?;
    Ok(on_cgroup.as_array().into_iter().flatten().map(|program| number(program, "id")).collect())
}

/// All keys of a node's pinned map, and their values.
pub fn entries(node: &Node, map: &str) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let pin = layout(node)?.join("maps").join(map);
    let dump = bpftool(&["map", "dump", "pinned", &pin.to_string_lossy()])?;
    let bytes = |entry: &Value, of: &str| -> Result<Vec<u8>> {
        let words = entry.get(of).and_then(Value::as_array).context("an entry without bytes")?;
        let byte = |word: &Value| {
            let word = word.as_str().and_then(|word| word.strip_prefix("0x"));
            Ok(u8::from_str_radix(word.context("no byte")?, 16)?)
        };
        words.iter().map(byte).collect()
    };
    dump.as_array()
        .into_iter()
        .flatten()
        .map(|entry| Ok((bytes(entry, "key")?, bytes(entry, "value")?)))
        .collect()
}

/// How many dials wait for a node's agent, as the programs count them. The first number is of all
/// pods together.
pub fn dials(node: &Node) -> Result<Vec<u64>> {
    let mut shares = entries(node, "SHARES")?;
    shares.sort();
    let dials = |value: &[u8]| Some(u64::from_ne_bytes(value.get(8..16)?.try_into().ok()?));
    shares.iter().map(|(_, value)| dials(value).context("a share of another shape")).collect()
}

/// Writes entries of a node's pinned map, or deletes those without a value.
pub fn write(node: &Node, map: &str, entries: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<()> {
    let pin = layout(node)?.join("maps").join(map);
    let hex =
        |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    let line = |(key, value): &(Vec<u8>, Option<Vec<u8>>)| {
        let pin = pin.display();
        match value {
            Some(value) => {
                format!("map update pinned {pin} key hex {} value hex {}\n", hex(key), hex(value))
            }
            None => format!("map delete pinned {pin} key hex {}\n", hex(key)),
        }
    };
    let batch = node.runtime_dir().with_extension("bpftool");
    fs::write(&batch, entries.iter().map(line).collect::<String>())?;
    let output = Command::new("bpftool").args(["batch", "file"]).arg(&batch).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Pins of what holds a node's pods.
pub fn holds(node: &Node) -> Result<Vec<String>> {
    names(&layout(node)?.join("held"))
}

fn bpftool(words: &[&str]) -> Result<Value> {
    let output = Command::new("bpftool").arg("-j").args(words).output().context("bpftool")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let text = if text.trim().is_empty() { "[]" } else { &*text };
    serde_json::from_str(text).with_context(|| format!("bpftool {words:?} said {text}"))
}

fn number(of: &Value, field: &str) -> u64 {
    of.get(field).and_then(Value::as_u64).unwrap_or(0)
}

fn name_of(program: &Value) -> String {
    program.get("name").and_then(Value::as_str).unwrap_or("?").to_owned()
}
