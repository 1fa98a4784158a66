//! Type-length-value fields inside a frame: one byte type, two bytes length (big endian), value.
//!
//! Types below 0x80 must be understood, the others may be skipped. No type may come twice.

use super::frame::FrameError;

/// From this type on, a reader may skip types that it does not know.
pub(super) const IGNORABLE: u8 = 0x80;
/// Type and length.
const HEADER_BYTES: usize = 3;

/// Walks over the fields of a frame, each type at most once.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    seen: [u64; 4],
}

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, seen: [0; 4] }
    }

    /// The next field, or `None` at the end.
    ///
    /// # Errors
    /// A field that reaches beyond the frame, or a type that came before.
    pub(super) fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, FrameError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let Some((&[kind, high, low], rest)) = self.rest.split_first_chunk::<HEADER_BYTES>() else {
            return Err(FrameError::Truncated);
        };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(FrameError::Truncated)?;
        self.rest = rest;
        let bit = 1u64 << (kind % 64);
        let Some(word) = self.seen.get_mut(usize::from(kind / 64)) else {
            return Err(FrameError::Truncated); // cannot be: 255 / 64 = 3
        };
        if *word & bit != 0 {
            return Err(FrameError::RepeatedField(kind));
        }
        *word |= bit;
        Ok(Some((kind, value)))
    }
}

/// Appends one field. Values are at most a frame long, so the length always fits.
pub(super) fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.push(kind);
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(value.get(..usize::from(length)).unwrap_or(value));
}
