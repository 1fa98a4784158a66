//! Two nodes with their agents, a meshed pair of pods, an unmeshed pair, and the programs inside
//! them.

use std::{fs, net::SocketAddr, ops::RangeInclusive, path::PathBuf, thread::sleep, time::Duration};

use anyhow::{Context as _, Result, anyhow, ensure};
use tests::{Net, Node, Pair, Pod, PodSpec, SHOP, exec::Place, objects::SAME_NODE};

use crate::{
    driver::Program,
    figure::{Arm, Figure},
    machine::{self, Usage},
    pins::Pins,
    report::Memory,
    server::Listen,
    slice::{Load, Order, Slice},
};

/// Where the meshed server listens, and the unmeshed one without our programs.
const PORT: u16 = 8080;
/// Where the same servers give each connection a thread of its own.
const THREADS_PORT: u16 = 8090;
/// Ports of the same servers that are dialled once each.
const NEW_PORTS: RangeInclusive<u16> = 20_000..=21_299;
/// Where the two servers of the untouched figure listen: they share a namespace with that one.
const UNTOUCHED_PORTS: [u16; 2] = [8081, 8082];

/// After which the agents have given back what they do not keep.
const AT_REST: Duration = Duration::from_secs(10);

/// Everything that is there to be measured.
pub(crate) struct Stage<'a> {
    pair: Pair<'a>,
    no_mesh: Couple,
    mesh: Couple,
    unattached: Couple,
    attached: Couple,
    one_node: Couple,
    local: Couple,
    tls: Couple,
    /// The agents' cgroups.
    agents: [PathBuf; 2],
    made: Made,
}

/// A client and its server.
struct Couple {
    client: Program,
    to: SocketAddr,
    /// The port of [`NEW_PORTS`] that is the next.
    next: u16,
    _server: Program,
}

/// A slice of each arm, and what else happened.
#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) yardstick: Slice,
    pub(crate) measured: Slice,
    /// CPU time of both agents together, while the second was done.
    pub(crate) agents_cpu_us: u64,
    /// The share of all CPU time that programs outside the benchmark used meanwhile.
    pub(crate) used_by_others: f64,
}

/// Connections that were made, by where the kernel ought to have counted them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Made {
    mesh: u64,
    untouched: u64,
}

/// What the first node's agent has counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Counts {
    counted: Made,
    made: Made,
}

