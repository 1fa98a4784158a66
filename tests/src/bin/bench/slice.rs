//! What a client is told to do, and what it answers: one JSON line each way.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// A kind of load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Load {
    Connect,
    /// Each connection to the next port.
    First,
    RoundTrip,
    Request,
    Stream,
    SmallWrites,
    /// Connections that stay open until the next order.
    Hold,
}

impl Load {
    /// The first byte of a connection says it; the server sends it back.
    pub(crate) fn byte(self) -> u8 {
        match self {
            Self::Connect | Self::First | Self::Hold => b'c',
            Self::RoundTrip => b'r',
            Self::Request => b'q',
            Self::Stream | Self::SmallWrites => b's',
        }
    }
}

/// Bytes of a round trip, each way.
pub(crate) const TRIP_BYTES: usize = 128;
/// Bytes of a write of a stream.
pub(crate) const WRITE_BYTES: usize = 64 * 1024;
/// Bytes of a small one.
pub(crate) const SMALL_WRITE_BYTES: usize = 1024;

/// A slice that is to be done: until one of the limits.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Order {
    load: Load,
    /// How many do it at once.
    workers: usize,
    /// Operations of each at most: connections, round trips, writes.
    count: u64,
    time_ms: u64,
}

impl Order {
    pub(crate) fn new(load: Load, workers: usize, count: u64, time: Duration) -> Self {
        let time_ms = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self { load, workers, count, time_ms }
    }

    /// The same for a shorter or longer time.
    pub(crate) fn with_time(self, time: Duration) -> Self {
        Self::new(self.load, self.workers, self.count, time)
    }

    pub(crate) fn workers(self) -> usize {
        self.workers
    }

    pub(crate) fn load(self) -> Load {
        self.load
    }

    pub(crate) fn count(self) -> u64 {
        self.count
    }

    pub(crate) fn time(self) -> Duration {
        Duration::from_millis(self.time_ms)
    }
}

/// An order and where to dial.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) to: SocketAddr,
    pub(crate) order: Order,
}

/// What a client answers.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Done(Slice),
    Failed(String),
}

/// A slice that was done.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Slice {
    /// Operations.
    pub(crate) count: u64,
    /// Connections made.
    pub(crate) connections: u64,
    /// Bytes that the server has received.
    pub(crate) bytes: u64,
    /// From the first operation to the end of the last; for a stream, until the server says that it
    /// has everything.
    pub(crate) elapsed_ns: u64,
    /// How long operations took; empty for a stream.
    pub(crate) times: Histogram,
}

impl Slice {
    /// Adds what another client did at the same time.
    pub(crate) fn join(&mut self, other: &Self) {
        self.count += other.count;
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        self.times.merge(&other.times);
    }
}

/// Times, in buckets that are at most 1/128 apart. Its memory is there from the beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Sparse", into = "Sparse")]
pub(crate) struct Histogram {
    counts: Box<[u32; BUCKETS]>,
}

/// Steps per doubling: 2^7.
const STEP_BITS: u32 = 7;
/// Up to 2^36 ns: more than a minute.
const BUCKETS: usize = 30 << STEP_BITS;

/// The buckets that are not empty.
#[derive(Serialize, Deserialize)]
struct Sparse(Vec<(usize, u32)>);

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]) }
    }
}

impl Histogram {
    /// Counts one time. Does not allocate.
    pub(crate) fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(ns)) {
            *count += 1;
        }
    }

    /// Empties it.
    pub(crate) fn clear(&mut self) {
        self.counts.fill(0);
    }

    /// Adds the counts of `other`.
    pub(crate) fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts.iter()) {
            *count += more;
        }
    }

    /// The time below which this share of all lies, in ns; `None` if there are none.
    pub(crate) fn quantile_ns(&self, share: f64) -> Option<f64> {
        let total: u64 = self.counts.iter().map(|&count| u64::from(count)).sum();
        if total == 0 {
            return None;
        }
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let wanted = share * total as f64;
        let mut below = 0.0;
        for (bucket, &count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let (from, to) = (lower_ns(bucket), lower_ns(bucket + 1));
            let count = f64::from(count);
            if below + count >= wanted {
                return Some(from + (to - from) * ((wanted - below) / count).clamp(0.0, 1.0));
            }
            below += count;
        }
        None
    }
}

/// The bucket of a time: linear up to 2^8, then 2^7 steps for each doubling.
fn bucket(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(STEP_BITS + 1);
    ((shift as usize) << STEP_BITS).saturating_add((ns >> shift) as usize).min(BUCKETS - 1)
}

/// Where a bucket begins.
#[expect(clippy::cast_precision_loss, reason = "times are below 2^52 ns")]
fn lower_ns(bucket: usize) -> f64 {
    let shift = (bucket >> STEP_BITS).saturating_sub(1);
    (((bucket - (shift << STEP_BITS)) as u64) << shift) as f64
}

impl From<Histogram> for Sparse {
    fn from(full: Histogram) -> Self {
        let all = full.counts.iter().copied().enumerate();
        Self(all.filter(|(_, count)| *count > 0).collect())
    }
}

impl From<Sparse> for Histogram {
    fn from(sparse: Sparse) -> Self {
        let mut full = Self::default();
        for (bucket, count) in sparse.0 {
            if let Some(slot) = full.counts.get_mut(bucket) {
                *slot = count;
            }
        }
        full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_begins_where_it_says() {
        for ns in (0..2000).chain([4095, 4096, 4097, 1_000_000, 123_456_789, 60_000_000_000]) {
            let at = bucket(ns);
            #[expect(clippy::cast_precision_loss, reason = "small")]
            let exact = ns as f64;
            assert!(lower_ns(at) <= exact && exact < lower_ns(at + 1), "{ns} in {at}");
            assert!(lower_ns(at + 1) - lower_ns(at) <= 1.0 + exact / 128.0, "{ns} in {at}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_times() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantile_ns(0.5), None);
        for us in 1..=1000 {
            histogram.add(Duration::from_micros(us));
        }
        let middle = histogram.quantile_ns(0.5).unwrap();
        assert!((middle / 500_000.0 - 1.0).abs() < 0.01, "{middle}");
        let text = serde_json::to_string(&histogram).unwrap();
        assert_eq!(serde_json::from_str::<Histogram>(&text).unwrap(), histogram);
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!(twice.quantile_ns(0.5), histogram.quantile_ns(0.5));
    }
}
