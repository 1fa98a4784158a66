//! Tickets (RFC 8446 §4.6.1) that peers' agents have given us: a handshake with one proves both
//! identities by a secret of an earlier handshake, and no certificate is sent or signed with.
//!
//! A ticket is used with the configuration that it came to, so it goes with our certificate and
//! with the anchors, and is good for one pair of identities. The peer's agent has sealed what it
//! needs into it, with a key that goes with its own certificate and anchors. Whatever changes on
//! either side, the next handshake is a full one.
//!
//! All threads share one lock here. It is taken twice by a handshake, and never by a connection
//! that a kept session carries.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::ProducesTickets;

/// Tickets of an agent, at most; each takes some 2 KB, and 36 KB if a peer makes it as large as it
/// can ([`MAX_TICKET_BYTES`] and its chain). Beyond that the oldest go.
const MOST_TICKETS: usize = 1024;

/// Tickets from one node for one pair of identities, at most. As many handshakes at once resume.
const MOST_OF_A_NODE: usize = 4;

/// The tickets of all configurations of an agent.
#[derive(Default)]
pub(super) struct Tickets {
    book: Mutex<Book<Tls13ClientSessionValue>>,
    configurations: AtomicU64,
}

struct Book<T> {
    of: HashMap<Place, VecDeque<(u64, T)>>,
    /// The places of all, in the order in which they came.
    order: BTreeMap<u64, Place>,
    came: u64,
}

/// The configuration, and where the peer is.
type Place = (u64, ServerName<'static>);

/// The tickets of one configuration.
pub(super) struct TicketsOfConfig {
    all: Arc<Tickets>,
    config: u64,
}

impl Tickets {
    /// How many there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.book.lock().order.len()
    }

    /// Room for the tickets of another configuration. They go with it.
    pub(super) fn of_new_config(self: &Arc<Self>) -> Arc<TicketsOfConfig> {
        let config = self.configurations.fetch_add(1, Ordering::Relaxed);
        Arc::new(TicketsOfConfig { all: Arc::clone(self), config })
    }
}

impl<T> Book<T> {
    fn put(&mut self, place: Place, ticket: T) {
        self.came += 1;
        self.order.insert(self.came, place.clone());
        let of_place = self.of.entry(place).or_default();
        of_place.push_back((self.came, ticket));
        if of_place.len() > MOST_OF_A_NODE
            && let Some((number, _)) = of_place.pop_front()
        {
            self.order.remove(&number);
        }
        if self.order.len() > MOST_TICKETS
            && let Some((number, place)) = self.order.pop_first()
        {
            self.remove(&place, number);
        }
    }

    /// The newest: its secret has been known for the shortest time.
    fn take(&mut self, place: &Place) -> Option<T> {
        let of_place = self.of.get_mut(place)?;
        let taken = of_place.pop_back();
        if of_place.is_empty() {
            self.of.remove(place);
        }
        let (number, ticket) = taken?;
        self.order.remove(&number);
        Some(ticket)
    }

    /// Drops the tickets of a configuration.
    fn forget(&mut self, gone: u64) {
        self.of.retain(|(config, _), _| *config != gone);
        self.order.retain(|_, (config, _)| *config != gone);
    }

    fn remove(&mut self, place: &Place, number: u64) {
        if let Some(of_place) = self.of.get_mut(place) {
            of_place.retain(|(came, _)| *came != number);
            if of_place.is_empty() {
                self.of.remove(place);
            }
        }
    }
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self { of: HashMap::new(), order: BTreeMap::new(), came: 0 }
    }
}

impl Drop for TicketsOfConfig {
    fn drop(&mut self) {
        self.all.book.lock().forget(self.config);
    }
}

/// The tickets of a configuration, as rustls has them. It holds its configuration as long as a
/// session is open; the tickets, with which its identity can be shown, go earlier.
#[derive(Debug)]
pub(super) struct Store(Weak<TicketsOfConfig>);

