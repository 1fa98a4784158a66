//! A handshake without a socket, for the fuzz targets: the caller carries the bytes.
#![allow(clippy::panic, reason = "a target tells a defect by panicking")]

use super::*;

/// One side of the handshake.
pub(crate) struct Side(Handshake);

impl Side {
    /// The side that speaks first.
    pub(crate) fn client(tls: &ClientTls) -> Self {
        let name = ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into());
        match UnbufferedClientConnection::new(Arc::clone(&tls.config), name) {
            Ok(conn) => Self(Handshake::new(Tls::Client(conn), &tls.verifier)),
            Err(error) => panic!("rustls does not take our configuration: {error}"),
        }
    }

    /// The other side.
    pub(crate) fn server(tls: &ServerTls) -> Self {
        match UnbufferedServerConnection::new(Arc::clone(&tls.config)) {
            Ok(conn) => Self(Handshake::new(Tls::Server(conn), &tls.verifier)),
            Err(error) => panic!("rustls does not take our configuration: {error}"),
        }
    }

    /// What [`Handshake::drive`] does when the socket delivers these bytes. Returns whether the
    /// handshake is done. After an error the alert that explains it is in [`Side::said`].
    pub(crate) fn hear(&mut self, mut bytes: &[u8]) -> Result<bool, HandshakeError> {
        let Self(handshake) = self;
        let outcome = loop {
            match handshake.progress() {
                Ok(false) if !bytes.is_empty() => {}
                outcome => break outcome,
            }
            match handshake.room() {
                Ok(room) => {
                    let count = room.len().min(bytes.len());
                    let (now, later) = bytes.split_at(count);
                    room[..count].copy_from_slice(now);
                    handshake.inbox.received(count);
                    bytes = later;
                }
                Err(error) => break Err(error),
            }
        };
        if let Err(HandshakeError::Tls { judged_by: JudgedBy::Us, .. }) = &outcome {
            handshake.collect_alert();
        }
        if let Ok(true) = outcome {
            // What comes after the handshake waits in the buffer, as it does with a socket.
            while !bytes.is_empty() {
                let room = handshake.inbox.spare(HANDSHAKE_RECORDS);
                let count = room.len().min(bytes.len());
                let (now, later) = bytes.split_at(count);
                room[..count].copy_from_slice(now);
                handshake.inbox.received(count);
                bytes = if count == 0 { &[] } else { later };
            }
        }
        outcome
    }

    /// What it has sent since the last call.
    pub(crate) fn said(&mut self) -> Vec<u8> {
        let outbox = &mut self.0.outbox;
        let said = outbox.pending().to_vec();
        outbox.written(said.len());
        said
    }

    /// Memory of its buffers, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.0.inbox.capacity() + self.0.outbox.capacity()
    }

    /// The session, once the handshake is done.
    pub(crate) fn established(self) -> Result<Established, HandshakeError> {
        self.0.take_keys().map_err(|unfit| unfit.error)
    }
}
