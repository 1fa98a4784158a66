//! What a peer's agent says in OPEN, held against what is known: whom it asks for, and who dials.

use std::{net::SocketAddr, num::NonZeroU16};

use mesh_common::ports;

use crate::{
    identity::SpiffeId,
    proxy::Mesh,
    wire::{Open, Refusal, Refused},
    world::{Claimant, Standing},
};

/// What a peer's agent wants of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// To know from where it is seen.
    Seen,
    /// The application at this address of the pod's.
    Application(SocketAddr),
}

/// What is asked for on a connection that came to `to`.
///
/// # Errors
/// An application that is not reached there, to be told to the peer.
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

/// The client that the application is shown: what OPEN says, if the certificate is that of the pod which is announced at
/// that address. Of an address that is disputed or not announced (yet), only the connection's own source can be believed: where
/// the path changes that, nothing can.
///
/// # Errors
/// It is not believed; to be told to the peer.
pub(super) fn client(
    mesh: &Mesh,
    open: &Open,
    from: SocketAddr,
    proven: &SpiffeId,
) -> Result<SocketAddr, Refused> {
    let said = SocketAddr::new(open.source.ip().to_canonical(), open.source.port());
    let (ip, from) = (said.ip(), from.ip().to_canonical());
    let mismatch = |text| Err(Refused { reason: Refusal::SourceMismatch, text });
    let world = mesh.world.load();
    match world.standing(ip) {
        Some(Standing::Believed(peer)) => match mesh.identity_of(peer) {
            Some(expected) if expected == *proven => Ok(said),
            Some(expected) => {
                mismatch(format!("{ip} is {expected}, but the certificate says {proven}"))
            }
            None => mismatch(format!("the pod at {ip} has no identity")),
        },
        Some(Standing::Disputed(dispute)) => {
            let identity = |it: &Claimant| mesh.identity(&it.namespace, &it.service_account);
            let is_claimed = dispute.claimants.iter().filter_map(identity).any(|it| it == *proven);
            if is_claimed && ip == from {
                return Ok(said);
            }
            mismatch(format!(
                "{ip} is {dispute}, the certificate says {proven}, and the connection came from {from}"
            ))
        }
        // Not announced yet: the certificate is all that is known, and it is enough.
        None if ip == from => Ok(said),
        None => mismatch(format!(
            "OPEN says {ip}, at which no pod of the mesh is known here, and the connection came from {from}"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_at(to: u16, port: u16) -> Result<Asked, Refusal> {
        let open = Open {
            source: "10.1.2.3:40000".parse().unwrap(),
            original_destination: "10.96.0.7:80".parse().unwrap(),
            destination_port: NonZeroU16::new(port),
            source_pod: None,
            trace_id: None,
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
}
