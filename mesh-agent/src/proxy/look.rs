//! The look at a connection's first bytes, for arrivals from the mesh's source ports about which what we know is not
//! enough: the source may have joined the mesh a moment ago, may not have heard of an excluded port, or may be somebody's
//! ordinary client behind a masquerade.

use std::{io, time::Duration};

use tokio::{
    io::Interest,
    net::TcpStream,
    time::{Instant, sleep, timeout_at},
};

use crate::wire::hello::{self, Hello};

/// How long an unknown client may be silent before it is taken for one that waits for the server to speak first. An agent sends
/// its `ClientHello` at once; longer takes only one whose segment was lost.
pub(super) const SILENCE: Duration = Duration::from_millis(50);

/// The same for an announced peer, from which plaintext comes only if it has left the mesh and we have not heard: long
/// enough for the retransmission of a lost `ClientHello` (Linux' first timeout is at most a second).
pub(super) const PEER_SILENCE: Duration = Duration::from_secs(1);

/// How long the rest of a `ClientHello` is looked for: one retransmission. Longer is the handshake's own affair.
const REST: Duration = Duration::from_secs(1);

/// Pause before the second look at an unfinished `ClientHello`: bytes that are only peeked at wake nobody. It doubles from
/// look to look: who sends byte by byte shall not have us look 500 times.
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

/// Looks, without taking anything from the stream; at a client that says nothing, so long as `silence`.
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
            // Not one byte of it may reach an application.
            None if over || begun.elapsed() > REST => return Ok(Looks::LikeAgent),
            None => sleep(pause).await,
        }
        pause *= 2;
        // What has come stays there to be looked at after the end, and even after a reset.
        over = stream.ready(Interest::READABLE).await?.is_read_closed();
        seen = stream.peek(&mut head).await?;
    }
}

/// What a beginning says; `None` if more is needed.
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
