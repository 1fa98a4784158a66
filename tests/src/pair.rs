//! The set-up that most tests begin with: a client on one node, a server on the other, an agent on
//! each.

use anyhow::{Result, ensure};

use crate::{
    Net, Node, Pod, PodSpec,
    agent::{Agent, Dirs, SOON},
    eventually,
    exec::Place,
    objects::{MODE, SAME_NODE},
    probe::{self, Client, Conn, DialSpec, End, ServeSpec, Server, Talk},
};

/// The Kubernetes namespace of both pods.
pub const SHOP: &str = "shop";

/// The port on which servers of tests listen.
pub const PORT: u16 = 8080;

/// A source port of the mesh's range, for a [`Pair::prober`] that pretends to be an agent.
pub const MESH_PORT: u16 = 61_500;

/// Two nodes, two agents, two pods.
#[derive(Debug)]
pub struct Pair<'a> {
    /// The network that owns them.
    pub net: &'a Net,
    /// The client's node, the server's node.
    pub nodes: [Node; 2],
    /// Their agents.
    pub agents: [Agent; 2],
    /// On the first node.
    pub client: Pod,
    /// On the second node.
    pub server: Pod,
}

impl<'a> Pair<'a> {
    /// With no pod in the mesh yet.
    pub fn new(net: &'a Net) -> Result<Self> {
        Self::with(net, [Dirs::of(net), Dirs::of(net)], &[])
    }

    /// The same, with agents that have these directories and options.
    pub fn with(net: &'a Net, dirs: [Dirs; 2], options: &[&str]) -> Result<Self> {
        Self::by(&[], net, dirs, options)
    }

    /// The same, with a first agent that another program runs.
    pub fn by(wrapper: &[&str], net: &'a Net, dirs: [Dirs; 2], options: &[&str]) -> Result<Self> {
        let nodes = [net.node("node1")?, net.node("node2")?];
        let client = net.pod(&nodes[0], PodSpec::new(SHOP, "client"))?;
        let server = net.pod(&nodes[1], PodSpec::new(SHOP, "server"))?;
        let [one, two] = dirs;
        let agents = [
            Agent::start_by(wrapper, &nodes[0], one, options)?,
            Agent::start(&nodes[1], two, options)?,
        ];
        Ok(Self { net, nodes, agents, client, server })
    }

    /// Both pods are in the mesh, the server is strict, and the agents have these options. Also
    /// returns a pod outside the mesh, on the client's node.
    pub fn strict(net: &'a Net, options: &[&str]) -> Result<(Self, Pod)> {
        let pair = Self::with(net, [Dirs::of(net), Dirs::of(net)], options)?;
        net.objects().annotate_pod(&pair.server, MODE, Some("strict"))?;
        let stranger = net.pod(&pair.nodes[0], PodSpec::new("other", "stranger"))?;
        pair.join()?;
        Ok((pair, stranger))
    }

    /// With both in the mesh, and both agents knowing it.
    pub fn meshed(net: &'a Net) -> Result<Self> {
        let pair = Self::new(net)?;
        pair.join()?;
        Ok(pair)
    }

    /// Labels the namespace, and waits until both agents know of both pods.
    pub fn join(&self) -> Result<()> {
        self.net.objects().label_namespace(SHOP, Some("enabled"))?;
        self.agents[0].wait_enrolled(&[&self.client])?;
        self.agents[1].wait_enrolled(&[&self.server])?;
        self.agents.iter().try_for_each(|agent| agent.wait_peers(1))
    }

    /// [`Pair::join`] with another pod on the server's node.
    pub fn join_with(&self, other: &Pod) -> Result<()> {
        self.net.objects().label_namespace(SHOP, Some("enabled"))?;
        self.agents[0].wait_enrolled(&[&self.client])?;
        self.agents[1].wait_enrolled(&[&self.server, other])?;
        self.agents[0].wait_peers(2)?;
        self.agents[1].wait_peers(1)
    }

    /// Removes the label, and waits until both agents know that no pod is in the mesh.
    pub fn leave(&self) -> Result<()> {
        self.net.objects().label_namespace(SHOP, None)?;
        self.agents[0].wait_state(&self.client, "not_enrolled")?;
        self.agents[1].wait_state(&self.server, "not_enrolled")?;
        self.agents.iter().try_for_each(|agent| agent.wait_peers(0))
    }

