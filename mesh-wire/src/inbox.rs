//! Bytes received and not yet used. Whole records are opened in place.

use std::ops::Range;

use super::buffers;
use super::reason::TlsReason;
use super::record::{self, MAX_RECORD_BYTES};

/// A buffer of one to eight records, or none, with the unused bytes at `start..end`.
#[derive(Default)]
pub(super) struct Inbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// A whole record, still sealed, and where in the buffer it begins.
pub(super) struct Record<'a> {
    pub(super) start: usize,
    pub(super) bytes: &'a mut [u8],
}

impl Inbox {
    /// The unused bytes.
    pub(super) fn unused(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The first `length` unused bytes, to work on in place.
    pub(super) fn window(&mut self, length: usize) -> &mut [u8] {
        let end = self.start.saturating_add(length).min(self.end);
        self.buffer.get_mut(self.start..end).unwrap_or_default()
    }

    /// The next whole record, and its place in the buffer. It counts as used; its bytes stay where
    /// they are until [`Inbox::spare`] is called.
    pub(super) fn take_record(&mut self) -> Result<Option<Record<'_>>, TlsReason> {
        let Some(length) = record::sealed_length(self.unused())? else {
            return Ok(None);
        };
        let range = self.start..self.start.saturating_add(length);
        if range.end > self.end {
            return Ok(None);
        }
        self.start = range.end;
        let start = range.start;
        Ok(self.buffer.get_mut(range).map(|bytes| Record { start, bytes }))
    }

    /// Forgets the first `count` unused bytes.
    pub(super) fn consume(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
    }

    /// The bytes at a place given by [`Inbox::take_record`].
    pub(super) fn at(&self, range: Range<usize>) -> &[u8] {
        self.buffer.get(range).unwrap_or_default()
    }

    /// Room to receive into, in a buffer of `records` records. Moves the unused bytes to the front,
    /// so places given before are invalid. Empty if even that leaves no room.
    pub(super) fn spare(&mut self, records: usize) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let size = records.saturating_mul(MAX_RECORD_BYTES).max(self.end);
        if self.end == 0 && self.buffer.len() > 2 * size {
            self.release(); // a busy stream has turned quiet
        }
        if self.buffer.len() < size {
            // Exact: doubling would break the bound on a connection's memory.
            let mut larger = buffers::take(size);
            if let (Some(to), Some(from)) =
                (larger.get_mut(..self.end), self.buffer.get(..self.end))
            {
                to.copy_from_slice(from);
            }
            buffers::give_back(std::mem::replace(&mut self.buffer, larger));
        }
        self.buffer.get_mut(self.end..size).unwrap_or_default()
    }

    /// Notes that `count` bytes have been received into the room.
    pub(super) fn received(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.buffer.len());
    }

    /// Memory held, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives the buffer back if it is empty, and returns whether it was. Places given before are
    /// invalid.
    pub(super) fn release(&mut self) -> bool {
        let is_empty = self.start == self.end;
        if is_empty {
            (self.start, self.end) = (0, 0);
            buffers::give_back(std::mem::take(&mut self.buffer));
        }
        is_empty
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_takes_no_more_than_it_needs() {
        let mut inbox = Inbox::default();
        for records in [1, 2, 4, 8] {
            let room = inbox.spare(records);
            assert!(!room.is_empty());
            inbox.received(1000);
            assert!(inbox.capacity() <= records * MAX_RECORD_BYTES, "{}", inbox.capacity());
        }
        inbox.consume(4000);
        inbox.spare(1);
        assert!(inbox.capacity() <= MAX_RECORD_BYTES, "{}", inbox.capacity());
        inbox.release();
        assert_eq!(inbox.capacity(), 0);
    }
}
