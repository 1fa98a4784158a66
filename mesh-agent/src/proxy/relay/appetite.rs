//! How many records to read at once: one for a quiet direction, eight for a busy one.

use mesh_wire::MAX_RECORDS;

use crate::proxy::memory::Lease;

/// After this many reads in a row that would have fitted into one record, one record is enough
/// again.
const QUIET_READS: u32 = 16;

/// Grows while reads fill their room; shrinks after a series of reads that did not.
#[derive(Debug)]
pub(super) struct Appetite {
    records: usize,
    quiet_reads: u32,
    /// The source of room for more than one record. `None`: no limit but eight.
    room: Option<Lease>,
}

impl Default for Appetite {
    fn default() -> Self {
        Self { records: 1, quiet_reads: 0, room: None }
    }
}

impl Appetite {
    /// From now on it grows only as far as `room` allows.
    pub(super) fn feed_from(&mut self, room: Option<Lease>) {
        self.room = room;
    }

    /// Records to make room for: 1 to 8, as far as there is room.
    pub(super) fn records(&mut self) -> usize {
        if let Some(lease) = &mut self.room
            && lease.has() + 1 < self.records
        {
            let missing = self.records - 1 - lease.has();
            if !lease.grow(missing) {
                self.records = lease.has() + 1;
            }
        }
        self.records
    }

    /// Its buffer has been given back. It remembers how much it wants next, but others may use the
    /// room meanwhile.
    pub(super) fn rest(&mut self) {
        if let Some(lease) = &mut self.room {
            lease.clear();
        }
    }

    /// A read brought `count` bytes where there was room for `room`.
    pub(super) fn fed(&mut self, count: usize, room: usize) {
        if count == room {
            let more = (self.records * 2).min(MAX_RECORDS) - self.records;
            if self.room.as_mut().is_none_or(|lease| lease.grow(more)) {
                self.records += more;
            }
            self.quiet_reads = 0;
        } else if count <= room / self.records {
            self.quiet_reads += 1;
            if self.quiet_reads >= QUIET_READS {
                (self.records, self.quiet_reads) = (1, 0);
                if let Some(lease) = &mut self.room {
                    lease.clear();
                }
            }
        } else {
            self.quiet_reads = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::memory::{Spare, Used};

    #[test]
    fn it_stays_at_one_where_there_is_no_room_for_more() {
        let (spare, used) = (Spare::default(), Used::default());
        let mut taken = spare.lease(&used);
        while taken.grow(1) {}
        let mut appetite = Appetite::default();
        appetite.feed_from(Some(spare.lease(&used)));
        appetite.fed(100, 100);
        assert_eq!(appetite.records(), 1);
        drop(taken);
        appetite.fed(100, 100);
        assert_eq!(appetite.records(), 2);
    }

    #[test]
    fn who_rests_leaves_the_room_to_others_and_asks_anew() {
        let (spare, used) = (Spare::default(), Used::default());
        let mut appetite = Appetite::default();
        appetite.feed_from(Some(spare.lease(&used)));
        for _ in 0..3 {
            appetite.fed(100, 100);
        }
        assert_eq!(appetite.records(), 8);
        appetite.rest();
        let (other, mut taken) = (Used::default(), Vec::new());
        loop {
            let mut lease = spare.lease(&other);
            if !lease.grow(1) {
                break;
            }
            taken.push(lease);
        }
        appetite.rest();
        assert_eq!(appetite.records(), 8, "a pod that has none finds room");
        drop(taken);
    }

    #[test]
    fn it_doubles_up_to_eight_and_falls_back_to_one() {
        let mut appetite = Appetite::default();
        let grown: Vec<usize> = (0..5)
            .map(|_| {
                appetite.fed(100, 100);
                appetite.records()
            })
            .collect();
        assert_eq!(grown, [2, 4, 8, 8, 8]);
        for _ in 1..QUIET_READS {
            appetite.fed(1, 100);
        }
        appetite.fed(50, 100); // more than one record would have held
        for _ in 1..QUIET_READS {
            appetite.fed(1, 100);
            assert_eq!(appetite.records(), 8);
        }
        appetite.fed(1, 100);
        assert_eq!(appetite.records(), 1);
    }
}
