//! Reading and writing a socket from a poll function, through a shared reference.
//!
//! tokio's own `AsyncRead` does the same but wants `&mut`, and a relay also holds a future that
//! waits for the socket's error event.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Reads what is there. `Ok(0)` is the end of the stream; `buffer` must not be empty.
pub fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let room = buffer.len();
    poll_receive(tcp, cx, room, |mut socket| socket.read(buffer))
}

/// As [`poll_read`], into several slices in turn.
pub fn poll_read_vectored(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    slices: &mut [IoSliceMut<'_>],
) -> Poll<io::Result<usize>> {
    let room = slices.iter().map(|slice| slice.len()).sum();
    poll_receive(tcp, cx, room, |mut socket| socket.read_vectored(slices))
}

fn poll_receive(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    room: usize,
    mut receive: impl FnMut(&socket2::Socket) -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    debug_assert!(room > 0, "an empty buffer cannot tell data from the end");
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let mut received = None;
        let outcome = tcp.try_io(Interest::READABLE, || {
            let count = receive(&SockRef::from(tcp))?;
            received = Some(count);
            if count > 0 && count < room {
                // The socket is drained (edge-triggered epoll): "would block" makes tokio forget
                // its readiness, as its own poll_read does, and saves a call that reads nothing.
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match (received, outcome) {
            (Some(count), _) => return Poll::Ready(Ok(count)),
            (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            (None, _) => {}
        }
    }
}

/// Writes what fits.
pub fn poll_write(tcp: &TcpStream, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

/// As [`poll_write`], from several slices in turn. `more`: the rest, or the end, follows at once;
/// what fills no packet waits for it.
pub fn poll_write_vectored(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[IoSlice<'_>],
    more: bool,
) -> Poll<io::Result<usize>> {
    let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let send = || SockRef::from(tcp).send_vectored_with_flags(slices, flags);
        match tcp.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            outcome => return Poll::Ready(outcome),
        }
    }
}

/// Ends our direction of a connection; the other one goes on.
pub fn shutdown_write(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).shutdown(std::net::Shutdown::Write)
}

/// How long last words may take: they explain the end, but are not worth a longer wait.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How much a peer may still send before we stop reading.
const LAST_WORDS_IGNORED_BYTES: usize = 256 * 1024;

/// Writes `bytes`, ends our direction and reads until the peer has ended its own. To close at once
/// with unread bytes would send a reset, which can destroy the words that explain the end.
pub async fn last_words(tcp: &TcpStream, bytes: &[u8]) {
    let farewell = async {
        let mut rest = bytes;
        while !rest.is_empty() {
            let count = std::future::poll_fn(|cx| poll_write(tcp, cx, rest)).await?;
            rest = rest.get(count..).unwrap_or_default();
        }
        shutdown_write(tcp)?;
        let mut ignored = 0;
        let mut scratch = vec![0u8; 4096];
        while ignored < LAST_WORDS_IGNORED_BYTES {
            match std::future::poll_fn(|cx| poll_read(tcp, cx, &mut scratch)).await? {
                0 => break,
                count => ignored += count,
            }
        }
        Ok::<(), io::Error>(())
    };
    // Best effort: this side has recorded the reason already.
    timeout_at(Instant::now() + LAST_WORDS, farewell).await.ok();
}
