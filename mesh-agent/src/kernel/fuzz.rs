//! Target `events`: records of the ring buffer that the programs fill.
#![allow(clippy::panic, reason = "a target tells a defect by panicking")]

use std::net::{IpAddr, SocketAddr};

use mesh_common::{maps::RefusalEvent, verdict::Verdict};

use super::events::parse;

/// Bytes of an event, by hand: 8 time, 8 namespace, twice 16 address + 2 port + 2 zero, 4 verdict,
/// 4 zero.
const EVENT_BYTES: usize = 64;

/// A record is an event exactly if it has an event's size and a verdict that exists, and each field
/// is read from its place.
pub(crate) fn events(data: &[u8]) {
    let event = RefusalEvent::from_bytes(data);
    assert_eq!(event.is_some(), data.len() == EVENT_BYTES);
    let Some(event) = event else {
        return;
    };
    let four = |at: usize| [data[at], data[at + 1], data[at + 2], data[at + 3]];
    let verdict = u32::from_ne_bytes(four(56));
    let Some(refusal) = parse(event) else {
        assert!(Verdict::ALL.iter().all(|known| *known as u32 != verdict), "a verdict is lost");
        return;
    };
    assert_eq!(refusal.verdict as u32, verdict);
    assert_eq!(refusal.netns.to_ne_bytes(), data[8..16]);
    for (end, at) in [(refusal.client, 16), (refusal.server, 36)] {
        let mut octets = [0; 16];
        octets.copy_from_slice(&data[at..at + 16]);
        let port = u16::from_ne_bytes([data[at + 16], data[at + 17]]);
        assert_eq!(end, SocketAddr::new(IpAddr::from(octets).to_canonical(), port));
        // The way back, as the agent writes its own tables.
        let again = mesh_common::addr::AddrPort::from(end);
        assert_eq!(SocketAddr::from(again), end);
        assert_eq!(again.addr.0.map(u32::to_ne_bytes).concat(), octets, "another key in the maps");
    }
}
