//! The application's side of a connection, which is reset unless it ended well.

use std::io;

use tokio::net::TcpStream;

/// A connection to or from an application. Dropped before [`AppStream::finish`], it is reset: no
/// path through the agent, not even a panic or a cancelled task, may look like a clean end.
#[derive(Debug)]
pub struct AppStream {
    tcp: TcpStream,
    finished: bool,
}

impl AppStream {
    /// Takes charge of a connected socket; switches Nagle's algorithm off.
    ///
    /// # Errors
    /// The socket is not connected any more.
    pub fn new(tcp: TcpStream) -> io::Result<Self> {
        let stream = Self { tcp, finished: false };
        stream.tcp.set_nodelay(true)?;
        Ok(stream)
    }

    /// The socket, for its addresses.
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Both directions have ended well: closes without a reset.
    pub fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for AppStream {
    fn drop(&mut self) {
        if !self.finished {
            // With linger 0 the kernel closes by RST. If it fails, the socket is dead already.
            self.tcp.set_zero_linger().ok();
        }
    }
}
