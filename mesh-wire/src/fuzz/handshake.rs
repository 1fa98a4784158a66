//! Target `handshake`: two agents connect over a network that changes what they send.
//!
//! If anything is changed that has a meaning in TLS, the side that receives it does not finish. If
//! nothing is changed, both finish, however the bytes are cut up, and know each other.

use super::agents::agents;
use crate::handshake::memory::Side;
use crate::{HandshakeError, JudgedBy, TlsReason};
use fuzz_input::Input;

/// How often the word may pass from one side to the other: three times, and two more if the server
/// asks for another key share.
const MAX_FLIGHTS: usize = 6;
const MAX_EDITS: usize = 8;
/// What a handshake may hold: five records of the peer, and one flight of ours.
const MAX_BYTES: usize = 5 * (16_384 + 256 + 5) + 16 * 1024;

/// The input says what happens to which flight.
pub(crate) fn handshake(data: &[u8]) {
    let mut input = Input::new(data);
    let altered_flight = usize::from(input.u8() % 8); // beyond the last: none
    let piece = usize::from(input.u16());
    let agents = agents();
    let mut sides = [Side::client(&agents.client), Side::server(&agents.server)];
    let mut done = [false; 2];
    let mut altered = false;

    drop(sides[0].hear(&[])); // the client begins
    for flight in 0..MAX_FLIGHTS {
        let (speaker, listener) = (flight % 2, (flight + 1) % 2);
        let said = sides[speaker].said();
        let mut arrives = said.clone();
        if flight == altered_flight {
            edit(&mut arrives, &mut input);
            altered |= !means_the_same(&said, &arrives);
        }
        if arrives.is_empty() {
            break;
        }
        match hear(&mut sides[listener], &arrives, piece) {
            Ok(is_done) => done[listener] = is_done,
            Err(error) => {
                assert!(flight >= altered_flight, "nothing was changed, and yet: {error}");
                must_be_told(&mut sides[listener], &error);
                break;
            }
        }
        assert!(!(altered && done[listener]), "done, although something was changed");
    }
    if altered {
        return;
    }
    let [client, server] = sides;
    if done == [true; 2] {
        let (Ok(client), Ok(server)) = (client.established(), server.established()) else {
            panic!("done, and yet no session");
        };
        assert_eq!((&client.peer, &server.peer), (&agents.cart, &agents.web));
    } else {
        assert!(
            altered_flight < MAX_FLIGHTS,
            "nothing was changed, and they are not done: {done:?}"
        );
    }
}

/// Delivers the bytes in pieces of that size; 0 is all at once.
fn hear(side: &mut Side, bytes: &[u8], piece: usize) -> Result<bool, HandshakeError> {
    let at_a_time = if piece == 0 { bytes.len() } else { piece };
    let mut is_done = false;
    for arrives in bytes.chunks(at_a_time) {
        is_done = side.hear(arrives)?;
        assert!(side.memory_bytes() <= MAX_BYTES, "{} bytes", side.memory_bytes());
    }
    Ok(is_done)
}

/// The side that refuses tells the other, except for some faults that break TLS itself: rustls has
/// no alert for a message that is too long, nor for one that another kind of record interrupts.
fn must_be_told(side: &mut Side, error: &HandshakeError) {
    use TlsReason::{IllegalParameter, MalformedMessage, UnexpectedMessage};
    if let HandshakeError::Tls { judged_by: JudgedBy::Us, reason, .. } = error {
        let may_be_silent = [MalformedMessage, UnexpectedMessage, IllegalParameter];
        let told = !side.said().is_empty();
        assert!(told || may_be_silent.contains(reason), "the peer is not told of: {error}");
    }
}

fn edit(bytes: &mut Vec<u8>, input: &mut Input<'_>) {
    for _ in 0..MAX_EDITS {
        if input.is_empty() {
            return;
        }
        let kind = input.u8() % 7;
        let at = usize::from(input.u16()) % (bytes.len() + 1);
        match kind {
            0 | 1 => {
                let value = input.u8();
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= value;
                }
            }
            2 => {
                let piece = input.piece();
                bytes.splice(at..at, piece.iter().copied());
            }
            3 => {
                let end = bytes.len().min(at + usize::from(input.u8()));
                bytes.drain(at..end);
            }
            4 => bytes.truncate(at),
            5 => bytes.extend_from_within(..at),
            _ => {
                let count = input.u16();
                *bytes = input.take(usize::from(count)).to_vec();
            }
        }
    }
}

/// Whether the same messages arrive, perhaps with something behind them. Three things mean nothing
/// in TLS 1.3 (RFC 8446 §5 and §5.1): how plaintext messages are cut into records, the version in
/// front of them, and `ChangeCipherSpec`. To rustls, the kind in front of an encrypted record means
/// nothing either: it goes by the one inside, which is sealed (§5.2 says that the outer one is
/// always 23).
fn means_the_same(said: &[u8], arrives: &[u8]) -> bool {
    let (said, arrives) = (records(said), records(arrives));
    let is_encrypted = |body: &[u8]| said.contains(&(APPLICATION_DATA, body));
    let arrives = arrives.into_iter().map(|(kind, body)| {
        let is_ours = kind != CHANGE_CIPHER_SPEC && is_encrypted(body);
        (if is_ours { APPLICATION_DATA } else { kind }, body)
    });
    messages(arrives).starts_with(&messages(said.iter().copied()))
}

const CHANGE_CIPHER_SPEC: u8 = 20;
const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;

/// Kinds and bodies of the records. Bytes that are no whole record are of kind 0.
fn records(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut records = Vec::new();
    while let &[kind, _, _, high, low, ref rest @ ..] = bytes {
        let Some((body, after)) = rest.split_at_checked(u16::from_be_bytes([high, low]).into())
        else {
            break;
        };
        bytes = after;
        records.push((kind, body));
    }
    if !bytes.is_empty() {
        records.push((0, bytes));
    }
    records
}

fn messages<'a>(records: impl Iterator<Item = (u8, &'a [u8])>) -> Vec<(u8, Vec<u8>)> {
    let mut messages: Vec<(u8, Vec<u8>)> = Vec::new();
    for (kind, body) in records {
        match (kind, messages.last_mut()) {
            (CHANGE_CIPHER_SPEC, _) if body.len() == 1 => {}
            (HANDSHAKE, Some((HANDSHAKE, message))) => message.extend_from_slice(body),
            _ => messages.push((kind, body.to_vec())),
        }
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Found by the fuzzer: `9a 92 db 86 8b 08 01`, where the last byte of the client's last flight
    /// that it changes is one of these.
    #[test]
    fn the_kind_in_front_of_an_encrypted_record_means_nothing() {
        let agents = agents();
        for (byte, is_done) in [(0, true), (3, false), (4, false), (5, false)] {
            let mut sides = [Side::client(&agents.client), Side::server(&agents.server)];
            drop(sides[0].hear(&[]));
            let hello = sides[0].said();
            assert!(!sides[1].hear(&hello).unwrap());
            let answer = sides[1].said();
            assert!(sides[0].hear(&answer).unwrap());
            let said = sides[0].said();
            let before: usize = records(&said)
                .iter()
                .take_while(|(kind, _)| *kind != APPLICATION_DATA)
                .map(|(_, body)| 5 + body.len())
                .sum();
            let mut arrives = said.clone();
            arrives[before + byte] ^= 1;
            let heard = sides[1].hear(&arrives);
            assert_eq!(matches!(heard, Ok(true)), is_done, "byte {byte}: {heard:?}");
            assert_eq!(means_the_same(&said, &arrives), is_done, "byte {byte}");
        }
    }
}
