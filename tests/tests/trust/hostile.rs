//! What no client may do: dial the agent's own listeners and ports, from anywhere.

use std::{collections::BTreeSet, net::SocketAddr};

use anyhow::{Result, ensure};
use tests::{
    Pair, PodSpec,
    exec::Place,
    netns,
    probe::{self, Conn, DialSpec, End, Talk},
    scenario,
};

/// The ports that redirected connections carry, and those at which the listeners are bound
/// (ARCHITECTURE.md, the ports).
const OURS: std::ops::RangeInclusive<u16> = 60_988..=60_997;

/// Where an agent answers peers' agents over mutual TLS; any client may dial it
/// (tests/masquerade.rs).
const AGENTS_PORT: u16 = 60_998;

/// Dials, expecting not to get anywhere.
fn refused(from: &Place, to: SocketAddr, bind: Option<SocketAddr>) -> Result<()> {
    let seen = dial(from, to, bind)?;
    ensure!(!seen.connected, "{} reached {to} from {bind:?}: {seen:?}", from.name);
    Ok(())
}

fn dial(from: &Place, to: SocketAddr, bind: Option<SocketAddr>) -> Result<Conn> {
    let spec = DialSpec { bind, timeout_s: 1, ..DialSpec::new(to, Talk::Exchange) };
    probe::dial(from, &DialSpec { say: "x".to_owned(), ..spec })
}

#[test]
fn the_agents_ports_cannot_be_dialled() {
    scenario("hostile", |net| {
        let pair = Pair::new(net)?;
        let neighbour = net.pod(&pair.nodes[0], PodSpec::new("other", "neighbour"))?;
        let outsider = net.outsider()?;
        let before = netns::listeners(&pair.client.netns)?;
        pair.join()?;

        let listeners = netns::listeners(&pair.client.netns)?;
        let listeners: BTreeSet<SocketAddr> = listeners.difference(&before).copied().collect();
        ensure!(!listeners.is_empty(), "the agent listens nowhere: this test would prove nothing");
        // As bound, and at the pod's own addresses.
        let pod = &pair.client;
        let mut targets = listeners.clone();
        for port in listeners.iter().map(SocketAddr::port).chain(OURS) {
            targets.extend([pod.at(port), pod.at6(port)]);
        }

        let beside = pair.beside_client();
        for to in &targets {
            refused(pod, *to, None)?;
            // A pod cannot dial like this, but the node's administrator can: inside the namespace,
            // where no cgroup program looks. Nothing is noted of such a connection, and where it
            // was to go must not be guessed.
            refused(&beside, *to, None)?;
            if to.ip().is_loopback() {
                continue;
            }
            for from in [&*neighbour, &*pair.nodes[0], &outsider] {
                refused(from, *to, None)?;
            }
            refused(&pair.server, *to, None)?;
        }
        // From a port in the agents' own range, not redirected: taken for an agent, and found not
        // to be one.
        let (beside, bind) = (pair.beside_server(), Some(pair.server.at(61_500)));
        for to in targets.iter().filter(|to| to.is_ipv4() && !to.ip().is_loopback()) {
            let seen = dial(&beside, *to, bind)?;
            let nothing = seen.received == 0 && seen.end != End::Timeout;
            ensure!(!seen.connected || nothing, "{to}: {seen:?}");
        }
        Ok(())
    });
}

#[test]
fn the_pods_own_services_are_not_in_the_way() {
    // The ports just below and above ours are the application's.
    scenario("hostile-near", |net| {
        let pair = Pair::meshed(net)?;
        for port in [*OURS.start() - 1, AGENTS_PORT + 1] {
            let spec = probe::ServeSpec::both_families(port, Talk::Exchange);
            let _service = probe::serve(&pair.server, &spec)?;
            for to in [pair.server.at(port), pair.server.at6(port)] {
                let seen = probe::dial(&pair.client, &DialSpec::say(to, "x"))?;
                ensure!(seen.first == "x", "{seen:?}");
            }
        }
        Ok(())
    });
}
