//! The addresses of a network namespace (`rtnetlink(7)`).

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use super::netlink::{Netlink, attribute};

/// `ifaddrmsg`, before its attributes.
const MESSAGE_BYTES: usize = 8;

/// How long the kernel may take to list those of a family. A pod can give itself any number of
/// them; enrolment, and a thread that makes other pods' sockets, wait for the list.
const PATIENCE: Duration = Duration::from_millis(500);

/// The addresses of the current namespace's interfaces. Call inside the namespace.
///
/// # Errors
/// What the kernel said; `TimedOut` if there are too many.
pub fn own_addresses() -> io::Result<BTreeSet<IpAddr>> {
    let mut found = BTreeSet::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let netlink = Netlink::open(libc::NETLINK_ROUTE)?;
        let mut question = [0; MESSAGE_BYTES];
        question[0] = u8::try_from(family).unwrap_or_default();
        netlink.ask(libc::RTM_GETADDR, libc::NLM_F_DUMP, &question)?;
        netlink.answers(PATIENCE, |message| found.extend(address(message)))?;
    }
    Ok(found)
}

/// The interface's own address. Between two hosts, the other attribute is the other end's.
fn address(message: &[u8]) -> Option<IpAddr> {
    let attributes = message.get(MESSAGE_BYTES..)?;
    let own = [libc::IFA_LOCAL, libc::IFA_ADDRESS];
    let bytes = own.into_iter().find_map(|kind| attribute(attributes, kind))?;
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_namespace_with_a_loopback_interface_has_its_addresses() {
        let found = own_addresses().unwrap();
        assert!(found.contains(&IpAddr::V4(Ipv4Addr::LOCALHOST)), "{found:?}");
    }

    #[test]
    fn an_address_is_the_interfaces_own() {
        let message = |attributes: &[&[u8]]| [&[0; MESSAGE_BYTES], &*attributes.concat()].concat();
        let (peer, own) = ([8, 0, 1, 0, 10, 0, 0, 1], [8, 0, 2, 0, 10, 0, 0, 2]);
        assert_eq!(address(&message(&[&peer, &own])), Some([10, 0, 0, 2].into()));
        assert_eq!(address(&message(&[&peer])), Some([10, 0, 0, 1].into()));
        assert_eq!(address(&message(&[])), None);
        assert_eq!(address(&[]), None);
    }
}
