//! Target `records`: an authenticated peer that sends any records in any order, and a network that
//! damages, repeats, drops and cuts them up.
//!
//! The listener is compared with a model (`model.rs`). It hears what was sent, in order and to the
//! byte, up to the first thing that may not come, and then tells the peer which that was. In
//! between it sends frames itself, and the peer has to understand each of them. Memory stays in
//! bounds.

use std::collections::VecDeque;
use std::sync::LazyLock;

use super::agents::agents;
use super::model::{Heard, MAX_DATA_BYTES, Model};
use crate::frame::{Accepted, DATA_BYTES, Frame, Open, Refused};
use crate::inbox::Inbox;
use crate::record::{HEADER_BYTES, TRAILER_BYTES};
use crate::state::Role;
use crate::traffic::Opened;
use crate::{
    Channel, JudgedBy, MAX_RECORDS, Received, Refusal, ResetCode, SessionError, TlsReason,
};
use fuzz_input::Input;

const MAX_STEPS: usize = 64;
/// Key updates that the listener starts by itself; the peer allows 32 in a row without data.
const MAX_OWN_UPDATES: u32 = 16;
/// The limit in the docs of `Session::memory_bytes`.
const MAX_MEMORY_BYTES: usize = 300 * 1024;
/// Records per key, in some runs: so few that keys change by themselves.
const FEW_RECORDS: u64 = 40;

/// Longer than a record may be. Two of these fit the length that a record's header can hold.
const LONG_BYTES: usize = 20_000;

const HANDSHAKE: u8 = 22;
const ALERT: u8 = 21;
const DATA: u8 = 23;

/// The input says which side listens, what is sent, and how it arrives.
pub(crate) fn records(data: &[u8]) {
    let mut input = Input::new(data);
    let (client, server) = agents().session();
    let listener_is_server = input.flag();
    let mut talk = if listener_is_server {
        Talk::new(client, server, Role::Server)
    } else {
        Talk::new(server, client, Role::Client)
    };
    if input.flag() {
        talk.listener.traffic.limit = FEW_RECORDS;
        talk.listener.traffic.sealer.limit = FEW_RECORDS;
    }
    for _ in 0..MAX_STEPS {
        if input.is_empty() || talk.ended {
            break;
        }
        talk.step(&mut input);
    }
    talk.deliver();
}

struct Talk {
    /// The side whose keys seal what arrives. Its state machine is not asked, so it may send
    /// anything.
    speaker: Channel,
    /// What the speaker has received.
    answers: Inbox,
    listener: Channel,
    role: Role,
    model: Model,
    /// Sent, and not yet arrived.
    wire: Vec<u8>,
    /// The required results of `wire`.
    expected: VecDeque<Heard>,
    /// The last whole record that was sent.
    last: Vec<u8>,
    /// How many bytes arrive at a time; 0 is all.
    piece: usize,
    own_updates: u32,
    ended: bool,
}

