//! Sessions over real sockets: with ourselves, with plain rustls, and with peers that break them.

mod handshake;
mod hostile;
mod plain_rustls;
mod pump;
mod resumption;
mod session;
mod stream;

use super::testing::{
    Dice, Mesh, altered_client, altered_server, in_time, open, sample_open, send_frame, send_raw,
    soon, tcp_pair, uri,
};
use super::*;
