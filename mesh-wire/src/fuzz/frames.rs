//! Target `frames`: one record's content.
//!
//! The decoder is compared with a second reading of docs/wire.md, which is as plain as the tables
//! there. What was read is written and read again, and so is everything that an agent might write.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;

use crate::frame::{Accepted, Frame, MAX_TEXT_BYTES, Open, Refused};
use crate::{Refusal, ResetCode};
use fuzz_input::Input;

/// Reads the input as a frame, and makes a frame out of it.
pub(crate) fn frames(data: &[u8]) {
    read(data);
    written(&mut Input::new(data));
}

fn read(record: &[u8]) {
    let decoded = Frame::decode(record);
    assert_eq!(decoded.is_ok(), is_allowed(record), "docs/wire.md does not say {decoded:?}");
    let Ok(frame) = decoded else {
        return;
    };
    let mut again = Vec::new();
    frame.encode(&mut again);
    assert!(again.len() <= record.len(), "{frame:?} has grown");
    assert_eq!(Frame::decode(&again), Ok(frame), "not the same when written and read again");
}

/// Whatever the agent sends, with texts of any length and content: the peer can read it.
fn written(input: &mut Input<'_>) {
    let frame = match input.u8() % 5 {
        0 => Frame::Open(Open {
            source: address(input),
            original_destination: address(input),
            destination_port: NonZeroU16::new(input.u16()),
            acknowledges_drops: input.flag(),
        }),
        1 => Frame::Accepted(Accepted {
            seen_source: input.flag().then(|| address(input)),
            acknowledges_drops: input.flag(),
            keeps_session: input.flag(),
        }),
        2 => Frame::Refused(Refused {
            reason: Refusal::from_wire(input.u16()),
            text: input.text().repeat(usize::from(input.u8() % 8)),
        }),
        3 => Frame::Reset(ResetCode::from_wire(input.u16())),
        _ => Frame::Fin,
    };
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    let read = Frame::decode(&bytes);
    let Ok(read) = read else {
        panic!("{frame:?} was written and cannot be read: {read:?}");
    };
    let mut again = Vec::new();
    read.encode(&mut again);
    assert_eq!(Frame::decode(&again).as_ref(), Ok(&read), "{frame:?} changes on its way");
    match (&frame, &read) {
        (Frame::Open(said), Frame::Open(heard)) => {
            assert_eq!(canonical(said.source), heard.source);
            assert_eq!(canonical(said.original_destination), heard.original_destination);
            assert_eq!(said.destination_port, heard.destination_port);
            assert_eq!(said.acknowledges_drops, heard.acknowledges_drops);
        }
        (Frame::Refused(said), Frame::Refused(heard)) => {
            assert_eq!(said.reason, heard.reason);
            let printable: String = said.text.chars().filter(|c| !c.is_control()).collect();
            assert!(printable.starts_with(&heard.text));
            assert!(heard.text == printable || heard.text.len() + 4 > MAX_TEXT_BYTES, "cut early");
        }
        (Frame::Accepted(said), Frame::Accepted(heard)) => {
            assert_eq!(said.seen_source.map(canonical), heard.seen_source);
            assert_eq!(said.acknowledges_drops, heard.acknowledges_drops);
            assert_eq!(said.keeps_session, heard.keeps_session);
        }
        _ => assert_eq!(frame, read),
    }
}

fn address(input: &mut Input<'_>) -> SocketAddr {
    let ip: IpAddr = match input.u8() % 3 {
        0 => input.array::<4>().into(),
        1 => input.array::<16>().into(),
        _ => std::net::Ipv4Addr::from(input.array::<4>()).to_ipv6_mapped().into(),
    };
    SocketAddr::new(ip, input.u16())
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// docs/wire.md, frames, read once more: type, then whether the rest may stand there.
fn is_allowed(record: &[u8]) -> bool {
    let [kind, rest @ ..] = record else {
        return false;
    };
    if rest.len() > 16_383 {
        return false;
    }
    let text = |value: &[u8], longest: usize| {
        value.len() <= longest
            && std::str::from_utf8(value).is_ok_and(|text| !text.chars().any(char::is_control))
    };
    match (kind, rest) {
        (0x01, [1, fields @ ..]) => {
            let Some(fields) = fields_of(fields) else {
                return false;
            };
            let has = |wanted: u8| fields.iter().any(|(kind, _)| *kind == wanted);
            has(0x01)
                && has(0x02)
                && fields.iter().all(|(kind, value)| match kind {
                    0x01 | 0x02 => [6, 18].contains(&value.len()),
                    0x03 => value.len() == 2 && *value != [0, 0],
                    0x87 => value.is_empty(),
                    kind => *kind >= 0x80,
                })
        }
        (0x02, fields) => fields_of(fields).is_some_and(|fields| {
            fields.iter().all(|(kind, value)| match kind {
                0x86 => [6, 18].contains(&value.len()),
                0x87 | 0x88 => value.is_empty(),
                kind => *kind >= 0x80,
            })
        }),
        (0x03, [_, _, fields @ ..]) => fields_of(fields).is_some_and(|fields| {
            fields.iter().all(|(kind, value)| match kind {
                0x85 => text(value, 512),
                kind => *kind >= 0x80,
            })
        }),
        (0x04, [_, ..]) | (0x05, []) | (0x06, [_, _]) => true,
        (kind, _) => *kind >= 0x80,
    }
}

/// Type, length, value, to the end; no type twice.
fn fields_of(mut bytes: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut fields: Vec<(u8, &[u8])> = Vec::new();
    while let [kind, high, low, rest @ ..] = bytes {
        let (value, rest) = rest.split_at_checked(usize::from(*high) * 256 + usize::from(*low))?;
        if fields.iter().any(|(known, _)| known == kind) {
            return None;
        }
        fields.push((*kind, value));
        bytes = rest;
    }
    bytes.is_empty().then_some(fields)
}
