//! Where a service's port leads, and which of its endpoints to take.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

/// One TCP port of a service, with the endpoints of one address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// The service's namespace.
    pub namespace: Arc<str>,
    /// The service's name.
    pub name: Arc<str>,
    /// The port's name; empty if it has none.
    pub port_name: Arc<str>,
    /// The port on the service's address.
    pub port: u16,
    /// The endpoints that may be chosen now, sorted: the ready ones or, if there are none, those
    /// that are being terminated but still serve. Empty means that a dial is to be refused.
    pub endpoints: Arc<[Endpoint]>,
    /// All others, sorted: not ready, or meant for clients elsewhere. The node's service proxy may
    /// see these states differently, or later.
    pub others: Arc<[SocketAddr]>,
    /// How long after its last connection a client keeps its endpoint, if the service asks for
    /// affinity.
    pub affinity: Option<Duration>,
    /// The ways to it from outside the cluster. Dials there from pods of the mesh are not carried
    /// by it.
    pub outside: Outside,
}

/// The ways to a service that begin outside the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outside {
    /// Addresses of a load balancer, and `externalIPs`.
    pub addresses: Vec<IpAddr>,
    /// The port at every node's address.
    pub node_port: Option<u16>,
}

/// One place where a service is offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    /// The address, usually a pod's.
    pub addr: IpAddr,
    /// The port there.
    pub port: u16,
    /// False for an endpoint that is taken only because none is ready.
    pub ready: bool,
}

impl Endpoint {
    /// Address and port as one.
    pub fn socket_addr(&self) -> SocketAddr {
        SocketAddr::new(self.addr, self.port)
    }
}

impl ServicePort {
    /// Every address where a dial may end, whether the agent or the node's service proxy leads it
    /// there.
    pub fn targets(&self) -> impl Iterator<Item = SocketAddr> {
        self.endpoints.iter().map(Endpoint::socket_addr).chain(self.others.iter().copied())
    }
}

/// The less loaded of two endpoints drawn at random; `None` if there is none.
///
/// Two choices keep the most loaded endpoint near the mean without looking at all of them
/// (Mitzenmacher, "The power of two choices", 2001). `two_random` are any two random numbers;
/// `load` is asked at most twice. On equal load the first draw wins, so that idle endpoints share.
pub fn pick(
    service: &ServicePort,
    two_random: (u64, u64),
    load: impl Fn(SocketAddr) -> u32,
) -> Option<Endpoint> {
    let endpoints = &service.endpoints;
    let draw = |random: u64, of: usize| {
        let of = u64::try_from(of).ok().filter(|of| *of > 0)?;
        usize::try_from(random % of).ok()
    };
    let first_index = draw(two_random.0, endpoints.len())?;
    let first = *endpoints.get(first_index)?;
    // Drawn among the others, so that the two always differ.
    let Some(second_index) = draw(two_random.1, endpoints.len() - 1) else {
        return Some(first);
    };
    let second_index = second_index + usize::from(second_index >= first_index);
    let Some(second) = endpoints.get(second_index).copied() else {
        return Some(first);
    };
    let second_is_better = load(second.socket_addr()) < load(first.socket_addr());
    Some(if second_is_better { second } else { first })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn service(endpoints: u8) -> ServicePort {
        let endpoint = |i| Endpoint { addr: [10, 0, 0, i].into(), port: 80, ready: true };
        ServicePort {
            namespace: "shop".into(),
            name: "cart".into(),
            port_name: "".into(),
            port: 80,
            endpoints: (0..endpoints).map(endpoint).collect(),
            others: [].into(),
            affinity: None,
            outside: Outside::default(),
        }
    }

    fn last_byte(addr: SocketAddr) -> u32 {
        match addr.ip() {
            IpAddr::V4(v4) => u32::from(v4.octets()[3]),
            IpAddr::V6(_) => panic!("an IPv6 endpoint"),
        }
    }

    #[test]
    fn none_of_none_and_the_one_of_one() {
        assert_eq!(pick(&service(0), (1, 2), |_| 0), None);
        assert_eq!(pick(&service(1), (u64::MAX, u64::MAX), |_| 9), Some(service(1).endpoints[0]));
    }

    #[test]
    fn two_different_ones_are_compared_and_every_pair_can_come_up() {
        let service = service(4);
        let mut pairs = BTreeSet::new();
        for two_random in (0..4).flat_map(|a| (0..3).map(move |b| (a, b))) {
            let asked = std::cell::RefCell::new(BTreeSet::new());
            let taken = pick(&service, two_random, |addr| {
                asked.borrow_mut().insert(addr);
                last_byte(addr)
            });
            let asked = asked.into_inner();
            assert_eq!(asked.len(), 2);
            assert_eq!(taken.unwrap().socket_addr(), *asked.first().unwrap(), "the less loaded");
            pairs.insert(asked);
        }
        assert_eq!(pairs.len(), 6, "all pairs of four");
    }

    #[test]
    fn equal_load_takes_the_first_draw() {
        let service = service(3);
        let taken: BTreeSet<_> = (0..3).filter_map(|a| pick(&service, (a, 0), |_| 5)).collect();
        assert_eq!(taken.len(), 3, "idle endpoints share");
    }
}
