//! The frames of `nodemesh/1`: bytes to values and back, nothing else (docs/wire.md, frames).
//!
//! One TLS record holds exactly one frame; its first byte is the frame's type. DATA is the only
//! frame of the hot path. Only tests and fuzzing encode it here: its payload stays where the record
//! lies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU16;

use super::reason::{Refusal, ResetCode};
use super::tlv::{self, Fields, IGNORABLE};

/// The protocol version in OPEN; the ALPN names the same one.
pub const VERSION: u8 = 1;
/// Bytes after the type byte, at most: a TLS record holds 16,384 (RFC 8446 §5.1).
pub const MAX_PAYLOAD_BYTES: usize = 16_383;

/// Data in a full record that we send. Four such records are 65,160 bytes, which is what a segment
/// of 45 packets carries where each takes 1,448: with more in a record, each write would end in a
/// packet that is nearly empty.
pub const DATA_BYTES: usize = 16_267;
/// Bytes of a refusal's text, at most.
pub const MAX_TEXT_BYTES: usize = 512;

/// The first byte of a frame.
pub mod kind {
    /// An application connection begins.
    pub const OPEN: u8 = 0x01;
    /// It was accepted.
    pub const ACCEPTED: u8 = 0x02;
    /// It was refused.
    pub const REFUSED: u8 = 0x03;
    /// Bytes of the application.
    pub const DATA: u8 = 0x04;
    /// No more bytes in this direction.
    pub const FIN: u8 = 0x05;
    /// The connection is broken off.
    pub const RESET: u8 = 0x06;
}

mod field {
    pub(super) const SOURCE: u8 = 0x01;
    pub(super) const ORIGINAL_DESTINATION: u8 = 0x02;
    pub(super) const DESTINATION_PORT: u8 = 0x03;
    pub(super) const TEXT: u8 = 0x85;
    pub(super) const SEEN_SOURCE: u8 = 0x86;
    pub(super) const ACKNOWLEDGES_DROPS: u8 = 0x87;
    pub(super) const KEEPS_SESSION: u8 = 0x88;
}

/// A frame, as received. DATA borrows its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame<'a> {
    /// An application connection begins.
    Open(Open),
    /// It was accepted.
    Accepted(Accepted),
    /// It was refused; the session ends.
    Refused(Refused),
    /// Bytes of the application, at least one.
    Data(&'a [u8]),
    /// No more bytes in this direction.
    Fin,
    /// The connection is broken off; the session ends.
    Reset(ResetCode),
    /// A frame of a newer version that may be skipped (type 0x80 and above).
    Ignorable(u8),
}

/// What the source says about a connection that begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// The application's own socket at the source.
    pub source: SocketAddr,
    /// What the application dialled: the address of a service, if it dialled one.
    pub original_destination: SocketAddr,
    /// The application's port at the destination, if the TCP connection goes to the agents' port.
    pub destination_port: Option<NonZeroU16>,
    /// See [`Accepted::acknowledges_drops`].
    pub acknowledges_drops: bool,
}

/// What the destination says when it accepts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Accepted {
    /// The source of the TCP connection, as the destination saw it. The answer to a path probe.
    pub seen_source: Option<SocketAddr>,
    /// Whether the sender's kernel acknowledges something even when it drops data for which its
    /// socket has no room (Linux from 6.6 on). Its silence then means that it is gone.
    pub acknowledges_drops: bool,
    /// Whether the next OPEN may follow on this session.
    pub keeps_session: bool,
}

/// Why the destination does not take a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The reason, with a code that never changes.
    pub reason: Refusal,
    /// The rule or the detail, for people; at most 512 bytes.
    pub text: String,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// An empty record.
    #[error("an empty record")]
    Empty,
    /// More than 16,383 bytes after the type.
    #[error("a frame longer than a record may be")]
    Oversized,
    /// The frame, or a field in it, ends too early.
    #[error("a frame or a field that ends too early")]
    Truncated,
    /// Bytes after the end of a frame of fixed length.
    #[error("bytes after the end of a frame")]
    TrailingBytes,
    /// A type below 0x80 that we do not know.
    #[error("frame type {0:#04x} is unknown and may not be skipped")]
    UnknownFrame(u8),
    /// A field below 0x80 that we do not know.
    #[error("field {0:#04x} is unknown and may not be skipped")]
    UnknownField(u8),
    /// A field that came before in the same frame.
    #[error("field {0:#04x} comes twice")]
    RepeatedField(u8),
    /// A field that must be there.
    #[error("field {0:#04x} is missing")]
    MissingField(u8),
    /// A field whose value breaks its limits.
    #[error("field {0:#04x} has an invalid value")]
    InvalidField(u8),
    /// An OPEN of another version than the ALPN promised.
    #[error("version {0} in OPEN, but nodemesh/1 was agreed")]
    Version(u8),
    /// DATA without a byte.
    #[error("a DATA frame without data")]
    EmptyData,
}

