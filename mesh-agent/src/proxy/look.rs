//! Looks at a connection's first bytes, for arrivals from the mesh's source ports about which we
//! know too little. The source may have joined the mesh a moment ago, may not have heard of an
//! excluded port, or may be an ordinary client behind SNAT.

use std::{io, time::Duration};

use mesh_wire::hello::{self, Hello};
use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

/// How long an unknown client may be silent before it counts as one that waits for the server to
/// speak first. An agent sends its `ClientHello` at once; it takes longer only if a segment was
/// lost.
pub(super) const SILENCE: Duration = Duration::from_millis(50);

/// The same for an announced peer. It sends plaintext only if it has left the mesh and we have not
/// heard of that. Long enough for the retransmission of a lost `ClientHello` (Linux' first timeout
/// is at most a second).
pub(super) const PEER_SILENCE: Duration = Duration::from_secs(1);

/// How long to wait for the rest of a `ClientHello`: one retransmission. Beyond that, the
/// handshake's own timeout applies.
const REST: Duration = Duration::from_secs(1);

/// Pause before the second look at an unfinished `ClientHello`: bytes that were only peeked at
/// cause no wake-up. It doubles from look to look, so that a client that sends byte by byte does
/// not cause 500 looks.
const PAUSE: Duration = Duration::from_millis(2);

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// A `ClientHello` that offers nodemesh/1, or the beginning of one without the rest.
    LikeAgent,
    /// Anything else.
    LikePlaintext,
    /// Nothing came.
    Silent,
}

/// Looks at the first bytes, without taking any from the stream. Waits up to `silence` for a client
/// that sends nothing.
///
/// # Errors
/// The connection failed.
///
/// # Cancel safety
/// Nothing is consumed.
pub(super) async fn look(stream: &TcpStream, silence: Duration) -> io::Result<Looks> {
    let begun = Instant::now();
    let mut head = vec![0; hello::MAX_BYTES];
    let Ok(first) = timeout_at(begun + silence, stream.peek(&mut head)).await else {
        return Ok(Looks::Silent);
    };
    let mut seen = first?;
    let (mut pause, mut over) = (PAUSE, false);
    loop {
        match judge(head.get(..seen).unwrap_or_default()) {
            Some(looks) => return Ok(looks),
            // The rest is missing: not one byte of it may reach an application.
            None if over || begun.elapsed() > REST => return Ok(Looks::LikeAgent),
            None => sleep(pause).await,
        }
        pause *= 2;
        // Received bytes can still be peeked at after the end of the stream, and even after a
        // reset.
        over = stream.ready(Interest::READABLE).await?.is_read_closed();
        seen = stream.peek(&mut head).await?;
    }
}

/// What a beginning says; `None` if more bytes are needed.
fn judge(head: &[u8]) -> Option<Looks> {
    if head.is_empty() {
        return Some(Looks::LikePlaintext); // the end of the stream
    }
    match hello::look(head) {
        Hello::Mesh => Some(Looks::LikeAgent),
        Hello::OtherTls | Hello::NotTls => Some(Looks::LikePlaintext),
        Hello::Incomplete => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_and_what_is_too_long_are_no_agents() {
        assert_eq!(judge(&[]), Some(Looks::LikePlaintext));
        assert_eq!(judge(&[22, 3, 1]), None);
        let endless =
            [&[22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc][..], &[0; hello::MAX_BYTES - 9]].concat();
        assert_eq!(judge(&endless), Some(Looks::LikePlaintext));
    }
}
