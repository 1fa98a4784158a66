//! The endpoint that each client keeps to, for services that ask for that
//! (`sessionAffinity: ClientIP`).
//!
//! Only this agent knows them, and they are lost when it restarts. A client may then get another
//! endpoint, as after a restart of kube-proxy.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use mesh_world::ServicePort;
use parking_lot::Mutex;

/// With fewer entries than this, none is checked for expiry.
const FEW: usize = 1024;

/// Keyed by client and service.
#[derive(Default)]
pub(super) struct Affinities(Mutex<Table>);

#[derive(Default)]
struct Table {
    kept: HashMap<Key, AffinityEntry>,
    /// Number of entries at which expired ones are removed.
    sweep_at: usize,
}

/// The client's address; namespace, name and port of the service.
type Key = (IpAddr, Arc<str>, Arc<str>, u16);

struct AffinityEntry {
    endpoint: SocketAddr,
    until: Instant,
}

impl Affinities {
    /// The endpoint that a client has used before, if it still is an endpoint of the service.
    pub(super) fn of(&self, client: IpAddr, service: &ServicePort) -> Option<SocketAddr> {
        service.affinity?;
        let table = self.0.lock();
        let kept = table.kept.get(&key(client, service)).filter(|it| it.until > Instant::now())?;
        let is_one = service.endpoints.iter().any(|it| it.socket_addr() == kept.endpoint);
        is_one.then_some(kept.endpoint)
    }

    /// Notes that a client has reached an endpoint.
    pub(super) fn keep(&self, client: IpAddr, service: &ServicePort, endpoint: SocketAddr) {
        let Some(affinity) = service.affinity else { return };
        let now = Instant::now();
        let kept = AffinityEntry { endpoint, until: now + affinity.min(Duration::from_hours(24)) };
        let mut table = self.0.lock();
        if table.kept.len() > table.sweep_at.max(FEW) {
            table.kept.retain(|_, kept| kept.until > now);
            table.sweep_at = table.kept.len() * 2;
        }
        table.kept.insert(key(client, service), kept);
    }
}

fn key(client: IpAddr, service: &ServicePort) -> Key {
    let (namespace, name) = (Arc::clone(&service.namespace), Arc::clone(&service.name));
    (client.to_canonical(), namespace, name, service.port)
}

#[cfg(test)]
mod tests {
    use mesh_world::{Endpoint, Outside};

    use super::*;

    fn service(affinity: Option<Duration>) -> ServicePort {
        let endpoint = |i| Endpoint { addr: [10, 0, 0, i].into(), port: 80, ready: true };
        ServicePort {
            namespace: "shop".into(),
            name: "cart".into(),
            port_name: "".into(),
            port: 80,
            endpoints: (1..3).map(endpoint).collect(),
            others: [].into(),
            affinity,
            outside: Outside::default(),
        }
    }

    #[test]
    fn a_client_keeps_its_endpoint_for_its_time_and_as_long_as_it_is_one() {
        let affinities = Affinities::default();
        let service = service(Some(Duration::from_mins(1)));
        let (one, other): (IpAddr, IpAddr) = ([10, 1, 0, 1].into(), [10, 1, 0, 2].into());
        let endpoint = SocketAddr::from(([10, 0, 0, 2], 80));
        assert_eq!(affinities.of(one, &service), None);
        affinities.keep(one, &service, endpoint);
        assert_eq!(affinities.of(one, &service), Some(endpoint));
        assert_eq!(affinities.of(other, &service), None);
        let gone = ServicePort { endpoints: service.endpoints[..1].into(), ..service.clone() };
        assert_eq!(affinities.of(one, &gone), None);
        let short = ServicePort { affinity: Some(Duration::ZERO), ..service };
        affinities.keep(one, &short, endpoint);
        assert_eq!(affinities.of(one, &short), None, "its time is over");
    }

    #[test]
    fn who_has_not_asked_for_it_keeps_nothing_and_what_has_ended_is_forgotten() {
        let affinities = Affinities::default();
        let endpoint = SocketAddr::from(([10, 0, 0, 2], 80));
        affinities.keep([10, 1, 0, 1].into(), &service(None), endpoint);
        let ended = service(Some(Duration::ZERO));
        for i in 0..10_000_u32 {
            affinities.keep(std::net::Ipv4Addr::from_bits(i).into(), &ended, endpoint);
        }
        assert!(affinities.0.lock().kept.len() <= FEW + 1);
    }
}