impl<'a> Frame<'a> {
    /// Reads the frame that fills `record` exactly.
    ///
    /// # Errors
    /// Everything that docs/wire.md does not allow; never panics, whatever the bytes.
    pub fn decode(record: &'a [u8]) -> Result<Self, FrameError> {
        let (&kind, payload) = record.split_first().ok_or(FrameError::Empty)?;
        if payload.len() > MAX_PAYLOAD_BYTES {
            return Err(FrameError::Oversized);
        }
        match kind {
            kind::OPEN => Open::decode(payload).map(Self::Open),
            kind::ACCEPTED => Accepted::decode(payload).map(Self::Accepted),
            kind::REFUSED => Refused::decode(payload).map(Self::Refused),
            kind::DATA if payload.is_empty() => Err(FrameError::EmptyData),
            kind::DATA => Ok(Self::Data(payload)),
            kind::FIN if payload.is_empty() => Ok(Self::Fin),
            kind::FIN => Err(FrameError::TrailingBytes),
            kind::RESET => match payload {
                &[high, low] => {
                    Ok(Self::Reset(ResetCode::from_wire(u16::from_be_bytes([high, low]))))
                }
                [] | [_] => Err(FrameError::Truncated),
                _ => Err(FrameError::TrailingBytes),
            },
            IGNORABLE.. => Ok(Self::Ignorable(kind)),
            unknown => Err(FrameError::UnknownFrame(unknown)),
        }
    }

    /// Appends the frame, type byte first. Texts beyond their limits are cut, so the result always
    /// decodes again. The one exception is DATA that is empty or too long, which is the caller's
    /// mistake.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Open(open) => open.encode(out),
            Self::Accepted(accepted) => accepted.encode(out),
            Self::Refused(refused) => refused.encode(out),
            Self::Data(data) => {
                out.push(kind::DATA);
                out.extend_from_slice(data);
            }
            Self::Fin => out.push(kind::FIN),
            Self::Reset(code) => {
                out.push(kind::RESET);
                out.extend_from_slice(&code.to_wire().to_be_bytes());
            }
            Self::Ignorable(kind) => out.push(*kind | IGNORABLE),
        }
    }
}

impl Open {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&[kind::OPEN, VERSION]);
        put_address(out, field::SOURCE, self.source);
        put_address(out, field::ORIGINAL_DESTINATION, self.original_destination);
        if let Some(port) = self.destination_port {
            tlv::put(out, field::DESTINATION_PORT, &port.get().to_be_bytes());
        }
        if self.acknowledges_drops {
            tlv::put(out, field::ACKNOWLEDGES_DROPS, &[]);
        }
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let (&version, rest) = payload.split_first().ok_or(FrameError::Truncated)?;
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        let (mut source, mut destination, mut port) = (None, None, None);
        let mut acknowledges_drops = false;
        let mut fields = Fields::new(rest);
        while let Some((kind, value)) = fields.next()? {
            match kind {
                field::SOURCE => source = Some(address(kind, value)?),
                field::ORIGINAL_DESTINATION => destination = Some(address(kind, value)?),
                field::DESTINATION_PORT => port = Some(nonzero_port(kind, value)?),
                field::ACKNOWLEDGES_DROPS => acknowledges_drops = flag(kind, value)?,
                skipped if skipped >= IGNORABLE => {}
                unknown => return Err(FrameError::UnknownField(unknown)),
            }
        }
        Ok(Self {
            source: source.ok_or(FrameError::MissingField(field::SOURCE))?,
            original_destination: destination
                .ok_or(FrameError::MissingField(field::ORIGINAL_DESTINATION))?,
            destination_port: port,
            acknowledges_drops,
        })
    }
}

