//! Conversions from and to the standard library's addresses.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::addr::{Addr, AddrPort};

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&octets[i * 4..i * 4 + 4]);
            u32::from_ne_bytes(bytes)
        };
        Self([word(0), word(1), word(2), word(3)])
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            return Self::V4(Ipv4Addr::from(u32::from_be(addr.v4_word())));
        }
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(addr.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        Self::V6(Ipv6Addr::from(octets))
    }
}

impl From<SocketAddr> for AddrPort {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip().into(), addr.port())
    }
}

impl From<AddrPort> for SocketAddr {
    fn from(endpoint: AddrPort) -> Self {
        Self::new(endpoint.addr.into(), endpoint.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_way_there_and_back() {
        for text in ["10.244.1.7", "127.0.0.1", "fd00::7", "::1", "2001:db8::ffff:1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
        let mapped: IpAddr = "::ffff:10.0.0.1".parse().unwrap();
        assert_eq!(IpAddr::from(Addr::from(mapped)).to_string(), "10.0.0.1");
    }
}
