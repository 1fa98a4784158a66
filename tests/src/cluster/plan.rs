//! Names and addresses: a cluster's name alone is enough to find what it is made of, also after a
//! crash.
//!
//! | what | name |
//! |---|---|
//! | files: certificates, state and logs of a machine | `/var/lib/nodemesh-cluster/<cluster>/…` |
//! | network namespaces | `nmc-<cluster>-<machine>` |
//! | cgroups, in every hierarchy | `nodemesh-cluster-<cluster>/<machine>` |
//! | the machine's own end of the link | `nmc<number>` |
//!
//! Machines are `control`, `node1` and `node2`. Each cluster has a number, which makes its
//! addresses on the link its own. Pods and services have the same addresses in all clusters, since
//! only the machines of their own cluster see those.

use std::{
    fs, io,
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context as _, Result, ensure};

use crate::cluster::cgroups;

/// How many nodes there are.
pub const NODES: u8 = 2;

/// Where all clusters keep their files.
pub(super) const ROOT: &str = "/var/lib/nodemesh-cluster";

/// The machine of the control plane.
pub(super) const CONTROL: &str = "control";

/// The service of the API server: the first address of the services.
pub(super) const API_SERVICE: [&str; 2] = ["10.96.0.1", "fd00:10:96::1"];

/// The service of the DNS server.
pub(super) const DNS_SERVICE: &str = "10.96.0.10";

/// The addresses of services, and of all pods.
pub(super) const SERVICES: &str = "10.96.0.0/16,fd00:10:96::/112";
pub(super) const PODS: &str = "10.244.0.0/16,fd00:10:244::/48";

/// The host's number on the link; the control plane's is 1, and nodes count from 11.
const HOST: u8 = 254;
const FIRST_NODE: u8 = 10;

/// The longest name of a cluster.
const MAX_NAME: usize = 20;

/// What the names and addresses of one cluster are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    name: String,
    number: u8,
}

impl Plan {
    /// The plan of a cluster that is there, or has been half made.
    pub(super) fn of_existing(name: &str) -> Result<Option<Self>> {
        check_name(name)?;
        match fs::read_to_string(Path::new(ROOT).join(name).join("number")) {
            Ok(number) => Ok(Some(Self { name: name.to_owned(), number: number.trim().parse()? })),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("the cluster {name}")),
        }
    }

    /// A plan for a new cluster, with a number that no other has. Makes its directory.
    pub(super) fn for_new(name: &str) -> Result<Self> {
        check_name(name)?;
        let taken: Vec<_> = names()
            .iter()
            .filter_map(|name| Self::of_existing(name).ok()??.number.into())
            .collect();
        let number =
            (1..=u8::MAX).find(|number| !taken.contains(number)).context("255 clusters")?;
        let plan = Self { name: name.to_owned(), number };
        fs::create_dir_all(plan.dir())?;
        fs::write(plan.dir().join("number"), number.to_string())?;
        Ok(plan)
    }

    /// The cluster's name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The directory with everything that it keeps.
    pub(super) fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.name)
    }

    /// Its certificates and keys, and the files with which programs reach its API server.
    pub(super) fn pki(&self) -> PathBuf {
        self.dir().join("pki")
    }

    /// The names of its machines.
    pub(super) fn machines() -> Vec<String> {
        let nodes = (1..=NODES).map(node_name);
        [CONTROL.to_owned()].into_iter().chain(nodes).collect()
    }

    /// The network namespace of a machine.
    pub(super) fn netns(&self, machine: &str) -> String {
        netns_of(&self.name, machine)
    }

    /// The host's end of its own connection to the link.
    pub(super) fn host_link(&self) -> String {
        format!("nmc{}", self.number)
    }

    /// The part of a cgroup's path that follows the hierarchy's mount.
    pub(super) fn cgroup(&self, machine: &str) -> PathBuf {
        Path::new(&cgroup_of(&self.name)).join(machine)
    }

    /// The control plane's address.
    pub(super) fn control(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.on_link(1)
    }

    /// The host's.
    pub(super) fn host(&self) -> (Ipv4Addr, Ipv6Addr) {
        self.on_link(HOST)
    }

    /// A node's, which are counted from 1.
    pub(super) fn node(&self, node: u8) -> (Ipv4Addr, Ipv6Addr) {
        self.on_link(FIRST_NODE + node)
    }

    /// The address of the API server, for all its clients.
    pub(super) fn api(&self) -> String {
        format!("https://{}:{}", self.control().0, super::control::API_PORT)
    }

    /// 198.18.0.0/15 is set apart for tests of networks (RFC 2544, appendix C.2.2): nothing else on
    /// the host has it.
    fn on_link(&self, host: u8) -> (Ipv4Addr, Ipv6Addr) {
        let (number, host_v6) = (self.number, u16::from(host));
        (
            Ipv4Addr::new(198, 18, number, host),
            Ipv6Addr::new(0xfd00, 0x198, 0x18, u16::from(number), 0, 0, 0, host_v6),
        )
    }
}

/// A name that no other test of this machine has for its cluster.
pub fn test_name() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("t{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether a name is [`test_name`]'s of a process that has ended.
pub(super) fn is_dead_tests(name: &str) -> bool {
    let pid = name.strip_prefix('t').and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists())
}

/// The name of a node, which are counted from 1.
pub(super) fn node_name(node: u8) -> String {
    format!("node{node}")
}

/// The ranges of a node's pods.
pub(super) fn pod_ranges(node: u8) -> [String; 2] {
    [format!("10.244.{node}.0/24"), format!("fd00:10:244:{node}::/64")]
}

/// The address of a node's bridge, which is its pods' way out.
pub(super) fn gateways(node: u8) -> [String; 2] {
    [format!("10.244.{node}.1"), format!("fd00:10:244:{node}::1")]
}

/// All clusters that have a directory or a cgroup.
pub(super) fn names() -> Vec<String> {
    let list = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    };
    let mut all = list(Path::new(ROOT));
    for hierarchy in cgroups::hierarchies().unwrap_or_default() {
        let ours = list(&hierarchy.mount);
        all.extend(
            ours.iter().filter_map(|name| Some(name.strip_prefix(&cgroup_of(""))?.to_owned())),
        );
    }
    all.sort();
    all.dedup();
    all
}

/// The cgroup of all machines of a cluster.
pub(super) fn cgroup_of(name: &str) -> String {
    format!("nodemesh-cluster-{name}")
}

/// The namespace of a cluster's machine.
pub(super) fn netns_of(name: &str, machine: &str) -> String {
    format!("nmc-{name}-{machine}")
}

fn check_name(name: &str) -> Result<()> {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    ensure!(
        !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(plain),
        "a cluster's name is 1 to {MAX_NAME} letters, digits and dashes, not {name:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tests_that_live_keep_their_clusters() {
        assert!(!is_dead_tests(&test_name()));
        assert!(is_dead_tests("t4194305-0"), "more than any kernel's largest pid");
        assert!(!is_dead_tests("dev") && !is_dead_tests("two-nodes"));
    }

    #[test]
    fn names_stay_in_their_directory() {
        assert!(check_name(&test_name()).is_ok());
        for wrong in ["", "..", "a/b", "A", "a b", "123456789012345678901"] {
            assert!(check_name(wrong).is_err(), "{wrong}");
        }
    }
}
