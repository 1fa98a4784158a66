//! Packets that end the waiting of a `connect()`: the first packet of the dial once more, or an
//! answer of the network. They are made inside the pod's network namespace, from the pod's own
//! address to itself, as the packet was that the kernel took in silence.

use std::{io, net::SocketAddr};

use mesh_common::errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::kernel::Packet;

const TCP: u8 = 6;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: usize = 16;
/// What of TCP's header goes into an ICMP message: the ports and the sequence number.
const QUOTED_BYTES: usize = 8;

/// Sends the first packet of a dial once more. Call inside the pod's namespace.
///
/// The headers are sent alone: data that came with the packet is sent again by the kernel once the
/// connection is established.
///
/// # Errors
/// What the kernel said.
pub(super) fn send_again(packet: &Packet, to: SocketAddr) -> io::Result<()> {
    let socket = raw(to, libc::IPPROTO_RAW)?;
    socket.send_to(&again(packet), &SocketAddr::new(to.ip(), 0).into()).map(drop)
}

/// Tells the dialling socket that its destination cannot be reached, as a router would (RFC 792,
/// RFC 4443). Call inside the pod's namespace.
///
/// # Errors
/// What the kernel said.
pub(super) fn send_unreachable(packet: &Packet, to: SocketAddr, errno: u32) -> io::Result<()> {
    let protocol = if to.is_ipv4() { libc::IPPROTO_ICMP } else { libc::IPPROTO_ICMPV6 };
    let socket = raw(to, protocol)?;
    let message = unreachable(packet, to.is_ipv4(), errno);
    socket.send_to(&message, &SocketAddr::new(to.ip(), 0).into()).map(drop)
}

fn raw(to: SocketAddr, protocol: libc::c_int) -> io::Result<Socket> {
    let kind = Type::RAW.nonblocking().cloexec();
    Socket::new(Domain::for_address(to), kind, Some(Protocol::from(protocol)))
}

/// The packet with right lengths and checksums: the kernel leaves those to the network card.
fn again(packet: &Packet) -> Vec<u8> {
    let Packet { ip, tcp } = packet;
    let mut bytes = [ip.as_slice(), tcp].concat();
    // Options and extension headers are left out.
    if let [version, _, _, _, _, _, first, second, ..] = bytes.as_mut_slice() {
        if ip.len() == 20 {
            (*version, *first, *second) = (0x45, 0, 0);
        } else {
            *first = TCP;
        }
    }
    let lengths = [bytes.len(), tcp.len()].map(|length| (length as u16).to_be_bytes());
    let (addresses, length) = if ip.len() == 20 { (12..20, 2..4) } else { (8..40, 4..6) };
    let [whole, payload] = lengths;
    put(&mut bytes, length, if ip.len() == 20 { whole } else { payload });
    let mut counted = bytes.get(addresses).unwrap_or_default().to_vec();
    counted.extend([0, TCP]);
    counted.extend(payload);
    let checksum = ip.len() + TCP_CHECKSUM;
    put(&mut bytes, checksum..checksum + 2, [0; 2]);
    counted.extend(bytes.get(ip.len()..).unwrap_or_default());
    put(&mut bytes, checksum..checksum + 2, internet_checksum(&counted).to_be_bytes());
    bytes
}

/// An ICMP message that quotes the packet. The kernel fills in the checksum of
/// `ICMPv6`.
fn unreachable(packet: &Packet, is_v4: bool, errno: u32) -> Vec<u8> {
    let (kind, code) = match (is_v4, errno) {
        (true, errno::ENETUNREACH) => (3, 0),
        (true, _) => (3, 1),
        (false, errno::ENETUNREACH) => (1, 0),
        (false, _) => (1, 3),
    };
    let quoted = packet.tcp.get(..QUOTED_BYTES).unwrap_or_default();
    let mut message = [&[kind, code, 0, 0, 0, 0, 0, 0], packet.ip.as_slice(), quoted].concat();
    if is_v4 {
        let checksum = internet_checksum(&message).to_be_bytes();
        put(&mut message, 2..4, checksum);
    }
    message
}

fn put(bytes: &mut [u8], range: std::ops::Range<usize>, value: [u8; 2]) {
    if let Some(place) = bytes.get_mut(range) {
        place.copy_from_slice(&value);
    }
}

/// RFC 1071.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| {
        let low = pair.get(1).copied().unwrap_or(0);
        u32::from(u16::from_be_bytes([pair.first().copied().unwrap_or(0), low]))
    };
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_icmp_message_quotes_the_packet_and_says_what_the_router_would() {
        let packet = Packet { ip: vec![0x45; 20], tcp: (0..20).collect() };
        let message = unreachable(&packet, true, errno::EHOSTUNREACH);
        assert_eq!((message[0], message[1], message.len()), (3, 1, 8 + 20 + 8));
        assert_eq!(message[28..], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(internet_checksum(&message), 0);
        assert_eq!(unreachable(&packet, true, errno::ENETUNREACH)[..2], [3, 0]);
        let packet = Packet { ip: vec![0x60; 40], ..packet };
        let message = unreachable(&packet, false, errno::EHOSTUNREACH);
        assert_eq!((message[0], message[1], message.len()), (1, 3, 8 + 40 + 8));
        assert_eq!(unreachable(&packet, false, errno::ENETUNREACH)[..2], [1, 0]);
    }

    #[test]
    fn checksums_are_those_of_the_standards() {
        // RFC 1071, section 3.
        assert_eq!(internet_checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(internet_checksum(&[0x01]), !0x0100);
        // A SYN as a capture shows it: 10.0.0.1:1 to 10.0.0.1:2, no options.
        let mut ip = vec![0x45, 0, 0, 99, 0, 0, 0x40, 0, 64, TCP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 1];
        let mut tcp = vec![0; 20];
        (tcp[1], tcp[3], tcp[12], tcp[13]) = (1, 2, 0x50, 2);
        tcp[16] = 0xab; // what the kernel left there
        let bytes = again(&Packet { ip: ip.clone(), tcp: tcp.clone() });
        assert_eq!(bytes[2..4], [0, 40]);
        let mut whole = [&bytes[12..20], &[0, TCP, 0, 20]].concat();
        whole.extend(&bytes[20..]);
        assert_eq!(internet_checksum(&whole), 0, "a right checksum makes the sum zero");
        // The same over IPv6.
        ip = [vec![0x60, 0, 0, 0, 0, 0, TCP, 64], vec![0xfd; 32]].concat();
        let bytes = again(&Packet { ip, tcp: tcp.clone() });
        assert_eq!(bytes[4..6], [0, 20]);
        let mut whole = [&bytes[8..40], &[0, TCP, 0, 20]].concat();
        whole.extend(&bytes[40..]);
        assert_eq!(internet_checksum(&whole), 0);
    }
}
