//! The TLS 1.3 record layer: sealing and opening one record, in place (RFC 8446 §5.2 to §5.5).
//!
//! A record is `23 3 3 length` and the encrypted `content ‖ type ‖ zeros` with a 16-byte tag.
//! The keys come from rustls. The nonce is the sequence number xored into the IV, so each number is
//! used once per key. `tests/plain_rustls.rs` tests it against plain rustls.

use std::ops::Range;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets;

use super::reason::TlsReason;

/// Bytes before the content.
pub(super) const HEADER_BYTES: usize = 5;
/// The type byte and the tag after the content.
pub(super) const TRAILER_BYTES: usize = 1 + TAG_BYTES;
/// RFC 8446 §5.2: an encrypted record is at most this long, without its header.
pub(super) const MAX_SEALED_BYTES: usize = 16_384 + 256;
/// The longest record, with its header.
pub(super) const MAX_RECORD_BYTES: usize = HEADER_BYTES + MAX_SEALED_BYTES;

const TAG_BYTES: usize = 16;
/// RFC 8446 §5.4: content, type and padding are at most one byte longer than the content may be.
const MAX_INNER_BYTES: usize = 16_384 + 1;
/// The outer type of every encrypted record, and the legacy version.
const OUTER: [u8; 3] = [23, 3, 3];

/// What a record contains (RFC 8446 §5.1, `ContentType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    Alert,
    Handshake,
    Data,
}

impl Content {
    const fn to_wire(self) -> u8 {
        match self {
            Self::Alert => 21,
            Self::Handshake => 22,
            Self::Data => 23,
        }
    }

    fn from_wire(byte: u8) -> Option<Self> {
        [Self::Alert, Self::Handshake, Self::Data].into_iter().find(|c| c.to_wire() == byte)
    }
}

/// The length of the record that begins at the start of `bytes`, header included, once its header
/// is there. The record may have any type: a handshake also has unencrypted records.
///
/// # Errors
/// A length that no record may have.
pub(super) fn length(bytes: &[u8]) -> Result<Option<usize>, TlsReason> {
    let Some(&[_, _, _, high, low]) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let sealed = usize::from(u16::from_be_bytes([high, low]));
    if sealed > MAX_SEALED_BYTES {
        return Err(TlsReason::OversizedRecord);
    }
    Ok(Some(HEADER_BYTES + sealed))
}

/// As [`length`], for a record that must be encrypted: its first byte shows any other record.
pub(super) fn sealed_length(bytes: &[u8]) -> Result<Option<usize>, TlsReason> {
    match bytes.first() {
        Some(outer) if Some(outer) != OUTER.first() => Err(TlsReason::UnexpectedMessage),
        _ => length(bytes),
    }
}

/// One direction's key and its next sequence number.
struct Key {
    aead: LessSafeKey,
    iv: [u8; NONCE_LEN],
    sequence: u64,
}

impl Key {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets)) -> Result<Self, TlsReason> {
        let (algorithm, key, iv) = match &secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => return Err(TlsReason::NothingInCommon),
        };
        let unbound = UnboundKey::new(algorithm, key.as_ref());
        let aead = LessSafeKey::new(unbound.map_err(|_unspecified| TlsReason::TlsInternal)?);
        let iv = iv.as_ref().try_into().map_err(|_length| TlsReason::TlsInternal)?;
        Ok(Self { aead, iv, sequence })
    }

    /// RFC 8446 §5.3. Each call uses up a sequence number.
    fn nonce(&mut self) -> Result<Nonce, TlsReason> {
        let mut nonce = self.iv;
        for (byte, number) in nonce.iter_mut().skip(4).zip(self.sequence.to_be_bytes()) {
            *byte ^= number;
        }
        self.sequence = self.sequence.checked_add(1).ok_or(TlsReason::TlsInternal)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals the records of our direction.
pub(super) struct Sealer {
    key: Key,
    pub(super) limit: u64,
}

impl Sealer {
    /// `limit` is how many records one key may protect (RFC 8446 §5.5).
    pub(super) fn new(
        secrets: (u64, ConnectionTrafficSecrets),
        limit: u64,
    ) -> Result<Self, TlsReason> {
        Ok(Self { key: Key::new(secrets)?, limit })
    }

    /// How many records the key may still protect.
    pub(super) fn remaining(&self) -> u64 {
        self.limit.saturating_sub(self.key.sequence)
    }

    /// Seals `record` in place. It holds five bytes for the header, the content, and seventeen
    /// bytes for type and tag.
    pub(super) fn seal(&mut self, record: &mut [u8], content: Content) -> Result<(), TlsReason> {
        self.seal_as(record, content.to_wire())
    }

    /// As [`Sealer::seal`], with the inner type as a number.
    pub(super) fn seal_as(&mut self, record: &mut [u8], inner_type: u8) -> Result<(), TlsReason> {
        let sealed = record.len().saturating_sub(HEADER_BYTES);
        let length = u16::try_from(sealed).map_err(|_long| TlsReason::TlsInternal)?;
        let [high, low] = length.to_be_bytes();
        let [outer, major, minor] = OUTER;
        let header = [outer, major, minor, high, low];
        let (head, rest) =
            record.split_at_mut_checked(HEADER_BYTES).ok_or(TlsReason::TlsInternal)?;
        head.copy_from_slice(&header);
        let (body, tag) = rest.split_last_chunk_mut::<TAG_BYTES>().ok_or(TlsReason::TlsInternal)?;
        *body.last_mut().ok_or(TlsReason::TlsInternal)? = inner_type;
        let nonce = self.key.nonce()?;
        let computed = self
            .key
            .aead
            .seal_in_place_separate_tag(nonce, Aad::from(header), body)
            .map_err(|_unspecified| TlsReason::TlsInternal)?;
        tag.copy_from_slice(computed.as_ref());
        Ok(())
    }
}

/// Opens the records of the peer's direction.
pub(super) struct Opener {
    key: Key,
}

impl Opener {
    pub(super) fn new(secrets: (u64, ConnectionTrafficSecrets)) -> Result<Self, TlsReason> {
        Ok(Self { key: Key::new(secrets)? })
    }

    /// Opens `record` (header included) in place. Returns what it contains and where in `record`.
    ///
    /// # Errors
    /// The record is not encrypted, was altered, is too long, or has no type that may come now.
    pub(super) fn open(&mut self, record: &mut [u8]) -> Result<(Content, Range<usize>), TlsReason> {
        let (header, sealed) =
            record.split_first_chunk_mut::<HEADER_BYTES>().ok_or(TlsReason::MalformedMessage)?;
        let nonce = self.key.nonce()?;
        let inner = self
            .key
            .aead
            .open_in_place(nonce, Aad::from(*header), sealed)
            .map_err(|_unspecified| TlsReason::BadRecord)?;
        if inner.len() > MAX_INNER_BYTES {
            return Err(TlsReason::OversizedRecord);
        }
        let end = inner.iter().rposition(|&b| b != 0).ok_or(TlsReason::UnexpectedMessage)?;
        let kind = inner.get(end).copied().and_then(Content::from_wire);
        let content = kind.ok_or(TlsReason::UnexpectedMessage)?;
        Ok((content, HEADER_BYTES..HEADER_BYTES + end))
    }
}
