//! The bytes that a connection has carried, readable while it lives.

use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the application, each way.
#[derive(Debug, Default)]
pub struct ByteCounts {
    to_peer: AtomicU64,
    from_peer: AtomicU64,
}

impl ByteCounts {
    /// Bytes read from our application and sealed for the peer.
    pub fn to_peer(&self) -> u64 {
        self.to_peer.load(Ordering::Relaxed)
    }

    /// Bytes from the peer that the application's kernel has taken.
    pub fn from_peer(&self) -> u64 {
        self.from_peer.load(Ordering::Relaxed)
    }

    /// Both, to see whether anything moves.
    pub(super) fn sum(&self) -> u64 {
        self.to_peer().wrapping_add(self.from_peer())
    }

    pub(super) fn add_to_peer(&self, bytes: usize) {
        self.to_peer.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(super) fn add_from_peer(&self, bytes: usize) {
        self.from_peer.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