    /// A server in the server's pod, for both families.
    pub fn serve(&self, talk: Talk) -> Result<Server> {
        probe::serve(&self.server, &ServeSpec::both_families(PORT, talk))
    }

    /// Says a line to the server, of [`Talk::Lines`], and gives it a second to answer.
    pub fn ask(&self, from: &Place) -> Result<Conn> {
        let say = DialSpec::say(self.server.at(PORT), "req 1\n");
        probe::dial(from, &DialSpec { timeout_s: 1, ..say })
    }

    /// The same, and it must be answered.
    pub fn is_answered(&self, from: &Place) -> Result<()> {
        let conn = self.ask(from)?;
        ensure!((conn.end, &*conn.first) == (End::Fin, "ok 1\\n"), "{conn:?}");
        Ok(())
    }

    /// Asks the server in a tight loop, from a port or from any (0), until it is finished.
    pub fn prober(&self, from: &Pod, port: u16) -> Result<Client> {
        let bind = Some(from.at(port));
        let to = self.server.at(PORT);
        let spec = DialSpec { bind, pause_ms: 0, timeout_s: 1, ..DialSpec::new(to, Talk::Lines) };
        probe::load(from, &spec)
    }

    /// The client's network namespace, but not its cgroup: what runs there is not redirected.
    pub fn beside_client(&self) -> Place {
        beside(&self.client, &self.nodes[0])
    }

    /// The same for the server.
    pub fn beside_server(&self) -> Place {
        beside(&self.server, &self.nodes[1])
    }
}

/// A client and a server on one node, with its agent.
#[derive(Debug)]
pub struct Neighbours<'a> {
    /// The network that owns them.
    pub net: &'a Net,
    /// Their node.
    pub node: Node,
    /// Its agent.
    pub agent: Agent,
    /// It dials.
    pub client: Pod,
    /// It is dialled.
    pub server: Pod,
}

impl<'a> Neighbours<'a> {
    /// With no pod in the mesh yet, and an agent that has these options.
    pub fn new(net: &'a Net, options: &[&str]) -> Result<Self> {
        let node = net.node("node1")?;
        let client = net.pod(&node, PodSpec::new(SHOP, "client"))?;
        let server = net.pod(&node, PodSpec::new(SHOP, "server"))?;
        let agent = Agent::start(&node, Dirs::of(net), options)?;
        Ok(Self { net, node, agent, client, server })
    }

    /// Labels the namespace, and waits until both pods are in the mesh.
    pub fn join(&self) -> Result<()> {
        self.net.objects().label_namespace(SHOP, Some("enabled"))?;
        self.agent.wait_enrolled(&[&self.client, &self.server])
    }

    /// Sets how connections on the node go, for both pods.
    pub fn go(&self, way: Option<&str>) -> Result<()> {
        self.net.objects().annotate_namespace(SHOP, SAME_NODE, way)
    }

    /// Waits until a new connection goes like this (`security.kind` of its record).
    pub fn wait_for(&self, kind: &str) -> Result<()> {
        let spec = ServeSpec::new(PORT + 1, Talk::Exchange);
        let server = probe::serve(&self.server, &spec)?;
        eventually(SOON, || {
            let known = self.agent.flows()?;
            let conn = probe::dial(&self.client, &DialSpec::say(self.server.at(PORT + 1), "x"))?;
            ensure!(conn.end == End::Fin, "{conn:?}");
            let new = self.agent.flows_after(&known)?;
            let is_so = new.iter().any(|flow| flow.security.kind == kind);
            ensure!(is_so, "not {kind}: {new:#?}");
            Ok(())
        })?;
        server.stop()
    }

    /// A server in the server's pod, for both families.
    pub fn serve(&self, talk: Talk) -> Result<Server> {
        probe::serve(&self.server, &ServeSpec::both_families(PORT, talk))
    }
}

fn beside(pod: &Pod, node: &Node) -> Place {
    let mut place = Place::clone(pod);
    place.cgroup.clone_from(&node.cgroup);
    place.name += "-beside";
    place
}
