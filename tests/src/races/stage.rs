//! Two nodes with an agent on each that learns everything through the courier alone; two strict
//! pods that stay in the mesh, four that come and go, and a stranger. All pods dial all on the
//! other node, all the time.

use std::{
    fmt::Write as _,
    net::IpAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};

use super::{
    courier::{Courier, Route},
    schedule::{Event, MOVERS, Schedule},
    watch::Watch,
};
use crate::{
    Net, Node, Pod, PodSpec, SHOP,
    agent::{Agent, Dirs, Status},
    objects::{EXCLUDE_PORTS, MESH, MODE, pod_file},
    probe::{RaceLoad, RaceSpec, RaceTally, Target},
};

/// Where the servers listen: clients speak first, server speaks first.
const PORTS: [u16; 2] = [8080, 8081];

/// The strict pods that are in the mesh from the beginning to the end, one on each node.
const ANCHORS: [&str; 2] = ["a0", "b0"];

/// Dials from the mesh's source ports and is never in the mesh, on the first node.
const STRANGER: &str = "x0";

/// How long a connection may take. An agent gives up on a handshake after 10 s.
const DEADLINE_S: u64 = 15;

/// How long a stopping agent still carries its connections: they are short, or hang on purpose.
const DRAIN: [&str; 2] = ["--drain-seconds", "1"];

/// How long the world may take to settle once all news is delivered: leaving takes 3 s, a retried
/// enrolment 2 s.
const SETTLED: Duration = Duration::from_secs(20);

/// How often the agents are asked how far they are. Each question is a process.
const ASK: Duration = Duration::from_millis(500);

/// See the module.
pub(super) struct Stage<'a> {
    net: &'a Net,
    nodes: [Node; 2],
    agents: [Agent; 2],
    anchors: [Pod; 2],
    movers: Vec<Pod>,
    loads: Vec<RaceLoad>,
    courier: Courier,
    watches: Vec<Watch>,
}

/// What a schedule came to.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) connections: u64,
    pub(super) ok: u64,
    pub(super) late: u64,
    pub(super) longest_ms: u64,
    /// TLS records seen of strict pods.
    pub(super) records: u64,
}

impl<'a> Stage<'a> {
    /// With the anchors in the mesh, and all pods dialling.
    pub(super) fn set(net: &'a Net, pause: Duration) -> Result<Self> {
        let nodes = [net.node("node1")?, net.node("node2")?];
        for (number, node) in (1..).zip(&nodes) {
            let object = format!(
                "apiVersion: v1\nkind: Node\nmetadata:\n  name: {}\nspec:\n  podCIDRs: \
                 [\"10.244.{number}.0/24\", \"fd00:244:{number}::/64\"]\nstatus:\n  addresses:\n  \
                 - {{type: InternalIP, address: \"{}\"}}\n",
                node.name,
                node.address()
            );
            net.objects().write(&format!("node-{}.yaml", node.name), &object)?;
        }
        let pod =
            |name: &str, spec: PodSpec| net.pod(&nodes[usize::from(name.starts_with('b'))], spec);
        let [a0, b0] = ANCHORS.map(|name| {
            let spec = PodSpec::new(SHOP, name).label(MESH, "enabled");
            pod(name, spec.annotation(MODE, "strict"))
        });
        let anchors = [a0?, b0?];
        let movers = MOVERS.map(|name| pod(name, PodSpec::new(SHOP, name)));
        let movers = movers.into_iter().collect::<Result<Vec<_>>>()?;
        let stranger = pod(STRANGER, PodSpec::new("other", STRANGER))?;

        let dirs = Dirs::of(net);
        let news =
            |node: &Node, what: &str| net.tag().dir().join("news").join(&node.name).join(what);
        let [first, second] = &nodes;
        let objects = |node: &Node| Route {
            name: format!("{} of the objects", node.name),
            from: dirs.source.clone(),
            to: news(node, "source"),
            only: None,
        };
        let announced = |by: &Node, to: &Node| Route {
            name: format!("{} of {}'s announcement", to.name, by.name),
            from: news(by, "announce"),
            to: news(to, "announce"),
            only: Some(format!("{}.json", by.name)),
        };
        let courier = Courier::start(vec![
            objects(first),
            objects(second),
            announced(first, second),
            announced(second, first),
        ])?;
        let agent = |node: &Node| {
            let (source, announce) = (news(node, "source"), news(node, "announce"));
            Agent::start(node, Dirs { source, announce, ca: dirs.ca.clone() }, &DRAIN)
        };
        let agents = [agent(first)?, agent(second)?];
        let strict: Vec<IpAddr> = anchors.iter().flat_map(Pod::addresses).collect();
        let everybody = || anchors.iter().chain(&movers);
        let mut loads = Vec::new();
        for pod in everybody().chain([&stranger]) {
            let spec = RaceSpec {
                name: pod.name.clone(),
                client_first: PORTS[0],
                server_first: PORTS[1],
                targets: String::new(),
                pause_ms: u64::try_from(pause.as_millis())?,
                deadline_s: DEADLINE_S,
            };
            loads.push(RaceLoad::start(pod, &spec, targets(pod, everybody()))?);
        }
        let stage =
            Self { net, nodes, agents, anchors, movers, loads, courier, watches: Vec::new() };
        stage.settle([false; MOVERS.len()])?;
        // From now on nothing but TLS may come to or from a strict pod.
        let looked_at = stranger.addresses().to_vec();
        let watch =
            |node: &Node| Watch::start(&node.netns, strict.clone(), looked_at.clone(), PORTS);
        let watches = stage.nodes.iter().map(watch).collect::<Result<Vec<_>>>()?;
        Ok(Self { watches, ..stage })
    }

