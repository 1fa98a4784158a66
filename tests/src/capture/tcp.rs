//! TCP connections put together again from frames: both directions as byte streams.

use std::{
    collections::{BTreeSet, HashMap},
    fmt::{self, Display},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::SystemTime,
};

use super::{pcap::Frame, tls::Tls};

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// One connection.
#[derive(Debug, Clone)]
pub struct Conn {
    /// The address and source port that sent the SYN.
    pub client: SocketAddr,
    /// When the SYN was sent; if that was before the recording, when the first packet was.
    pub begun: SystemTime,
    /// Whether it had begun before the recording did. Its client is then the end with the higher
    /// port.
    pub is_older: bool,
    /// The address and port it was sent to.
    pub server: SocketAddr,
    /// What the client sent.
    pub to_server: Vec<u8>,
    /// What the server sent.
    pub to_client: Vec<u8>,
    /// The traffic classes of the client's packets (`IP_TOS`, `IPV6_TCLASS`).
    pub classes: BTreeSet<u8>,
    /// Whether the server answered the SYN with SYN and ACK.
    pub accepted: bool,
    /// Whether either side sent a reset.
    pub reset: bool,
    /// Whether both sides sent a FIN.
    pub closed: bool,
}

impl Conn {
    /// What its first records say, if it is a TLS connection.
    pub fn tls(&self) -> Option<Tls> {
        Tls::of(&self.to_server, &self.to_client)
    }

    /// Whether it is the middle of a TLS connection, whose handshake was before the recording.
    pub fn is_sealed(&self) -> bool {
        let has_data = !self.to_server.is_empty() || !self.to_client.is_empty();
        has_data && Tls::is_sealed(&self.to_server) && Tls::is_sealed(&self.to_client)
    }
}

impl Display for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client, server, to_server, to_client, accepted, reset, closed, .. } = self;
        let (sent, received) = (to_server.len(), to_client.len());
        write!(
            f,
            "{client} -> {server}, {sent} bytes there, {received} back, accepted {accepted}, "
        )?;
        write!(
            f,
            "reset {reset}, closed {closed}, {}",
            if self.tls().is_some() { "TLS" } else { "not TLS" }
        )
    }
}

struct Segment<'a> {
    from: SocketAddr,
    to: SocketAddr,
    class: u8,
    seq: u32,
    flags: u8,
    data: &'a [u8],
}

/// One direction while it is put together: segments by their distance from the SYN.
#[derive(Default)]
struct Stream {
    /// The sequence number of the first data byte.
    start: u32,
    segments: Vec<(u32, Vec<u8>)>,
    fin: bool,
}

impl Stream {
    /// The bytes up to the first gap. Retransmitted ones are taken once.
    fn bytes(mut self) -> Vec<u8> {
        self.segments.sort_by_key(|(offset, _)| *offset);
        let mut bytes = Vec::new();
        for (offset, data) in self.segments {
            let known = bytes.len().checked_sub(offset as usize);
            let Some(known) = known else { break };
            bytes.extend_from_slice(data.get(known..).unwrap_or_default());
        }
        bytes
    }
}

