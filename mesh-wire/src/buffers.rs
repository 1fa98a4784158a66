//! Buffers between two uses. A connection has a buffer only while something is in it. A buffer that
//! it gives back serves the next connection on this thread. So quiet connections have none, however
//! many there are.
//!
//! The bytes of an earlier connection are still in the buffer: its user may read only what it has
//! written itself.

use std::cell::RefCell;

use super::record::MAX_RECORD_BYTES;

/// Room for one record. A kept buffer has a multiple of this size; others are not kept.
pub const UNIT_BYTES: usize = MAX_RECORD_BYTES;

/// Buffers that a thread keeps: one each way, for a quiet connection and for a busy one. At most
/// 533 KiB.
const KEPT: usize = 4;

thread_local! {
    /// The buffer that was given back last is the last element.
    static RESTING: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A buffer of exactly this size, with arbitrary content.
pub fn take(size: usize) -> Vec<u8> {
    let kept = RESTING.with_borrow_mut(|resting| {
        let fitting = resting.iter().rposition(|buffer| buffer.len() == size);
        fitting.map(|index| resting.remove(index))
    });
    kept.unwrap_or_else(|| vec![0; size])
}

/// Keeps a buffer for the next use, and drops the one that has been unused for longest.
pub fn give_back(buffer: Vec<u8>) {
    if buffer.is_empty() || !buffer.len().is_multiple_of(UNIT_BYTES) {
        return;
    }
    RESTING.with_borrow_mut(|resting| {
        if resting.len() == KEPT {
            resting.remove(0);
        }
        resting.push(buffer);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_taken_again_and_few_are_kept() {
        let mut buffer = take(UNIT_BYTES);
        buffer[0] = 7;
        let at = buffer.as_ptr();
        give_back(buffer);
        let other = take(2 * UNIT_BYTES);
        assert_eq!(other.len(), 2 * UNIT_BYTES);
        let again = take(UNIT_BYTES);
        assert_eq!((again.as_ptr(), again[0]), (at, 7));
        for _ in 0..2 * KEPT {
            give_back(vec![0; UNIT_BYTES]);
            give_back(vec![0; UNIT_BYTES + 1]);
        }
        RESTING.with_borrow(|resting| {
            assert_eq!(resting.len(), KEPT);
            assert!(resting.iter().all(|buffer| buffer.len() == UNIT_BYTES));
        });
    }
}