    /// Plays a schedule to its end. An error says what happened although it must not, and has the
    /// timeline.
    pub(super) fn play(&self, schedule: &Schedule) -> Result<Outcome> {
        let mut timeline = Vec::new();
        let played = self.play_noting(schedule, &mut timeline);
        played.with_context(|| {
            let mut story = format!("seed {}; NODEMESH_SEED={0} plays it again\n", schedule.seed);
            timeline.extend(self.courier.log());
            timeline.sort_by_key(|(at, _)| *at);
            for (at, what) in &timeline {
                // Writing to a string does not fail.
                let _written = writeln!(story, "  {:6} ms  {what}", at.as_millis());
            }
            story
        })
    }

    fn play_noting(
        &self,
        schedule: &Schedule,
        timeline: &mut Vec<(Duration, String)>,
    ) -> Result<Outcome> {
        for mover in &self.movers {
            self.net.objects().annotate_pod(mover, MODE, None)?;
            self.net.objects().annotate_pod(mover, EXCLUDE_PORTS, None)?;
        }
        self.settle(schedule.members)?;
        let (before, records, known) = (self.tallies(), self.records(), self.violations().len());
        let begun = Instant::now();
        self.courier.delay(schedule.seed);
        let mut away: [Option<Instant>; 2] = [None; 2];
        let mut members = schedule.members;
        let (mut strict, mut excluded) = ([false; MOVERS.len()], [false; MOVERS.len()]);
        let mut events = schedule.events.iter().peekable();
        loop {
            let now = Instant::now();
            for (node, back) in away.iter_mut().enumerate() {
                if back.is_some_and(|back| back <= now) {
                    self.agents[node].start_again()?;
                    *back = None;
                    timeline.push((begun.elapsed(), format!("node{}: agent is back", node + 1)));
                }
            }
            if let Some((_, event)) = events.next_if(|(at, _)| begun + *at <= now) {
                timeline.push((begun.elapsed(), event.to_string()));
                match *event {
                    Event::Member(mover, member) => {
                        members[mover] = member;
                        self.label(mover, member)?;
                    }
                    Event::Strict(mover, on) => {
                        strict[mover] = on;
                        let mode = on.then_some("strict");
                        self.net.objects().annotate_pod(&self.movers[mover], MODE, mode)?;
                    }
                    Event::Exclude(mover, on) => {
                        excluded[mover] = on;
                        let ports = on.then(|| PORTS[1].to_string());
                        let (pod, ports) = (&self.movers[mover], ports.as_deref());
                        self.net.objects().annotate_pod(pod, EXCLUDE_PORTS, ports)?;
                    }
                    Event::Forget(mover) => {
                        // Deleted twice is deleted.
                        let _gone = self.net.objects().remove(&pod_file(&self.movers[mover]));
                    }
                    Event::Kill(node, time) | Event::Stop(node, time) if away[node].is_none() => {
                        if matches!(event, Event::Kill(..)) {
                            self.agents[node].kill9()?;
                        } else {
                            self.agents[node].stop()?;
                        }
                        away[node] = Some(Instant::now() + time);
                    }
                    Event::Kill(..) | Event::Stop(..) => {}
                }
                continue;
            }
            let over = begun + schedule.length <= now;
            if over && events.peek().is_none() && away.iter().all(Option::is_none) {
                break;
            }
            let next = events.peek().map_or(begun + schedule.length, |(at, _)| begun + *at);
            let next = away.iter().flatten().copied().chain([next]).min().unwrap_or(next);
            thread::sleep(next.saturating_duration_since(now).max(Duration::from_millis(1)));
        }
        timeline.push((begun.elapsed(), "all news are delivered".to_owned()));
        self.settle(members)?;
        self.check_answered(members, strict, excluded)?;
        let violations = self.violations();
        if violations.len() > known {
            bail!("{}", violations[known..].join("\n"));
        }
        Ok(Outcome { records: self.records() - records, ..self.outcome(&before) })
    }

