//! Sessions over real sockets: against ourselves, against plain rustls, against what breaks them.

mod handshake;
mod hostile;
mod plain_rustls;
mod pump;
mod session;

use super::testing::{Mesh, certified, in_time, open, sample_open, soon, tcp_pair, uri};
use super::*;
