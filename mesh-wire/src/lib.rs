//! Identities, and `nodemesh/1`, the protocol between two agents, as docs/wire.md specifies it.
//!
//! [`frame`] is the pure encoding, [`reason`] every way to fail and its code, [`Session`] a TLS
//! session that carries one application connection at a time, [`Stream`] that connection as a byte
//! stream, [`identity`] certificates and their verifier.
//!
//! rustls does the handshake and keeps the key schedule. Records are sealed and opened here, in
//! place, in our own buffers (`record`). rustls' own record layer copies each record at least once
//! per direction, and does not keep record boundaries, which are our frames.

pub mod buffers;
mod channel;
pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz;
mod handshake;
pub mod hello;
pub mod identity;
mod inbox;
pub mod io;
mod outbox;
pub mod reason;
mod record;
pub mod session;
mod single_flight;
mod state;
mod stream;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod tlv;
mod traffic;

pub use channel::{Channel, Received};
pub use frame::{Accepted, Frame, FrameError, Open, Refused};
pub use outbox::MAX_RECORDS;
pub use reason::{
    HandshakeError, JudgedBy, Refusal, ResetCode, SessionError, StateError, TlsReason,
};
pub use session::{Session, TlsInfo};
pub use single_flight::{SingleFlight, Turn};
pub use stream::{Stream, StreamError};

#[cfg(test)]
mod tests;
