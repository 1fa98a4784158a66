//! The addresses of a network namespace.

use std::{collections::BTreeSet, io, net::IpAddr};

use nix::ifaddrs::getifaddrs;

/// All addresses of the current namespace's interfaces. Call inside the namespace.
///
/// # Errors
/// What the kernel said.
pub fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let found = getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
    });
    Ok(found.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_with_a_loopback_interface_has_its_addresses() {
        let found = own_addresses().unwrap();
        assert!(found.contains(&IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)), "{found:?}");
    }
}