impl From<&Arc<TicketsOfConfig>> for Store {
    fn from(tickets: &Arc<TicketsOfConfig>) -> Self {
        Self(Arc::downgrade(tickets))
    }
}

impl ClientSessionStore for Store {
    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        if let Some(tickets) = self.0.upgrade() {
            tickets.all.book.lock().put((tickets.config, server_name), value);
        }
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        let tickets = self.0.upgrade()?;
        tickets.all.book.lock().take(&(tickets.config, server_name.clone()))
    }

    // The first group that we offer is always the same one, and there is no TLS 1.2.
    fn set_kx_hint(&self, _server_name: ServerName<'static>, _group: NamedGroup) {}

    fn kx_hint(&self, _server_name: &ServerName<'_>) -> Option<NamedGroup> {
        None
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _server_name: &ServerName<'static>) {}
}

/// The longest ticket that is given out and that is taken. It holds the chain of the client, which
/// is as long as the client wants.
pub(crate) const MAX_TICKET_BYTES: usize = 4 * 1024;

/// Seals tickets, and none that are too long.
#[derive(Debug)]
pub(super) struct ShortTickets(pub(super) Arc<dyn ProducesTickets>);

impl ProducesTickets for ShortTickets {
    fn enabled(&self) -> bool {
        self.0.enabled()
    }

    fn lifetime(&self) -> u32 {
        self.0.lifetime()
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        self.0.encrypt(plain).filter(|ticket| ticket.len() <= MAX_TICKET_BYTES)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        self.0.decrypt(cipher)
    }
}

impl fmt::Debug for Tickets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tickets").finish_non_exhaustive()
    }
}

impl fmt::Debug for TicketsOfConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketsOfConfig").field("config", &self.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(config: u64, node: &str) -> Place {
        (config, ServerName::try_from(node.to_owned()).unwrap())
    }

    fn held(book: &Book<u32>) -> usize {
        book.of.values().map(VecDeque::len).sum()
    }

    #[test]
    fn the_newest_ticket_of_a_place_is_taken_first_and_once() {
        let mut book = Book::default();
        for (node, ticket) in [("a", 1), ("a", 2), ("b", 3)] {
            book.put(place(1, node), ticket);
        }
        assert_eq!(book.take(&place(2, "a")), None, "another configuration's");
        assert_eq!(book.take(&place(1, "a")), Some(2));
        assert_eq!(book.take(&place(1, "a")), Some(1));
        assert_eq!(book.take(&place(1, "a")), None);
        assert_eq!(book.take(&place(1, "b")), Some(3));
    }

    /// One that makes handshakes without end costs others none of their tickets.
    #[test]
    fn a_busy_place_leaves_the_tickets_of_others() {
        let mut book = Book::default();
        book.put(place(1, "quiet"), 0);
        for ticket in 1..10_000 {
            book.put(place(1, "busy"), ticket);
            if ticket % 2 == 0 {
                book.take(&place(1, "busy"));
            }
        }
        assert_eq!(book.take(&place(1, "quiet")), Some(0));
    }

    #[test]
    fn there_are_never_too_many() {
        let mut book = Book::default();
        for ticket in 0..10_000 {
            book.put(place(1, "busy"), ticket);
        }
        assert_eq!(held(&book), MOST_OF_A_NODE);
        assert_eq!(book.order.len(), MOST_OF_A_NODE);
        for ticket in 0..10_000 {
            book.put(place(2, &format!("node-{ticket}")), ticket);
        }
        assert_eq!((held(&book), book.order.len()), (MOST_TICKETS, MOST_TICKETS));
        assert_eq!(book.take(&place(1, "busy")), None, "the oldest have gone");
        assert_eq!(book.take(&place(2, "node-9999")), Some(9999));
        book.forget(2);
        assert_eq!((held(&book), book.order.len()), (0, 0));
    }
}