    /// Waits until both agents have heard of everything and acted upon it.
    fn settle(&self, members: [bool; MOVERS.len()]) -> Result<()> {
        for (mover, member) in members.into_iter().enumerate() {
            self.label(mover, member)?;
        }
        self.courier.hurry()?;
        Self::wait("the world has not settled", SETTLED, || {
            let status = [self.agents[0].status()?, self.agents[1].status()?];
            let is = |pod: &Pod, member: bool, status: &Status| -> Result<()> {
                let found = status.pod(pod)?;
                let state = if member { "enrolled" } else { "not_enrolled" };
                ensure!(found.state == state, "{} is not {state}: {found:?}", pod.name);
                Ok(())
            };
            for (node, anchor) in self.anchors.iter().enumerate() {
                is(anchor, true, &status[node])?;
            }
            for (at, mover) in self.movers.iter().enumerate() {
                is(mover, members[at], &status[node_of(at)])?;
            }
            for (node, status) in status.iter().enumerate() {
                let there = (0..MOVERS.len()).filter(|at| node_of(*at) != node && members[*at]);
                let (expected, known) = (1 + there.count(), status.remote_peers);
                ensure!(known == expected, "node{} knows {known} peers of {expected}", node + 1);
            }
            Ok(())
        })
    }

    /// Sets or removes a mover's mesh label. Its file is written anew, and is news, even if nothing
    /// changes.
    fn label(&self, mover: usize, member: bool) -> Result<()> {
        self.net.objects().label_pod(&self.movers[mover], member.then_some("enabled"))
    }

    /// Every client that may dial a target gets an answer now.
    fn check_answered(
        &self,
        members: [bool; MOVERS.len()],
        strict: [bool; MOVERS.len()],
        excluded: [bool; MOVERS.len()],
    ) -> Result<()> {
        let is_member = |name: &str, server_first: bool| match mover(name) {
            Some(at) => members[at] && !(server_first && excluded[at]),
            None => ANCHORS.contains(&name),
        };
        let is_closed = |target: &Target| match mover(&target.name) {
            Some(at) => members[at] && strict[at] && !(target.server_first && excluded[at]),
            None => true,
        };
        let now = self.tallies();
        Self::wait("not everybody is answered", SETTLED, || {
            for ((load, then), now) in self.loads.iter().zip(&now).zip(self.tallies()) {
                let client = load.name();
                for (at, target) in load.targets.iter().enumerate() {
                    // From the mesh's source ports a pod that has left takes nothing any more.
                    let may_dial = client != STRANGER || is_member(&target.name, false);
                    let open =
                        is_member(client, target.server_first) || (may_dial && !is_closed(target));
                    let answered = now.ok.get(at) > then.ok.get(at);
                    ensure!(!open || answered, "{client} has no answer from {}", target.to_text());
                }
            }
            Ok(())
        })
    }

    fn wait(what: &str, deadline: Duration, is: impl Fn() -> Result<()>) -> Result<()> {
        let begun = Instant::now();
        loop {
            match is() {
                Ok(()) => return Ok(()),
                Err(last) if begun.elapsed() > deadline => {
                    return Err(last).with_context(|| format!("{what} after {deadline:?}"));
                }
                Err(_) => thread::sleep(ASK),
            }
        }
    }

    fn tallies(&self) -> Vec<RaceTally> {
        self.loads.iter().map(RaceLoad::tally).collect()
    }

    fn violations(&self) -> Vec<String> {
        let plaintext = self.watches.iter().flat_map(|watch| watch.seen().plaintext);
        let plaintext = plaintext.map(|what| format!("plaintext of a strict pod: {what}"));
        self.loads.iter().flat_map(RaceLoad::violations).chain(plaintext).collect()
    }

    fn records(&self) -> u64 {
        self.watches.iter().map(|watch| watch.seen().records).sum()
    }

    fn outcome(&self, before: &[RaceTally]) -> Outcome {
        let mut outcome = Outcome::default();
        for (then, now) in before.iter().zip(self.tallies()) {
            outcome.connections += now.connections() - then.connections();
            outcome.ok += now.ok.iter().sum::<u64>() - then.ok.iter().sum::<u64>();
            outcome.late += now.late - then.late;
            outcome.longest_ms = outcome.longest_ms.max(now.longest_ms);
        }
        outcome
    }
}

/// Which mover this is, if it is one.
fn mover(name: &str) -> Option<usize> {
    MOVERS.iter().position(|mover| *mover == name)
}

/// The node of a mover.
fn node_of(mover: usize) -> usize {
    usize::from(MOVERS[mover].starts_with('b'))
}

/// All pods on the other node, in both ways; one family each, so that both are used.
fn targets<'a>(pod: &Pod, everybody: impl Iterator<Item = &'a Pod>) -> Vec<Target> {
    let first = |name: &str| name.as_bytes().first().copied() == Some(b'b');
    let mut targets = Vec::new();
    for (number, other) in
        everybody.filter(|other| first(&other.name) != first(&pod.name)).enumerate()
    {
        for (port, server_first) in PORTS.into_iter().zip([false, true]) {
            let to = if (number + usize::from(server_first)).is_multiple_of(2) {
                other.at(port)
            } else {
                other.at6(port)
            };
            let (name, from_range) = (other.name.clone(), pod.name == STRANGER);
            targets.push(Target { name, to, server_first, from_range });
        }
    }
    targets
}
