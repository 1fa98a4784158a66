//! Which open connections bypass the mesh: it would carry or refuse them if they were made now.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use mesh_api::Mode;
use mesh_world::{PodSettings, Snapshot};

/// Where Linux begins to choose source ports by default (`ip_local_port_range`).
const EPHEMERAL: u16 = 32768;

/// On which side of a connection the pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// It dialled.
    Client,
    /// It was dialled.
    Server,
}

/// What a pod's connections are judged by.
pub(super) struct Judge<'a> {
    pub(super) addresses: &'a [IpAddr],
    pub(super) settings: &'a PodSettings,
    /// Ports on which something in the pod listens.
    pub(super) listening: &'a BTreeSet<u16>,
    pub(super) world: &'a Snapshot,
}

impl Judge<'_> {
    /// The pod's side of a connection that bypasses the mesh; `None` if a new connection like it
    /// would be plaintext too. The caller leaves out the agent's own connections and the kubelet's.
    pub(super) fn is_bypassing(&self, local: SocketAddr, remote: SocketAddr) -> Option<Side> {
        let is_own = local.ip() == remote.ip() || self.addresses.contains(&remote.ip());
        if is_own || remote.ip().is_loopback() || local.ip().is_loopback() {
            return None;
        }
        let side = self.side(local.port(), remote.port());
        let port = if side == Side::Server { local.port() } else { remote.port() };
        let standing = self.world.standing(remote.ip());
        let is_excluded = self.settings.exclude_ports.contains(port)
            || standing.is_some_and(|standing| standing.excludes(port));
        if is_excluded {
            return None;
        }
        let bypasses = match side {
            Side::Client => {
                standing.is_some() || self.world.is_meshed_service(remote.ip(), remote.port())
            }
            Side::Server => {
                let refuses = self.settings.mode == Mode::Strict
                    && !self.settings.permissive_ports.contains(port);
                standing.is_some() || refuses
            }
        };
        bypasses.then_some(side)
    }

    /// The pod's side of a connection. No socket says whether it was accepted, so the ports decide:
    /// one on which the pod listens is a server's. If the server no longer listens, so is one below
    /// the ephemeral ports if the other is not.
    fn side(&self, local: u16, remote: u16) -> Side {
        if self.listening.contains(&local) || (local < EPHEMERAL && remote >= EPHEMERAL) {
            Side::Server
        } else {
            Side::Client
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mesh_world::{Announcements, Incumbents, LocalNode, MeshNode, NodeName, Objects, PodUid};
    use serde_json::json;

    use super::*;

    const POD: &str = "10.244.1.2";

    /// A peer at 10.244.2.2 that excludes port 22.
    fn world() -> Snapshot {
        let node: MeshNode = serde_json::from_value(json!({
            "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode", "metadata": {"name": "node2"},
            "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": [{
                "uid": "u2", "namespace": "shop", "name": "web", "serviceAccount": "web",
                "addresses": ["10.244.2.2"], "mode": "permissive", "excludePorts": "22"}]},
        }))
        .unwrap();
        let announcements = Announcements::from([(node.node.clone(), Arc::new(node))]);
        let local = LocalNode {
            name: NodeName::parse("node1").unwrap(),
            enrolled: [PodUid::parse("u1").unwrap()].into(),
            mesh_namespace: None,
        };
        Snapshot::build(&Objects::default(), &announcements, &local, &Incumbents::default())
    }

    fn side(mode: Mode, local: &str, remote: &str) -> Option<Side> {
        let settings = PodSettings {
            mode,
            exclude_ports: "6379".parse().unwrap(),
            permissive_ports: "9102".parse().unwrap(),
            same_node: None,
        };
        let judge = Judge {
            addresses: &[POD.parse().unwrap()],
            settings: &settings,
            listening: &[8080, 6379, 9102, 40_000].into(),
            world: &world(),
        };
        judge.is_bypassing(local.parse().unwrap(), remote.parse().unwrap())
    }

    #[test]
    fn a_strict_pods_older_clients_are_found_wherever_they_are() {
        let server = |mode, port: u16, from: &str| side(mode, &format!("{POD}:{port}"), from);
        for port in [8080, 40_000, 80] {
            let found = server(Mode::Strict, port, "192.0.2.1:50000");
            assert_eq!(found, Some(Side::Server), "{port}");
            assert_eq!(server(Mode::Permissive, port, "192.0.2.1:50000"), None, "as any other");
        }
        for open in [6379, 9102] {
            assert_eq!(server(Mode::Strict, open, "192.0.2.1:50000"), None, "{open} is open");
        }
        assert_eq!(server(Mode::Strict, 8080, &format!("{POD}:50000")), None);
        assert_eq!(side(Mode::Strict, "127.0.0.1:8080", "127.0.0.1:50000"), None);
    }

    #[test]
    fn between_pods_of_the_mesh_it_is_found_in_any_mode_unless_a_port_is_excluded() {
        for mode in [Mode::Permissive, Mode::Strict] {
            let own = |port: u16| format!("{POD}:{port}");
            assert_eq!(side(mode, &own(8080), "10.244.2.2:50000"), Some(Side::Server));
            assert_eq!(side(mode, &own(9102), "10.244.2.2:50000"), Some(Side::Server));
            assert_eq!(side(mode, &own(50_000), "10.244.2.2:8080"), Some(Side::Client));
            assert_eq!(side(mode, &own(50_000), "10.244.2.2:22"), None);
            assert_eq!(side(mode, &own(50_000), "10.244.2.2:6379"), None);
            assert_eq!(side(mode, &own(50_000), "192.0.2.1:443"), None, "as any new one");
        }
    }
}
