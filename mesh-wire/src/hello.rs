//! Looks at the first bytes of a connection without taking them: does an agent call?
//!
//! Needed where a connection comes from a mesh source port of a peer that we have not heard of
//! (docs/wire.md). An application may speak TLS itself; the ALPN in its `ClientHello` identifies an
//! agent (RFC 8446 §4.1.2, RFC 7301 §3.1).

use crate::identity::tls::ALPN;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hello {
    /// Too few bytes to tell; an agent's first flight is at most [`MAX_BYTES`].
    Incomplete,
    /// An agent: a `ClientHello` that offers `nodemesh/1`.
    Mesh,
    /// The `ClientHello` of another TLS client.
    OtherTls,
    /// No TLS.
    NotTls,
}

/// This many bytes are enough to tell: our `ClientHello` has about 1,400, with a key share of
/// 1,216.
pub const MAX_BYTES: usize = 4096;

const RECORD_HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_ALPN: u16 = 16;
/// `legacy_version` and `random`.
const VERSION_AND_RANDOM_BYTES: usize = 2 + 32;

/// Judges the beginning of a connection; never panics, whatever the bytes.
pub fn look(bytes: &[u8]) -> Hello {
    match begins_like_tls(bytes) {
        false => Hello::NotTls,
        true if bytes.len() < 6 => Hello::Incomplete,
        true => match offers_mesh(Cursor(bytes.get(3..).unwrap_or_default())) {
            Ok(true) => Hello::Mesh,
            Ok(false) | Err(Stop::NotOurs) => Hello::OtherTls,
            // A longer look could not decide either, so it is not ours.
            Err(Stop::Short) if bytes.len() >= MAX_BYTES => Hello::OtherTls,
            Err(Stop::Short) => Hello::Incomplete,
        },
    }
}

/// Checks the first six bytes, or as many as there are: handshake record, version 3.x,
/// `ClientHello`.
fn begins_like_tls(bytes: &[u8]) -> bool {
    let fits = |at: usize, expected: u8| bytes.get(at).is_none_or(|&byte| byte == expected);
    fits(0, RECORD_HANDSHAKE) && fits(1, 3) && fits(5, CLIENT_HELLO)
}

/// Why reading stopped.
enum Stop {
    /// The bytes end too early.
    Short,
    /// A `ClientHello` that no agent sends (split over several records, or contradictory).
    NotOurs,
}

/// From the record's length on.
fn offers_mesh(mut record: Cursor<'_>) -> Result<bool, Stop> {
    let record_length = record.u16()?;
    record.take(1)?; // the type, seen already
    let &[high, middle, low] = record.array::<3>()?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    if length + 4 != record_length {
        return Err(Stop::NotOurs);
    }
    let mut hello = record;
    hello.take(VERSION_AND_RANDOM_BYTES)?;
    let session_id = hello.u8()?;
    hello.take(session_id)?;
    let suites = hello.u16()?;
    hello.take(suites)?;
    let compressions = hello.u8()?;
    hello.take(compressions)?;
    let mut left = hello.u16()?;
    while left > 0 {
        let kind = hello.u16()?;
        let length = hello.u16()?;
        left = left.checked_sub(4 + length).ok_or(Stop::NotOurs)?;
        let body = hello.take(length)?;
        if kind == usize::from(EXTENSION_ALPN) {
            return Ok(lists(body, ALPN));
        }
    }
    Ok(false)
}

/// Whether a list of protocol names (two bytes length, then names with one byte length each)
/// holds `wanted`.
fn lists(body: &[u8], wanted: &[u8]) -> bool {
    let mut names = Cursor(body.get(2..).unwrap_or_default());
    while let Ok(length) = names.u8() {
        match names.take(length) {
            Ok(name) if name == wanted => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    }
    false
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Stop::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Stop> {
        let (taken, rest) = self.0.split_first_chunk::<N>().ok_or(Stop::Short)?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<usize, Stop> {
        self.array::<1>().map(|&[byte]| usize::from(byte))
    }

    fn u16(&mut self) -> Result<usize, Stop> {
        self.array::<2>().map(|&bytes| usize::from(u16::from_be_bytes(bytes)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection};

    use super::*;
    use crate::identity::tls::crypto;

    /// What rustls says first, offering these protocols.
    fn hello(protocols: &[&[u8]]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(crypto())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
        let name = "example.com".try_into().unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn an_agent_is_told_from_every_other_caller() {
        assert_eq!(look(&hello(&[ALPN])), Hello::Mesh);
        assert_eq!(look(&hello(&[b"h2", ALPN])), Hello::Mesh);
        assert_eq!(look(&hello(&[])), Hello::OtherTls);
        assert_eq!(look(&hello(&[b"h2", b"http/1.1"])), Hello::OtherTls);
        assert_eq!(look(&hello(&[b"nodemesh/10"])), Hello::OtherTls);
        for other in [&b"GET / HTTP/1.1\r\n"[..], b"S", &[22, 2], &[22, 3, 3, 0, 4, 2], &[0x80]] {
            assert_eq!(look(other), Hello::NotTls, "{other:02x?}");
        }
        let mut split = hello(&[ALPN]);
        split[4] ^= 1; // the record's length no longer is the message's
        assert_eq!(look(&split), Hello::OtherTls);
    }

    #[test]
    fn every_beginning_of_an_agents_hello_is_incomplete() {
        let hello = hello(&[ALPN]);
        assert!(hello.len() < MAX_BYTES / 2, "{}", hello.len());
        let known = (0..=hello.len()).find(|&end| look(&hello[..end]) != Hello::Incomplete);
        let known = known.unwrap();
        assert_eq!(look(&hello[..known]), Hello::Mesh);
        for end in known..hello.len() {
            assert_eq!(look(&hello[..end]), Hello::Mesh, "it does not change its mind");
        }
    }

    #[test]
    fn a_hello_that_never_ends_is_not_ours() {
        let mut endless = vec![22, 3, 1, 0xff, 0xff, 1, 0, 0xff, 0xfb];
        endless.resize(MAX_BYTES, 0);
        assert_eq!(look(&endless), Hello::OtherTls);
    }

    proptest! {
        #[test]
        fn any_bytes_are_judged(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            look(&bytes);
            let tls = [&[22, 3, 1, 0, 200, 1, 0, 0, 196][..], &bytes].concat();
            look(&tls);
        }

        #[test]
        fn a_damaged_hello_is_judged(at in any::<prop::sample::Index>(), value in any::<u8>()) {
            let mut bytes = hello(&[ALPN]);
            let at = at.index(bytes.len());
            bytes[at] = value;
            look(&bytes);
        }
    }
}
