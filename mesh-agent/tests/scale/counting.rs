//! An allocator that counts what a build costs in memory. A busy machine does not change the
//! figures.

#![expect(unsafe_code, reason = "counting what is allocated takes a GlobalAlloc")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

struct Counting;

static LIVE: AtomicU64 = AtomicU64::new(0);
static PEAK: AtomicU64 = AtomicU64::new(0);
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
static COUNT: AtomicU64 = AtomicU64::new(0);

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is passed unchanged to the system's allocator; only numbers are kept beside
// it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let bytes = layout.size() as u64;
        ALLOCATED.fetch_add(bytes, Relaxed);
        COUNT.fetch_add(1, Relaxed);
        let live = LIVE.fetch_add(bytes, Relaxed) + bytes;
        PEAK.fetch_max(live, Relaxed);
        // SAFETY: the caller's promise about the layout is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as u64, Relaxed);
        // SAFETY: the block came from `alloc` above, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}

/// Bytes that are in use now.
pub(crate) fn live() -> u64 {
    LIVE.load(Relaxed)
}

/// How often memory was allocated.
pub(crate) fn count() -> u64 {
    COUNT.load(Relaxed)
}

/// Bytes that were ever allocated.
pub(crate) fn total() -> u64 {
    ALLOCATED.load(Relaxed)
}

/// What all threads allocated while `work` ran: bytes in all, and at the peak, the bytes beyond
/// those in use before.
pub(crate) fn allocated<T>(work: impl FnOnce() -> T) -> (T, Allocated) {
    let (before, all_before) = (live(), ALLOCATED.load(Relaxed));
    PEAK.store(before, Relaxed);
    let result = work();
    let peak = PEAK.load(Relaxed).saturating_sub(before);
    (result, Allocated { bytes: ALLOCATED.load(Relaxed) - all_before, peak })
}

/// See [`allocated`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allocated {
    pub(crate) bytes: u64,
    pub(crate) peak: u64,
}
