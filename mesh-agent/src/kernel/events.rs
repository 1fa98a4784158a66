//! Refusals that the programs report through a ring buffer.

use std::{io, net::SocketAddr, time::Duration};

use aya::maps::{MapData, RingBuf};
use mesh_common::{maps::RefusalEvent, verdict::Verdict};
use tokio::time::sleep;

use crate::sys;

/// Events that are read in one go, and the pause after so many: some 50,000 a second at most. A pod
/// that floods with more pins no thread; the ring is full then and the rest is counted
/// (`EVENTS_LOST`).
const BATCH: usize = 512;
const PAUSE: Duration = Duration::from_millis(10);

/// A connection that the kernel refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Cookie of the pod's namespace.
    pub netns: u64,
    /// The address that dialled; port 0 where the kernel had not chosen one yet.
    pub client: SocketAddr,
    /// The address that was dialled.
    pub server: SocketAddr,
    /// Why.
    pub verdict: Verdict,
}

/// The refusals that the programs report.
pub struct Refusals(Ring);

impl Refusals {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self(Ring::new(ring))
    }

    /// Calls `each` for every refusal, until dropped.
    ///
    /// # Errors
    /// The ring could not be polled.
    ///
    /// # Cancel safety
    /// Nothing is lost: an event is taken from the ring only to be handed to `each`.
    pub async fn run(self, mut each: impl FnMut(Refusal)) -> io::Result<()> {
        let read = |record: &[u8]| RefusalEvent::from_bytes(record).and_then(parse);
        self.0.run(|record| read(record).into_iter().for_each(&mut each)).await
    }
}

/// The reading end of a ring.
pub(super) struct Ring {
    ring: RingBuf<MapData>,
}

impl Ring {
    pub(super) fn new(ring: RingBuf<MapData>) -> Self {
        Self { ring }
    }

    /// Calls `each` for every record, until dropped.
    ///
    /// # Errors
    /// The ring could not be polled.
    ///
    /// # Cancel safety
    /// Nothing is lost: a record is taken from the ring only to be handed to `each`.
    pub(super) async fn run(self, mut each: impl FnMut(&[u8])) -> io::Result<()> {
        let mut ring = sys::bpf::watch_ring(self.ring)?;
        loop {
            let mut ready = ring.readable_mut().await?;
            let ring = ready.get_inner_mut();
            let mut read = 0;
            while read < BATCH
                && let Some(record) = ring.next()
            {
                read += 1;
                each(&record);
            }
            if read < BATCH {
                ready.clear_ready();
            } else {
                drop(ready);
                sleep(PAUSE).await;
            }
        }
    }
}

pub(super) fn parse(event: RefusalEvent) -> Option<Refusal> {
    Some(Refusal {
        netns: event.netns,
        client: event.client.into(),
        server: event.server.into(),
        verdict: Verdict::from_number(event.verdict)?,
    })
}
