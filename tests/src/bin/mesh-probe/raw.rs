//! A TCP client without a TCP socket: what a process with `CAP_NET_RAW` sends past every hook that
//! looks at sockets.

use std::{
    io::Read as _,
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{libc, net::if_::if_nametoindex};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tests::probe::{Conn, End, Event, RawSpec};

use crate::{emit, sys};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const PSH: u8 = 8;
const ACK: u8 = 16;

/// Our first sequence number; any will do.
const START: u32 = 0x0101_0101;

/// Length of an IPv4 and of a TCP header without options.
const HEADER: usize = 20;

pub(crate) fn run(spec: &RawSpec) -> Result<()> {
    let link = Link::open(spec)?;
    emit(&Event::Conn(Box::new(link.talk(spec)?)))
}

/// The sockets, and the addresses that we claim.
struct Link {
    sender: Socket,
    /// Where the sender sends: the destination, or the next hop's Ethernet address.
    next: SockAddr,
    receiver: Socket,
    from: (Ipv4Addr, u16),
    to: (Ipv4Addr, u16),
}

/// What came back.
struct Segment {
    flags: u8,
    seq: u32,
    data: Vec<u8>,
}

impl Link {
    fn open(spec: &RawSpec) -> Result<Self> {
        let ipv4 = |address| match address {
            SocketAddr::V4(v4) => Ok((*v4.ip(), v4.port())),
            SocketAddr::V6(_) => bail!("{address} is not IPv4"),
        };
        let (sender, next) = if spec.device.is_empty() {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(libc::IPPROTO_RAW.into()))?;
            (raw, spec.to.into())
        } else {
            let interface = if_nametoindex(&*spec.device)?;
            let packet = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
            (packet, sys::packet_address(interface, ethernet(&spec.gateway)?)?)
        };
        let receiver = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
        Ok(Self { sender, next, receiver, from: ipv4(spec.from)?, to: ipv4(spec.to)? })
    }

    fn talk(&self, spec: &RawSpec) -> Result<Conn> {
        let patience = Duration::from_millis(spec.timeout_ms);
        let mut report = Conn { local: Some(spec.from), ..Conn::default() };
        self.send(SYN, START, 0, b"")?;
        let Some(answer) = self.receive(patience)? else {
            return Ok(Conn { end: End::Timeout, ..report });
        };
        if answer.flags & (SYN | ACK) != SYN | ACK {
            return Ok(Conn { end: End::Refused, ..report });
        }
        report.connected = true;
        let (mine, mut theirs) = (START + 1, answer.seq + 1);
        self.send(ACK | PSH, mine, theirs, spec.say.as_bytes())?;
        report.sent = spec.say.len() as u64;
        let mine = mine + u32::try_from(spec.say.len())?;
        report.end = End::Timeout;
        while let Some(answer) = self.receive(patience)? {
            if answer.flags & RST != 0 {
                report.end = End::Reset;
                break;
            }
            if answer.seq != theirs {
                continue; // sent again
            }
            theirs += u32::try_from(answer.data.len())?;
            report.received += answer.data.len() as u64;
            report.first += &answer.data.escape_ascii().to_string();
            if answer.flags & FIN != 0 {
                report.end = End::Fin;
                break;
            }
            self.send(ACK, mine, theirs, b"")?;
        }
        Ok(report)
    }

    fn send(&self, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Result<()> {
        let tcp = self.tcp(flags, seq, ack, data);
        let total = u16::try_from(HEADER + tcp.len())?.to_be_bytes();
        // RFC 791: version and length, no fragments, time to live 64, TCP.
        let mut packet = vec![0x45, 0, total[0], total[1], 0, 1, 0x40, 0, 64, 6, 0, 0];
        packet.extend(self.from.0.octets());
        packet.extend(self.to.0.octets());
        let sum = checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(tcp);
        let sent = self.sender.send_to(&packet, &self.next)?;
        ensure!(sent == packet.len(), "only {sent} bytes were sent");
        Ok(())
    }

    /// A segment, RFC 9293.
    fn tcp(&self, flags: u8, seq: u32, ack: u32, data: &[u8]) -> Vec<u8> {
        let mut tcp = Vec::from(self.from.1.to_be_bytes());
        tcp.extend(self.to.1.to_be_bytes());
        tcp.extend(seq.to_be_bytes());
        tcp.extend(ack.to_be_bytes());
        tcp.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]); // no options, the largest window
        tcp.extend(data);
        let mut summed = [self.from.0.octets(), self.to.0.octets()].concat();
        summed.extend([0, 6]);
        summed.extend((tcp.len() as u16).to_be_bytes());
        summed.extend(&tcp);
        let sum = checksum(&summed);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        tcp
    }

    /// The next segment of our connection, if one comes in time.
    fn receive(&self, patience: Duration) -> Result<Option<Segment>> {
        let until = Instant::now() + patience;
        let mut buffer = [0; 2048];
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.receiver.set_read_timeout(Some(left))?;
            match (&self.receiver).read(&mut buffer) {
                Ok(count) => {
                    if let Some(segment) = self.parse(&buffer[..count]) {
                        return Ok(Some(segment));
                    }
                }
                Err(e) if End::from(&e) == End::Timeout => return Ok(None),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// A packet of our connection, as a raw socket gets it: with its IP header.
    fn parse(&self, packet: &[u8]) -> Option<Segment> {
        let length = usize::from(packet.first()? & 15) * 4;
        let (ip, tcp) = packet.split_at_checked(length)?;
        let from = Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(12..16)?).ok()?);
        let port = |at| tcp.get(at..at + 2).map(|two| u16::from_be_bytes([two[0], two[1]]));
        if (from, port(0)?, port(2)?) != (self.to.0, self.to.1, self.from.1) {
            return None;
        }
        let seq = u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?);
        let data = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?;
        Some(Segment { flags: *tcp.get(13)?, seq, data: data.to_vec() })
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2);
    let sum: u32 = words
        .map(|word| u32::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    !((folded & 0xffff) + (folded >> 16)) as u16
}

fn ethernet(text: &str) -> Result<[u8; 6]> {
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes: Vec<u8> = bytes.collect::<Result<_, _>>().context("--gateway")?;
    bytes.try_into().ok().with_context(|| format!("{text} is no Ethernet address"))
}
