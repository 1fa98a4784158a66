//! Tickets (RFC 8446 §4.6.1) that peers' agents have given us: a handshake with one proves both
//! identities by a secret of an earlier handshake, and no certificate is sent or signed with.
//!
//! A ticket is used with the configuration that it came to, so it goes with our certificate and
//! with the anchors, and is good for one pair of identities. The peer's agent has sealed what it
//! needs into it, with a key that goes with its own certificate and anchors. Whatever changes on
//! either side, the next handshake is a full one.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Tickets of an agent, at most; each takes some 2 KB. Beyond that the oldest go.
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
    /// All in the order in which they came, and some that are gone.
    order: VecDeque<(u64, Place)>,
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
    /// Room for the tickets of another configuration. They go with it.
    pub(super) fn of_new_config(self: &Arc<Self>) -> Arc<TicketsOfConfig> {
        let config = self.configurations.fetch_add(1, Ordering::Relaxed);
        Arc::new(TicketsOfConfig { all: Arc::clone(self), config })
    }
}

impl<T> Book<T> {
    fn put(&mut self, place: Place, ticket: T) {
        self.came += 1;
        self.order.push_back((self.came, place.clone()));
        let of_place = self.of.entry(place).or_default();
        of_place.push_back((self.came, ticket));
        if of_place.len() > MOST_OF_A_NODE {
            of_place.pop_front();
        }
        while self.order.len() > MOST_TICKETS
            && let Some((number, place)) = self.order.pop_front()
        {
            self.keep(&place, |came| came != number);
        }
    }

    /// The newest: its secret has been known for the shortest time.
    fn take(&mut self, place: &Place) -> Option<T> {
        let of_place = self.of.get_mut(place)?;
        let taken = of_place.pop_back();
        if of_place.is_empty() {
            self.of.remove(place);
        }
        taken.map(|(_, ticket)| ticket)
    }

    /// Drops the tickets of a configuration.
    fn forget(&mut self, gone: u64) {
        self.of.retain(|(config, _), _| *config != gone);
        self.order.retain(|(_, (config, _))| *config != gone);
    }

    fn keep(&mut self, place: &Place, stays: impl Fn(u64) -> bool) {
        if let Some(of_place) = self.of.get_mut(place) {
            of_place.retain(|(came, _)| stays(*came));
            if of_place.is_empty() {
                self.of.remove(place);
            }
        }
    }
}

impl<T> Default for Book<T> {
    fn default() -> Self {
        Self { of: HashMap::new(), order: VecDeque::new(), came: 0 }
    }
}

impl Drop for TicketsOfConfig {
    fn drop(&mut self) {
        self.all.book.lock().forget(self.config);
    }
}

impl ClientSessionStore for TicketsOfConfig {
    fn insert_tls13_ticket(
        &self,
        server_name: ServerName<'static>,
        value: Tls13ClientSessionValue,
    ) {
        self.all.book.lock().put((self.config, server_name), value);
    }

    fn take_tls13_ticket(
        &self,
        server_name: &ServerName<'static>,
    ) -> Option<Tls13ClientSessionValue> {
        self.all.book.lock().take(&(self.config, server_name.clone()))
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

    #[test]
    fn there_are_never_too_many() {
        let mut book = Book::default();
        for ticket in 0..10_000 {
            book.put(place(1, "busy"), ticket);
        }
        assert_eq!(held(&book), MOST_OF_A_NODE);
        assert!(book.order.len() <= MOST_TICKETS, "{}", book.order.len());
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
