//! IP addresses as Kubernetes objects carry them.

use std::net::IpAddr;

/// Parses an address of a pod, endpoint or service. IPv4-mapped IPv6 becomes IPv4, so that one
/// address has one form everywhere (a Java client dials `::ffff:10.0.0.1` and means 10.0.0.1).
///
/// Loopback, unspecified and multicast addresses are refused. Kubernetes refuses them for endpoints
/// as well (`ValidateNonSpecialIP`), and an announced 127.0.0.1 would redirect a pod's localhost.
///
/// Errors: one sentence that quotes the text.
pub fn parse_address(text: &str) -> Result<IpAddr, String> {
    let Ok(address) = text.parse::<IpAddr>() else {
        return Err(format!("{text:?} is not an IP address"));
    };
    let address = address.to_canonical();
    let kind = if address.is_loopback() {
        "a loopback"
    } else if address.is_unspecified() {
        "the unspecified"
    } else if address.is_multicast() {
        "a multicast"
    } else {
        return Ok(address);
    };
    Err(format!("{text:?} is {kind} address"))
}

/// The remedy that goes with the error of [`parse_address`].
pub(super) const ADDRESS_HINT: &str =
    "write the address alone, such as 10.244.1.7 or fd00:10:244::7";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_have_one_form() {
        let plain = parse_address("10.0.0.1").unwrap();
        assert_eq!(parse_address("::ffff:10.0.0.1").unwrap(), plain);
        assert!(parse_address("fd00::1").unwrap().is_ipv6());
    }

    #[test]
    fn special_addresses_are_refused_in_every_disguise() {
        let refused = |text: &str| parse_address(text).unwrap_err();
        assert_eq!(refused("127.0.0.1"), "\"127.0.0.1\" is a loopback address");
        assert_eq!(refused("::ffff:127.0.0.1"), "\"::ffff:127.0.0.1\" is a loopback address");
        assert_eq!(refused("::"), "\"::\" is the unspecified address");
        assert_eq!(refused("ff02::1"), "\"ff02::1\" is a multicast address");
        assert_eq!(refused("10.0.0.1/24"), "\"10.0.0.1/24\" is not an IP address");
    }
}