impl Accepted {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(kind::ACCEPTED);
        if let Some(seen) = self.seen_source {
            put_address(out, field::SEEN_SOURCE, seen);
        }
        if self.acknowledges_drops {
            tlv::put(out, field::ACKNOWLEDGES_DROPS, &[]);
        }
        if self.keeps_session {
            tlv::put(out, field::KEEPS_SESSION, &[]);
        }
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let mut accepted = Self::default();
        let mut fields = Fields::new(payload);
        while let Some((kind, value)) = fields.next()? {
            match kind {
                field::SEEN_SOURCE => accepted.seen_source = Some(address(kind, value)?),
                field::ACKNOWLEDGES_DROPS => accepted.acknowledges_drops = flag(kind, value)?,
                field::KEEPS_SESSION => accepted.keeps_session = flag(kind, value)?,
                skipped if skipped >= IGNORABLE => {}
                unknown => return Err(FrameError::UnknownField(unknown)),
            }
        }
        Ok(accepted)
    }
}

impl Refused {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(kind::REFUSED);
        out.extend_from_slice(&self.reason.to_wire().to_be_bytes());
        if !self.text.is_empty() {
            put_text(out, field::TEXT, &self.text, MAX_TEXT_BYTES);
        }
    }

    fn decode(payload: &[u8]) -> Result<Self, FrameError> {
        let (code, rest) = payload.split_first_chunk::<2>().ok_or(FrameError::Truncated)?;
        let reason = Refusal::from_wire(u16::from_be_bytes(*code));
        let mut detail = String::new();
        let mut fields = Fields::new(rest);
        while let Some((kind, value)) = fields.next()? {
            match kind {
                field::TEXT => detail = text(kind, value, MAX_TEXT_BYTES)?,
                skipped if skipped >= IGNORABLE => {}
                unknown => return Err(FrameError::UnknownField(unknown)),
            }
        }
        Ok(Self { reason, text: detail })
    }
}

/// Address (4 or 16 bytes, network order) and port. A v4-mapped IPv6 address is written as v4.
fn put_address(out: &mut Vec<u8>, kind: u8, address: SocketAddr) {
    let port = address.port().to_be_bytes();
    match address.ip().to_canonical() {
        IpAddr::V4(ip) => {
            let [a, b, c, d] = ip.octets();
            let [high, low] = port;
            tlv::put(out, kind, &[a, b, c, d, high, low]);
        }
        IpAddr::V6(ip) => {
            let mut value = [0u8; 18];
            if let Some((octets, end)) = value.split_first_chunk_mut::<16>() {
                *octets = ip.octets();
                end.copy_from_slice(&port);
            }
            tlv::put(out, kind, &value);
        }
    }
}

fn address(kind: u8, value: &[u8]) -> Result<SocketAddr, FrameError> {
    let (octets, port) = value.split_last_chunk::<2>().ok_or(FrameError::InvalidField(kind))?;
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(octets) {
        IpAddr::V4(Ipv4Addr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(octets) {
        IpAddr::V6(Ipv6Addr::from(v6))
    } else {
        return Err(FrameError::InvalidField(kind));
    };
    Ok(SocketAddr::new(ip.to_canonical(), u16::from_be_bytes(*port)))
}

fn nonzero_port(kind: u8, value: &[u8]) -> Result<NonZeroU16, FrameError> {
    let port = value.try_into().map(u16::from_be_bytes).ok();
    port.and_then(NonZeroU16::new).ok_or(FrameError::InvalidField(kind))
}

fn flag(kind: u8, value: &[u8]) -> Result<bool, FrameError> {
    if value.is_empty() { Ok(true) } else { Err(FrameError::InvalidField(kind)) }
}

fn put_text(out: &mut Vec<u8>, kind: u8, text: &str, max_bytes: usize) {
    let printable: String = text.chars().filter(|c| !c.is_control()).collect();
    let end = printable.floor_char_boundary(max_bytes);
    tlv::put(out, kind, printable.get(..end).unwrap_or_default().as_bytes());
}

/// UTF-8 without control characters: it will be printed on terminals.
fn text(kind: u8, value: &[u8], max_bytes: usize) -> Result<String, FrameError> {
    let text = std::str::from_utf8(value).map_err(|_invalid| FrameError::InvalidField(kind))?;
    if text.len() > max_bytes || text.chars().any(char::is_control) {
        return Err(FrameError::InvalidField(kind));
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests;
