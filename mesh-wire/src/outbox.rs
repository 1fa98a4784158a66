//! Records sealed and not yet written.
//!
//! Application data is read directly into the place where it is sealed. The buffer is laid out in
//! strides of one record each, with gaps for header, type byte and tag, and one vectored read fills
//! several.

use std::array;
use std::io::IoSliceMut;

use super::buffers::{self, UNIT_BYTES};
use super::frame::{DATA_BYTES, kind};
use super::reason::SessionError;
use super::record::{Content, HEADER_BYTES, TRAILER_BYTES};
use super::traffic::Traffic;

/// Records of application data per read and per write, at most.
pub const MAX_RECORDS: usize = 8;

/// Bytes before the data of a frame: the record's header and the frame's type.
const BEFORE: usize = HEADER_BYTES + 1;
/// A full DATA record. A buffer has room for as many strides as it has units.
const STRIDE: usize = BEFORE + DATA_BYTES + TRAILER_BYTES;
const _: () = assert!(STRIDE <= UNIT_BYTES);

/// A buffer with the unwritten bytes at `start..end`.
#[derive(Default)]
pub(super) struct Outbox {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Outbox {
    /// Sealed bytes that wait to be written.
    pub(super) fn pending(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// Notes that `count` bytes have been written.
    pub(super) fn written(&mut self, count: usize) {
        self.start = self.start.saturating_add(count).min(self.end);
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }

    /// Appends bytes that are records already (rustls' handshake messages).
    pub(super) fn append(&mut self, length: usize) -> &mut [u8] {
        let at = self.end;
        self.reserve(length);
        self.end += length;
        self.buffer.get_mut(at..at + length).unwrap_or_default()
    }

    /// Takes back the last `count` bytes appended.
    pub(super) fn take_back(&mut self, count: usize) {
        self.end = self.end.saturating_sub(count).max(self.start);
    }

    /// Seals a small record: a frame that is not data, an alert, a key update.
    pub(super) fn seal(
        &mut self,
        traffic: &mut Traffic,
        content: Content,
        body: &[u8],
    ) -> Result<(), SessionError> {
        let record = self.append(HEADER_BYTES + body.len() + TRAILER_BYTES);
        if let Some(room) = record.get_mut(HEADER_BYTES..HEADER_BYTES + body.len()) {
            room.copy_from_slice(body);
        }
        traffic.seal(record, content)
    }

    /// Room for the data of `records` records, to be filled in order and sealed by
    /// [`Outbox::seal_data`]. Slices beyond them are empty.
    pub(super) fn data_slices(&mut self, records: usize) -> [IoSliceMut<'_>; MAX_RECORDS] {
        let records = records.clamp(1, MAX_RECORDS);
        if self.end == 0 && self.buffer.len() > 2 * records * UNIT_BYTES {
            self.release(); // a busy stream has turned quiet
        }
        self.reserve(records * UNIT_BYTES);
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        let mut strides = room.chunks_exact_mut(STRIDE).take(records);
        array::from_fn(|_| {
            let data = strides.next().and_then(|s| s.get_mut(BEFORE..BEFORE + DATA_BYTES));
            IoSliceMut::new(data.unwrap_or_default())
        })
    }

    /// Seals the `count` bytes that were put into the slices.
    pub(super) fn seal_data(
        &mut self,
        traffic: &mut Traffic,
        count: usize,
    ) -> Result<(), SessionError> {
        let mut left = count;
        while left > 0 {
            let data = left.min(DATA_BYTES);
            let length = BEFORE + data + TRAILER_BYTES;
            let record = self.buffer.get_mut(self.end..self.end + length).unwrap_or_default();
            if let Some(first) = record.get_mut(HEADER_BYTES) {
                *first = kind::DATA;
            }
            traffic.seal(record, Content::Data)?;
            self.end += length;
            left -= data;
        }
        Ok(())
    }

    /// Memory held, in bytes.
    pub(super) fn capacity(&self) -> usize {
        self.buffer.capacity()
    }

    /// Gives the buffer back if it is empty, and returns whether it was.
    pub(super) fn release(&mut self) -> bool {
        let is_empty = self.start == self.end;
        if is_empty {
            (self.start, self.end) = (0, 0);
            buffers::give_back(std::mem::take(&mut self.buffer));
        }
        is_empty
    }

    fn reserve(&mut self, length: usize) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        let size = self.end + length;
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection's memory is bounded, also when a stream begins behind a handshake's last
    /// flight.
    #[test]
    fn growing_takes_no_more_than_it_needs() {
        let mut outbox = Outbox::default();
        outbox.append(3000);
        for records in [1, 2, 4, 8] {
            let slices = outbox.data_slices(records);
            assert_eq!(slices.iter().filter(|slice| !slice.is_empty()).count(), records);
        }
        assert!(outbox.capacity() <= 3000 + MAX_RECORDS * UNIT_BYTES, "{}", outbox.capacity());
        outbox.written(3000);
        outbox.data_slices(1);
        assert!(outbox.capacity() <= UNIT_BYTES, "{}", outbox.capacity());
        outbox.release();
        assert_eq!(outbox.capacity(), 0);
    }
}