impl<'a> Stage<'a> {
    pub(crate) fn set_up(net: &'a Net, pins: &Pins) -> Result<Self> {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let pods = |namespace, of_server: usize| -> Result<[Pod; 2]> {
            let client = net.pod(&nodes[0], PodSpec::new(namespace, "client"))?;
            Ok([client, net.pod(&nodes[of_server], PodSpec::new(namespace, "server"))?])
        };
        let ([client, server], plain) = (pods(SHOP, 1)?, pods("plain", 1)?);
        let near = pods("near", 0)?;
        let ways = [("local", pods("local", 0)?), ("tls", pods("tls", 0)?)];
        for (way, _) in &ways {
            net.objects().annotate_namespace(way, SAME_NODE, Some(way))?;
            net.objects().label_namespace(way, Some("enabled"))?;
        }
        let agent = |number: usize| pins.on(number, || net.agent(&nodes[number]));
        let agents = [agent(0)?, agent(1)?];
        let pair = Pair { net, nodes, agents, client, server };
        net.objects().label_namespace(SHOP, Some("enabled"))?;
        pair.agents[0].wait_enrolled(&[&pair.client])?;
        pair.agents[1].wait_enrolled(&[&pair.server])?;
        for (_, [client, server]) in &ways {
            pair.agents[0].wait_enrolled(&[client, server])?;
        }
        pair.agents[0].wait_peers(1)?;
        pair.agents[1].wait_peers(5)?;
        let beside = [beside(&plain[0], &pair.nodes[0]), beside(&plain[1], &pair.nodes[1])];
        let couple = |places, to, more: &[Listen]| Couple::new(pins, [0, 1], places, to, more);
        let of_node = |places, to| Couple::new(pins, [0, 0], places, to, &[]);
        let near_beside = near.each_ref().map(|pod| self::beside(pod, &pair.nodes[0]));
        let one_node = of_node([&near_beside[0], &near_beside[1]], near[1].at(PORT))?;
        let [local, tls] = ways.each_ref().map(|(_, [client, server])| {
            of_node([client as &Place, server as &Place], server.at(PORT))
        });
        let (local, tls) = (local?, tls?);
        let more = [Listen::Thread(THREADS_PORT), Listen::Many(NEW_PORTS)];
        let no_mesh = couple([&beside[0], &beside[1]], plain[1].at(PORT), &more)?;
        let mesh = couple([&pair.client, &pair.server], pair.server.at(PORT), &more)?;
        let [one, two] = UNTOUCHED_PORTS.map(|port| plain[1].at(port));
        let unattached = couple([&beside[0], &beside[1]], one, &[])?;
        let attached = couple([&plain[0], &plain[1]], two, &[])?;
        let agents = pair.nodes.each_ref().map(|node| node.agent_place().cgroup);
        let made = Made::default();
        Ok(Self { pair, no_mesh, mesh, unattached, attached, one_node, local, tls, agents, made })
    }

    pub(crate) fn net(&self) -> &'a Net {
        self.pair.net
    }

    /// Does one slice.
    pub(crate) fn slice(&mut self, arm: Arm, order: Order) -> Result<Slice> {
        let Couple { client, to, next, .. } = match arm {
            Arm::NoMesh => &mut self.no_mesh,
            Arm::Mesh => &mut self.mesh,
            Arm::Unattached => &mut self.unattached,
            Arm::Attached => &mut self.attached,
            Arm::OneNode => &mut self.one_node,
            Arm::Local => &mut self.local,
            Arm::Tls => &mut self.tls,
        };
        let mut to = *to;
        match order.load() {
            Load::First => {
                to.set_port(*next);
                *next += u16::try_from(order.count())?;
                ensure!(*next <= *NEW_PORTS.end(), "no port is left that was never dialled");
            }
            Load::Request | Load::Hold => to.set_port(THREADS_PORT),
            _ if order.workers() > 1 => to.set_port(THREADS_PORT),
            _ => {}
        }
        let slice = client.slice(to, order)?;
        ensure!(slice.count > 0, "{arm:?} did nothing: {order:?}");
        match arm {
            Arm::NoMesh | Arm::Unattached | Arm::OneNode => {}
            Arm::Mesh | Arm::Local | Arm::Tls => self.made.mesh += slice.connections,
            Arm::Attached => self.made.untouched += slice.connections,
        }
        Ok(slice)
    }

    /// A slice of each arm, in reverse order if `backwards`, so that neither always comes first.
    pub(crate) fn round(&mut self, figure: Figure, order: Order, backwards: bool) -> Result<Round> {
        let [yardstick, measured] = figure.arms();
        let usage = Usage::now(self.net())?;
        let mut first = None;
        if !backwards {
            first = Some(self.slice(yardstick, order)?);
        }
        let before = self.agents_cpu_us()?;
        let second = self.slice(measured, order)?;
        let agents_cpu_us = self.agents_cpu_us()?.saturating_sub(before);
        let first = first.map_or_else(|| self.slice(yardstick, order), Ok)?;
        let used_by_others = usage.until(&Usage::now(self.net())?).by_others();
        Ok(Round { yardstick: first, measured: second, agents_cpu_us, used_by_others })
    }

    /// What has been counted and made until now.
    pub(crate) fn counts(&self) -> Result<Counts> {
        let status = self.pair.agents[0].status()?;
        let counted = Made {
            mesh: status.counters.accepted_outbound,
            untouched: status.verdict("not_enrolled"),
        };
        Ok(Counts { counted, made: self.made })
    }

    /// Checks that every connection since `before` went where its arm says: through the agents,
    /// past them, or past our programs.
    pub(crate) fn check_counts(&self, before: Counts, figure: Figure) -> Result<()> {
        let now = self.counts()?;
        let counted = now.counted.since(before.counted);
        let made = now.made.since(before.made);
        ensure!(
            counted == made,
            "{figure:?} is not what it says: these connections were made: {made:?}, but the node has counted {counted:?}"
        );
        Ok(())
    }

    /// The agents' process ids.
    pub(crate) fn agent_pids(&self) -> Result<Vec<u32>> {
        let mut pids = Vec::new();
        for cgroup in &self.agents {
            for line in fs::read_to_string(cgroup.join("cgroup.procs"))?.lines() {
                pids.push(line.parse()?);
            }
        }
        Ok(pids)
    }

    /// Resident memory of the two agents, the client's and the server's, in KiB.
    pub(crate) fn memory_kib(&self) -> Result<[u64; 2]> {
        let mut all = Vec::new();
        for pid in self.agent_pids()? {
            let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
            all.push(kib.context("no VmRSS")?.trim().parse()?);
        }
        <[u64; 2]>::try_from(all).map_err(|all| anyhow!("not two agents: {all:?}"))
    }

    /// The same at rest, with idle connections, and after these.
    pub(crate) fn memory(&mut self, idle: [u64; 2]) -> Result<Memory> {
        sleep(AT_REST);
        let after = self.memory_kib()?;
        let hold = |count| Order::new(Load::Hold, 1, count, AT_REST);
        self.slice(Arm::Mesh, hold(Memory::HELD.into()))?;
        sleep(AT_REST);
        let holding = self.memory_kib()?;
        self.slice(Arm::Mesh, hold(1))?; // closes the others
        sleep(AT_REST);
        Ok(Memory { idle, after, holding, released: self.memory_kib()? })
    }

    fn agents_cpu_us(&self) -> Result<u64> {
        let [one, two] = &self.agents;
        Ok(machine::cgroup_cpu_us(one)? + machine::cgroup_cpu_us(two)?)
    }
}

impl Couple {
    fn new(
        pins: &Pins,
        [of_client, of_server]: [usize; 2],
        [client, server]: [&Place; 2],
        to: SocketAddr,
        more: &[Listen],
    ) -> Result<Self> {
        let listen = [&[Listen::Pool(to.port())], more].concat();
        let server = pins.on(of_server, || Program::server(server, &listen))?;
        let client = pins.on(of_client, || Program::client(client))?;
        Ok(Self { client, to, next: *NEW_PORTS.start(), _server: server })
    }
}

impl Made {
    fn since(self, before: Self) -> Self {
        Self { mesh: self.mesh - before.mesh, untouched: self.untouched - before.untouched }
    }
}

/// A pod's network namespace with a cgroup that has no programs of ours: its node's own.
fn beside(pod: &Pod, node: &Node) -> Place {
    let place = Place::clone(pod);
    let name = format!("{}-beside", place.name);
    Place { cgroup: Place::clone(node).cgroup, name, ..place }
}
