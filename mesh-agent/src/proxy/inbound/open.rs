//! Checks what a peer's agent says in OPEN against what is known: the application that it asks for,
//! and the client that dials.

use std::{net::SocketAddr, num::NonZeroU16};

use mesh_common::ports;
use mesh_wire::{Open, Refusal, Refused, identity::SpiffeId};
use mesh_world::{Claimant, Snapshot, Standing};

/// What a peer's agent asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// The source from which it is seen (a path probe).
    Seen,
    /// The application at this address of the pod.
    Application(SocketAddr),
}

/// What is asked for on a connection that came to `to`.
///
/// # Errors
/// No such application can be reached there; tell the peer.
pub(super) fn asked(open: &Open, to: SocketAddr) -> Result<Asked, Refused> {
    let refused = |reason, text| Err(Refused { reason, text });
    match (open.destination_port.map(NonZeroU16::get), to.port()) {
        (None, ports::AGENTS) => Ok(Asked::Seen),
        (None, _) => Ok(Asked::Application(to)),
        (Some(ports::AGENTS), _) => {
            let text = "no application is reached at the agents' port".to_owned();
            refused(Refusal::ApplicationRefused, text)
        }
        (Some(port), at) if at == port || at == ports::AGENTS => {
            Ok(Asked::Application(SocketAddr::new(to.ip(), port)))
        }
        (Some(port), _) => {
            let text = format!("OPEN asks for port {port}, but the connection came to {to}");
            refused(Refusal::WrongDestination, text)
        }
    }
}

