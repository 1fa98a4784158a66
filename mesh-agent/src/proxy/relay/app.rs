//! The application's side of a connection, which is reset unless it ended well.

use std::io;

use socket2::SockRef;
use tokio::net::TcpStream;

/// A connection to or from an application. Closed before [`AppStream::finish`], it is reset: no
/// path through the agent, not even a panic, a cancelled task or a kill, may look like a clean end.
#[derive(Debug)]
pub struct AppStream {
    tcp: TcpStream,
}

impl AppStream {
    /// Takes charge of a connected socket; switches Nagle's algorithm off.
    ///
    /// # Errors
    /// The socket is not connected any more.
    pub fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        // With linger 0 the kernel closes by RST, whoever closes: also when the agent is killed.
        tcp.set_zero_linger()?;
        Ok(Self { tcp })
    }

    /// The socket, for its addresses.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Both directions have ended well: closes without a reset.
    pub fn finish(self) {
        // If it fails, the socket is dead already.
        SockRef::from(&self.tcp).set_linger(None).ok();
    }
}