/// All connections.
pub(super) fn connections(frames: &[Frame]) -> Vec<Conn> {
    let mut conns: Vec<(Conn, [Stream; 2])> = Vec::new();
    // The newest connection of a pair of ends: ports are used again.
    let mut newest: HashMap<(SocketAddr, SocketAddr), usize> = HashMap::new();
    for frame in frames {
        let Some(segment) = Segment::parse(&frame.bytes) else { continue };
        let Segment { from, to, class, seq, flags, data } = segment;
        if flags & (SYN | ACK) == SYN {
            let start = seq.wrapping_add(1);
            let again = newest.get(&(from, to)).is_some_and(|at| conns[*at].1[0].start == start);
            if !again {
                newest.insert((from, to), conns.len());
                let mut conn = Conn::new(from, to, frame.at);
                conn.classes.insert(class);
                let streams = [Stream { start, ..Stream::default() }, Stream::default()];
                conns.push((conn, streams));
            }
            continue;
        }
        let found = newest.get(&(from, to)).map(|at| (*at, 0));
        let found = found.or_else(|| newest.get(&(to, from)).map(|at| (*at, 1)));
        let (at, way) = found.unwrap_or_else(|| {
            let way = usize::from(from.port() < to.port());
            let (client, server) = if way == 0 { (from, to) } else { (to, from) };
            newest.insert((client, server), conns.len());
            let conn = Conn { is_older: true, ..Conn::new(client, server, frame.at) };
            conns.push((conn, [Stream::default(), Stream::default()]));
            (conns.len() - 1, way)
        });
        let (conn, streams) = &mut conns[at];
        if way == 0 {
            conn.classes.insert(class);
        }
        let stream = &mut streams[way];
        if conn.is_older && stream.segments.is_empty() {
            stream.start = seq;
        }
        if flags & SYN != 0 {
            stream.start = seq.wrapping_add(1);
            conn.accepted = true;
        }
        conn.reset |= flags & RST != 0;
        stream.fin |= flags & FIN != 0;
        // A window probe has the byte before the first one that is not yet acknowledged: a huge
        // offset at the very start.
        let offset = seq.wrapping_sub(stream.start);
        if !data.is_empty() && offset < u32::MAX / 2 {
            stream.segments.push((offset, data.to_vec()));
        }
    }
    let finish = |(mut conn, [there, back]): (Conn, [Stream; 2])| {
        conn.closed = there.fin && back.fin;
        (conn.to_server, conn.to_client) = (there.bytes(), back.bytes());
        conn
    };
    conns.into_iter().map(finish).collect()
}

impl Conn {
    fn new(client: SocketAddr, server: SocketAddr, begun: SystemTime) -> Self {
        let (to_server, to_client) = (Vec::new(), Vec::new());
        let (classes, accepted, reset, closed) = (BTreeSet::new(), false, false, false);
        let is_older = false;
        Self {
            client,
            begun,
            is_older,
            server,
            to_server,
            to_client,
            classes,
            accepted,
            reset,
            closed,
        }
    }
}

impl<'a> Segment<'a> {
    fn parse(frame: &'a [u8]) -> Option<Self> {
        let packet = frame.get(14..)?;
        match u16_at(frame, 12)? {
            0x0800 => {
                let header = usize::from(packet.first()? & 15) * 4;
                // A length of 0 is larger than the field can say (segmentation offload): the rest
                // of the frame then.
                let length = match usize::from(u16_at(packet, 2)?) {
                    0 => packet.len(),
                    length => length,
                };
                let address = |at| Some(IpAddr::V4(Ipv4Addr::from(array::<4>(packet, at)?)));
                let tcp = (*packet.get(9)? == 6).then(|| packet.get(header..length))??;
                Self::parse_tcp(address(12)?, address(16)?, *packet.get(1)?, tcp)
            }
            0x86dd => {
                let length = match usize::from(u16_at(packet, 4)?) {
                    0 => packet.len(),
                    length => 40 + length,
                };
                let address = |at| Some(IpAddr::V6(Ipv6Addr::from(array::<16>(packet, at)?)));
                let tcp = (*packet.get(6)? == 6).then(|| packet.get(40..length))??;
                let class = (u16_at(packet, 0)? >> 4) as u8;
                Self::parse_tcp(address(8)?, address(24)?, class, tcp)
            }
            _ => None,
        }
    }

    fn parse_tcp(from: IpAddr, to: IpAddr, class: u8, tcp: &'a [u8]) -> Option<Self> {
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        Some(Self {
            from: (from, u16_at(tcp, 0)?).into(),
            to: (to, u16_at(tcp, 2)?).into(),
            class,
            seq: u32::from_be_bytes(array(tcp, 4)?),
            flags: *tcp.get(13)?,
            data: tcp.get(header..)?,
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(array(bytes, at)?))
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at + N)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmitted_and_swapped_segments_are_put_in_order() {
        let segments = vec![
            (3, b"defg".to_vec()),
            (0, b"abc".to_vec()),
            (2, b"cde".to_vec()),
            (9, b"?".to_vec()),
        ];
        let stream = Stream { segments, ..Stream::default() };
        assert_eq!(stream.bytes(), b"abcdefg");
    }
}