/// The client address that the application is shown. It is what OPEN says, if the certificate is
/// that of the pod announced at that address. For an address that is disputed or not (yet)
/// announced, only the connection's own source can be believed; where the path changes that,
/// nothing can. A path changes it to the address of a node or gateway, never to that of another pod
/// of the mesh.
///
/// # Errors
/// OPEN is not believed; tell the peer.
pub(super) fn client(
    world: &Snapshot,
    identity: impl Fn(&str, &str) -> Option<SpiffeId>,
    said: SocketAddr,
    from: SocketAddr,
    proven: &SpiffeId,
) -> Result<SocketAddr, Refused> {
    let said = SocketAddr::new(said.ip().to_canonical(), said.port());
    let (ip, from) = (said.ip(), from.ip().to_canonical());
    let mismatch = |text| Err(Refused { reason: Refusal::SourceMismatch, text });
    // Agents may announce the addresses of nodes and gateways as addresses of pods, by mistake or
    // on purpose.
    if ip != from && world.standing(from).is_some() && !world.is_node_address(from) {
        return mismatch(format!("OPEN says {ip}, but the connection came from the pod at {from}"));
    }
    match world.standing(ip) {
        Some(Standing::Believed(peer)) => match identity(&peer.namespace, &peer.service_account) {
            Some(expected) if expected == *proven => Ok(said),
            Some(expected) => {
                mismatch(format!("{ip} is {expected}, but the certificate says {proven}"))
            }
            None => mismatch(format!("the pod at {ip} has no identity")),
        },
        Some(Standing::Disputed(dispute)) => {
            let identity = |it: &Claimant| identity(&it.namespace, &it.service_account);
            let is_claimed = dispute.claimants.iter().filter_map(identity).any(|it| it == *proven);
            if is_claimed && ip == from {
                return Ok(said);
            }
            mismatch(format!(
                "{ip} is {dispute}, the certificate says {proven}, and the connection came from {from}"
            ))
        }
        // Not announced yet: only the certificate is known, and it is enough.
        None if ip == from => Ok(said),
        None => mismatch(format!(
            "OPEN says {ip}, at which no pod of the mesh is known here, and the connection came from {from}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::Arc};

    use mesh_wire::identity::TrustDomain;
    use mesh_world::{
        Announcements, Incumbents, LocalNode, MeshNode, NodeName, NodeObject, Objects,
    };
    use serde_json::json;

    use super::*;

    fn asked_at(to: u16, port: u16) -> Result<Asked, Refusal> {
        let open = Open {
            source: "10.1.2.3:40000".parse().unwrap(),
            original_destination: "10.96.0.7:80".parse().unwrap(),
            destination_port: NonZeroU16::new(port),
            acknowledges_drops: false,
        };
        asked(&open, ([10, 1, 2, 4], to).into()).map_err(|refused| refused.reason)
    }

    #[test]
    fn only_at_the_agents_port_may_another_port_be_asked_for() {
        let application = |port: u16| Ok(Asked::Application(([10, 1, 2, 4], port).into()));
        assert_eq!(asked_at(ports::AGENTS, 0), Ok(Asked::Seen));
        assert_eq!(asked_at(ports::AGENTS, 8080), application(8080));
        assert_eq!(asked_at(8080, 0), application(8080));
        assert_eq!(asked_at(8080, 8080), application(8080));
        assert_eq!(asked_at(8080, 8081), Err(Refusal::WrongDestination));
        for to in [8080, ports::AGENTS] {
            assert_eq!(asked_at(to, ports::AGENTS), Err(Refusal::ApplicationRefused));
        }
    }

    /// The address of a node, which another node's agent announces as a pod's.
    const NODE: &str = "192.168.0.4";

    /// Two pods of one account on one node, and one of another account on another node.
    fn world() -> Snapshot {
        let announced = |node: &str, pods: &[(&str, &str, &str)]| {
            let pods: Vec<_> = pods
                .iter()
                .map(|(name, account, address)| {
                    json!({"uid": format!("uid-{name}"), "namespace": "shop", "name": name,
                        "serviceAccount": account, "addresses": [address], "mode": "permissive"})
                })
                .collect();
            let said: MeshNode = serde_json::from_value(json!({
                "apiVersion": "nodemesh.dev/v1alpha1", "kind": "MeshNode",
                "metadata": {"name": node},
                "spec": {"bootId": "b", "trustDomain": "cluster.local", "pods": pods},
            }))
            .unwrap();
            (said.node.clone(), Arc::new(said))
        };
        let announcements = Announcements::from([
            announced("node2", &[("a", "cart", "10.0.2.1"), ("b", "cart", "10.0.2.2")]),
            announced("node3", &[("c", "web", "10.0.3.1"), ("d", "web", NODE)]),
        ]);
        let node: k8s_openapi::api::core::v1::Node = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node4"},
            "status": {"addresses": [{"type": "InternalIP", "address": NODE}]},
        }))
        .unwrap();
        let mut objects = Objects::default();
        objects.insert_node(NodeObject::try_from(&node).unwrap());
        let name = NodeName::parse("node1").unwrap();
        let local = LocalNode { name, enrolled: BTreeSet::new(), mesh_namespace: None };
        Snapshot::build(&objects, &announcements, &local, &Incumbents::default())
    }

    /// The outcome for a peer whose certificate is of the account `cart`.
    fn cart_says(said: &str, from: &str) -> Result<String, Refusal> {
        let domain = "cluster.local".parse::<TrustDomain>().unwrap();
        let identity =
            |namespace: &str, account: &str| SpiffeId::new(&domain, namespace, account).ok();
        let [said, from] = [said, from].map(|ip| SocketAddr::new(ip.parse().unwrap(), 61_000));
        let proven = identity("shop", "cart").unwrap();
        let shown = client(&world(), identity, said, from, &proven);
        shown.map(|it| it.ip().to_string()).map_err(|refused| refused.reason)
    }

    #[test]
    fn a_peer_speaks_for_another_address_only_where_the_path_can_have_changed_it() {
        let (gateway, mismatch) = ("192.168.0.1", Err(Refusal::SourceMismatch));
        let shown = |ip: &str| Ok(ip.to_owned());
        assert_eq!(cart_says("10.0.2.1", "10.0.2.1"), shown("10.0.2.1"));
        assert_eq!(cart_says("::ffff:10.0.2.1", "10.0.2.1"), shown("10.0.2.1"));
        assert_eq!(cart_says("10.0.2.1", gateway), shown("10.0.2.1"));
        assert_eq!(cart_says("10.0.2.1", NODE), shown("10.0.2.1"));
        // From the address of another pod of the mesh, of either account.
        assert_eq!(cart_says("10.0.2.1", "10.0.2.2"), mismatch);
        assert_eq!(cart_says("10.0.2.1", "10.0.3.1"), mismatch);
        // For an address of another account.
        assert_eq!(cart_says("10.0.3.1", "10.0.3.1"), mismatch);
        assert_eq!(cart_says("10.0.3.1", gateway), mismatch);
        // Not announced.
        assert_eq!(cart_says("10.0.2.9", "10.0.2.9"), shown("10.0.2.9"));
        assert_eq!(cart_says("10.0.2.9", gateway), mismatch);
    }
}
