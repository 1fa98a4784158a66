//! Sessions over real sockets: against ourselves, against plain rustls, against what breaks them.

mod handshake;
mod hostile;
mod plain_rustls;
mod pump;
mod session;

use super::testing::{
    Mesh, altered_client, altered_server, in_time, open, sample_open, soon, tcp_pair, uri,
};
use super::*;

/// Seals a record of any kind and content, to play a peer that breaks the protocol.
fn send_raw(session: &mut Session, content: record::Content, body: &[u8]) {
    let channel = &mut session.channel;
    channel.outbox.seal(&mut channel.traffic, content, body).unwrap();
}
