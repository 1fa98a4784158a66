//! Dials that wait in `connect()` until the agent has reached what they dial. The programs report
//! them with the headers of their first packet, which the agent sends again.

use std::{io, net::SocketAddr, ops::RangeInclusive};

use aya::maps::{MapData, RingBuf};
use mesh_common::{
    addr::Addr,
    maps::{FlowKey, QuestionEvent},
};

use super::events::Ring;

/// A dial that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The dial, as the dialling socket sees it.
    pub flow: FlowKey,
    /// What tells it from an earlier dial of the same addresses and ports.
    pub id: u64,
    /// Its first packet.
    pub packet: Packet,
}

/// The headers of a packet that begins a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// IPv4 without options, or IPv6 without extensions.
    pub ip: Vec<u8>,
    /// TCP with its options.
    pub tcp: Vec<u8>,
}

/// The dials that the programs report.
pub struct Questions(Ring);

impl Questions {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(Ring::new(ring))
    }

    /// Calls `each` for every dial, until dropped.
    ///
    /// # Errors
    /// The ring could not be polled.
    ///
    /// # Cancel safety
    /// Nothing is lost: a record is taken from the ring only to be handed to `each`.
    pub async fn run(self, mut each: impl FnMut(Question)) -> io::Result<()> {
        let read = |record: &[u8]| QuestionEvent::from_bytes(record).and_then(|it| parse(&it));
        self.0.run(|record| read(record).into_iter().for_each(&mut each)).await
    }
}

const IPV4: usize = 20;
const IPV6: usize = 40;
const TCP: RangeInclusive<usize> = 20..=60;

fn parse(event: &QuestionEvent) -> Option<Question> {
    let bytes = |words: &[u64]| words.iter().flat_map(|it| it.to_ne_bytes()).collect::<Vec<_>>();
    let (mut ip, mut tcp) = (bytes(&event.ip), bytes(&event.tcp));
    let is_v4 = ip.first()? >> 4 == 4;
    ip.truncate(if is_v4 { IPV4 } else { IPV6 });
    tcp.truncate(usize::try_from(event.tcp_len).ok().filter(|it| TCP.contains(it))?);
    let word = |at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(ip.get(at..at + 4)?.try_into().ok()?))
    };
    let address = |at: usize| -> Option<Addr> {
        if is_v4 {
            return Some(Addr::from_v4_word(word(at)?));
        }
        Some(Addr([word(at)?, word(at + 4)?, word(at + 8)?, word(at + 12)?]))
    };
    let port = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?))
    };
    let (from, to) = if is_v4 { (12, 16) } else { (8, 24) };
    let flow = FlowKey {
        netns: event.netns,
        local: address(from)?,
        remote: address(to)?,
        local_port: port(0)?,
        remote_port: port(2)?,
        zero: 0,
    };
    Some(Question { flow, id: event.id, packet: Packet { ip, tcp } })
}

impl Question {
    /// The dialling end.
    pub fn client(&self) -> SocketAddr {
        SocketAddr::new(self.flow.local.into(), self.flow.local_port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dial_is_read_from_the_headers_of_its_packet() {
        let words = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().unwrap());
        let (mut ip, mut tcp) = ([0; 40], [0; 64]);
        let event = |ip: &[u8], tcp: &[u8], tcp_len| QuestionEvent {
            netns: 7,
            id: 9,
            ip: std::array::from_fn(|at| words(&ip[8 * at..8 * at + 8])),
            tcp: std::array::from_fn(|at| words(&tcp[8 * at..8 * at + 8])),
            tcp_len,
        };
        ip[0] = 0x45;
        ip[12..20].copy_from_slice(&[10, 0, 1, 2, 10, 0, 1, 2]);
        tcp[..4].copy_from_slice(&[0x80, 0x01, 0xee, 0x40]);
        let question = parse(&event(&ip, &tcp, 24)).unwrap();
        assert_eq!(question.client(), "10.0.1.2:32769".parse().unwrap());
        assert_eq!((question.flow.remote_port, question.flow.netns, question.id), (60_992, 7, 9));
        assert_eq!((question.packet.ip.len(), question.packet.tcp.len()), (20, 24));
        ip[0] = 0x60;
        ip[8..24].copy_from_slice(&"fd00::7".parse::<std::net::Ipv6Addr>().unwrap().octets());
        let question = parse(&event(&ip, &tcp, 24)).unwrap();
        assert_eq!(question.client(), "[fd00::7]:32769".parse().unwrap());
        assert_eq!(question.packet.ip.len(), 40);
        assert_eq!(parse(&event(&ip, &tcp, 64)), None);
    }
}