impl Talk {
    fn new(speaker: Channel, listener: Channel, role: Role) -> Self {
        Self {
            speaker,
            answers: Inbox::default(),
            listener,
            role,
            model: Model::new(role),
            wire: Vec::new(),
            expected: VecDeque::new(),
            last: Vec::new(),
            piece: 0,
            own_updates: 0,
            ended: false,
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let step = input.u8();
        match step % 20 {
            0..4 => self.say_frame(input),
            4 => {
                let (ask, padding) = (input.flag(), usize::from(input.u8()));
                self.say(HANDSHAKE, &[24, 0, 0, 1, u8::from(ask)], padding);
            }
            5 => {
                let inner_type = [DATA, DATA, HANDSHAKE, ALERT, 0, 20][usize::from(input.u8() % 6)];
                let padding = usize::from(input.u16());
                self.say(inner_type, input.piece(), padding);
            }
            6 => {
                let body = [1, input.u8()];
                self.say(ALERT, &body, 0);
            }
            7 => {
                let body = vec![0x80; usize::from(input.u16()) % LONG_BYTES];
                self.say(input.u8(), &body, usize::from(input.u8()));
            }
            8 => {
                let mut record = self.seal(DATA, &[0x80, 1, 2, 3], 0);
                let (at, flip) = (usize::from(input.u8()) % record.len(), input.u8().max(1));
                record[at] ^= flip;
                self.damage(&record);
            }
            9 if !self.last.is_empty() => {
                let again = self.last.clone();
                self.damage(&again);
            }
            10 => {
                drop(self.seal(DATA, &[0x80], 0)); // lost on the way
                self.damage(&[]);
            }
            11 => {
                let bytes = input.piece();
                if !bytes.is_empty() {
                    self.damage(bytes);
                }
            }
            12 => self.piece = usize::from(input.u8()),
            13 => self.deliver(),
            _ => {
                self.deliver();
                if !self.ended {
                    self.answer(input);
                }
            }
        }
        if step >= 100 || self.wire.len() > 100_000 {
            self.deliver();
        }
    }

    fn say_frame(&mut self, input: &mut Input<'_>) {
        let mut body = Vec::new();
        match input.u8() % 8 {
            0 => Frame::Open(an_open(input)).encode(&mut body),
            1 => Frame::Accepted(Accepted::default()).encode(&mut body),
            2 => Frame::Refused(Refused {
                reason: Refusal::from_wire(input.u16()),
                text: input.text(),
            })
            .encode(&mut body),
            3 => Frame::Fin.encode(&mut body),
            4 => Frame::Reset(ResetCode::from_wire(input.u16())).encode(&mut body),
            _ => {
                let count = 1 + usize::from(input.u16()) % MAX_DATA_BYTES;
                Frame::Data(pattern(count)).encode(&mut body);
            }
        }
        self.say(DATA, &body, 0);
    }

    /// Sends a valid TLS record.
    fn say(&mut self, inner_type: u8, body: &[u8], padding: usize) {
        let padding = padding % LONG_BYTES;
        let record = self.seal(inner_type, body, padding);
        self.wire.extend_from_slice(&record);
        self.last = record;
        // With the inner type 0, everything is padding: the last byte that is not 0 counts as the
        // type.
        let (inner_type, body, padding) = if inner_type == 0 {
            match body.iter().rposition(|&byte| byte != 0) {
                Some(at) => (body[at], &body[..at], padding + body.len() - at),
                None => (0, body, padding),
            }
        } else {
            (inner_type, body, padding)
        };
        if self.expected.contains(&Heard::Damaged) {
            return; // it never arrives as a record
        }
        let (heard, keys_change) = self.model.hears(inner_type, body, padding);
        if keys_change {
            assert!(self.speaker.traffic.updated().is_ok(), "no next keys");
        }
        self.expected.push_back(heard);
    }

    fn seal(&mut self, inner_type: u8, body: &[u8], padding: usize) -> Vec<u8> {
        let mut record = vec![0; HEADER_BYTES + body.len() + padding + TRAILER_BYTES];
        record[HEADER_BYTES..HEADER_BYTES + body.len()].copy_from_slice(body);
        record[HEADER_BYTES + body.len()] = inner_type;
        let last = if padding == 0 { inner_type } else { 0 };
        assert!(self.speaker.traffic.sealer.seal_as(&mut record, last).is_ok(), "cannot seal");
        record
    }

    /// Sends something other than what was sealed.
    fn damage(&mut self, bytes: &[u8]) {
        self.wire.extend_from_slice(bytes);
        self.expected.push_back(Heard::Damaged);
    }

    /// Delivers everything sent, and checks that the results are the expected ones.
    fn deliver(&mut self) {
        let wire = std::mem::take(&mut self.wire);
        let mut rest = wire.as_slice();
        while !self.ended {
            match self.listener.receive() {
                Ok(Some(received)) => self.heard(&received),
                Err(error) => self.failed(&error),
                Ok(None) if rest.is_empty() => break,
                Ok(None) => {
                    let size = if self.piece == 0 { rest.len() } else { self.piece };
                    let room = self.listener.spare(1 + self.piece % MAX_RECORDS);
                    assert!(!room.is_empty(), "no room, and nothing to be had");
                    let count = room.len().min(size).min(rest.len());
                    let (now, later) = rest.split_at(count);
                    room[..count].copy_from_slice(now);
                    self.listener.received(count);
                    rest = later;
                }
            }
            let memory = self.listener.memory_bytes();
            assert!(memory <= MAX_MEMORY_BYTES, "{memory} bytes");
        }
        let silent = |heard: &Heard| matches!(heard, Heard::Nothing);
        let mut missing = self.expected.iter().skip_while(|heard| silent(heard));
        let first = missing.next();
        assert!(
            self.ended || matches!(first, None | Some(Heard::Damaged)),
            "was sent and is not heard: {first:?}"
        );
    }

    fn next_expected(&mut self) -> Option<Heard> {
        while let Some(heard) = self.expected.pop_front() {
            match heard {
                Heard::Nothing => {}
                Heard::Damaged => {
                    self.expected.push_front(Heard::Damaged); // for good
                    return Some(Heard::Damaged);
                }
                other => return Some(other),
            }
        }
        None
    }

    fn heard(&mut self, received: &Received) {
        let expected = self.next_expected();
        let mut bytes = Vec::new();
        match received {
            Received::Closed => {
                assert_eq!(expected, Some(Heard::Closed), "closed");
                self.ended = true;
                return;
            }
            Received::Open(open) => Frame::Open(open.clone()).encode(&mut bytes),
            Received::Accepted(accepted) => Frame::Accepted(accepted.clone()).encode(&mut bytes),
            Received::Refused(refused) => Frame::Refused(refused.clone()).encode(&mut bytes),
            Received::Data(place) => {
                Frame::Data(self.listener.data(place.clone())).encode(&mut bytes);
            }
            Received::Fin => Frame::Fin.encode(&mut bytes),
            Received::Reset(code) => Frame::Reset(*code).encode(&mut bytes),
        }
        let Some(Heard::Frame(said)) = &expected else {
            panic!("{received:?} was heard, and expected was {expected:?}");
        };
        assert_eq!(Frame::decode(said), Frame::decode(&bytes), "not what was said");
    }

    /// The session ends for the reason that the model says, and the peer is told.
    fn failed(&mut self, error: &SessionError) {
        self.ended = true;
        match self.next_expected() {
            Some(Heard::Fails(code)) => assert_eq!(error.reason().code(), code),
            Some(Heard::Damaged) => {
                let codes = ["bad_record", "unexpected_message", "oversized_record"];
                assert!(codes.contains(&error.reason().code()), "{error}");
            }
            other => panic!("{error}, and expected was {other:?}"),
        }
        let reason = match error {
            SessionError::Frame(_) => Some(TlsReason::MalformedMessage),
            SessionError::State(_) => Some(TlsReason::UnexpectedMessage),
            SessionError::Tls { reason, judged_by: JudgedBy::Us } => Some(*reason),
            _ => None,
        };
        self.listener.explain(error);
        let told = self.told();
        let alerts: Vec<_> = told.iter().filter(|told| !matches!(told, Told::Keys)).collect();
        match reason {
            Some(reason) => assert_eq!(alerts, [&Told::Alert(reason)], "{error}"),
            None => assert!(alerts.is_empty(), "told {alerts:?} what it had said itself"),
        }
    }

    /// The listener sends something, if it may.
    fn answer(&mut self, input: &mut Input<'_>) {
        let frame = match input.u8() % 8 {
            0 => Frame::Open(an_open(input)),
            1 => Frame::Accepted(Accepted::default()),
            2 => Frame::Refused(Refused { reason: Refusal::Draining, text: input.text() }),
            3 => Frame::Fin,
            4 => Frame::Reset(ResetCode::from_wire(input.u16())),
            5 if self.own_updates < MAX_OWN_UPDATES => {
                self.own_updates += 1;
                assert!(self.listener.update_keys(input.flag()).is_ok(), "no next keys");
                assert_eq!(self.told(), [Told::Keys]);
                self.model.owes_update = false;
                return;
            }
            6 => {
                self.listener.close();
                assert_eq!(self.told().last(), Some(&Told::Close));
                self.ended = true;
                return;
            }
            _ => {
                let (count, more) = (usize::from(input.u16()), input.u8());
                // Seldom much data, because that costs time.
                return self.answer_data(if more > 250 { count * 2 } else { count % 2000 });
            }
        };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let may = self.model.says(self.role, bytes[0]);
        let sent = self.listener.send(&frame);
        assert_eq!(sent.is_ok(), may, "{frame:?}: {sent:?}");
        self.check_told(may, &bytes);
    }

    fn answer_data(&mut self, count: usize) {
        let count = count.clamp(1, MAX_RECORDS * DATA_BYTES);
        let bytes = pattern(count);
        let records = count.div_ceil(DATA_BYTES);
        let may = self.model.says(self.role, crate::frame::kind::DATA);
        let Ok(mut slices) = self.listener.data_slices(records) else {
            panic!("no room for data");
        };
        let mut rest = bytes;
        for slice in &mut slices {
            let (now, later) = rest.split_at(rest.len().min(slice.len()));
            slice[..now.len()].copy_from_slice(now);
            rest = later;
        }
        assert!(rest.is_empty(), "less room than asked for");
        let sent = self.listener.send_data(count);
        assert_eq!(sent.is_ok(), may, "{count} bytes of data: {sent:?}");
        let memory = self.listener.memory_bytes();
        assert!(memory <= MAX_MEMORY_BYTES, "{memory} bytes");
        self.check_told(may, bytes);
    }

    /// Checks that the peer understands what was sent: the frame, or the bytes of DATA, behind new
    /// keys if the peer had asked for them.
    fn check_told(&mut self, was_said: bool, bytes: &[u8]) {
        assert!(self.listener.traffic.sealer.remaining() > 0, "a key has protected too much");
        let told = self.told();
        let new_keys = told.first() == Some(&Told::Keys);
        if self.model.owes_update {
            assert!(new_keys || !was_said, "the peer had asked for new keys");
            self.model.owes_update = !new_keys;
        }
        let frames = told.iter().filter_map(|told| match told {
            Told::Frame(frame) => Some(frame.as_slice()),
            _ => None,
        });
        let frames: Vec<_> = frames.collect();
        if !was_said {
            assert!(frames.is_empty(), "said, although it may not be");
            return;
        }
        let heard = match frames.as_slice() {
            [frame] if frame.first() != Some(&crate::frame::kind::DATA) => frame.to_vec(),
            data => data.iter().map(|frame| &frame[1..]).collect::<Vec<_>>().concat(),
        };
        assert!(heard == bytes, "the peer hears {} bytes of {}", heard.len(), bytes.len());
    }

    /// What the speaker receives.
    fn told(&mut self) -> Vec<Told> {
        let mut told = Vec::new();
        loop {
            let pending = self.listener.pending();
            if pending.is_empty() {
                break;
            }
            let room = self.answers.spare(1);
            let count = room.len().min(pending.len());
            room[..count].copy_from_slice(&pending[..count]);
            self.answers.received(count);
            self.listener.written(count);
            while let Ok(Some(record)) = self.answers.take_record() {
                let base = record.start;
                told.push(match self.speaker.traffic.open(record.bytes) {
                    Ok(Opened::Nothing) => Told::Keys,
                    Ok(Opened::CloseNotify) => Told::Close,
                    Ok(Opened::Frame(place)) => {
                        Told::Frame(self.answers.at(base + place.start..base + place.end).to_vec())
                    }
                    Err(SessionError::Tls { reason, judged_by: JudgedBy::Peer }) => {
                        Told::Alert(reason)
                    }
                    Err(error) => panic!("the peer cannot read what it is told: {error}"),
                });
            }
        }
        assert!(self.answers.unused().is_empty(), "half a record");
        told
    }
}

/// What a peer receives.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Frame(Vec<u8>),
    Keys,
    Alert(TlsReason),
    Close,
}

fn an_open(input: &mut Input<'_>) -> Open {
    Open {
        source: (input.array::<4>(), input.u16()).into(),
        original_destination: (input.array::<16>(), input.u16()).into(),
        destination_port: None,
        acknowledges_drops: false,
    }
}

/// Bytes that are not the same at any two near places.
fn pattern(count: usize) -> &'static [u8] {
    const LONGEST: usize = MAX_RECORDS * MAX_DATA_BYTES;
    static PATTERN: LazyLock<Vec<u8>> =
        LazyLock::new(|| (0..LONGEST).map(|at| (at % 251) as u8).collect());
    PATTERN.get(..count).unwrap_or_default()
}
