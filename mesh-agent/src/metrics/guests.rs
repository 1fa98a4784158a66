//! The clients that are being answered. No client is refused: with too many connections, the client
//! with the most of them loses its oldest.

use std::{net::IpAddr, sync::Arc};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

use crate::client_key::ClientKey;

/// Most connections at once: several scrapers, and people. At most one a millisecond is accepted,
/// so that each has 64 ms for its request even if all come from one client.
pub(super) const MAX_OPEN: usize = 64;

/// All connections.
#[derive(Clone, Default)]
pub(super) struct Guests(Arc<Mutex<Seated>>);

#[derive(Default)]
struct Seated {
    next: u64,
    /// The oldest first.
    guests: Vec<Guest>,
}

struct Guest {
    number: u64,
    client: ClientKey,
    address: IpAddr,
    taken: CancellationToken,
}

/// The client whose connection had to make room.
pub(super) struct Left {
    pub(super) client: ClientKey,
    /// The address of that connection, one of the client's.
    pub(super) address: IpAddr,
}

/// A connection's place, until it is dropped or another connection takes it.
pub(super) struct Seat {
    guests: Guests,
    number: u64,
    taken: CancellationToken,
}

impl Guests {
    /// A place for a connection from this client. If there is none left, the client with the most
    /// loses its oldest one.
    pub(super) fn seat(&self, client: ClientKey, address: IpAddr) -> (Seat, Option<Left>) {
        let mut left = None;
        let mut seated = self.lock();
        let Seated { next, guests } = &mut *seated;
        if guests.len() >= MAX_OPEN {
            let count = |same: &dyn Fn(&Guest) -> bool| guests.iter().filter(|it| same(it)).count();
            let has = |of: &Guest| {
                (count(&|it| it.client == of.client), count(&|it| it.address == of.address))
            };
            // Of equals `max_by_key` takes the last, so they are ordered from the newest to the
            // oldest.
            let most = guests.iter().enumerate().rev().max_by_key(|(_, guest)| has(guest));
            if let Some((index, _)) = most {
                let Guest { client, address, taken, .. } = guests.remove(index);
                taken.cancel();
                left = Some(Left { client, address });
            }
        }
        let number = *next;
        *next += 1;
        let taken = CancellationToken::new();
        guests.push(Guest { number, client, address, taken: taken.clone() });
        (Seat { guests: self.clone(), number, taken }, left)
    }

    fn lock(&self) -> MutexGuard<'_, Seated> {
        self.0.lock()
    }
}

impl Seat {
    /// Resolves when another connection has got the place.
    pub(super) async fn pushed_out(&self) {
        self.taken.cancelled().await;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.guests.lock().guests.retain(|guest| guest.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seat(guests: &Guests, address: &str) -> Seat {
        let address = address.parse().unwrap();
        guests.seat(ClientKey::of_stranger(address), address).0
    }

    #[test]
    fn whoever_has_most_makes_room() {
        let guests = Guests::default();
        // Many connections, and from many addresses.
        let greedy: Vec<_> =
            (0..MAX_OPEN).map(|host| seat(&guests, &format!("fd00:1::{host:x}"))).collect();
        let scraper = seat(&guests, "10.0.0.1");
        let neighbour = [seat(&guests, "fd00:1::aaaa"), seat(&guests, "fd00:1::aaaa")];
        assert_eq!(guests.lock().guests.len(), MAX_OPEN);
        let gone = |seats: &[Seat]| seats.iter().filter(|seat| seat.taken.is_cancelled()).count();
        assert_eq!((gone(&greedy), gone(&greedy[..3])), (3, 3), "the oldest, one for each");
        assert_eq!(gone(&neighbour), 0);
        // Of one client's addresses, the one with two loses before those with one.
        let _one_more = seat(&guests, "10.0.0.2");
        assert_eq!((gone(&neighbour[..1]), gone(&greedy)), (1, 3));
        assert!(!scraper.taken.is_cancelled());
        drop((greedy, neighbour));
        assert_eq!(guests.lock().guests.len(), 2, "a seat left is free");
    }
}
