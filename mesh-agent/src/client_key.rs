//! What counts as one client, where each client has a share. A share per IPv6 address would limit
//! nothing: a host chooses the lower half of its address by itself (RFC 4291 §2.5.1), and so can
//! have all addresses of its /64.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
};

/// The part of an IPv6 address that a host does not choose.
const NETWORK_BITS: u32 = 64;

/// One client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClientKey {
    /// A known pod, or a stranger's IPv4 address.
    Address(IpAddr),
    /// All of a stranger's IPv6 network, by its first address.
    Network(Ipv6Addr),
}

impl ClientKey {
    /// A pod that is known to have this address. The pods of a node often share one /64, and must
    /// not share a limit.
    pub const fn of_pod(address: IpAddr) -> Self {
        Self::Address(address.to_canonical())
    }

    /// An address that is not known to be a pod's.
    pub fn of_stranger(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::Address(v4.into()),
            IpAddr::V6(v6) => {
                let network = v6.to_bits() & (u128::MAX << (u128::BITS - NETWORK_BITS));
                Self::Network(Ipv6Addr::from_bits(network))
            }
        }
    }
}

impl fmt::Display for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => write!(f, "{address}"),
            Self::Network(network) => write!(f, "{network}/{NETWORK_BITS}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_counts_with_its_network_and_a_pod_by_itself() {
        let [one, two, other] =
            ["fd00:0:0:1::1", "fd00:0:0:1:2::2", "fd00:0:0:2::1"].map(|text| text.parse().unwrap());
        let stranger = ClientKey::of_stranger;
        assert_eq!(stranger(one), stranger(two));
        assert_eq!(stranger(one).to_string(), "fd00:0:0:1::/64");
        assert_ne!(stranger(one), stranger(other));
        assert_ne!(ClientKey::of_pod(one), ClientKey::of_pod(two));
        let [v4, mapped, next] =
            ["10.0.0.1", "::ffff:10.0.0.1", "10.0.0.2"].map(|text| text.parse().unwrap());
        assert_eq!(stranger(v4), stranger(mapped));
        assert_eq!(stranger(v4), ClientKey::of_pod(mapped));
        assert_ne!(stranger(v4), stranger(next));
    }
}
