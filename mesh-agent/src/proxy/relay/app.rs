//! The application's side of a connection, which is reset unless it ended well.

use std::io;

use socket2::SockRef;
use tokio::net::TcpStream;

/// A connection to or from an application. It is reset if it is closed before
/// [`AppStream::finish`]: no path through the agent, not even a panic, a cancelled task or a kill,
/// may look like a clean end.
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
        // With linger 0 every close is an RST, also the kernel's when the agent is killed.
        tcp.set_zero_linger()?;
        Ok(Self { tcp })
    }

    /// Takes charge of a connected socket on which Nagle's algorithm and lingering are switched off
    /// already: accepted from a listener that has it so, or made so.
    pub fn prepared(tcp: TcpStream) -> Self {
        Self { tcp }
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

#[cfg(test)]
mod tests {
    use mesh_api::{Bytes, Direction, Reason};
    use mesh_common::verdict::Verdict;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        flows::{Ended, FlowStore, Party},
        tasks::Tasks,
    };

    /// What an accept loop does for each connection. The task of one that sends `!` panics.
    fn serve(connections: &Tasks, flows: &FlowStore, tcp: TcpStream) {
        let at = Party::at(tcp.peer_addr().unwrap());
        let flow = flows.begin(1, Direction::Outbound, at.clone(), at, Verdict::RedirectPeer);
        let app = AppStream::new(tcp).unwrap();
        connections.spawn("outbound", async move {
            let mut said = [0];
            app.tcp().peek(&mut said).await.unwrap();
            assert!(said != *b"!", "a bug");
            app.tcp().try_read(&mut said).unwrap();
            app.tcp().try_write(&said).unwrap();
            app.finish();
            flow.end(Ended::new(Reason::Closed, ""), Bytes::default());
        });
    }

    #[tokio::test]
    async fn a_panic_costs_one_connection_and_says_so() {
        let (connections, flows) = (Tasks::new(), FlowStore::new("node1"));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            serve(&connections.child(), &flows, listener.accept().await.unwrap().0);
        }
        let mut buffer = Vec::new();
        clients[1].write_all(b"!").await.unwrap();
        let error = clients[1].read_to_end(&mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        for other in [0, 2] {
            clients[other].write_all(b"x").await.unwrap();
            assert_eq!(clients[other].read_to_end(&mut buffer).await.unwrap(), 1);
        }
        connections.wait().await;
        let outcomes: Vec<_> = flows.list().into_iter().map(|flow| flow.outcome).collect();
        assert_eq!(outcomes, ["agent_panicked", "closed", "closed"]);
    }
}
